//! An opened data set, whatever its format.

use std::path::{Path, PathBuf};

use recipe::Data;

use crate::error::DatasetError;
use crate::geometry::Geometry;
use crate::manifest::Manifest;
use crate::record_file::RecordFile;
use crate::{cifar10, folder, stl10, synthetic};

/// Told now and then while images are prepared: how many are done, of how many.
pub type Progress<'a> = dyn FnMut(u64, u64) + 'a;

/// The two labelled parts of a data set, for evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// The part that a classifier may learn from.
    Train,
    /// The part that it is judged on.
    Test,
}

/// Images of one size in memory-mapped files. Opening checks the files; reading a record cannot fail.
#[derive(Debug)]
pub struct Images {
    name: String,
    data: Data,
    geometry: Geometry,
    label_bytes: usize,
    files: Vec<RecordFile>,
    /// For each file, the index after its last record.
    ends: Vec<u64>,
    labels: Labels,
    class_names: Vec<String>,
    warnings: Vec<String>,
}

/// Where labels stand.
#[derive(Debug)]
pub(crate) enum Labels {
    /// There are none.
    Absent,
    /// In the byte before each record's pixels.
    Leading,
    /// Here, one for each image.
    Beside(Vec<u8>),
}

/// What a format found; becomes [`Images`].
pub(crate) struct Found {
    pub(crate) name: String,
    pub(crate) geometry: Geometry,
    pub(crate) label_bytes: usize,
    pub(crate) files: Vec<RecordFile>,
    pub(crate) labels: Labels,
    pub(crate) class_names: Vec<String>,
    pub(crate) warnings: Vec<String>,
}

impl Images {
    /// Opens the images to learn from. A folder of pictures is packed and synthetic images are drawn into
    /// `cache_dir` the first time; after that, what was written there is read and hashed each time. Opening the other
    /// sources is quick.
    ///
    /// # Errors
    /// Files that are missing, unreadable, truncated, oversized, empty or foreign: each names the file, what
    /// was expected, what was found and what to do.
    pub fn open(data: &Data, cache_dir: &Path) -> Result<Images, DatasetError> {
        Images::open_with_progress(data, cache_dir, &mut |_, _| {})
    }

    /// As [`Images::open`], and tells of its progress when it packs or draws.
    ///
    /// # Errors
    /// As [`Images::open`].
    pub fn open_with_progress(
        data: &Data,
        cache_dir: &Path,
        progress: &mut Progress<'_>,
    ) -> Result<Images, DatasetError> {
        let found = match data {
            Data::Synthetic { images } => {
                let folder = synthetic::prepare(*images, cache_dir, progress)?;
                Found { name: format!("synthetic-{images}"), ..stl10::open(&folder, false)? }
            }
            Data::Stl10 { path, include_train } => stl10::open(path, *include_train)?,
            Data::Cifar10 { path } => cifar10::open(path)?,
            Data::Folder { path, image_px } => folder::open(path, *image_px, cache_dir, progress)?,
        };
        Images::new(data, found)
    }

    /// Opens a labelled part, for evaluation. A folder of pictures needs `train/<class>/` and
    /// `test/<class>/` (or `val/<class>/`).
    ///
    /// # Errors
    /// As [`Images::open`]; also labels out of range, and folders without classes.
    pub fn open_split(data: &Data, split: Split, cache_dir: &Path) -> Result<Images, DatasetError> {
        let progress: &mut Progress<'_> = &mut |_, _| {};
        let found = match data {
            Data::Synthetic { images } => {
                let folder = synthetic::prepare(*images, cache_dir, progress)?;
                Found { name: format!("synthetic-{images}"), ..stl10::open_split(&folder, split)? }
            }
            Data::Stl10 { path, .. } => stl10::open_split(path, split)?,
            Data::Cifar10 { path } => cifar10::open_split(path, split)?,
            Data::Folder { path, image_px } => {
                folder::open_split(path, split, *image_px, cache_dir, progress)?
            }
        };
        Images::new(data, found)
    }

    /// Opens the files that a manifest speaks of, where this machine sees files of these names and sizes.
    /// That they hold the same images is proved later, block by block, with the manifest's hashes. Nothing is
    /// packed or drawn, and there are no labels.
    ///
    /// # Errors
    /// No such files, or others of the same names.
    pub fn open_local(manifest: &Manifest) -> Result<Images, DatasetError> {
        let advice = "the images are fetched from the coordinator instead";
        let label_bytes = manifest.label_bytes as usize;
        let open = |path: &PathBuf| RecordFile::open(path, &manifest.geometry, label_bytes, advice);
        let images = Images::new(
            &manifest.data,
            Found {
                name: manifest.name.clone(),
                geometry: manifest.geometry,
                label_bytes,
                files: manifest.files.iter().map(open).collect::<Result<_, _>>()?,
                labels: Labels::Absent,
                class_names: Vec::new(),
                warnings: Vec::new(),
            },
        )?;
        if images.len() != manifest.images {
            let path = manifest.files.first().cloned().unwrap_or_default();
            let (expected, found) = (format!("{} images", manifest.images), format!("{}", images.len()));
            return Err(DatasetError::content(&path, expected, found, advice));
        }
        Ok(images)
    }

    fn new(data: &Data, found: Found) -> Result<Images, DatasetError> {
        let Found { name, geometry, label_bytes, files, labels, class_names, warnings } = found;
        let ends: Vec<u64> = files
            .iter()
            .scan(0, |end, file| {
                *end += file.len();
                Some(*end)
            })
            .collect();
        let images = ends.last().copied().unwrap_or(0);
        if images > u64::from(u32::MAX) {
            return Err(DatasetError::TooManyImages { name, images });
        }
        let data = data.clone();
        Ok(Images { name, data, geometry, label_bytes, files, ends, labels, class_names, warnings })
    }

    /// How many images there are, at most `u32::MAX`.
    pub fn len(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Never true: a data set without images is refused when it is opened.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The pixels of one image, [`Geometry::record_bytes`] bytes in the order of [`Geometry::layout`].
    ///
    /// # Panics
    /// If `index` is not below [`Images::len`].
    pub fn record(&self, index: u64) -> &[u8] {
        let (file, within) = self.place(index);
        file.pixels(within)
    }

    /// The class of an image, counted from 0, where the source says it.
    ///
    /// # Panics
    /// If `index` is not below [`Images::len`].
    pub fn label(&self, index: u64) -> Option<u8> {
        match &self.labels {
            Labels::Absent => None,
            Labels::Leading => {
                let (file, within) = self.place(index);
                Some(file.label(within))
            }
            Labels::Beside(labels) => Some(labels[index as usize]),
        }
    }

    /// Shape and byte order of every image.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// For people: which data set this is.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The names of the classes, by label; empty where there are no labels.
    pub fn class_names(&self) -> &[String] {
        &self.class_names
    }

    /// What was left out, and why, as sentences: files of a folder that are no pictures to
    /// this program, all in one, and pictures that cannot be decoded.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The mapped files, in order.
    pub fn file_paths(&self) -> Vec<PathBuf> {
        self.files.iter().map(|file| file.path().to_owned()).collect()
    }

    pub(crate) fn files(&self) -> &[RecordFile] {
        &self.files
    }

    pub(crate) fn data(&self) -> &Data {
        &self.data
    }

    pub(crate) fn label_bytes(&self) -> usize {
        self.label_bytes
    }

    fn place(&self, index: u64) -> (&RecordFile, u64) {
        let file = self.ends.partition_point(|end| *end <= index);
        let start = if file == 0 { 0 } else { self.ends[file - 1] };
        (&self.files[file], index - start)
    }
}
