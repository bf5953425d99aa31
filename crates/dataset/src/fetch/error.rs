//! What can be wrong with a download, in sentences that say what to do.

use std::io;
use std::path::{Path, PathBuf};

/// Why a data set could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The folder is there, but is not what the archive makes.
    #[error("{path}: expected {expected}, found {found}; move its folder away, then fetch again")]
    Folder {
        /// The first file that differs.
        path: PathBuf,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The disk is too small.
    #[error(
        "{folder} needs {needed_bytes} free bytes for the archive and its files, found {free_bytes}; make \
         room, or choose a folder on another disk"
    )]
    NoSpace {
        /// Where the data set should go.
        folder: PathBuf,
        /// The rest of the archive and all of its files.
        needed_bytes: u64,
        /// What the disk has left for this user.
        free_bytes: u64,
    },
    /// Another process holds the archive.
    #[error("{path} is being written by another process; wait for it, or end it and fetch again")]
    Busy {
        /// The archive, as far as it is there.
        path: PathBuf,
    },
    /// The address cannot be used, or leads nowhere.
    #[error("cannot download {url}: {reason}; correct the address, or name another with --url")]
    Address {
        /// What was asked for.
        url: String,
        /// Why not.
        reason: String,
    },
    /// The server refuses.
    #[error(
        "cannot download {url}: the server answers with status {status}; look at the address in a browser, \
         try again later, or name a mirror with --url"
    )]
    Status {
        /// What was asked for.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// The connection broke again and again.
    #[error(
        "gave up downloading {url} after {retries} retries without a new byte: {reason}; {kept_bytes} of \
         {total_bytes} bytes are kept, so fetch again later to go on from there, or name a mirror with --url"
    )]
    Interrupted {
        /// What was asked for.
        url: String,
        /// How the last attempt ended, as a clause.
        reason: String,
        /// How many further attempts brought nothing new.
        retries: usize,
        /// What is kept for the next call.
        kept_bytes: u64,
        /// The whole archive.
        total_bytes: u64,
    },
    /// The server has something of another length.
    #[error(
        "{url}: expected {expected_bytes} bytes, found {found}; it is not the archive, so name another \
         address with --url"
    )]
    Length {
        /// What was asked for.
        url: String,
        /// The archive's length.
        expected_bytes: u64,
        /// What the server says or sends.
        found: String,
    },
    /// What was downloaded has the right length and is still something else.
    #[error(
        "{url}: expected MD5 {expected}, found {found}; what was downloaded is removed, so fetch again, or \
         name another address with --url"
    )]
    Checksum {
        /// What was asked for.
        url: String,
        /// The archive's sum.
        expected: String,
        /// The sum of what is here.
        found: String,
    },
    /// An archive with the right sum does not hold what it should.
    #[error(
        "{entry:?} in the archive: expected {expected}, found {found}; what was downloaded is removed, so \
         name another address with --url"
    )]
    Entry {
        /// The path within the archive.
        entry: PathBuf,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// An archive with the right sum cannot be extracted.
    #[error("the archive cannot be extracted: {0}; what was downloaded is removed, so fetch again")]
    Damaged(io::Error),
    /// The operating system refused.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// The verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl FetchError {
    /// Whether the whole archive was here and is wrong, so that keeping it helps nobody.
    pub(super) fn is_of_the_archive(&self) -> bool {
        matches!(self, FetchError::Checksum { .. } | FetchError::Entry { .. } | FetchError::Damaged(_))
    }

    /// For `map_err`: the verb and the path that go with a system error.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FetchError {
        let path = path.to_owned();
        move |source| FetchError::Io { action, path, source }
    }

    pub(super) fn folder(path: &Path, expected: String, found: String) -> FetchError {
        FetchError::Folder { path: path.to_owned(), expected, found }
    }

    pub(super) fn entry(entry: &Path, expected: impl Into<String>, found: impl Into<String>) -> FetchError {
        FetchError::Entry { entry: entry.to_owned(), expected: expected.into(), found: found.into() }
    }
}
