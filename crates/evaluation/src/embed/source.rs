//! Where the rows of a table come from.

use std::ops::Range;
use std::path::Path;

use dataset::{Geometry, Images, Pictures};
use recipe::Data;

use crate::error::EvaluationError;

/// One picture on its way into the network.
pub(super) struct Row {
    /// Its number in the source.
    pub(super) index: u64,
    /// Below its folder; for a data set's own files, its name and the image's number.
    pub(super) path: String,
    pub(super) label: Option<String>,
    pub(super) record: Vec<u8>,
}

/// Images, a batch at a time.
pub(super) enum Pixels {
    Files { pictures: Pictures, side_px: u32, warned: usize },
    Records(Images),
}

impl Pixels {
    pub(super) fn open(data: &Data, cache_dir: &Path) -> Result<Pixels, EvaluationError> {
        match data {
            Data::Folder { path, image_px } => {
                Ok(Pixels::Files { pictures: Pictures::open(path)?, side_px: *image_px, warned: 0 })
            }
            _ => Ok(Pixels::Records(Images::open(data, cache_dir)?)),
        }
    }

    pub(super) fn geometry(&self) -> Geometry {
        match self {
            Pixels::Files { side_px, .. } => Pictures::geometry(*side_px),
            Pixels::Records(images) => images.geometry(),
        }
    }

    /// How many images there are, with those that may turn out to be broken.
    pub(super) fn count(&self) -> u64 {
        match self {
            Pixels::Files { pictures, .. } => pictures.count() as u64,
            Pixels::Records(images) => images.len(),
        }
    }

    /// The images at `indices`, without broken ones, which are told of.
    pub(super) fn rows(&mut self, indices: Range<u64>) -> Result<Vec<Row>, EvaluationError> {
        match self {
            Pixels::Files { pictures, side_px, warned } => {
                let decoded = pictures.decode(indices.start as usize..indices.end as usize, *side_px)?;
                let warnings = pictures.warnings();
                for warning in &warnings[*warned..] {
                    tracing::warn!("{warning}");
                }
                *warned = warnings.len();
                let row = |(index, record)| Row {
                    index: index as u64,
                    path: pictures.path(index).display().to_string(),
                    label: pictures.class(index),
                    record,
                };
                Ok(decoded.into_iter().map(row).collect())
            }
            Pixels::Records(images) => {
                let label = |index| images.class_names().get(usize::from(images.label(index)?)).cloned();
                let row = |index| Row {
                    index,
                    path: format!("{}/{index}", images.name()),
                    label: label(index),
                    record: images.record(index).to_vec(),
                };
                Ok(indices.map(row).collect())
            }
        }
    }
}
