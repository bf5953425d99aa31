//! STL-10 in its official binary layout (Coates, Ng and Lee 2011).
//!
//! Images are planes of 96x96 bytes, red, green, blue, each column after column. Labels count from 1, in a
//! file of their own. Any whole number of images is accepted, so that a part of the data can be used too.

use std::fs;
use std::path::Path;

use crate::error::DatasetError;
use crate::geometry::{Geometry, PixelLayout};
use crate::images::{Found, Labels, Split};
use crate::record_file::{RecordFile, open_plain};

pub(crate) const GEOMETRY: Geometry =
    Geometry { width_px: 96, height_px: 96, layout: PixelLayout::PlanarColumnMajor };

pub(crate) const CLASS_NAMES_FILE: &str = "class_names.txt";

const CLASS_NAMES: [&str; 10] =
    ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"];

/// What to do where its files are not as they must be.
pub const ADVICE: &str = "name by --set data.path=FOLDER, or to `evaluate` by --data, the folder of STL-10's binary files; `coordinator fetch stl10` downloads them";

/// The images to learn from.
pub(crate) fn open(folder: &Path, include_train: bool) -> Result<Found, DatasetError> {
    let mut files = vec![open_images(folder, "unlabeled_X.bin")?];
    if include_train {
        files.push(open_images(folder, "train_X.bin")?);
    }
    Ok(found(files, Labels::Absent, Vec::new()))
}

/// A labelled part.
pub(crate) fn open_split(folder: &Path, split: Split) -> Result<Found, DatasetError> {
    let (images, labels) = match split {
        Split::Train => ("train_X.bin", "train_y.bin"),
        Split::Test => ("test_X.bin", "test_y.bin"),
    };
    let images = open_images(folder, images)?;
    let labels = read_labels(&folder.join(labels), images.len())?;
    Ok(found(vec![images], Labels::Beside(labels), class_names(folder)))
}

fn found(files: Vec<RecordFile>, labels: Labels, class_names: Vec<String>) -> Found {
    let (name, warnings) = ("stl10".to_owned(), Vec::new());
    Found { name, geometry: GEOMETRY, label_bytes: 0, files, labels, class_names, warnings }
}

fn open_images(folder: &Path, name: &str) -> Result<RecordFile, DatasetError> {
    RecordFile::open(&folder.join(name), &GEOMETRY, 0, ADVICE)
}

/// Labels as the file has them, 1 to 10, to labels as this crate has them, 0 to 9.
fn read_labels(path: &Path, images: u64) -> Result<Vec<u8>, DatasetError> {
    let (_, found_bytes, _) = open_plain(path, "a file of labels", ADVICE)?;
    if found_bytes != images {
        let expected = format!("{images} labels of one byte, one for each image");
        return Err(DatasetError::content(path, expected, format!("{found_bytes} bytes"), ADVICE));
    }
    let mut labels = fs::read(path).map_err(DatasetError::io("read", path))?;
    for (position, label) in labels.iter_mut().enumerate() {
        if !(1..=10).contains(label) {
            let found = format!("{label} at byte {position}");
            return Err(DatasetError::content(path, "labels from 1 to 10", found, ADVICE));
        }
        *label -= 1;
    }
    Ok(labels)
}

