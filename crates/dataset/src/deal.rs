//! The coordinator's side: every image gets a shard and a place in it, and every block its hash.

use std::convert::identity;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use rayon::prelude::*;
use recipe::{Draws, Purpose};

use crate::aside;
use crate::error::DatasetError;
use crate::images::{Images, Progress};
use crate::manifest::Manifest;
use crate::record_file::RecordFile;
use crate::seal::ContentHash;

/// The size that blocks aim at. Large enough that a request for each costs nothing beside its bytes, small
/// enough that a window of them fits in memory and that a run begins at once.
const BLOCK_BYTES: usize = 4 << 20;

/// Blocks that a set is cut into at most, and one more for each shard: workers are told the hash of every one in a single
/// message. Where 4 MiB would make more (beyond 160 GB), blocks are larger.
const BLOCKS_AT_MOST: u64 = 40_000;

/// Blocks that are hashed between two looks at how far that is: a fraction of a second's work.
const BLOCKS_AT_ONCE: usize = 32;

/// A change to how images are dealt needs a new number, so that old manifests are not used for it.
const DEAL_VERSION: u32 = 1;

/// Images dealt to shards.
///
/// The images are put into one random order that is the same for all runs, so that runs share their caches.
/// Shard `s` owns the places `s*n .. (s+1)*n` of it, `n = images / shards`. The `images % shards` images in
/// the last places are left out, so that all shards are of one size.
#[derive(Debug)]
pub struct Deal {
    images: Arc<Images>,
    order: Vec<u32>,
    manifest: Arc<Manifest>,
    /// Where the manifest is kept.
    kept: PathBuf,
}

impl Deal {
    /// Deals and hashes all images on all cores. The manifest is kept in `cache_dir`, so that the next start
    /// with the same files and shards need not read them.
    ///
    /// # Errors
    /// Fewer images than shards.
    pub fn new(images: Arc<Images>, shards: u32, cache_dir: &Path) -> Result<Deal, DatasetError> {
        Deal::new_with_progress(images, shards, cache_dir, &mut |_, _| {})
    }

    /// As [`Deal::new`], and tells how many of all blocks are hashed, if they need be.
    ///
    /// # Errors
    /// As [`Deal::new`].
    pub fn new_with_progress(
        images: Arc<Images>,
        shards: u32,
        cache_dir: &Path,
        progress: &mut Progress<'_>,
    ) -> Result<Deal, DatasetError> {
        let count = images.len();
        let per_shard = count.checked_div(u64::from(shards)).unwrap_or(0);
        if per_shard == 0 {
            return Err(DatasetError::TooFewImages { name: images.name().to_owned(), images: count, shards });
        }
        let order = dealt_order(count);
        let kept = cache_dir.join(format!("manifest-{}.json", key(&images, shards)));
        let manifest = read_kept(&kept, &images).unwrap_or_else(|| {
            let manifest = hash_all(&images, &order, shards, per_shard as u32, progress);
            keep(&kept, &manifest);
            manifest
        });
        Ok(Deal { images, order, manifest: Arc::new(manifest), kept })
    }

    /// What workers are told.
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// The images that were dealt.
    pub fn images(&self) -> &Arc<Images> {
        &self.images
    }

    /// The pixels of a block's images, one after the other, with the manifest's hash: the files may have changed since it
    /// was made, if their times were put back or this process has had them open.
    ///
    /// # Errors
    /// No such shard or block, or [`DatasetError::Changed`].
    pub fn block(&self, shard: u32, block: u32) -> Result<Vec<u8>, DatasetError> {
        let expected = self.manifest.blocks[self.manifest.block_number(shard, block)?];
        let bytes = gather(&self.images, &self.order, &self.manifest, shard, block);
        let found = ContentHash::of(&bytes);
        if found == expected {
            return Ok(bytes);
        }
        let files: Vec<String> =
            self.images.file_paths().iter().map(|path| path.display().to_string()).collect();
        let (files, kept) = (files.join(", "), self.kept.clone());
        let (expected, found) = (expected.to_string(), found.to_string());
        Err(DatasetError::Changed { files, shard, block, expected, found, kept })
    }

