//! Any nested folder of JPEG and PNG files.
//!
//! To learn from, all pictures below the folder count, whatever the folders in between; where it is laid out
//! for evaluation, with `train/` and `test/` (or `val/`), only those in `train/`. The folders directly below
//! `train/` and `test/` are the classes. Hidden files and folders are passed over, links are followed.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use walkdir::{DirEntry, WalkDir};

use crate::error::DatasetError;
use crate::images::{Found, Labels, Progress, Split};
use crate::pack::{self, Packed, Picture};

/// The folders of a layout for evaluation.
pub(crate) const PARTS: [&str; 3] = ["train", "test", "val"];

const EXTENSIONS: [&str; 3] = ["jpg", "jpeg", "png"];

const ADVICE: &str =
    "name by --set data.path=FOLDER, or to `evaluate` by --data, a folder of .jpg, .jpeg or .png files";

const LABELLED_ADVICE: &str = "sort pictures into such folders, or take other labelled images with --data, such as \
                               cifar10:data/cifar-10-batches-bin; `evaluate quality` needs no labels";

/// Labels are one byte.
const MOST_CLASSES: usize = 256;

/// The images to learn from.
pub(crate) fn open(
    folder: &Path,
    image_px: u32,
    cache_dir: &Path,
    progress: &mut Progress<'_>,
) -> Result<Found, DatasetError> {
    let root = if is_laid_out(folder) { folder.join("train") } else { folder.to_owned() };
    let listed = list(&root)?;
    let packed = pack::open_or_make(&root, &listed.pictures, image_px, cache_dir, progress)?;
    Ok(found(folder, &listed, packed, Labels::Absent, Vec::new()))
}

/// A labelled part.
pub(crate) fn open_split(
    folder: &Path,
    split: Split,
    image_px: u32,
    cache_dir: &Path,
    progress: &mut Progress<'_>,
) -> Result<Found, DatasetError> {
    if folder.is_dir() && !is_laid_out(folder) {
        let expected = "labelled pictures in train/CLASS/ and test/CLASS/ (or val/CLASS/)";
        return Err(DatasetError::content(folder, expected, "no such folders", LABELLED_ADVICE));
    }
    let train = folder.join("train");
    let root = match split {
        Split::Train => train.clone(),
        Split::Test if folder.join("test").is_dir() => folder.join("test"),
        Split::Test => folder.join("val"),
    };
    // Labels are numbered by the training part, so that both parts mean the same class.
    let (classes, _) = classify(&train, &list(&train)?.pictures, None)?;
    let listed = list(&root)?;
    let (_, labels) = classify(&root, &listed.pictures, Some(&classes))?;
    let packed = pack::open_or_make(&root, &listed.pictures, image_px, cache_dir, progress)?;
    let mut skipped = packed.skipped.iter().map(|one| one.index).peekable();
    let kept = labels.into_iter().enumerate().filter(|(index, _)| skipped.next_if_eq(index).is_none());
    let labels = Labels::Beside(kept.map(|(_, label)| label).collect());
    Ok(found(
        folder,
        &listed,
        packed,
        labels,
        classes.iter().map(|class| class.display().to_string()).collect(),
    ))
}

/// Whether a folder has a part to learn from and one to judge on.
pub(crate) fn is_laid_out(folder: &Path) -> bool {
    let [train, test, val] = PARTS.map(|part| folder.join(part).is_dir());
    train && (test || val)
}

fn found(folder: &Path, listed: &Listed, packed: Packed, labels: Labels, class_names: Vec<String>) -> Found {
    let skipped = packed.skipped.iter().map(ToString::to_string);
    Found {
        name: folder.file_name().map_or_else(|| "folder".to_owned(), |name| name.display().to_string()),
        geometry: packed.geometry,
        label_bytes: 0,
        files: vec![packed.file],
        labels,
        class_names,
        warnings: listed.others().into_iter().chain(skipped).collect(),
    }
}

/// What a walk met.
pub(crate) struct Listed {
    /// In order of their path.
    pub(crate) pictures: Vec<Picture>,
    /// How many files of other kinds, by extension in small letters.
    others: BTreeMap<String, usize>,
}

