//! What an evaluation leaves in a run's folder.

use std::path::Path;

use crate::aside::write_whole;
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
    /// Writes them into `folder`, which is made if need be, each file whole or not at all: the picture before the
    /// card, whose name it has, so that whoever sees a card sees its picture.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn write(&self, folder: &Path) -> Result<Summary, EvaluationError> {
        let picture = self.picture.as_ref().map(|jpeg| {
            let path = folder.join(self.card.file_name()).with_extension("jpg");
            write_whole(&path, jpeg).map(|()| path)
        });
        let picture = picture.transpose()?;
        Ok(Summary::new(&self.card, &self.card.write(folder)?, picture))
    }
}
