//! Why a run directory cannot be used.

use std::io;
use std::path::{Path, PathBuf};

use recipe::RecipeError;

use crate::checkpoint::CheckpointError;
use crate::journal::Dealt;

/// Why a run directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunDirectoryError {
    /// A new run would mix with something else.
    #[error("{path} is not empty: choose another --name or --out, or go on with that run by --resume")]
    NotEmpty {
        /// The folder.
        path: PathBuf,
    },
    /// Two coordinators would write the same files.
    #[error(
        "another coordinator ({holder}) is at work in {path}: wait until it ends, or choose another --name"
    )]
    Locked {
        /// The folder.
        path: PathBuf,
        /// Which one, for people.
        holder: String,
    },
    /// There is nothing to go on with.
    #[error(
        "{path} is not a run directory, expected {expected} in it: correct the path, or leave out --resume"
    )]
    NotARun {
        /// The folder.
        path: PathBuf,
        /// What was looked for.
        expected: &'static str,
    },
    /// The run would go on with other steps than it has made.
    #[error(
        "the run in {path} was begun with {then}, and its data holds {now}: bring the images back as they were, or start a \
         new run with another --name, from this one's weights if you like: `evaluate export` writes them, --set \
         start.weights=FILE takes them"
    )]
    OtherImages {
        /// The folder.
        path: PathBuf,
        /// What it was begun with.
        then: Box<Dealt>,
        /// What there is.
        now: Box<Dealt>,
    },
    /// The journal does not begin as a journal does.
    #[error("{path}: expected the record of the run's creation in the first line, found {found}")]
    Journal {
        /// The journal.
        path: PathBuf,
        /// What is there.
        found: String,
    },
    /// The journal speaks of more generations or workers than there can have been.
    #[error(
        "{path}: expected numbers to which a run has counted, found {found}: the journal is damaged; correct that line"
    )]
    Numbers {
        /// The journal.
        path: PathBuf,
        /// What is there.
        found: String,
    },
    /// The saved recipe is not one.
    #[error("{path}: {source}")]
    Recipe {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: RecipeError,
    },
    /// The checkpoints cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
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

pub(crate) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RunDirectoryError {
    move |source| RunDirectoryError::Io { action, path: path.to_path_buf(), source }
}