impl Listed {
    /// A sentence about what else there is, which other programs may take for pictures.
    fn others(&self) -> Option<String> {
        let kind = |(extension, count): (&String, &usize)| match extension.as_str() {
            "" => format!("{count} without an extension"),
            _ => format!("{count} .{extension}"),
        };
        let kinds: Vec<String> = self.others.iter().map(kind).collect();
        let all: usize = self.others.values().sum();
        (all > 0).then(|| {
            format!("{all} files that are no .jpg, .jpeg or .png are left out: {}", kinds.join(", "))
        })
    }
}

/// All pictures below `root`, and what else lies there.
pub(crate) fn list(root: &Path) -> Result<Listed, DatasetError> {
    if !root.is_dir() {
        if root.exists() {
            return Err(DatasetError::content(root, "a folder", "a file", ADVICE));
        }
        let (path, expected, advice) =
            (root.to_owned(), "a folder of pictures".to_owned(), ADVICE.to_owned());
        return Err(DatasetError::Missing { path, expected, advice });
    }
    let (mut pictures, mut others) = (Vec::new(), BTreeMap::new());
    let walk = WalkDir::new(root).follow_links(true).into_iter();
    for entry in walk.filter_entry(|entry| entry.depth() == 0 || !is_hidden(entry)) {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) if is_of_no_picture(root, &error) => continue,
            Err(error) => return Err(unreadable(root, error)),
        };
        if !entry.file_type().is_file() {
            continue;
        }
        if is_picture(entry.path()) {
            let facts = entry.metadata().map_err(|error| unreadable(root, error))?;
            let modified = facts.modified().map_err(DatasetError::io("examine", entry.path()))?;
            let relative = entry.path().strip_prefix(root).unwrap_or(entry.path()).to_owned();
            pictures.push(Picture { relative, bytes: facts.len(), modified });
        } else {
            let extension = entry.path().extension().unwrap_or_default();
            *others.entry(extension.to_ascii_lowercase().display().to_string()).or_default() += 1;
        }
    }
    if pictures.is_empty() {
        return Err(DatasetError::content(root, "at least one picture", "none", ADVICE));
    }
    pictures.sort_unstable_by(|a, b| a.relative.cmp(&b.relative));
    Ok(Listed { pictures, others })
}

/// Such as the `._photo.jpg` that macOS writes beside `photo.jpg`.
fn is_hidden(entry: &DirEntry) -> bool {
    entry.file_name().as_encoded_bytes().starts_with(b".")
}

/// Whether a walk met what would be passed over anyway: links are followed before they are asked whether they are hidden, and
/// where they lead to nothing, or round in a circle, it is an error.
fn is_of_no_picture(root: &Path, error: &walkdir::Error) -> bool {
    let below = error.path().and_then(|path| path.strip_prefix(root).ok());
    below.is_some_and(|path| {
        let is_hidden = path.iter().any(|name| name.as_encoded_bytes().starts_with(b"."));
        let leads_nowhere = error.io_error().is_some_and(|error| error.kind() == io::ErrorKind::NotFound);
        is_hidden || leads_nowhere && !is_picture(path)
    })
}

fn is_picture(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default();
    EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known))
}

fn unreadable(root: &Path, error: walkdir::Error) -> DatasetError {
    let path = error.path().unwrap_or(root).to_owned();
    DatasetError::Io { action: "list", path, source: error.into() }
}

