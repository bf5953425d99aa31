//! An archive as far as it is downloaded: a hidden file that one process at a time writes, and its sum.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};

use md5::{Digest, Md5};

use super::{Event, FetchError, Phase, Report, hex, read_pieces};

pub(super) struct Partial {
    path: PathBuf,
    file: File,
    bytes: u64,
    digest: Md5,
}

impl Partial {
    /// Opens what an earlier call kept, or begins. `archive_bytes` is how long the file can become.
    pub(super) fn open(
        path: &Path,
        archive_bytes: u64,
        report: &mut Report<'_>,
    ) -> Result<Partial, FetchError> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(FetchError::io("open", path))?;
        // The sum would catch two writers too, but only at the end. Where the disk knows no locks it has to.
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            return Err(FetchError::Busy { path: path.to_owned() });
        }
        let total_bytes = file.metadata().map_err(FetchError::io("examine", path))?.len();
        let (mut bytes, mut digest) = (0, Md5::new());
        if total_bytes <= archive_bytes {
            read_pieces(&mut file, FetchError::io("read", path), |piece| {
                digest.update(piece);
                bytes += piece.len() as u64;
                report(Event::Progress { phase: Phase::Check, done_bytes: bytes, total_bytes });
                Ok(())
            })?;
        }
        let mut partial = Partial { path: path.to_owned(), file, bytes, digest };
        if total_bytes > archive_bytes {
            partial.clear()?;
        }
        Ok(partial)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn md5(&self) -> String {
        hex(self.digest.clone())
    }

    pub(super) fn append(&mut self, piece: &[u8]) -> Result<(), FetchError> {
        self.file.write_all(piece).map_err(FetchError::io("write", &self.path))?;
        self.digest.update(piece);
        self.bytes += piece.len() as u64;
        Ok(())
    }

    /// Forgets everything, because it is wrong or cannot be continued.
    pub(super) fn clear(&mut self) -> Result<(), FetchError> {
        self.file.set_len(0).map_err(FetchError::io("truncate", &self.path))?;
        self.file.rewind().map_err(FetchError::io("write", &self.path))?;
        (self.bytes, self.digest) = (0, Md5::new());
        Ok(())
    }

    /// The file from its beginning.
    pub(super) fn reader(&self) -> Result<&File, FetchError> {
        let mut file = &self.file;
        file.rewind().map_err(FetchError::io("read", &self.path))?;
        Ok(file)
    }

    pub(super) fn remove(self) -> Result<(), FetchError> {
        fs::remove_file(&self.path).map_err(FetchError::io("remove", &self.path))
    }
}
