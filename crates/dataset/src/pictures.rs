//! The pictures of a folder one by one, for programs that look at each once and keep none.

use std::ops::Range;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::decode::decode;
use crate::error::DatasetError;
use crate::folder::{self, PARTS};
use crate::geometry::{Geometry, PixelLayout};
use crate::pack::{self, Picture, Skipped};

/// All pictures below a folder, in order of their paths, whatever the folders in between.
#[derive(Debug)]
pub struct Pictures {
    folder: PathBuf,
    pictures: Vec<Picture>,
    is_laid_out: bool,
    skipped: Vec<Skipped>,
}

impl Pictures {
    /// Finds the pictures, by the same rules as [`Images::open`](crate::Images::open) but in all parts of a
    /// folder that is laid out for evaluation. None is read yet.
    ///
    /// # Errors
    /// A folder that is missing, unreadable or without pictures.
    pub fn open(folder: &Path) -> Result<Pictures, DatasetError> {
        Ok(Pictures {
            folder: folder.to_owned(),
            pictures: folder::list(folder)?.pictures,
            is_laid_out: folder::is_laid_out(folder),
            skipped: Vec::new(),
        })
    }

    /// How many there are, at least one.
    pub fn count(&self) -> usize {
        self.pictures.len()
    }

    /// A picture's path below the folder.
    ///
    /// # Panics
    /// If `index` is not below [`Pictures::count`].
    pub fn path(&self, index: usize) -> &Path {
        &self.pictures[index].relative
    }

    /// The folder that sorts a picture: the first below the whole, or below `train`, `test` or `val` where it is
    /// laid out so. `None` for a picture that lies directly there.
    ///
    /// # Panics
    /// If `index` is not below [`Pictures::count`].
    pub fn class(&self, index: usize) -> Option<String> {
        let mut parts = self.path(index).iter();
        let mut first = parts.next()?;
        if self.is_laid_out && PARTS.iter().any(|part| first == *part) {
            first = parts.next()?;
        }
        parts.next().map(|_| first.display().to_string())
    }

    /// Decodes some pictures into squares of `side_px`, with their indices, on rayon's threads. Those that
    /// cannot be decoded are left out and remembered.
    ///
    /// # Errors
    /// A picture that cannot be read, or by now too many of all that cannot be decoded.
    ///
    /// # Panics
    /// If `indices` end after [`Pictures::count`].
    pub fn decode(
        &mut self,
        indices: Range<usize>,
        side_px: u32,
    ) -> Result<Vec<(usize, Vec<u8>)>, DatasetError> {
        let paths = self.pictures[indices.clone()].par_iter().map(|picture| &picture.relative);
        let decoded: Vec<_> = paths
            .map(|path| {
                let path = self.folder.join(path);
                decode(&path, side_px).map_err(DatasetError::io("read", &path))
            })
            .collect();
        let mut records = Vec::with_capacity(decoded.len());
        for (index, record) in indices.zip(decoded) {
            match record? {
                Ok(record) => records.push((index, record)),
                Err(reason) => {
                    let path = self.path(index).display().to_string();
                    self.skipped.push(Skipped { index, path, reason });
                }
            }
        }
        pack::refuse_too_many(&self.folder, self.count(), &self.skipped)?;
        Ok(records)
    }

    /// The shape of pictures that were decoded at `side_px`.
    pub fn geometry(side_px: u32) -> Geometry {
        Geometry { width_px: side_px, height_px: side_px, layout: PixelLayout::Interleaved }
    }

    /// What was left out so far, and why, as sentences, in order.
    pub fn warnings(&self) -> Vec<String> {
        self.skipped.iter().map(ToString::to_string).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn place(folder: &Path, paths: &[&str]) {
        for path in paths {
            let path = folder.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            image::RgbImage::from_pixel(12, 8, image::Rgb([9; 3])).save(path).unwrap();
        }
    }

    #[test]
    fn classes_are_folders_where_there_are_some() {
        for (paths, expected) in [
            (["a/1.png", "b/c/2.png", "z.png"], [Some("a"), Some("b"), None]),
            (["test/x/1.png", "train/2.png", "train/y/3.png"], [Some("x"), None, Some("y")]),
            (["train/x/1.png", "train/x/2.png", "u/3.png"], [Some("train"), Some("train"), Some("u")]),
        ] {
            let folder = tempfile::tempdir().unwrap();
            place(folder.path(), &paths);
            let pictures = Pictures::open(folder.path()).unwrap();
            let found: Vec<_> = (0..3).map(|index| pictures.class(index)).collect();
            assert_eq!(found, expected.map(|class| class.map(str::to_owned)), "{paths:?}");
            assert_eq!(pictures.path(1), Path::new(paths[1]));
        }
    }

    #[test]
    fn broken_pictures_are_left_out_until_they_are_too_many() {
        let folder = tempfile::tempdir().unwrap();
        place(folder.path(), &["good1.png", "good2.png", "good3.png"]);
        for name in ["a", "b", "c"] {
            fs::write(folder.path().join(format!("{name}.jpg")), "x").unwrap();
        }
        let mut pictures = Pictures::open(folder.path()).unwrap();
        assert_eq!(pictures.decode(0..2, 8).unwrap(), []);
        let records = pictures.decode(2..6, 8).unwrap();
        assert_eq!(records.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [3, 4, 5]);
        assert!(records.iter().all(|(_, record)| record.len() == Pictures::geometry(8).record_bytes()));
        assert!(pictures.warnings()[2].starts_with("c.jpg is left out: "), "{:?}", pictures.warnings());

        fs::write(folder.path().join("d.jpg"), "x").unwrap();
        let mut pictures = Pictures::open(folder.path()).unwrap();
        let error = pictures.decode(0..7, 8).unwrap_err().to_string();
        assert!(error.contains("found 4 that cannot be decoded, first a.jpg"), "{error}");
    }
}
