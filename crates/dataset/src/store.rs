//! The worker's side: the images of its shards, wherever they come from.

use std::collections::{HashMap, VecDeque};
use std::error::Error;
use std::ops::{Deref, Range};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, Once, OnceLock, PoisonError};

use memmap2::Mmap;

use crate::cache::BlockCache;
use crate::deal::{dealt_order, gather, place};
use crate::error::DatasetError;
use crate::images::Images;
use crate::manifest::Manifest;
use crate::order::{WINDOW_BLOCKS, blocks_in_order};
use crate::seal::ContentHash;

/// Blocks held for each shard: the window that trains, the one that arrives meanwhile, and the one before,
/// as the longest unused make room and what has just arrived has not been used yet.
const HELD_BLOCKS: usize = 3 * WINDOW_BLOCKS;

/// How often a block is fetched that arrives changed. A network that does so each time is not one to train over.
const ATTEMPTS: u32 = 3;

/// Blocks that may wait to be loaded ahead: two windows of as many shards as one worker ever leases.
const AHEAD_BLOCKS: usize = 2 * WINDOW_BLOCKS * 64;

/// Gets a block from whoever has it: for a worker, the coordinator. Called on several threads, none of which
/// runs async tasks; it may block, but must give up in the end. Whether the bytes are the right ones is
/// checked by the caller.
pub trait FetchBlock: Send + Sync {
    /// The pixels of a block's images, one after the other.
    ///
    /// # Errors
    /// Whatever kept the block from arriving.
    fn fetch(&self, shard: u32, block: u32) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>>;
}

impl<F> FetchBlock for F
where
    F: Fn(u32, u32) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>> + Send + Sync,
{
    fn fetch(&self, shard: u32, block: u32) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>> {
        self(shard, block)
    }
}

/// The blocks of a run's shards: from the same files on this machine, else from the cache, else fetched. Each
/// is verified with the manifest's hash before its first use.
///
/// All methods may be called from any number of threads; a block that several ask for is loaded once.
pub struct BlockStore {
    sources: Arc<Sources>,
    /// To the thread that loads blocks ahead.
    ahead: Option<SyncSender<(u32, u32)>>,
    /// What each shard is about to use.
    plans: Mutex<HashMap<u32, Plan>>,
}

/// A shard's blocks in the order of their first use.
struct Plan {
    blocks: Vec<u32>,
    /// How many of them have been handed to the thread that loads ahead, or passed over.
    noted: usize,
}

impl BlockStore {
    /// A store over up to three sources, tried in this order: `local` (from [`Images::open_local`]), `cache`,
    /// `fetch`.
    pub fn new(
        manifest: Arc<Manifest>,
        cache: Option<BlockCache>,
        local: Option<Arc<Images>>,
        fetch: Box<dyn FetchBlock>,
    ) -> BlockStore {
        let local = local.filter(|images| fits(images, &manifest)).map(|images| LocalImages {
            order: dealt_order(images.len()),
            verdicts: manifest.blocks.iter().map(|_| OnceLock::new()).collect(),
            images,
            told: Once::new(),
        });
        let held = Mutex::default();
        let sources = Arc::new(Sources { manifest, local: local.map(Arc::new), cache, fetch, held });
        let ahead = load_ahead(Arc::clone(&sources));
        BlockStore { sources, ahead, plans: Mutex::default() }
    }

    /// A block, loaded if it is not held. May block while it is fetched.
    ///
    /// # Errors
    /// No such block, no source that has it, or a source that sent another.
    pub fn block(&self, shard: u32, block: u32) -> Result<Block, DatasetError> {
        self.look_ahead(shard, block);
        self.sources.block(shard, block)
    }

    /// One image of a shard. May block while its block is fetched.
    ///
    /// # Errors
    /// As [`BlockStore::block`].
    pub fn image(&self, shard: u32, local_index: u32) -> Result<Image, DatasetError> {
        let manifest = &self.sources.manifest;
        manifest.check_image(shard, local_index)?;
        let block = self.block(shard, manifest.block_of(local_index))?;
        Ok(Image { block, index: (local_index % manifest.images_per_block) as usize })
    }

