//! Features of pictures as a table, for searches, maps and classifiers of other programs.

mod csv;
mod parquet;
mod safetensors;
mod source;
#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;

use dataset::Geometry;
use dataset::views::ViewMaker;
use recipe::{Data, Views};
use simsiam::{Device, FrozenBackbone};

use crate::encoder::{Encoder, WeightsIdentity};
use crate::error::EvaluationError;
use crate::features::{BATCH, Input, InputIdentity};
use crate::job::{Phase, Progress};
use source::{Pixels, Row};

/// What [`embed()`] wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Embedded {
    /// Pictures, without those that could not be decoded.
    pub rows: u64,
    /// Length of the features.
    pub columns: usize,
}

/// Looks at every image of `data` and writes its path, its label where there is one, and its features to `path`:
/// as Parquet, CSV or safetensors, as the name says. A folder's pictures are decoded as they are needed and none
/// is kept, so memory does not grow with their number; they enter the network as in every other evaluation.
///
/// # Errors
/// Images that cannot be used, features that are not finite, a name that says no format, those of the disk.
/// Whatever was at `path` is untouched then.
pub fn embed(
    encoder: &Encoder,
    data: &Data,
    input: Input,
    path: &Path,
    (cache_dir, device): (&Path, &Device),
    progress: &mut Progress<'_>,
) -> Result<Embedded, EvaluationError> {
    let format = Format::of(path)?;
    let mut pixels = Pixels::open(data, cache_dir)?;
    let network = Network::new(encoder, pixels.geometry(), input, device);
    let about = About { weights: encoder.identity(), input: &network.input };
    let cannot_write = |error| EvaluationError::io("write", path)(error);

    let (mut table, mut embedded, total) = (None, Embedded { rows: 0, columns: 0 }, pixels.count());
    for start in (0..total).step_by(BATCH) {
        let end = (start + BATCH as u64).min(total);
        let rows = pixels.rows(start..end)?;
        if !rows.is_empty() {
            let features = network.features(&rows)?; // [rows, columns]
            embedded =
                Embedded { rows: embedded.rows + rows.len() as u64, columns: features.len() / rows.len() };
            let table = match &mut table {
                Some(table) => table,
                None => table.insert(format.begin(path, embedded.columns, &about).map_err(cannot_write)?),
            };
            table.write(&rows, &features).map_err(cannot_write)?;
        }
        progress(Phase::Features, end, total);
    }
    // A source without one good picture was refused.
    table.map_or(Ok(()), |table| table.finish(path)).map_err(cannot_write)?;
    Ok(embedded)
}

/// The frozen network, and how images enter it.
struct Network<'a> {
    encoder: &'a Encoder,
    backbone: FrozenBackbone,
    maker: ViewMaker,
    input: InputIdentity,
}

impl<'a> Network<'a> {
    fn new(encoder: &'a Encoder, geometry: Geometry, input: Input, device: &Device) -> Network<'a> {
        let views = &encoder.recipe().views;
        let input = InputIdentity::of(views, geometry, input);
        Network {
            encoder,
            backbone: FrozenBackbone::new(&encoder.recipe().model, encoder.state(), device),
            maker: ViewMaker::new(&Views { crop_px: input.side_px, ..views.clone() }, geometry),
            input,
        }
    }

    /// The features of some images, row after row.
    fn features(&self, rows: &[Row]) -> Result<Vec<f32>, EvaluationError> {
        let records: Vec<&[u8]> = rows.iter().map(|row| row.record.as_slice()).collect();
        let mut batch = vec![0.0; records.len() * self.maker.view_len()];
        self.maker.render_plain_batch(&records, &mut batch);
        let features = self.backbone.features(batch, self.input.side_px as usize);
        if let Some(place) = features.iter().position(|value| !value.is_finite()) {
            let row = &rows[place / (features.len() / rows.len())];
            let (part, step) = (format!("those to embed, {},", row.path), self.encoder.state().step);
            return Err(EvaluationError::NotFinite { part, image: row.index, step });
        }
        Ok(features)
    }
}

/// What made a table, for its metadata.
struct About<'a> {
    weights: &'a WeightsIdentity,
    input: &'a InputIdentity,
}

impl About<'_> {
    /// Keys and values, as JSON.
    fn pairs(&self) -> [(String, String); 2] {
        let text =
            |value: serde_json::Result<String>| value.expect("numbers and names can be written as JSON");
        [
            ("weights".to_owned(), text(serde_json::to_string(self.weights))),
            ("input".to_owned(), text(serde_json::to_string(self.input))),
        ]
    }
}

/// How a table is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Parquet,
    Csv,
    Safetensors,
}

impl Format {
    fn of(path: &Path) -> Result<Format, EvaluationError> {
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        match extension.to_str() {
            Some("parquet") => Ok(Format::Parquet),
            Some("csv") => Ok(Format::Csv),
            Some("safetensors") => Ok(Format::Safetensors),
            _ => {
                let expected = "a name that ends in .parquet, .csv or .safetensors";
                let found = format!("{:?}", path.file_name().unwrap_or_default());
                Err(EvaluationError::content(path, expected, found, "choose one of these formats"))
            }
        }
    }

    fn begin(self, path: &Path, columns: usize, about: &About<'_>) -> io::Result<Box<dyn Table>> {
        Ok(match self {
            Format::Parquet => Box::new(parquet::ParquetTable::begin(path, columns, about)?),
            Format::Csv => Box::new(csv::CsvTable::begin(path, columns)?),
            Format::Safetensors => Box::new(safetensors::SafetensorsTable::begin(path, columns, about)?),
        })
    }
}

/// A table on its way to the disk.
trait Table {
    /// Appends rows with their features, row after row.
    fn write(&mut self, rows: &[Row], features: &[f32]) -> io::Result<()>;

    /// Gives it its name.
    fn finish(self: Box<Self>, path: &Path) -> io::Result<()>;
}