    /// The pixels of one image of a shard.
    ///
    /// # Errors
    /// No such shard or image.
    pub fn record(&self, shard: u32, local_index: u32) -> Result<&[u8], DatasetError> {
        self.manifest.check_image(shard, local_index)?;
        let place = place(&self.manifest, shard, local_index);
        Ok(self.images.record(u64::from(self.order[place])))
    }
}

/// The random order of all images. Seed 0 for all runs, so that they share their caches.
pub(crate) fn dealt_order(images: u64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..images as u32).collect();
    Draws::new(0, Purpose::Deal, 0, 0, 0).shuffle(&mut order);
    order
}

/// Where an image of a shard stands in the dealt order.
pub(crate) fn place(manifest: &Manifest, shard: u32, local_index: u32) -> usize {
    shard as usize * manifest.images_per_shard as usize + local_index as usize
}

/// Copies a block out of the images that it is scattered over.
pub(crate) fn gather(images: &Images, order: &[u32], manifest: &Manifest, shard: u32, block: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(manifest.block_bytes(block));
    for local_index in manifest.images_of_block(block) {
        bytes.extend_from_slice(images.record(u64::from(order[place(manifest, shard, local_index)])));
    }
    bytes
}

fn hash_all(
    images: &Images,
    order: &[u32],
    shards: u32,
    images_per_shard: u32,
    progress: &mut Progress<'_>,
) -> Manifest {
    let manifest = Manifest {
        name: images.name().to_owned(),
        images: images.len(),
        geometry: images.geometry(),
        shards,
        images_per_shard,
        images_per_block: images_per_block(images.len(), images.geometry().record_bytes()),
        blocks: Vec::new(),
        files: tellable(absolute_paths(images)),
        label_bytes: images.label_bytes() as u32,
        data: images.data().clone(),
    };
    images.files().iter().for_each(RecordFile::read_ahead);
    let per_shard = manifest.blocks_per_shard() as usize;
    let hash = |number: usize| {
        let (shard, block) = ((number / per_shard) as u32, (number % per_shard) as u32);
        ContentHash::of(&gather(images, order, &manifest, shard, block))
    };
    let count = shards as usize * per_shard;
    let mut blocks = Vec::with_capacity(count);
    while blocks.len() < count {
        let group = blocks.len()..count.min(blocks.len() + BLOCKS_AT_ONCE);
        blocks.par_extend(group.into_par_iter().map(hash));
        progress(blocks.len() as u64, count as u64);
    }
    Manifest { blocks, ..manifest }
}

fn images_per_block(images: u64, record_bytes: usize) -> u32 {
    let aimed_at = (BLOCK_BYTES / record_bytes).max(1) as u64;
    aimed_at.max(images.div_ceil(BLOCKS_AT_MOST)) as u32
}

/// Workers may run in another folder.
fn absolute_paths(images: &Images) -> Vec<PathBuf> {
    let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
    images.file_paths().into_iter().map(absolute).collect()
}

/// JSON holds only paths that are UTF-8; with others, workers fetch the images instead.
fn tellable(paths: Vec<PathBuf>) -> Vec<PathBuf> {
    if paths.iter().all(|path| path.to_str().is_some()) { paths } else { Vec::new() }
}

/// Names the kept manifest: other files, sizes, times or shards have another one.
fn key(images: &Images, shards: u32) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&DEAL_VERSION.to_le_bytes()).update(&shards.to_le_bytes());
    for (file, path) in images.files().iter().zip(absolute_paths(images)) {
        let path = path.as_os_str().as_encoded_bytes();
        let age_ns = file.modified().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        hasher.update(&(path.len() as u64).to_le_bytes()).update(path);
        hasher.update(&(file.bytes().len() as u64).to_le_bytes()).update(&age_ns.to_le_bytes());
    }
    // 128 bits are enough to never meet twice.
    hasher.finalize().to_hex()[..32].to_owned()
}

