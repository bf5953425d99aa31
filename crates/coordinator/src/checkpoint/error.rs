//! What can be wrong with a checkpoint.

use std::io;
use std::path::{Path, PathBuf};

/// Why a checkpoint cannot be read or published.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file is missing, changed or cut.
    #[error("{path}: expected {expected}, found {found}; the checkpoint is damaged, use an older one")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the manifest says.
        expected: String,
        /// What is there.
        found: String,
    },
    /// What was sent is not a whole checkpoint.
    #[error("the checkpoint of step {step} is not published: {problem}")]
    Refused {
        /// Steps committed in it.
        step: u64,
        /// What is wrong with it.
        problem: String,
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
}

impl CheckpointError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CheckpointError {
        move |source| CheckpointError::Io { action, path: path.to_path_buf(), source }
    }
}
