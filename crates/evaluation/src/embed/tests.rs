use std::fs;
use std::path::{Path, PathBuf};

use ::csv::Reader;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::record::Field;
use ::safetensors::SafeTensors;
use dataset::Images;
use image::{Rgb, RgbImage};
use recipe::Data;
use simsiam::Device;

use super::{Embedded, embed};
use crate::encoder::Encoder;
use crate::error::EvaluationError;
use crate::features::{Extractor, Input};
use crate::testing::quickstart;

/// More than a batch of pictures in two classes, one without, and a broken one.
struct Scene(tempfile::TempDir);

const PICTURES: usize = 71;

impl Scene {
    fn new() -> Scene {
        let scene = Scene(tempfile::tempdir().unwrap());
        for number in 0..PICTURES {
            let class = ["a, \"b\"/", "c/d/", ""][if number == 0 { 2 } else { number % 2 }];
            let path = scene.pictures().join(format!("{class}{number:02}.png"));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let level = |x: u32, y: u32| [x * 4, y * 5, number as u32 * 3].map(|level| level as u8);
            RgbImage::from_fn(60, 48, |x, y| Rgb(level(x, y))).save(path).unwrap();
        }
        fs::write(scene.pictures().join("c/broken.jpg"), "x").unwrap();
        scene
    }

    fn pictures(&self) -> PathBuf {
        self.0.path().join("pictures")
    }

    fn data(&self) -> Data {
        Data::Folder { path: self.pictures(), image_px: 32 }
    }

    fn embed(&self, data: &Data, name: &str) -> Result<(Embedded, PathBuf), EvaluationError> {
        let path = self.0.path().join("out").join(name);
        let place = (self.0.path(), &Device::flex());
        let encoder = Encoder::random(&quickstart());
        Ok((embed(&encoder, data, Input::Crop, &path, place, &mut |_, _, _| {})?, path))
    }

    /// The features as every other evaluation sees them.
    fn features(&self, data: &Data) -> Vec<f32> {
        let (encoder, images) = (Encoder::random(&quickstart()), Images::open(data, self.0.path()).unwrap());
        let extractor = Extractor::new(&encoder, &images, Input::Crop, &Device::flex());
        let indices: Vec<u64> = (0..images.len()).collect();
        extractor.features("all", &indices, &mut |_| {}).unwrap().0.values().to_vec()
    }
}

/// All rows of a file, whatever its format: path, label, features.
fn read(path: &Path) -> Vec<(String, Option<String>, Vec<f32>)> {
    match path.extension().unwrap().to_str().unwrap() {
        "parquet" => read_parquet(path),
        "csv" => Reader::from_path(path)
            .unwrap()
            .records()
            .map(|record| {
                let record = record.unwrap();
                let features = record.iter().skip(2).map(|number| number.parse().unwrap()).collect();
                (record[0].to_owned(), Some(record[1].to_owned()).filter(|label| !label.is_empty()), features)
            })
            .collect(),
        _ => {
            let bytes = fs::read(path).unwrap();
            let file = SafeTensors::deserialize(&bytes).unwrap();
            let paths: Vec<String> = serde_json::from_slice(file.tensor("paths").unwrap().data()).unwrap();
            let labels: Vec<Option<String>> =
                serde_json::from_slice(file.tensor("labels").unwrap().data()).unwrap();
            let features = file.tensor("features").unwrap();
            let rows = features.data().chunks(size_of::<f32>() * features.shape()[1]);
            let floats =
                |row: &[u8]| row.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            let rows = paths.into_iter().zip(labels).zip(rows);
            rows.map(|((path, label), row)| (path, label, floats(row))).collect()
        }
    }
}

fn read_parquet(path: &Path) -> Vec<(String, Option<String>, Vec<f32>)> {
    let text = |field: &Field| match field {
        Field::Str(text) => Some(text.clone()),
        _ => None,
    };
    let number = |field: &Field| match field {
        Field::Float(number) => *number,
        other => panic!("{other}"),
    };
    let file = SerializedFileReader::new(fs::File::open(path).unwrap()).unwrap();
    let rows = file.get_row_iter(None).unwrap().map(|row| {
        let columns: Vec<Field> = row.unwrap().get_column_iter().map(|(_, field)| field.clone()).collect();
        let Field::ListInternal(features) = &columns[2] else { panic!("{}", columns[2]) };
        let features = features.elements().iter().map(number).collect();
        (text(&columns[0]).unwrap(), text(&columns[1]), features)
    });
    rows.collect()
}

#[test]
fn every_format_holds_the_features_of_every_picture() {
    let scene = Scene::new();
    let expected = scene.features(&scene.data());
    for name in ["new/a.parquet", "a.CSV", "a.safetensors"] {
        let (embedded, path) = scene.embed(&scene.data(), name).unwrap();
        assert_eq!(embedded.rows, PICTURES as u64, "the broken one is left out");
        let lower = path.with_extension(path.extension().unwrap().to_ascii_lowercase());
        fs::rename(&path, &lower).unwrap();
        let rows = read(&lower);
        let features: Vec<f32> = rows.iter().flat_map(|(_, _, features)| features.clone()).collect();
        assert!(features == expected, "{name}");
        assert!(rows.iter().all(|(_, _, features)| features.len() == embedded.columns), "{name}");
        let named: Vec<(&str, Option<&str>)> =
            rows.iter().map(|(path, label, _)| (path.as_str(), label.as_deref())).collect();
        for (index, expected) in [
            (0, ("00.png", None)),
            (1, ("a, \"b\"/02.png", Some("a, \"b\""))),
            (PICTURES - 1, ("c/d/69.png", Some("c"))),
        ] {
            assert_eq!(named[index], expected, "{name}");
        }
    }
}

#[test]
fn data_sets_are_embedded_with_their_classes() {
    let scene = Scene::new();
    let data = Data::Synthetic { images: 100 };
    // What a killed process left in the folder goes.
    let left = scene.0.path().join("out/.aside-left");
    fs::create_dir_all(left.parent().unwrap()).unwrap();
    fs::write(&left, "half a table").unwrap();
    let (embedded, path) = scene.embed(&data, "a.parquet").unwrap();
    assert!(!left.exists());
    let rows = read(&path);
    assert_eq!((embedded.rows, rows[99].0.as_str()), (100, "synthetic-100/99"));
    let features: Vec<f32> = rows.into_iter().flat_map(|(_, _, features)| features).collect();
    assert!(features == scene.features(&data));
}

#[test]
fn what_cannot_be_embedded_leaves_the_old_file() {
    let scene = Scene::new();
    let old = scene.0.path().join("out/a.csv");
    fs::create_dir_all(old.parent().unwrap()).unwrap();
    fs::write(&old, "old").unwrap();
    let many: Vec<PathBuf> = (0..9).map(|number| scene.pictures().join(format!("c/x{number}.jpg"))).collect();
    many.iter().for_each(|path| fs::write(path, "x").unwrap());
    let nowhere = Data::Folder { path: scene.0.path().join("nowhere"), image_px: 32 };
    for (data, name, phrase) in [
        (scene.data(), "a.txt", "ends in .parquet, .csv or .safetensors"),
        (nowhere, "a.csv", "found nothing"),
        (scene.data(), "a.csv", "found 10 that cannot be decoded"),
    ] {
        let error = scene.embed(&data, name).unwrap_err().to_string();
        assert!(error.contains(phrase), "{error:?} lacks {phrase:?}");
    }
    assert_eq!(fs::read(&old).unwrap(), b"old");
    assert_eq!(fs::read_dir(old.parent().unwrap()).unwrap().count(), 1, "nothing else is left");
}
