//! Images that are named apart from a recipe, and where those of a card are now.

use std::fmt;
use std::mem::discriminant;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use recipe::{Data, Recipe};

/// A data set with the folder that it lies in, written as `cifar10:data/cifar-10-batches-bin`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataSource {
    /// STL-10's binary files.
    Stl10(PathBuf),
    /// CIFAR-10's binary files.
    Cifar10(PathBuf),
    /// Pictures.
    Folder(PathBuf),
}

impl DataSource {
    /// These images, for a network of `recipe`. What it says of images of their kind holds for these, too: the same ones
    /// by another name give the same figures.
    pub fn of(&self, recipe: &Recipe) -> Data {
        let asked = match self.clone() {
            DataSource::Stl10(path) => Data::Stl10 { path, include_train: false },
            DataSource::Cifar10(path) => Data::Cifar10 { path },
            DataSource::Folder(path) => Data::Folder { path, image_px: recipe.views.crop_px },
        };
        let mut own = [recipe.labelled_data(), &recipe.data].into_iter();
        match own.find(|own| discriminant(*own) == discriminant(&asked)) {
            Some(own) => own.moved_to(&asked),
            None => asked,
        }
    }

    /// How images are named; `None` for drawn ones, which lie nowhere.
    pub(crate) fn naming(data: &Data) -> Option<DataSource> {
        match data.clone() {
            Data::Synthetic { .. } => None,
            Data::Stl10 { path, .. } => Some(DataSource::Stl10(path)),
            Data::Cifar10 { path } => Some(DataSource::Cifar10(path)),
            Data::Folder { path, .. } => Some(DataSource::Folder(path)),
        }
    }

    /// Where they lie.
    pub fn folder(&self) -> &Path {
        match self {
            DataSource::Stl10(path) | DataSource::Cifar10(path) | DataSource::Folder(path) => path,
        }
    }
}

impl FromStr for DataSource {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<DataSource, &'static str> {
        let expected = "expected stl10:FOLDER, cifar10:FOLDER or folder:FOLDER";
        let (source, folder) = text.split_once(':').ok_or(expected)?;
        match source {
            "stl10" => Ok(DataSource::Stl10(folder.into())),
            "cifar10" => Ok(DataSource::Cifar10(folder.into())),
            "folder" => Ok(DataSource::Folder(folder.into())),
            _ => Err(expected),
        }
    }
}

impl fmt::Display for DataSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = match self {
            DataSource::Stl10(_) => "stl10",
            DataSource::Cifar10(_) => "cifar10",
            DataSource::Folder(_) => "folder",
        };
        write!(formatter, "{source}:{}", self.folder().display())
    }
}

/// Where the images that a card calls `source` are now: if not there any more, where the run's recipe has them, which
/// moves with them.
pub fn present_place(source: &Data, recipe: &Recipe) -> Data {
    match DataSource::naming(source) {
        Some(named) if !named.folder().is_dir() => source.moved_to(recipe.labelled_data()),
        _ => source.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::quickstart;

    fn folder(path: &str, image_px: u32) -> Data {
        Data::Folder { path: path.into(), image_px }
    }

    #[test]
    fn images_by_name_are_those_of_the_recipe() {
        let pictures = Recipe { data: folder("own", 144), ..quickstart() };
        let mut judged = quickstart();
        judged.evaluation.data = Some(folder("own", 100));
        let crop_px = quickstart().views.crop_px;
        let stl10 = Data::Stl10 { path: "own".into(), include_train: true };
        for (recipe, text, expected) in [
            (&pictures, "folder:own", folder("own", 144)),
            (&pictures, "folder:a:b", folder("a:b", 144)),
            (&judged, "folder:other", folder("other", 100)),
            (&quickstart(), "folder:other", folder("other", crop_px)),
            (&Recipe { data: stl10.clone(), ..quickstart() }, "stl10:own", stl10),
            (&pictures, "stl10:other", Data::Stl10 { path: "other".into(), include_train: false }),
            (&pictures, "cifar10:other", Data::Cifar10 { path: "other".into() }),
        ] {
            let source: DataSource = text.parse().unwrap();
            assert_eq!(source.of(recipe), expected, "{text}");
            assert_eq!((source.to_string(), DataSource::naming(&expected)), (text.to_owned(), Some(source)));
        }
        for text in ["own", "imagenet:own"] {
            assert!(text.parse::<DataSource>().unwrap_err().contains("cifar10:FOLDER"));
        }
    }

    #[test]
    fn images_that_moved_are_where_the_recipe_has_them() {
        let there = tempfile::tempdir().unwrap();
        let there = there.path().to_str().unwrap();
        let recipe = Recipe { data: folder("moved", 144), ..quickstart() };
        for (source, expected) in [
            (folder(there, 128), folder(there, 128)),
            (folder("nowhere", 128), folder("moved", 128)),
            (Data::Cifar10 { path: "nowhere".into() }, Data::Cifar10 { path: "nowhere".into() }),
            (Data::Synthetic { images: 8 }, Data::Synthetic { images: 8 }),
        ] {
            assert_eq!(present_place(&source, &recipe), expected);
        }
    }
}
