//! Files that grow while a run goes on. A disk that is full for a while costs them nothing, and the run neither.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// What is kept for the disk at most: an hour of ten steps a second.
const MOST_BYTES_OWED: usize = 16 << 20;

/// A file that grows by whole records: one that cannot be written leaves nothing of itself. It is kept, and written
/// before the next one.
#[derive(Debug)]
pub(crate) struct GrowingFile {
    path: PathBuf,
    file: File,
    /// Of the whole records in it.
    length: u64,
    /// Whole records that are missing in it.
    owed: Vec<u8>,
    has_lost_some: bool,
}

impl GrowingFile {
    /// Goes on at the end of `path`, which exists or not.
    pub(crate) fn open(path: &Path) -> io::Result<GrowingFile> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let length = file.metadata()?.len();
        Ok(GrowingFile { path: path.to_owned(), file, length, owed: Vec::new(), has_lost_some: false })
    }

    /// Appends a record, and whatever is missing before it. Where this fails, that is said once, and `record` is kept.
    ///
    /// # Errors
    /// Those of the disk. The record is not in the file by then.
    pub(crate) fn append(&mut self, record: &[u8]) -> io::Result<()> {
        let is_first = self.owed.is_empty();
        if self.owed.len() + record.len() <= MOST_BYTES_OWED {
            self.owed.extend_from_slice(record);
        } else if !std::mem::replace(&mut self.has_lost_some, true) {
            tracing::error!("{} lacks more than is kept for it: the rest is lost", self.path.display());
        }
        self.write_owed().inspect_err(|error| {
            if is_first {
                tracing::error!(
                    "cannot write {}: {error}; what it lacks is written once there is room",
                    self.path.display()
                );
            }
        })
    }

    /// Bytes that are in it.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Writes what is missing, if anything is and it can be done by now.
    pub(crate) fn catch_up(&mut self) {
        if !self.owed.is_empty() && self.write_owed().is_ok() {
            tracing::warn!("{} can be written again, and lacks nothing", self.path.display());
        }
    }

    /// Sees to it that what is in the file survives a power cut.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write_owed(&mut self) -> io::Result<()> {
        let written = self.file.write_all(&self.owed);
        if let Err(error) = written {
            // A part of it would be taken for a part of the next one. A file can be cut where the disk is full.
            self.file.set_len(self.length)?;
            return Err(error);
        }
        self.length += self.owed.len() as u64;
        self.owed.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_is_always_full_is_said_to_be() {
        // Where the system has no such device, there is nothing to be tested.
        let Ok(file) = OpenOptions::new().append(true).open("/dev/full") else { return };
        let path = PathBuf::from("/dev/full");
        let mut growing = GrowingFile { path, file, length: 0, owed: Vec::new(), has_lost_some: false };
        for _ in 0..3 {
            growing.append(&[7; MOST_BYTES_OWED / 2]).unwrap_err();
            growing.catch_up();
        }
        assert_eq!((growing.owed.len(), growing.has_lost_some, growing.length), (MOST_BYTES_OWED, true, 0));
    }

    #[test]
    fn what_was_owed_comes_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut growing = GrowingFile::open(&path).unwrap();
        growing.append(b"one\n").unwrap();
        // As if the disk had been full.
        growing.owed = b"two\n".to_vec();
        growing.append(b"three\n").unwrap();
        growing.owed = b"four\n".to_vec();
        growing.catch_up();
        assert_eq!(std::fs::read(&path).unwrap(), b"one\ntwo\nthree\nfour\n");
        let mut growing = GrowingFile::open(&path).unwrap();
        growing.append(b"five\n").unwrap();
        assert_eq!((growing.length, std::fs::read(&path).unwrap().len()), (24, 24));
    }
}