/// The names beside the data if they are ten; the file is a help for people and nothing depends on it.
fn class_names(folder: &Path) -> Vec<String> {
    let text = fs::read_to_string(folder.join(CLASS_NAMES_FILE)).unwrap_or_default();
    let names: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    if names.len() == 10 { names } else { CLASS_NAMES.map(str::to_owned).to_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Images;
    use proptest::prelude::*;
    use recipe::Data;

    const RECORD: usize = 27_648;

    fn write(folder: &Path, name: &str, bytes: &[u8]) {
        fs::write(folder.join(name), bytes).unwrap();
    }

    fn good(folder: &Path) {
        let images = |count: usize, add: usize| -> Vec<u8> {
            (0..count * RECORD).map(|byte| (byte / RECORD + add) as u8).collect()
        };
        write(folder, "unlabeled_X.bin", &images(5, 0));
        write(folder, "train_X.bin", &images(3, 100));
        write(folder, "train_y.bin", &[1, 10, 5]);
        write(folder, "test_X.bin", &images(2, 200));
        write(folder, "test_y.bin", &[2, 3]);
    }

    fn data(folder: &Path, include_train: bool) -> Data {
        Data::Stl10 { path: folder.to_owned(), include_train }
    }

    #[test]
    fn records_come_from_both_files_in_order() {
        let folder = tempfile::tempdir().unwrap();
        good(folder.path());
        let images = Images::open(&data(folder.path(), true), folder.path()).unwrap();
        assert_eq!(images.len(), 8);
        for (index, value) in [(0, 0), (4, 4), (5, 100), (7, 102)] {
            assert_eq!(images.record(index), vec![value; RECORD], "image {index}");
            assert_eq!(images.label(index), None);
        }
        assert_eq!(Images::open(&data(folder.path(), false), folder.path()).unwrap().len(), 5);
    }

    #[test]
    fn labelled_parts_count_from_zero() {
        let folder = tempfile::tempdir().unwrap();
        good(folder.path());
        let train = Images::open_split(&data(folder.path(), false), Split::Train, folder.path()).unwrap();
        let labels: Vec<_> = (0..3).map(|index| train.label(index).unwrap()).collect();
        assert_eq!(labels, [0, 9, 4]);
        assert_eq!(train.class_names()[9], "truck");
        let test = Images::open_split(&data(folder.path(), false), Split::Test, folder.path()).unwrap();
        assert_eq!((test.len(), test.label(1), test.record(1)[0]), (2, Some(2), 201));
    }

    /// Each: a file, what it is made to hold (`None`: removed), and phrases that the error must hold.
    #[test]
    fn bad_files_are_refused_by_name() {
        let gzip = [[0x1f, 0x8b].as_slice(), &[7; 1000]].concat();
        for (name, content, phrases) in [
            ("unlabeled_X.bin", None, ["unlabeled_X.bin", "found nothing", "coordinator fetch stl10"]),
            ("unlabeled_X.bin", Some(vec![0; 0]), ["unlabeled_X.bin", "27648", "an empty file"]),
            (
                "unlabeled_X.bin",
                Some(vec![0; 2 * RECORD - 1]),
                ["1 records and 27647 bytes", "27648", "fetch"],
            ),
            ("unlabeled_X.bin", Some(vec![0; RECORD + 1]), ["1 records and 1 bytes", "27648", "fetch"]),
            ("unlabeled_X.bin", Some(gzip), ["unlabeled_X.bin", "1002 bytes", "fetch"]),
            ("train_X.bin", None, ["train_X.bin", "found nothing", "fetch"]),
            ("test_X.bin", Some(vec![0; 5]), ["test_X.bin", "0 records and 5 bytes", "27648"]),
            ("train_y.bin", None, ["train_y.bin", "labels", "found nothing"]),
            ("train_y.bin", Some(vec![1, 2]), ["train_y.bin", "3 labels", "2 bytes"]),
            ("train_y.bin", Some(vec![1, 2, 3, 4]), ["train_y.bin", "3 labels", "4 bytes"]),
            ("train_y.bin", Some(vec![1, 2, 0]), ["train_y.bin", "from 1 to 10", "0 at byte 2"]),
            ("test_y.bin", Some(vec![11, 2]), ["test_y.bin", "from 1 to 10", "11 at byte 0"]),
        ] {
            let folder = tempfile::tempdir().unwrap();
            good(folder.path());
            match &content {
                Some(bytes) => write(folder.path(), name, bytes),
                None => fs::remove_file(folder.path().join(name)).unwrap(),
            }
            let data = data(folder.path(), true);
            let error = Images::open(&data, folder.path())
                .and_then(|_| Images::open_split(&data, Split::Train, folder.path()))
                .and_then(|_| Images::open_split(&data, Split::Test, folder.path()))
                .unwrap_err()
                .to_string();
            for phrase in phrases {
                assert!(error.contains(phrase), "{name}: {error:?} lacks {phrase:?}");
            }
        }
    }

    #[test]
    fn a_folder_in_place_of_a_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("unlabeled_X.bin")).unwrap();
        let error = Images::open(&data(folder.path(), false), folder.path()).unwrap_err().to_string();
        assert!(error.contains("unlabeled_X.bin") && error.contains("found a folder"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever lies where a file should be, the answer is images with their labels or a sentence.
        #[test]
        fn any_file_is_images_or_a_sentence(
            name in prop::sample::select(vec!["unlabeled_X.bin", "train_X.bin", "train_y.bin", "test_y.bin"]),
            bytes in prop_oneof![0..8usize, 0..4 * RECORD, Just(3 * RECORD)],
            value in any::<u8>(),
        ) {
            let folder = tempfile::tempdir().unwrap();
            good(folder.path());
            write(folder.path(), name, &vec![value; bytes]);
            let data = data(folder.path(), true);
            let opened = [
                Images::open(&data, folder.path()),
                Images::open_split(&data, Split::Train, folder.path()),
                Images::open_split(&data, Split::Test, folder.path()),
            ];
            for images in opened {
                match images {
                    Ok(images) => for index in 0..images.len() {
                        prop_assert_eq!(images.record(index).len(), RECORD);
                        prop_assert!(images.label(index).is_none_or(|label| label < 10));
                    },
                    // Labels and images are compared, so either may be named.
                    Err(error) => prop_assert!(error.to_string().contains(".bin"), "{}", error),
                }
            }
        }
    }
}
