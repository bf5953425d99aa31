//! Fetched blocks on this machine's disk, for all workers and all runs, up to a limit.

use std::convert::identity;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::SystemTime;

use memmap2::Mmap;

use crate::aside;
use crate::error::DatasetError;
use crate::record_file::map_file;
use crate::seal::ContentHash;

/// A folder of blocks, each a file named by its hash.
///
/// Several processes may use one folder: files appear whole by renaming, never change, and a file that
/// another process removes stays readable here while it is mapped. The time of a file's last change is the
/// time of its last use; the longest unused go first.
#[derive(Debug)]
pub struct BlockCache {
    folder: PathBuf,
    limit_bytes: u64,
    /// One writer at a time in this process, so that the limit holds. Each further process may exceed it by
    /// one block for the moment in which both write.
    writing: Mutex<()>,
}

impl BlockCache {
    /// Opens `folder`, or makes it.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn open(folder: &Path, limit_bytes: u64) -> Result<BlockCache, DatasetError> {
        fs::create_dir_all(folder).map_err(DatasetError::io("make the folder", folder))?;
        Ok(BlockCache { folder: folder.to_owned(), limit_bytes, writing: Mutex::new(()) })
    }

    /// The block of this hash, if it is here. A damaged file is removed, as if it had not been here.
    pub(crate) fn get(&self, hash: &ContentHash) -> Option<Mmap> {
        let path = self.path(hash);
        let file = File::open(&path).ok()?;
        let map = map_file(&file).ok()?;
        if ContentHash::of(&map) != *hash {
            tracing::warn!(path = %path.display(), "a cached block is damaged and is fetched again");
            // If it cannot be removed it is found damaged again, and replaced once it is fetched.
            let _ = fs::remove_file(&path);
            return None;
        }
        // Where this fails the block seems longer unused than it is, and nothing else.
        let _ = file.set_modified(SystemTime::now());
        Some(map)
    }

    /// Keeps a block, after removing others as far as the limit asks for it, and maps the kept file.
    /// `None` if the block alone is larger than the limit.
    pub(crate) fn put(&self, hash: &ContentHash, bytes: &[u8]) -> io::Result<Option<Mmap>> {
        let Some(room_bytes) = self.limit_bytes.checked_sub(bytes.len() as u64) else { return Ok(None) };
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.shrink_to(room_bytes)?;
        let path = self.path(hash);
        aside::write_file(&path, |out| out.write_all(bytes), identity)?;
        map_file(&File::open(&path)?).map(Some)
    }

    fn path(&self, hash: &ContentHash) -> PathBuf {
        self.folder.join(format!("{hash}.block"))
    }

    /// Removes the longest unused files until the rest takes at most `limit_bytes`. What a killed process
    /// left half-written counts like a block, and goes in its turn.
    fn shrink_to(&self, limit_bytes: u64) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            // Another process may just have removed it.
            if let Ok(facts) = entry.metadata()
                && facts.is_file()
            {
                files.push((facts.modified()?, facts.len(), entry.path()));
            }
        }
        files.sort_unstable();
        let mut total: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, bytes, path) in files {
            if total <= limit_bytes {
                break;
            }
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => total -= bytes,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn block(number: u8) -> (ContentHash, Vec<u8>) {
        let bytes = vec![number; 1000];
        (ContentHash::of(&bytes), bytes)
    }

    /// Makes a block look as if it was last used at second `at` of the last thousand.
    fn used_at(cache: &BlockCache, number: u8, at: u64) {
        let file = File::open(cache.path(&block(number).0)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(1000 - at)).unwrap();
    }

    fn total_bytes(folder: &Path) -> u64 {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
    }

    #[test]
    fn blocks_come_back_also_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let (hash, bytes) = block(1);
        let cache = BlockCache::open(folder.path(), 10_000).unwrap();
        assert!(cache.get(&hash).is_none());
        assert_eq!(*cache.put(&hash, &bytes).unwrap().unwrap(), *bytes);
        let again = BlockCache::open(folder.path(), 10_000).unwrap();
        assert_eq!(*again.get(&hash).unwrap(), *bytes);
    }

    #[test]
    fn the_longest_unused_go_first_and_the_limit_holds() {
        let folder = tempfile::tempdir().unwrap();
        let cache = BlockCache::open(folder.path(), 3_500).unwrap();
        // What a killed process left behind.
        fs::write(folder.path().join(".aside-x"), vec![0; 3_400]).unwrap();
        for number in 1..=3 {
            let (hash, bytes) = block(number);
            cache.put(&hash, &bytes).unwrap();
            used_at(&cache, number, u64::from(number));
        }
        // Using block 1 makes block 2 the longest unused.
        let first = cache.get(&block(1).0).unwrap();
        let (hash, bytes) = block(4);
        cache.put(&hash, &bytes).unwrap();
        let here: Vec<bool> = (1..=4).map(|number| cache.get(&block(number).0).is_some()).collect();
        assert_eq!(here, [true, false, true, true]);
        for number in 5..=9 {
            let (hash, bytes) = block(number);
            cache.put(&hash, &bytes).unwrap();
            assert!(total_bytes(folder.path()) <= 3_500);
        }
        assert_eq!(*first, *block(1).1, "a removed block stays readable where it is in use");
    }

    #[test]
    fn a_block_larger_than_the_limit_is_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let cache = BlockCache::open(folder.path(), 999).unwrap();
        let (hash, bytes) = block(1);
        assert!(cache.put(&hash, &bytes).unwrap().is_none());
        assert_eq!(total_bytes(folder.path()), 0);
    }

    #[test]
    fn damaged_files_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let cache = BlockCache::open(folder.path(), 10_000).unwrap();
        let (hash, bytes) = block(1);
        for damaged in [vec![], bytes[..999].to_vec(), vec![2; 1000]] {
            fs::write(cache.path(&hash), damaged).unwrap();
            assert!(cache.get(&hash).is_none());
            assert!(!cache.path(&hash).exists());
        }
    }
}
