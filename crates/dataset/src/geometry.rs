//! The shape of one image and the order of its bytes.

use serde::{Deserialize, Serialize};

/// Colour channels of every image: red, green, blue, one byte each.
pub(crate) const CHANNELS: usize = 3;

/// The shape of every image of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Geometry {
    /// Columns.
    pub width_px: u32,
    /// Rows.
    pub height_px: u32,
    /// The order of the bytes.
    pub layout: PixelLayout,
}

/// The order of an image's bytes. Records keep the order of the files they come from, so that files can be
/// mapped as they are; the view maker reads all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PixelLayout {
    /// STL-10: a plane of red, one of green, one of blue, each column after column.
    PlanarColumnMajor,
    /// CIFAR-10: a plane of red, one of green, one of blue, each row after row.
    PlanarRowMajor,
    /// Row after row of pixels, each red, green, blue.
    Interleaved,
}

impl Geometry {
    /// The bytes of one image.
    pub fn record_bytes(&self) -> usize {
        CHANNELS * self.width_px as usize * self.height_px as usize
    }
}
