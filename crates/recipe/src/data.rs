//! Where the images come from.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The images to learn from. Only the coordinator needs them: workers receive what they train on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "source", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Data {
    /// Ten classes of 96x96 images, drawn procedurally: needs no download.
    Synthetic {
        /// How many images to draw.
        images: u32,
    },
    /// STL-10 in its official binary layout: the 100,000 unlabeled images of 96x96.
    Stl10 {
        /// The folder that holds `unlabeled_X.bin`.
        path: PathBuf,
        /// Also learn from the 5,000 images of `train_X.bin` (without their labels).
        #[serde(default)]
        include_train: bool,
    },
    /// CIFAR-10 in its official binary layout: the 50,000 training images of 32x32.
    Cifar10 {
        /// The folder that holds `data_batch_1.bin` to `data_batch_5.bin`.
        path: PathBuf,
    },
    /// Any nested folder of JPEG and PNG files, without labels.
    Folder {
        /// The folder.
        path: PathBuf,
        /// The side of the square at which images are kept, in pixels: larger ones are scaled so that their
        /// shorter side fits, then cut in the middle.
        image_px: u32,
    },
}

impl Data {
    /// The same images, where `other` has them, if it is of the same kind.
    #[must_use]
    pub fn moved_to(&self, other: &Data) -> Data {
        let mut moved = self.clone();
        match (&mut moved, other) {
            (Data::Stl10 { path, .. }, Data::Stl10 { path: other, .. })
            | (Data::Cifar10 { path }, Data::Cifar10 { path: other })
            | (Data::Folder { path, .. }, Data::Folder { path: other, .. }) => path.clone_from(other),
            _ => {}
        }
        moved
    }
}
