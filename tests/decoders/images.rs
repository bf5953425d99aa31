//! What is read of images: pictures, packed ones, blocks, files of data sets, and the archives that these come in.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use dataset::fetch::{Archive, ArchivedFile, Patience, fetch};
use dataset::{BlockCache, BlockStore, Deal, Images, Pictures, Split};
use flate2::{Compression, write::GzEncoder};
use md5::{Digest, Md5};
use recipe::Data;

use super::control::{Named, in_folder};

/// As in `control.rs`.
pub(crate) const DECODERS: &[Named] = &[
    ("picture", picture, 200),
    ("pack", pack, 30),
    ("block", block, 30),
    ("cifar10", cifar10, 50),
    ("labels", labels, 200),
    ("archive", archive, 200),
];

/// A picture that claims to be a JPEG, and one that claims to be a PNG.
fn picture(bytes: &[u8]) -> bool {
    in_folder(|folder| {
        for name in ["a.jpg", "b.png"] {
            fs::write(folder.join(name), bytes).unwrap();
        }
        let mut pictures = Pictures::open(folder).unwrap();
        let decoded = pictures.decode(0..pictures.count(), 8).unwrap_or_default();
        assert!(decoded.iter().all(|(_, record)| record.len() == 3 * 8 * 8));
        !decoded.is_empty()
    })
}

/// A file of packed pictures: either it is the one that was made, or it is made anew.
fn pack(bytes: &[u8]) -> bool {
    in_folder(|folder| {
        let (images, cache) = (folder.join("images"), folder.join("cache"));
        fs::create_dir(&images).unwrap();
        fs::write(images.join("a.png"), PNG).unwrap();
        let data = Data::Folder { path: images, image_px: 8 };
        let expected = Images::open(&data, &cache).unwrap().record(0).to_vec();
        damage(&cache, bytes);
        let again = Images::open(&data, &cache);
        again.is_ok_and(|images| {
            assert_eq!(images.record(0), expected);
            true
        })
    })
}

/// Writes `bytes` over the end of every file below `folder`.
fn damage(folder: &Path, bytes: &[u8]) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            damage(&path, bytes);
        } else {
            let mut content = fs::read(&path).unwrap();
            let kept = content.len().saturating_sub(bytes.len());
            content.truncate(kept);
            content.extend_from_slice(bytes);
            fs::write(&path, content).unwrap();
        }
    }
}

/// Two pixels by two.
const PNG: &[u8] = include_bytes!("../fuzz/corpus/picture/small.png");

/// A block, as it lies in the cache and as it is sent: it is the right one, or there is none. The bytes stand for its first.
fn block(bytes: &[u8]) -> bool {
    in_folder(|folder| {
        let (images, cache) = (folder.join("images"), folder.join("cache"));
        fs::create_dir(&images).unwrap();
        fs::write(images.join("a.png"), PNG).unwrap();
        let images = Images::open(&Data::Folder { path: images, image_px: 8 }, &cache).unwrap();
        let deal = Deal::new(images.into(), 1, &cache).unwrap();
        let right = deal.block(0, 0).unwrap();
        let sent = [bytes, right.get(bytes.len()..).unwrap_or_default()].concat();
        let blocks = folder.join("blocks");
        let kept = blocks.join(format!("{}.block", deal.manifest().blocks[0]));
        let load = |sent: &[u8]| {
            let (cache, sent) = (BlockCache::open(&blocks, 1 << 20).unwrap(), sent.to_vec());
            let fetch = move |_, _| Ok(sent.clone());
            let store = BlockStore::new(Arc::clone(deal.manifest()), Some(cache), None, Box::new(fetch));
            store.block(0, 0).map(|block| block.record(0).to_vec()).ok()
        };
        let first = load(&sent);
        assert!(first.as_ref().is_none_or(|pixels| *pixels == right));
        // What was refused was not kept either; now it is, as if the disk had changed it.
        assert_eq!(load(&right).as_deref(), Some(&right[..]));
        fs::write(&kept, &sent).unwrap();
        assert_eq!(load(&right).as_deref(), Some(&right[..]));
        first.is_some()
    })
}

/// A file of CIFAR-10: images with labels that have a name, or none at all.
fn cifar10(bytes: &[u8]) -> bool {
    in_folder(|folder| {
        fs::write(folder.join("test_batch.bin"), bytes).unwrap();
        are_labelled(&Data::Cifar10 { path: folder.to_owned() }, folder)
    })
}

/// Labels of three images of STL-10, and names of its classes: the first three bytes, and what comes after.
fn labels(bytes: &[u8]) -> bool {
    in_folder(|folder| {
        let (labels, names) = bytes.split_at(bytes.len().min(3));
        fs::write(folder.join("test_X.bin"), vec![0; 3 * 96 * 96 * 3]).unwrap();
        fs::write(folder.join("test_y.bin"), labels).unwrap();
        fs::write(folder.join("class_names.txt"), names).unwrap();
        are_labelled(&Data::Stl10 { path: folder.to_owned(), include_train: false }, folder)
    })
}

fn are_labelled(data: &Data, cache: &Path) -> bool {
    let Ok(images) = Images::open_split(data, Split::Test, cache) else { return false };
    let has_name = |index| usize::from(images.label(index).unwrap()) < images.class_names().len();
    assert!((0..images.len()).all(has_name));
    assert!((0..images.len()).all(|index| images.record(index).len() == images.geometry().record_bytes()));
    true
}

/// An archive whose sum is the right one, compressed or not yet: its expected files are there afterwards, or nothing is.
fn archive(bytes: &[u8]) -> bool {
    in_folder(|folder| {
        let packed = if bytes.starts_with(&[0x1f, 0x8b]) { bytes.to_vec() } else { compressed(bytes) };
        let file = |name: &str, bytes| ArchivedFile { name: name.to_owned(), bytes, md5: None };
        let archive = Archive {
            url: "http://localhost/".to_owned(),
            bytes: packed.len() as u64,
            md5: Md5::digest(&packed).iter().map(|byte| format!("{byte:02x}")).collect(),
            folder: "set".to_owned(),
            files: vec![file("images.bin", 20), file("labels.bin", 3)],
        };
        // It has been downloaded before.
        fs::write(folder.join(".set.tar.gz.partial"), &packed).unwrap();
        let is_taken = fetch(&archive, folder, &Patience::default(), &mut |_| {}).is_ok();
        let mut found = Vec::new();
        lengths(folder, &mut found);
        found.sort();
        let expected = [("images.bin".to_owned(), 20), ("labels.bin".to_owned(), 3)];
        assert_eq!(found, if is_taken { &expected[..] } else { &[] });
        is_taken
    })
}

fn compressed(bytes: &[u8]) -> Vec<u8> {
    let mut writer = GzEncoder::new(Vec::new(), Compression::none());
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

/// Names and lengths of all files below `folder`.
fn lengths(folder: &Path, found: &mut Vec<(String, u64)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => lengths(&entry.path(), found),
            false => found.push((entry.file_name().into_string().unwrap(), entry.metadata().unwrap().len())),
        }
    }
}