/// The classes, sorted, and each picture's label: where its class stands in `known`, or else in its own.
fn classify(
    root: &Path,
    pictures: &[Picture],
    known: Option<&[PathBuf]>,
) -> Result<(Vec<PathBuf>, Vec<u8>), DatasetError> {
    let of = |picture: &Picture| -> Result<PathBuf, DatasetError> {
        let mut parts = picture.relative.components();
        match (parts.next(), parts.next()) {
            (Some(class), Some(_)) => Ok(AsRef::<OsStr>::as_ref(&class).into()),
            _ => Err(DatasetError::content(
                &root.join(&picture.relative),
                "pictures in one folder for each class",
                "one outside",
                "move it into its class's folder or remove it",
            )),
        }
    };
    let own: Vec<PathBuf> = pictures.iter().map(of).collect::<Result<_, _>>()?;
    let classes = match known {
        Some(classes) => classes.to_vec(),
        None => own.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect(),
    };
    if classes.len() > MOST_CLASSES {
        let (expected, found) = (format!("at most {MOST_CLASSES} classes"), format!("{}", classes.len()));
        return Err(DatasetError::content(root, expected, found, "evaluate on a part of the classes"));
    }
    let label = |class: PathBuf| match classes.binary_search(&class) {
        Ok(place) => Ok(place as u8),
        Err(_) => Err(DatasetError::content(
            &root.join(class),
            "only classes that train/ has too",
            "another",
            "name the classes alike in both parts",
        )),
    };
    let labels = own.into_iter().map(label).collect::<Result<_, _>>()?;
    Ok((classes, labels))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Images;
    use image::{Rgb, RgbImage};
    use recipe::Data;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn picture(root: &Path, relative: &str, value: u8) {
        let path = root.join(relative);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        RgbImage::from_pixel(20, 12, Rgb([value; 3])).save(path).unwrap();
    }

    fn broken(root: &Path, relative: &str) {
        let path = root.join(relative);
        picture(root, relative, 1);
        let whole = fs::read(&path).unwrap();
        fs::write(path, &whole[..whole.len() / 3]).unwrap();
    }

    fn data(root: &Path) -> Data {
        Data::Folder { path: root.to_owned(), image_px: 8 }
    }

    fn values(images: &Images) -> Vec<u8> {
        (0..images.len()).map(|index| images.record(index)[0]).collect()
    }

    #[test]
    fn pictures_are_found_at_any_depth_and_kept_in_order() {
        let (root, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (relative, value) in
            [("b/c/2.PNG", 20), ("a.png", 10), ("z.png", 30), (".hidden/x.png", 99), ("._a.png", 98)]
        {
            picture(root.path(), relative, value);
        }
        for name in ["notes.txt", "b/x.webp", "b/c/y.WEBP", "LICENSE", ".hidden/z.tif"] {
            fs::write(root.path().join(name), "no picture").unwrap();
        }
        let images = Images::open(&data(root.path()), cache.path()).unwrap();
        assert_eq!(values(&images), [10, 20, 30]);
        assert_eq!(images.record(1).len(), images.geometry().record_bytes());
        assert!(images.label(0).is_none());
        let others =
            "4 files that are no .jpg, .jpeg or .png are left out: 1 without an extension, 1 .txt, 2 .webp";
        assert_eq!(images.warnings(), [others]);
    }

    /// Editors leave hidden links to nowhere beside what they edit.
    #[test]
    fn links_that_lead_nowhere_matter_only_as_pictures() {
        let (root, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        picture(root.path(), "a/1.png", 10);
        for (name, target) in [(".#1.png", "me@host.1:2"), ("notes", "/nowhere"), (".circle", "../a")] {
            symlink(target, root.path().join("a").join(name)).unwrap();
        }
        assert_eq!(values(&Images::open(&data(root.path()), cache.path()).unwrap()), [10]);
        symlink("/nowhere", root.path().join("a/2.png")).unwrap();
        let error = Images::open(&data(root.path()), cache.path()).unwrap_err().to_string();
        assert!(error.contains("a/2.png"), "{error}");
    }

    #[test]
    fn one_broken_picture_is_reported_and_skipped() {
        let (root, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        picture(root.path(), "train/cat/1.png", 10);
        broken(root.path(), "train/cat/2.jpg");
        picture(root.path(), "train/dog/3.png", 30);
        fs::write(root.path().join("train/dog/4.png"), "").unwrap();
        picture(root.path(), "test/dog/5.png", 50);
        // The second time the pack is there already, and tells the same.
        for _ in 0..2 {
            let images = Images::open(&data(root.path()), cache.path()).unwrap();
            assert_eq!(values(&images), [10, 30]);
            assert_eq!(images.warnings().len(), 2, "{:?}", images.warnings());
            assert!(images.warnings()[0].contains("cat/2.jpg"), "{:?}", images.warnings());
            let train = Images::open_split(&data(root.path()), Split::Train, cache.path()).unwrap();
            assert_eq!((train.label(0), train.label(1)), (Some(0), Some(1)));
            // `test` lacks a class, and still its labels are those of `train`.
            let test = Images::open_split(&data(root.path()), Split::Test, cache.path()).unwrap();
            assert_eq!((values(&test), test.label(0)), (vec![50], Some(1)));
            assert_eq!(test.class_names(), ["cat", "dog"]);
        }
    }

    #[test]
    fn a_pack_is_used_again_until_a_picture_changes_or_the_pack_is_damaged() {
        let (root, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        picture(root.path(), "a.png", 10);
        let open = || {
            let mut packed = 0;
            let images =
                Images::open_with_progress(&data(root.path()), cache.path(), &mut |done, _| packed = done)
                    .unwrap();
            (packed, values(&images), images.file_paths()[0].clone())
        };
        let (packed, first, pack) = open();
        assert_eq!((packed, first), (1, vec![10]));
        assert_eq!(open().0, 0, "not packed again");

        let mut bytes = fs::read(&pack).unwrap();
        bytes[0] ^= 1;
        fs::write(&pack, bytes).unwrap();
        let (packed, again, _) = open();
        assert_eq!((packed, again), (1, vec![10]), "a damaged pack is made again");

        picture(root.path(), "b.png", 20);
        let (packed, more, other) = open();
        assert_eq!((packed, more), (2, vec![10, 20]));
        assert_ne!(other, pack);
    }

    /// As an archive may leave them that levels times, with files of one size: only their folders tell them apart.
    #[test]
    fn folders_with_the_same_names_sizes_and_times_keep_their_own_pictures() {
        let (root, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let paths = ["train/a/0.png", "test/a/0.png"].map(|relative| root.path().join(relative));
        for (relative, value) in [("train/a/0.png", 10), ("test/a/0.png", 20)] {
            picture(root.path(), relative, value);
            let file = fs::File::options().append(true).open(root.path().join(relative)).unwrap();
            file.set_modified(std::time::UNIX_EPOCH).unwrap();
        }
        let sizes = paths.map(|path| fs::metadata(path).unwrap().len());
        assert_eq!(sizes[0], sizes[1]);
        for (split, expected) in [(Split::Train, 10), (Split::Test, 20)] {
            let images = Images::open_split(&data(root.path()), split, cache.path()).unwrap();
            assert_eq!(values(&images), [expected], "{split:?}");
        }
    }

    /// Each: broken pictures, good ones, and whether that is still a data set.
    #[test]
    fn too_many_broken_pictures_are_an_error() {
        for (broken_count, good_count, accepted) in
            [(1, 0, false), (1, 1, true), (3, 3, true), (4, 30, false), (4, 36, true)]
        {
            let (root, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            (0..broken_count)
                .for_each(|n| fs::write(root.path().join(format!("broken{n}.jpg")), "x").unwrap());
            (0..good_count).for_each(|n| picture(root.path(), &format!("good{n}.png"), n));
            match Images::open(&data(root.path()), cache.path()) {
                Ok(images) => assert!(accepted && images.len() == u64::from(good_count)),
                Err(error) => {
                    assert!(!accepted, "{error}");
                    assert!(error.to_string().contains("broken0.jpg"), "{error}");
                    assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 0, "nothing is left behind");
                }
            }
        }
    }

    #[test]
    fn folders_that_cannot_serve_are_refused() {
        let (root, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        picture(root.path(), "file.png", 1);
        picture(root.path(), "flat/1.png", 1);
        for part in ["loose/train/a/1.png", "loose/train/2.png", "loose/test/a/1.png"] {
            picture(root.path(), part, 1);
        }
        for part in ["foreign/train/a/1.png", "foreign/test/b/1.png"] {
            picture(root.path(), part, 1);
        }
        fs::create_dir(root.path().join("empty")).unwrap();
        for (folder, phrases) in [
            ("nowhere", ["nowhere", "found nothing"]),
            ("file.png", ["a folder", "found a file"]),
            ("empty", ["at least one picture", "found none"]),
            ("flat", ["train/CLASS/", "evaluate quality"]),
            ("loose", ["loose/train/2.png", "class"]),
            ("foreign", ["foreign/test/b", "classes that train/ has"]),
        ] {
            let data = data(&root.path().join(folder));
            let error = Images::open(&data, cache.path())
                .and_then(|_| Images::open_split(&data, Split::Test, cache.path()))
                .unwrap_err()
                .to_string();
            for phrase in phrases {
                assert!(error.contains(phrase), "{folder}: {error:?} lacks {phrase:?}");
            }
        }
    }
}