    /// Says in which order a shard's images will be used (from [`epoch_order`]). From then on, whenever a
    /// window comes into use, the next one is loaded in the background. What fails to load there is tried
    /// again when it is used.
    ///
    /// [`epoch_order`]: crate::epoch_order
    pub fn prefetch(&self, shard: u32, order: &[u32]) {
        let plan = Plan { blocks: blocks_in_order(order, &self.sources.manifest), noted: 0 };
        lock(&self.plans).insert(shard, plan);
    }

    /// Lets go of what is held of other shards than these, which are used from now on.
    pub fn keep_only(&self, shards: &Range<u32>) {
        lock(&self.plans).retain(|shard, _| shards.contains(shard));
        lock(&self.sources.held).retain(|shard, _| shards.contains(shard));
    }

    /// What the coordinator told of the images.
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.sources.manifest
    }

    /// Notes what is left of the window that `block` belongs to, and the window after it.
    fn look_ahead(&self, shard: u32, block: u32) {
        let Some(ahead) = &self.ahead else { return };
        let mut plans = lock(&self.plans);
        let Some(plan) = plans.get_mut(&shard) else { return };
        let Some(place) = plan.blocks.iter().position(|planned| *planned == block) else { return };
        let window = place / WINDOW_BLOCKS;
        let end = plan.blocks.len().min((window + 2) * WINDOW_BLOCKS);
        // After a resume in the middle of an epoch, the windows before are not wanted.
        plan.noted = plan.noted.max(window * WINDOW_BLOCKS);
        // A full queue means that loading is behind anyway; the rest is noted at the next use.
        while plan.noted < end && ahead.try_send((shard, plan.blocks[plan.noted])).is_ok() {
            plan.noted += 1;
        }
    }
}

/// The images of one block. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Block {
    pixels: Pixels,
    images: usize,
    record_bytes: usize,
}

#[derive(Debug, Clone)]
enum Pixels {
    /// Scattered over the local files, from this place of the dealt order on.
    Local(Arc<LocalImages>, usize),
    /// In a file of the cache.
    Mapped(Arc<Mmap>),
    /// In memory, where there is no cache.
    Memory(Arc<[u8]>),
}

impl Block {
    /// How many images there are.
    pub fn len(&self) -> usize {
        self.images
    }

    /// Never true: blocks hold at least one image.
    pub fn is_empty(&self) -> bool {
        self.images == 0
    }

    /// The pixels of an image, by its place in the block.
    ///
    /// # Panics
    /// If `index` is not below [`Block::len`].
    pub fn record(&self, index: usize) -> &[u8] {
        assert!(index < self.images, "image {index} of a block of {}", self.images);
        let range = index * self.record_bytes..(index + 1) * self.record_bytes;
        match &self.pixels {
            Pixels::Local(local, first) => local.images.record(u64::from(local.order[first + index])),
            Pixels::Mapped(map) => &map[range],
            Pixels::Memory(bytes) => &bytes[range],
        }
    }
}

/// The pixels of one image; holds its block.
#[derive(Debug, Clone)]
pub struct Image {
    block: Block,
    index: usize,
}

impl AsRef<[u8]> for Image {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Deref for Image {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.block.record(self.index)
    }
}

/// The same files on this machine, as far as their blocks have been verified.
#[derive(Debug)]
struct LocalImages {
    images: Arc<Images>,
    order: Vec<u32>,
    /// For each block of the manifest, once it is known: whether it is the same here.
    verdicts: Vec<OnceLock<bool>>,
    told: Once,
}

/// A block while it is loaded (`None`) and after.
type Slot = Arc<Mutex<Option<Block>>>;

struct Sources {
    manifest: Arc<Manifest>,
    local: Option<Arc<LocalImages>>,
    cache: Option<BlockCache>,
    fetch: Box<dyn FetchBlock>,
    /// For each shard its blocks in order of last use, the latest at the end.
    held: Mutex<HashMap<u32, VecDeque<(u32, Slot)>>>,
}

