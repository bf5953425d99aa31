//! What can be wrong with images, in sentences that say what to do.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

/// Why images could not be opened, dealt or held.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// A file or folder that the data needs is not there.
    #[error("expected {expected} at {path}, found nothing; {advice}")]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
        /// What should be there.
        expected: String,
        /// What to do.
        advice: String,
    },
    /// A file or folder is there but holds something else: truncated, oversized, empty or foreign.
    #[error("{path}: expected {expected}, found {found}; {advice}")]
    Content {
        /// The file or folder.
        path: PathBuf,
        /// What it should hold.
        expected: String,
        /// What it holds.
        found: String,
        /// What to do.
        advice: String,
    },
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
    /// Too many shards for so few images.
    #[error(
        "{name} has {images} images, which leaves nothing for some of the {shards} shards; \
         set training.shards to at most {images} or give more images"
    )]
    TooFewImages {
        /// The data set.
        name: String,
        /// Its images.
        images: u64,
        /// The shards asked for.
        shards: u32,
    },
    /// More images than can be numbered.
    #[error("{name} has {images} images, expected at most {}; split it into several sets", u32::MAX)]
    TooManyImages {
        /// The data set.
        name: String,
        /// Its images.
        images: u64,
    },
    /// A manifest that is not JSON, or whose numbers contradict each other.
    #[error(
        "the manifest of the data cannot be used: {0}; start coordinator and workers from the same version"
    )]
    Manifest(String),
    /// A block or image was asked for that the manifest does not have.
    #[error(
        "{what} {number} of shard {shard} was asked for, expected a shard below {shards} and a {what} below \
         {limit}"
    )]
    OutOfRange {
        /// "block" or "image".
        what: &'static str,
        /// The shard asked for.
        shard: u32,
        /// The block or image asked for.
        number: u32,
        /// The shards there are.
        shards: u32,
        /// The blocks or images in each shard.
        limit: u32,
    },
    /// A block could not be fetched.
    #[error("cannot fetch block {block} of shard {shard}: {source}")]
    Fetch {
        /// The shard.
        shard: u32,
        /// The block within the shard.
        block: u32,
        /// Why not.
        source: Box<dyn Error + Send + Sync>,
    },
    /// Files hold other images than when they were hashed.
    #[error(
        "{files}: expected block {block} of shard {shard} with BLAKE3 {expected}, as it was hashed before, found {found}; \
         bring the images back as they were, or, for a new run with them as they are, remove {kept}, which has the hashes"
    )]
    Changed {
        /// Over which the block is scattered.
        files: String,
        /// The shard.
        shard: u32,
        /// The block within the shard.
        block: u32,
        /// The manifest's hash.
        expected: String,
        /// The hash of what the files hold.
        found: String,
        /// The kept manifest.
        kept: PathBuf,
    },
    /// A fetched block is not the one that the manifest promises.
    #[error(
        "block {block} of shard {shard} arrived with BLAKE3 {found}, expected {expected}, with which the coordinator \
         sends it; look for what changes bytes between it and this machine"
    )]
    ForeignBlock {
        /// The shard.
        shard: u32,
        /// The block within the shard.
        block: u32,
        /// The manifest's hash.
        expected: String,
        /// The hash of the bytes that arrived.
        found: String,
    },
}

impl DatasetError {
    /// For `map_err`: the verb and the path that go with a system error.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DatasetError {
        let path = path.to_owned();
        move |source| DatasetError::Io { action, path, source }
    }

    pub(crate) fn content(
        path: &Path,
        expected: impl Into<String>,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> DatasetError {
        let (path, expected, found, advice) = (path.to_owned(), expected.into(), found.into(), advice.into());
        DatasetError::Content { path, expected, found, advice }
    }
}
