//! CIFAR-10 in its official binary layout (Krizhevsky 2009).
//!
//! Records are a label from 0 to 9, then planes of 32x32 bytes, red, green, blue, each row after row.

use std::path::Path;

use crate::error::DatasetError;
use crate::geometry::{Geometry, PixelLayout};
use crate::images::{Found, Labels, Split};
use crate::record_file::RecordFile;

const GEOMETRY: Geometry = Geometry { width_px: 32, height_px: 32, layout: PixelLayout::PlanarRowMajor };

const TRAINING_FILES: [&str; 5] =
    ["data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"];

const CLASS_NAMES: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

const ADVICE: &str = "name by --set data.path=FOLDER, or to `evaluate` by --data, the folder of CIFAR-10's binary files; `coordinator fetch cifar10` downloads them";

/// The images to learn from. Their labels are known but nobody learns from them.
pub(crate) fn open(folder: &Path) -> Result<Found, DatasetError> {
    open_split(folder, Split::Train)
}

/// A labelled part.
pub(crate) fn open_split(folder: &Path, split: Split) -> Result<Found, DatasetError> {
    let names = match split {
        Split::Train => TRAINING_FILES.as_slice(),
        Split::Test => &["test_batch.bin"],
    };
    let files = names.iter().map(|name| open_checked(&folder.join(name))).collect::<Result<_, _>>()?;
    Ok(Found {
        name: "cifar10".to_owned(),
        geometry: GEOMETRY,
        label_bytes: 1,
        files,
        labels: Labels::Leading,
        class_names: CLASS_NAMES.map(str::to_owned).to_vec(),
        warnings: Vec::new(),
    })
}

/// A label byte out of range is how a file of another format with a fitting size shows itself.
fn open_checked(path: &Path) -> Result<RecordFile, DatasetError> {
    let file = RecordFile::open(path, &GEOMETRY, 1, ADVICE)?;
    match (0..file.len()).find(|index| file.label(*index) > 9) {
        None => Ok(file),
        Some(index) => {
            let found = format!("label {} in record {index}", file.label(index));
            Err(DatasetError::content(path, "labels from 0 to 9", found, ADVICE))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Images;
    use proptest::prelude::*;
    use recipe::Data;
    use std::fs;

    const RECORD: usize = 3_073;

    fn records(first: u8, labels: &[u8]) -> Vec<u8> {
        let one =
            |(index, label): (usize, &u8)| [vec![*label], vec![first + index as u8; RECORD - 1]].concat();
        labels.iter().enumerate().flat_map(one).collect()
    }

    fn good(folder: &Path) {
        for (number, name) in TRAINING_FILES.iter().enumerate() {
            fs::write(folder.join(name), records(10 * number as u8, &[number as u8, 9])).unwrap();
        }
        fs::write(folder.join("test_batch.bin"), records(100, &[3, 4, 5])).unwrap();
    }

    #[test]
    fn pixels_and_labels_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        good(folder.path());
        let data = Data::Cifar10 { path: folder.path().to_owned() };
        let images = Images::open(&data, folder.path()).unwrap();
        assert_eq!(images.len(), 10);
        for (index, label, value) in [(0, 0, 0), (1, 9, 1), (2, 1, 10), (9, 9, 41)] {
            assert_eq!(images.label(index), Some(label));
            assert_eq!(images.record(index), vec![value; RECORD - 1]);
        }
        let test = Images::open_split(&data, Split::Test, folder.path()).unwrap();
        assert_eq!((test.len(), test.label(2), test.record(2)[0]), (3, Some(5), 102));
        assert_eq!(test.class_names()[5], "dog");
    }

    #[test]
    fn bad_files_are_refused_by_name() {
        for (name, content, phrases) in [
            ("data_batch_3.bin", None, ["data_batch_3.bin", "found nothing", "coordinator fetch cifar10"]),
            ("data_batch_5.bin", Some(vec![]), ["data_batch_5.bin", "3073", "an empty file"]),
            (
                "data_batch_1.bin",
                Some(vec![0; RECORD - 1]),
                ["data_batch_1.bin", "3073", "0 records and 3072"],
            ),
            (
                "data_batch_1.bin",
                Some(vec![0; 2 * RECORD + 7]),
                ["data_batch_1.bin", "2 records and 7", "fetch"],
            ),
            (
                "data_batch_2.bin",
                Some(records(0, &[1, 10])),
                ["data_batch_2.bin", "from 0 to 9", "label 10 in record 1"],
            ),
            (
                "test_batch.bin",
                Some(vec![255; RECORD]),
                ["test_batch.bin", "from 0 to 9", "label 255 in record 0"],
            ),
        ] {
            let folder = tempfile::tempdir().unwrap();
            good(folder.path());
            match &content {
                Some(bytes) => fs::write(folder.path().join(name), bytes).unwrap(),
                None => fs::remove_file(folder.path().join(name)).unwrap(),
            }
            let data = Data::Cifar10 { path: folder.path().to_owned() };
            let error = Images::open(&data, folder.path())
                .and_then(|_| Images::open_split(&data, Split::Test, folder.path()))
                .unwrap_err()
                .to_string();
            for phrase in phrases {
                assert!(error.contains(phrase), "{name}: {error:?} lacks {phrase:?}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever lies where a file should be, the answer is images with their labels or a sentence.
        #[test]
        fn any_file_is_images_or_a_sentence(
            name in prop::sample::select(vec!["data_batch_1.bin", "data_batch_4.bin", "test_batch.bin"]),
            bytes in 0..3 * RECORD,
            label in any::<u8>(),
        ) {
            let folder = tempfile::tempdir().unwrap();
            good(folder.path());
            fs::write(folder.path().join(name), vec![label; bytes]).unwrap();
            let data = Data::Cifar10 { path: folder.path().to_owned() };
            for split in [Split::Train, Split::Test] {
                match Images::open_split(&data, split, folder.path()) {
                    Ok(images) => for index in 0..images.len() {
                        prop_assert_eq!(images.record(index).len(), RECORD - 1);
                        prop_assert!(usize::from(images.label(index).unwrap()) < images.class_names().len());
                    },
                    Err(error) => prop_assert!(error.to_string().contains(name), "{}", error),
                }
            }
        }
    }
}