impl Sources {
    fn block(&self, shard: u32, block: u32) -> Result<Block, DatasetError> {
        let number = self.manifest.block_number(shard, block)?;
        if let Some(local) = self.local_block(shard, block, number) {
            return Ok(local);
        }
        let slot = self.slot(shard, block);
        // Whoever else wants this block waits here until it is loaded, and finds it then.
        let mut slot = lock(&slot);
        if let Some(block) = &*slot {
            return Ok(block.clone());
        }
        let pixels = self.load(shard, block, &self.manifest.blocks[number])?;
        Ok(slot.insert(self.with_pixels(block, pixels)).clone())
    }

    /// The block in the local files, if these hold the same images.
    fn local_block(&self, shard: u32, block: u32, number: usize) -> Option<Block> {
        let local = self.local.as_ref()?;
        let same = *local.verdicts[number].get_or_init(|| {
            let bytes = gather(&local.images, &local.order, &self.manifest, shard, block);
            ContentHash::of(&bytes) == self.manifest.blocks[number]
        });
        if !same {
            local.told.call_once(|| {
                let files = local.images.file_paths();
                tracing::warn!(
                    shard,
                    block,
                    ?files,
                    "local files differ from the coordinator's: fetching instead"
                );
            });
            return None;
        }
        let first = place(&self.manifest, shard, self.manifest.images_of_block(block).start);
        Some(self.with_pixels(block, Pixels::Local(Arc::clone(local), first)))
    }

    fn load(&self, shard: u32, block: u32, hash: &ContentHash) -> Result<Pixels, DatasetError> {
        if let Some(map) = self.cache.as_ref().and_then(|cache| cache.get(hash)) {
            return Ok(Pixels::Mapped(Arc::new(map)));
        }
        let bytes = self.fetch_whole(shard, block, hash)?;
        match self.cache.as_ref().map(|cache| cache.put(hash, &bytes)) {
            Some(Ok(Some(map))) => return Ok(Pixels::Mapped(Arc::new(map))),
            Some(Err(error)) => tracing::warn!(shard, block, %error, "cannot cache a block: kept in memory"),
            Some(Ok(None)) | None => {}
        }
        Ok(Pixels::Memory(bytes.into()))
    }

    /// Fetches a block until it has its hash: what was changed on its way comes right the next time.
    fn fetch_whole(&self, shard: u32, block: u32, hash: &ContentHash) -> Result<Vec<u8>, DatasetError> {
        let mut attempt = 1;
        loop {
            let bytes = self.fetch.fetch(shard, block).map_err(|source| DatasetError::Fetch {
                shard,
                block,
                source,
            })?;
            let found = ContentHash::of(&bytes);
            if found == *hash {
                return Ok(bytes);
            }
            if attempt == ATTEMPTS {
                let (expected, found) = (hash.to_string(), found.to_string());
                return Err(DatasetError::ForeignBlock { shard, block, expected, found });
            }
            tracing::warn!(shard, block, "a block arrived changed and is fetched again");
            attempt += 1;
        }
    }

    /// The slot of a block, now the latest used of its shard. The longest unused makes room; whoever still
    /// has its block keeps it.
    fn slot(&self, shard: u32, block: u32) -> Slot {
        let mut held = lock(&self.held);
        let slots = held.entry(shard).or_default();
        let slot = match slots.iter().position(|(held, _)| *held == block).and_then(|at| slots.remove(at)) {
            Some((_, slot)) => slot,
            None => Slot::default(),
        };
        slots.push_back((block, Arc::clone(&slot)));
        if slots.len() > HELD_BLOCKS {
            slots.pop_front();
        }
        slot
    }

    fn with_pixels(&self, block: u32, pixels: Pixels) -> Block {
        let images = self.manifest.images_of_block(block).len();
        Block { pixels, images, record_bytes: self.manifest.geometry.record_bytes() }
    }
}

/// A panic elsewhere leaves a slot empty or whole, so the lock can be used on.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn fits(images: &Images, manifest: &Manifest) -> bool {
    images.len() == manifest.images && images.geometry() == manifest.geometry
}

