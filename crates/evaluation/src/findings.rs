//! What an evaluation leaves in a run's folder.

use std::path::Path;

use crate::aside::{self, write_whole};
use crate::card::Card;
use crate::error::EvaluationError;
use crate::summary::Summary;

/// A result card, and for some evaluations a picture to look at.
#[derive(Debug, Clone, PartialEq)]
pub struct Findings {
    /// The figures.
    pub card: Card,
    /// A JPEG: of kNN some test images, each with its nearest neighbours.
    pub picture: Option<Vec<u8>>,
}

impl From<Card> for Findings {
    fn from(card: Card) -> Findings {
        Findings { card, picture: None }
    }
}

impl Findings {
    /// Makes `folder` and proves that files can be made in it: whoever computes for hours asks first.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn prepare(folder: &Path) -> Result<(), EvaluationError> {
        let attempt = folder.join("card.json");
        aside::begin(&attempt).map(drop).map_err(EvaluationError::io("write into", folder))
    }

    /// The figures in one line, with the names that the files have in `folder`.
    pub fn summary(&self, folder: &Path) -> Summary {
        let card = folder.join(self.card.file_name());
        let picture = self.picture.as_ref().map(|_| card.with_extension("jpg"));
        Summary::new(&self.card, card, picture)
    }

    /// Writes them into `folder`, which is made if need be, each file whole or not at all: the picture before the
    /// card, whose name it has, so that whoever sees a card sees its picture.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn write(&self, folder: &Path) -> Result<(), EvaluationError> {
        if let (Some(jpeg), Some(path)) = (&self.picture, self.summary(folder).picture) {
            write_whole(&path, jpeg)?;
        }
        self.card.write(folder)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_folder_that_takes_no_files_is_told_of_before_anything_is_computed() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("new/evaluations");
        Findings::prepare(&folder).unwrap();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "nothing is left");
        let file = place.path().join("file");
        fs::write(&file, "x").unwrap();
        let error = Findings::prepare(&file.join("evaluations")).unwrap_err().to_string();
        assert!(error.contains("cannot write into") && error.contains("file/evaluations"), "{error}");
    }
}