fn read_kept(path: &Path, images: &Images) -> Option<Manifest> {
    let text = fs::read_to_string(path).ok()?;
    let manifest = Manifest::from_json(&text).ok()?;
    let fits = manifest.images == images.len()
        && manifest.geometry == images.geometry()
        && manifest.images_per_block == images_per_block(images.len(), images.geometry().record_bytes());
    // The same files may have been reached by another recipe.
    let (name, data) = (images.name().to_owned(), images.data().clone());
    fits.then_some(Manifest { name, data, ..manifest })
}

fn keep(path: &Path, manifest: &Manifest) {
    let text = manifest.to_json();
    if let Err(error) = aside::write_file(path, |out| out.write_all(text.as_bytes()), identity) {
        // The next start is slower, and nothing else.
        tracing::warn!(path = %path.display(), %error, "cannot keep the manifest of the data");
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use recipe::Data;
    use tempfile::TempDir;

    /// STL-10 files in which each image's bytes tell its number.
    pub(crate) fn stl10_files(images: usize) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> =
            (0..images).flat_map(|image| (image as u32).to_le_bytes().repeat(27_648 / 4)).collect();
        fs::write(folder.path().join("unlabeled_X.bin"), bytes).unwrap();
        folder
    }

    pub(crate) fn deal(folder: &TempDir, shards: u32) -> Result<Deal, DatasetError> {
        let data = Data::Stl10 { path: folder.path().to_owned(), include_train: false };
        let images = Images::open(&data, folder.path()).unwrap();
        Deal::new(Arc::new(images), shards, &folder.path().join("cache"))
    }

    pub(crate) fn image_number(record: &[u8]) -> u32 {
        u32::from_le_bytes(record[..4].try_into().unwrap())
    }

    #[test]
    fn every_image_has_one_place_and_only_the_rest_is_left_out() {
        let folder = stl10_files(403);
        for shards in [1, 2, 4, 8] {
            let deal = deal(&folder, shards).unwrap();
            let per_shard = deal.manifest().images_per_shard;
            assert_eq!(per_shard, 403 / shards);
            let mut numbers: Vec<u32> = (0..shards)
                .flat_map(|shard| (0..per_shard).map(move |local| (shard, local)))
                .map(|(shard, local)| image_number(deal.record(shard, local).unwrap()))
                .collect();
            assert_ne!(numbers, (0..numbers.len() as u32).collect::<Vec<_>>(), "dealt at random");
            numbers.sort_unstable();
            numbers.dedup();
            assert_eq!(numbers.len() as u32, shards * per_shard);
        }
    }

    #[test]
    fn blocks_hold_their_images_and_have_the_manifests_hashes() {
        let folder = stl10_files(403);
        let deal = deal(&folder, 2).unwrap();
        let manifest = deal.manifest();
        assert_eq!((manifest.images_per_block, manifest.blocks_per_shard()), (151, 2));
        assert_eq!(Manifest::from_json(&manifest.to_json()).unwrap(), **manifest);
        for shard in 0..2 {
            for block in 0..2 {
                let bytes = deal.block(shard, block).unwrap();
                assert_eq!(bytes.len(), manifest.block_bytes(block));
                let number = manifest.block_number(shard, block).unwrap();
                assert_eq!(manifest.blocks[number], ContentHash::of(&bytes));
                for (record, local) in bytes.chunks(27_648).zip(manifest.images_of_block(block)) {
                    assert_eq!(record, deal.record(shard, local).unwrap());
                }
            }
        }
        for (shard, block) in [(2, 0), (0, 2), (u32::MAX, u32::MAX)] {
            assert!(deal.block(shard, block).unwrap_err().to_string().contains("expected"));
        }
        assert!(deal.record(0, 201).is_err());
    }

    #[test]
    fn a_kept_manifest_is_used_again_until_the_files_change() {
        let folder = stl10_files(20);
        let first = deal(&folder, 2).unwrap().manifest().clone();
        let cache = folder.path().join("cache");
        let kept = fs::read_dir(&cache).unwrap().next().unwrap().unwrap().path();
        // A mark in the kept copy shows that it was read.
        let marked = ContentHash::of(b"marked");
        fs::write(&kept, Manifest { blocks: vec![marked; 2], ..(*first).clone() }.to_json()).unwrap();
        assert_eq!(deal(&folder, 2).unwrap().manifest().blocks[0], marked);
        assert_eq!(deal(&folder, 1).unwrap().manifest().shards, 1, "other shards, other manifest");
        fs::write(&kept, "damaged").unwrap();
        assert_eq!(deal(&folder, 2).unwrap().manifest(), &first);
        let longer = stl10_files(22);
        fs::copy(longer.path().join("unlabeled_X.bin"), folder.path().join("unlabeled_X.bin")).unwrap();
        assert_eq!(deal(&folder, 2).unwrap().manifest().images, 22);
    }

    /// As bits rot, and as copies that keep times replace them.
    #[test]
    fn images_that_changed_under_an_unchanged_time_are_not_handed_out() {
        let folder = stl10_files(20);
        deal(&folder, 2).unwrap();
        let path = folder.path().join("unlabeled_X.bin");
        let time = fs::metadata(&path).unwrap().modified().unwrap();
        let mut bytes = fs::read(&path).unwrap();
        bytes[0] ^= 1;
        fs::write(&path, bytes).unwrap();
        fs::File::options().append(true).open(&path).unwrap().set_modified(time).unwrap();
        let refusals = || -> Vec<String> {
            let again = deal(&folder, 2).unwrap();
            (0..2).filter_map(|shard| again.block(shard, 0).err()).map(|error| error.to_string()).collect()
        };
        let [refusal] = &refusals()[..] else { panic!("the other shard's block is as it was") };
        let kept = fs::read_dir(folder.path().join("cache")).unwrap().next().unwrap().unwrap().path();
        for phrase in [path.to_str().unwrap(), &format!("remove {},", kept.display())] {
            assert!(refusal.contains(phrase), "{refusal:?} lacks {phrase:?}");
        }
        fs::remove_file(kept).unwrap();
        assert!(refusals().is_empty(), "they are taken as they are");
    }

    /// STL-10 and CIFAR-10 in blocks of 4 MiB as ever; ImageNet at 256 and 512 px, and as many images as can be numbered.
    #[test]
    fn the_hashes_of_all_blocks_fit_a_message() {
        for (images, side_px, expected) in [
            (100_000, 96, 151),
            (50_000, 32, 1365),
            (1_281_167, 256, 33),
            (1_281_167, 512, 33),
            (u64::from(u32::MAX), 1024, 107_375),
        ] {
            let per_block = images_per_block(images, 3 * side_px * side_px);
            assert_eq!(per_block, expected);
            for shards in [1, 8, 4096] {
                let blocks = shards * (images / shards).div_ceil(u64::from(per_block));
                assert!(blocks * 67 < 3 << 20, "{images} images in {shards} shards: {blocks} blocks");
            }
        }
    }

    #[test]
    fn shards_without_images_are_refused() {
        let folder = stl10_files(3);
        for shards in [0, 4] {
            let error = deal(&folder, shards).unwrap_err().to_string();
            assert!(error.contains("3 images") && error.contains("training.shards"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn the_dealt_order_is_a_permutation_and_always_the_same(images in 0u64..2_000) {
            let mut order = dealt_order(images);
            prop_assert_eq!(&order, &dealt_order(images));
            order.sort_unstable();
            prop_assert!(order.into_iter().eq(0..images as u32));
        }
    }
}