/// Starts the thread that loads blocks ahead. It ends when the store is dropped.
fn load_ahead(sources: Arc<Sources>) -> Option<SyncSender<(u32, u32)>> {
    let (sender, receiver) = sync_channel(AHEAD_BLOCKS);
    let work = move || {
        for (shard, block) in receiver {
            if let Err(error) = sources.block(shard, block) {
                tracing::debug!(shard, block, %error, "cannot load a block ahead");
            }
        }
    };
    match std::thread::Builder::new().name("blocks-ahead".to_owned()).spawn(work) {
        Ok(_) => Some(sender),
        Err(error) => {
            tracing::warn!(%error, "cannot start the thread that loads blocks ahead: they load when used");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deal::Deal;
    use crate::deal::tests::{deal, image_number, stl10_files};
    use crate::epoch_order;
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tempfile::TempDir;

    /// What a fetch answers.
    type Fetched = Result<Vec<u8>, Box<dyn Error + Send + Sync>>;

    /// Dealt images, a manifest of them with small blocks, and a count of what was fetched.
    struct Scene {
        folder: TempDir,
        deal: Arc<Deal>,
        manifest: Arc<Manifest>,
        fetched: Arc<AtomicU32>,
    }

    impl Scene {
        /// `images` in two shards and blocks of 3.
        fn new(images: usize) -> Scene {
            let folder = stl10_files(images);
            let deal = deal(&folder, 2).unwrap();
            let mut manifest = Manifest { images_per_block: 3, ..(**deal.manifest()).clone() };
            let blocks = manifest.blocks_per_shard();
            manifest.blocks = (0..2 * blocks)
                .map(|number| {
                    let (shard, block) = (number / blocks, number % blocks);
                    ContentHash::of(&pixels(&deal, &manifest, shard, block))
                })
                .collect();
            let fetched = Arc::default();
            Scene { folder, deal: Arc::new(deal), manifest: Arc::new(manifest), fetched }
        }

        fn coordinator(&self) -> Box<dyn FetchBlock> {
            let (deal, manifest) = (Arc::clone(&self.deal), Arc::clone(&self.manifest));
            let fetched = Arc::clone(&self.fetched);
            Box::new(move |shard, block| -> Fetched {
                fetched.fetch_add(1, Ordering::SeqCst);
                Ok(pixels(&deal, &manifest, shard, block))
            })
        }

        fn cache(&self) -> Option<BlockCache> {
            Some(BlockCache::open(&self.cache_path(), 1 << 30).unwrap())
        }

        fn cache_path(&self) -> std::path::PathBuf {
            self.folder.path().join("blocks")
        }

        fn store(&self, cache: Option<BlockCache>, local: Option<Images>) -> BlockStore {
            BlockStore::new(Arc::clone(&self.manifest), cache, local.map(Arc::new), self.coordinator())
        }

        fn fetched(&self) -> u32 {
            self.fetched.swap(0, Ordering::SeqCst)
        }

        /// Every image of both shards is the right one.
        fn check(&self, store: &BlockStore) {
            for shard in 0..2 {
                for local_index in 0..self.manifest.images_per_shard {
                    let expected = self.deal.record(shard, local_index).unwrap();
                    assert_eq!(*store.image(shard, local_index).unwrap(), *expected, "{shard} {local_index}");
                }
            }
        }
    }

    fn pixels(deal: &Deal, manifest: &Manifest, shard: u32, block: u32) -> Vec<u8> {
        manifest
            .images_of_block(block)
            .flat_map(|index| deal.record(shard, index).unwrap().to_vec())
            .collect()
    }

    fn block_files(folder: &Path) -> Vec<std::path::PathBuf> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    #[test]
    fn the_same_files_are_used_in_place() {
        let scene = Scene::new(20);
        let store = scene.store(scene.cache(), Some(Images::open_local(&scene.manifest).unwrap()));
        scene.check(&store);
        assert_eq!(scene.fetched(), 0);
        assert!(block_files(&scene.cache_path()).is_empty(), "nothing is copied");
        assert_eq!((store.block(0, 3).unwrap().len(), store.block(0, 0).unwrap().len()), (1, 3));
    }

    #[test]
    fn other_files_of_the_same_name_are_found_out() {
        let scene = Scene::new(20);
        let path = scene.folder.path().join("unlabeled_X.bin");
        let mut bytes = fs::read(&path).unwrap();
        bytes[0] ^= 1;
        fs::remove_file(&path).unwrap();
        fs::write(&path, &bytes).unwrap();
        let store = scene.store(None, Some(Images::open_local(&scene.manifest).unwrap()));
        scene.check(&store);
        assert_eq!(scene.fetched(), 1, "only the block with the changed image is fetched");

        fs::write(&path, &bytes[..bytes.len() - 27_648]).unwrap();
        let error = Images::open_local(&scene.manifest).unwrap_err().to_string();
        assert!(error.contains("20 images") && error.contains("found 19"), "{error}");
    }

    #[test]
    fn fetched_blocks_are_cached_for_the_next_store_and_the_one_beside() {
        let scene = Scene::new(20);
        let blocks = scene.manifest.blocks.len() as u32;
        let (one, beside) = (scene.store(scene.cache(), None), scene.store(scene.cache(), None));
        scene.check(&one);
        assert_eq!(scene.fetched(), blocks);
        scene.check(&beside);
        drop((one, beside));
        scene.check(&scene.store(scene.cache(), None));
        assert_eq!(scene.fetched(), 0);

        // Replaced rather than overwritten, as another store might have it mapped.
        let damaged = block_files(&scene.cache_path()).remove(0);
        fs::remove_file(&damaged).unwrap();
        fs::write(&damaged, "damaged").unwrap();
        scene.check(&scene.store(scene.cache(), None));
        assert_eq!(scene.fetched(), 1, "a damaged block is fetched again");
        scene.check(&scene.store(scene.cache(), None));
        assert_eq!(scene.fetched(), 0, "and cached again");
    }

    #[test]
    fn without_room_on_disk_blocks_are_kept_in_memory() {
        let scene = Scene::new(20);
        let tiny = BlockCache::open(&scene.cache_path(), 10).unwrap();
        let store = scene.store(Some(tiny), None);
        scene.check(&store);
        assert_eq!(scene.fetched(), scene.manifest.blocks.len() as u32, "each is fetched once");

        let gone = scene.cache();
        fs::remove_dir_all(scene.cache_path()).unwrap();
        fs::write(scene.cache_path(), "a file where the folder was").unwrap();
        scene.check(&scene.store(gone, None));
    }

    #[test]
    fn a_liar_and_a_failure_are_told_apart_and_may_do_better_next_time() {
        let scene = Scene::new(8);
        let (deal, manifest, calls) = (scene.deal.clone(), scene.manifest.clone(), AtomicU32::new(0));
        let fetch = move |shard, block| -> Fetched {
            match calls.fetch_add(1, Ordering::SeqCst) {
                0 => Err("the connection broke".into()),
                // Three lies are too many, two are borne.
                1 | 3 | 5 => Ok(pixels(&deal, &manifest, 1 - shard, block)),
                2 | 4 => Ok(Vec::new()),
                _ => Ok(pixels(&deal, &manifest, shard, block)),
            }
        };
        let store = BlockStore::new(scene.manifest.clone(), scene.cache(), None, Box::new(fetch));
        for phrase in ["cannot fetch block 1 of shard 0: the connection broke", "arrived with BLAKE3"] {
            let error = store.block(0, 1).unwrap_err().to_string();
            assert!(error.contains(phrase), "{error:?} lacks {phrase:?}");
            assert!(block_files(&scene.cache_path()).is_empty(), "nothing false is cached");
        }
        scene.check(&store);
    }

    #[test]
    fn places_that_do_not_exist_are_refused() {
        let scene = Scene::new(8);
        let store = scene.store(None, None);
        for (shard, number) in [(2, 0), (0, 4), (u32::MAX, u32::MAX)] {
            assert!(store.block(shard, number).is_err() && store.image(shard, number).is_err());
        }
        assert_eq!(scene.fetched(), 0);
    }

    #[test]
    fn many_threads_load_a_block_once() {
        let scene = Scene::new(20);
        let store = scene.store(None, None);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| scene.check(&store));
            }
        });
        assert_eq!(scene.fetched(), scene.manifest.blocks.len() as u32);
    }

    #[test]
    fn three_windows_are_held_and_no_more() {
        let images = 2 * 3 * (HELD_BLOCKS + 1);
        let scene = Scene::new(images);
        let store = scene.store(None, None);
        let load = |blocks: std::ops::Range<usize>| {
            blocks.for_each(|block| drop(store.block(0, block as u32).unwrap()));
            scene.fetched() as usize
        };
        assert_eq!(load(0..HELD_BLOCKS), HELD_BLOCKS);
        assert_eq!(load(0..HELD_BLOCKS), 0);
        let kept = store.image(0, 0).unwrap();
        assert_eq!(load(HELD_BLOCKS..HELD_BLOCKS + 1), 1, "makes room by giving up the longest unused");
        assert_eq!(load(0..1), 0, "which is not block 0, just used");
        assert_eq!(load(1..2), 1, "but block 1");
        assert_eq!(image_number(&kept), image_number(scene.deal.record(0, 0).unwrap()));
    }

    #[test]
    fn of_shards_that_went_to_others_nothing_is_held() {
        let scene = Scene::new(20);
        let store = scene.store(None, None);
        for shards in [0..2, 1..2, 0..1] {
            store.keep_only(&shards);
            shards.for_each(|shard| drop(store.block(shard, 0).unwrap()));
        }
        assert_eq!(scene.fetched(), 3, "block 0 of shard 0 twice, that of shard 1 once");
        (0..2).for_each(|shard| store.prefetch(shard, &[0]));
        store.keep_only(&(0..1));
        assert_eq!(lock(&store.plans).keys().copied().collect::<Vec<_>>(), [0]);
    }

    #[test]
    fn the_next_window_loads_while_one_is_in_use() {
        let scene = Scene::new(2 * 3 * 3 * WINDOW_BLOCKS);
        let (deal, manifest) = (scene.deal.clone(), scene.manifest.clone());
        let (sender, arrived) = std::sync::mpsc::channel();
        let fetch = move |shard, block| -> Fetched {
            sender.send(block).unwrap();
            Ok(pixels(&deal, &manifest, shard, block))
        };
        let store = BlockStore::new(scene.manifest.clone(), None, None, Box::new(fetch));
        let order = epoch_order(5, 1, 1, &scene.manifest);
        let plan = blocks_in_order(&order, &scene.manifest);
        store.prefetch(1, &order);
        assert!(arrived.try_recv().is_err(), "nothing before the first use");
        let next = |count: usize| -> BTreeSet<u32> { (0..count).map(|_| arrived.recv().unwrap()).collect() };
        let planned = |range: std::ops::Range<usize>| plan[range].iter().copied().collect::<BTreeSet<u32>>();

        // As after a resume, the first use is in the second window.
        store.block(1, plan[WINDOW_BLOCKS + 2]).unwrap();
        assert_eq!(next(2 * WINDOW_BLOCKS), planned(WINDOW_BLOCKS..3 * WINDOW_BLOCKS));
        plan[WINDOW_BLOCKS..].iter().for_each(|block| drop(store.block(1, *block).unwrap()));
        assert!(arrived.try_recv().is_err(), "each is fetched once");

        // The next epoch begins with the first window, which is not held, and notes the second, which is.
        store.prefetch(1, &order);
        store.block(1, plan[0]).unwrap();
        assert_eq!(next(WINDOW_BLOCKS), planned(0..WINDOW_BLOCKS));
        drop(store);
        assert!(arrived.recv().is_err(), "the thread ends with the store");
    }

    #[test]
    fn a_block_that_fails_ahead_is_fetched_when_it_is_used() {
        let scene = Scene::new(20);
        let (deal, manifest) = (scene.deal.clone(), scene.manifest.clone());
        let (sender, asked) = std::sync::mpsc::channel();
        let fetch = move |shard, block| -> Fetched {
            let ahead = std::thread::current().name() == Some("blocks-ahead");
            sender.send((ahead, block)).unwrap();
            if ahead { Err("not now".into()) } else { Ok(pixels(&deal, &manifest, shard, block)) }
        };
        let store = BlockStore::new(scene.manifest.clone(), None, None, Box::new(fetch));
        store.prefetch(0, &epoch_order(0, 0, 0, &scene.manifest));
        store.block(0, 0).unwrap();
        // The thread has come to every other block, and failed.
        while asked.recv().unwrap() != (true, 3) {}
        scene.check(&store);
    }
}
