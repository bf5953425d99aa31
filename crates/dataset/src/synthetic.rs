//! The synthetic data: drawn once into the cache, in STL-10's own layout, then opened as STL-10 is.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use recipe::{Draws, Purpose};

use crate::aside;
use crate::drawing::{self, FIGURES};
use crate::error::DatasetError;
use crate::images::Progress;
use crate::record_file::{map_file, open_plain};
use crate::seal::ContentHash;
use crate::stl10::CLASS_NAMES_FILE;

/// A change to the drawings needs a new number, so that old drawings are not used for it.
const DRAWING_VERSION: u32 = 2;

/// The labelled parts: 100 and 50 for each class, enough for a probe that says something.
const TRAIN_IMAGES: u32 = 1_000;
const TEST_IMAGES: u32 = 500;

/// Images drawn before they are written: enough to keep all cores busy, 14 MiB in memory.
const BATCH: u32 = 512;

const HASHES_FILE: &str = "hashes.json";

type Hashes = BTreeMap<String, ContentHash>;

/// Which part of the data an image is for; the numbers are part of every picture.
#[derive(Clone, Copy)]
enum Part {
    Unlabeled = 0,
    Train = 1,
    Test = 2,
}

/// The folder of the drawn images, after drawing them if they are not there or damaged.
pub(crate) fn prepare(
    images: u32,
    cache_dir: &Path,
    progress: &mut Progress<'_>,
) -> Result<PathBuf, DatasetError> {
    let folder = cache_dir.join(format!("synthetic-{images}-v{DRAWING_VERSION}"));
    if folder.exists() {
        if is_intact(&folder) {
            return Ok(folder);
        }
        tracing::warn!(path = %folder.display(), "synthetic images are damaged and are drawn again");
        fs::remove_dir_all(&folder).map_err(DatasetError::io("remove", &folder))?;
    }
    let failed = |source| DatasetError::io("write", &folder)(source);
    aside::make_folder(&folder, |aside| draw_all(aside, images, progress).map_err(failed), failed)?;
    Ok(folder)
}

fn is_intact(folder: &Path) -> bool {
    let Ok(text) = fs::read_to_string(folder.join(HASHES_FILE)) else { return false };
    let Ok(hashes) = serde_json::from_str::<Hashes>(&text) else { return false };
    hashes.iter().all(|(name, hash)| hash_file(&folder.join(name)).is_ok_and(|found| found == *hash))
}

fn hash_file(path: &Path) -> Result<ContentHash, DatasetError> {
    let (file, ..) = open_plain(path, "drawn images", "remove the folder")?;
    let map = map_file(&file).map_err(DatasetError::io("map", path))?;
    Ok(ContentHash::of_large(&map))
}

fn draw_all(folder: &Path, images: u32, progress: &mut Progress<'_>) -> std::io::Result<()> {
    let total = u64::from(images) + u64::from(TRAIN_IMAGES) + u64::from(TEST_IMAGES);
    let mut done = 0;
    for (part, name, count) in [
        (Part::Train, "train_X.bin", TRAIN_IMAGES),
        (Part::Test, "test_X.bin", TEST_IMAGES),
        (Part::Unlabeled, "unlabeled_X.bin", images),
    ] {
        write_synced(&folder.join(name), |out| {
            for start in (0..count).step_by(BATCH as usize) {
                let batch = start..count.min(start + BATCH);
                let drawn: Vec<Vec<u8>> =
                    batch.clone().into_par_iter().map(|index| draw(part, index)).collect();
                drawn.iter().try_for_each(|picture| out.write_all(picture))?;
                done += batch.len() as u64;
                progress(done, total);
            }
            Ok(())
        })?;
    }
    for (part, name, count) in
        [(Part::Train, "train_y.bin", TRAIN_IMAGES), (Part::Test, "test_y.bin", TEST_IMAGES)]
    {
        let labels: Vec<u8> = (0..count).map(|index| class(part, index) + 1).collect();
        write_synced(&folder.join(name), |out| out.write_all(&labels))?;
    }
    let names: String = FIGURES.iter().map(|figure| format!("{}\n", figure.name())).collect();
    write_synced(&folder.join(CLASS_NAMES_FILE), |out| out.write_all(names.as_bytes()))?;
    let mut hashes = Hashes::new();
    for name in
        ["unlabeled_X.bin", "train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", CLASS_NAMES_FILE]
    {
        let hash = hash_file(&folder.join(name)).map_err(std::io::Error::other)?;
        hashes.insert(name.to_owned(), hash);
    }
    let text = serde_json::to_string_pretty(&hashes).expect("strings can be written as JSON");
    write_synced(&folder.join(HASHES_FILE), |out| out.write_all(text.as_bytes()))
}

fn write_synced(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    write(&mut out)?;
    out.into_inner()?.sync_all()
}

fn draws(part: Part, index: u32, view: u64) -> Draws {
    Draws::new(0, Purpose::Synthetic, part as u64, u64::from(index), view)
}

/// Labelled parts have as many of each class; to learn from there are as many as chance gives.
fn class(part: Part, index: u32) -> u8 {
    match part {
        Part::Unlabeled => draws(part, index, 1).below(FIGURES.len() as u64) as u8,
        Part::Train | Part::Test => (index % FIGURES.len() as u32) as u8,
    }
}

fn draw(part: Part, index: u32) -> Vec<u8> {
    drawing::draw(FIGURES[usize::from(class(part, index))], &mut draws(part, index, 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Images, Split};
    use recipe::Data;

    fn drawn(cache: &Path) -> (u64, Images) {
        let mut done = 0;
        let data = Data::Synthetic { images: 40 };
        let images = Images::open_with_progress(&data, cache, &mut |n, _| done = n).unwrap();
        (done, images)
    }

    #[test]
    fn images_are_drawn_once_and_again_only_when_damaged() {
        let cache = tempfile::tempdir().unwrap();
        let (done, first) = drawn(cache.path());
        assert_eq!((done, first.len()), (1540, 40));
        let (done, second) = drawn(cache.path());
        assert_eq!(done, 0, "not drawn again");
        assert!((0..40).all(|index| first.record(index) == second.record(index)));

        let path = first.file_paths()[0].clone();
        let mut bytes = fs::read(&path).unwrap();
        bytes[5] ^= 1;
        // Replaced, as the old file is still mapped.
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
        let (done, third) = drawn(cache.path());
        assert_eq!(done, 1540, "drawn again");
        assert!((0..40).all(|index| first.record(index) == third.record(index)));
        assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 1, "nothing is left behind");
    }

    #[test]
    fn labelled_parts_have_every_class_alike() {
        let cache = tempfile::tempdir().unwrap();
        let data = Data::Synthetic { images: 40 };
        for (split, count) in [(Split::Train, 1000), (Split::Test, 500)] {
            let images = Images::open_split(&data, split, cache.path()).unwrap();
            assert_eq!(images.len(), count);
            assert_eq!(images.class_names()[4], "ring");
            for class in 0..10 {
                let of_class = (0..count).filter(|index| images.label(*index) == Some(class)).count() as u64;
                assert_eq!(of_class, count / 10);
            }
        }
    }

    #[test]
    fn parts_share_no_picture() {
        let parts = [Part::Unlabeled, Part::Train, Part::Test]
            .map(|part| drawing::draw(FIGURES[0], &mut draws(part, 0, 0)));
        assert!(parts[0] != parts[1] && parts[1] != parts[2] && parts[0] != parts[2]);
    }
}
