//! A table as safetensors: `features`, float32 `[rows, columns]`, and `paths` and `labels`, each a JSON array as
//! the bytes of a U8 tensor, because the header's own metadata has a limit that a large folder's paths pass.

use std::fs::File;
use std::io::{self, BufWriter, Seek, Write};
use std::path::Path;

use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use super::{About, Row, Table};
use crate::aside;

pub(super) struct SafetensorsTable {
    /// The header holds the number of rows, which is known last, so the features wait in a file without a name.
    features: BufWriter<File>,
    columns: usize,
    paths: Vec<String>,
    labels: Vec<Option<String>>,
    about: [(String, String); 2],
}

/// The header's length is a multiple of this, so that the numbers behind it are aligned.
const ALIGNMENT: usize = 8;

impl SafetensorsTable {
    pub(super) fn begin(path: &Path, columns: usize, about: &About<'_>) -> io::Result<SafetensorsTable> {
        let features = BufWriter::new(aside::begin(path)?.into_file());
        Ok(SafetensorsTable {
            features,
            columns,
            paths: Vec::new(),
            labels: Vec::new(),
            about: about.pairs(),
        })
    }

    /// The file's beginning, for tensors of these lengths in bytes that lie one after the other.
    fn header(&self, paths: &[u8], labels: &[u8]) -> io::Result<Vec<u8>> {
        let rows = self.paths.len();
        let mut end = 0;
        let mut place = |name: &str, dtype, shape: Vec<usize>, bytes: usize| {
            let start = end;
            end += bytes;
            (name.to_owned(), TensorInfo { dtype, shape, data_offsets: (start, end) })
        };
        let tensors = vec![
            place("features", Dtype::F32, vec![rows, self.columns], size_of::<f32>() * rows * self.columns),
            place("paths", Dtype::U8, vec![paths.len()], paths.len()),
            place("labels", Dtype::U8, vec![labels.len()], labels.len()),
        ];
        let metadata = self.about.iter().cloned().collect();
        let header = Metadata::new(Some(metadata), tensors).map_err(io::Error::other)?;
        let mut text = serde_json::to_vec(&header)?;
        text.resize(text.len().next_multiple_of(ALIGNMENT), b' ');
        Ok([&(text.len() as u64).to_le_bytes(), text.as_slice()].concat())
    }
}

impl Table for SafetensorsTable {
    fn write(&mut self, rows: &[Row], features: &[f32]) -> io::Result<()> {
        for row in rows {
            self.paths.push(row.path.clone());
            self.labels.push(row.label.clone());
        }
        for feature in features {
            self.features.write_all(&feature.to_le_bytes())?;
        }
        Ok(())
    }

    fn finish(self: Box<Self>, path: &Path) -> io::Result<()> {
        let (paths, labels) = (serde_json::to_vec(&self.paths)?, serde_json::to_vec(&self.labels)?);
        let mut out = aside::begin(path)?;
        out.write_all(&self.header(&paths, &labels)?)?;
        let mut features = self.features.into_inner().map_err(io::IntoInnerError::into_error)?;
        features.rewind()?;
        io::copy(&mut features, &mut out)?;
        out.write_all(&paths)?;
        out.write_all(&labels)?;
        aside::publish(out, path)
    }
}
