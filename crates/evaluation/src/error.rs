//! What can be wrong with an evaluation, in sentences that say what to do.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Why an evaluation gave no result.
#[derive(Debug, thiserror::Error)]
pub enum EvaluationError {
    /// A file or folder is missing, damaged or something else.
    #[error("{path}: expected {expected}, found {found}; {advice}")]
    Content {
        /// The file or folder.
        path: PathBuf,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
        /// What to do.
        advice: &'static str,
    },
    /// The run's recipe cannot be used.
    #[error("{path}: {source}")]
    Recipe {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: recipe::RecipeError,
    },
    /// The checkpoint's files do not give the state of the recipe's network.
    #[error("{path}: {source}")]
    Checkpoint {
        /// The checkpoint's folder.
        path: PathBuf,
        /// What is wrong with it.
        source: simsiam::checkpoint::CheckpointError,
    },
    /// The images cannot be used.
    #[error(transparent)]
    Dataset(#[from] dataset::DatasetError),
    /// The images are whole but do not allow this evaluation.
    #[error("{name}: expected {expected}, found {found}; {advice}")]
    Images {
        /// The data set and its part.
        name: String,
        /// What the evaluation needs.
        expected: String,
        /// What there is.
        found: String,
        /// What to do.
        advice: &'static str,
    },
    /// A setting out of its range.
    #[error("{name}: expected {expected}, found {found}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// Its range.
        expected: String,
        /// What was given.
        found: String,
    },
    /// The network gives infinite or undefined features.
    #[error(
        "the features of image {image} of {part} are not finite; the weights of step {step} are broken, so \
         evaluate an earlier checkpoint"
    )]
    NotFinite {
        /// The part of the data.
        part: String,
        /// The image, counted from 0.
        image: u64,
        /// Steps committed in the weights.
        step: u64,
    },
    /// The training of a classifier diverged.
    #[error("step {step} of epoch {epoch}: the loss or its gradient is not finite; {advice}")]
    Diverged {
        /// The epoch, counted from 1.
        epoch: u64,
        /// The step within it, counted from 1.
        step: u64,
        /// Which settings to lower.
        advice: String,
    },
    /// The frozen network changed while features were computed: a fault of this program.
    #[error("the frozen network moved: expected {expected}, found {found}; please report this fault")]
    Moved {
        /// Before.
        expected: String,
        /// After.
        found: String,
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

impl EvaluationError {
    /// For `map_err`: the verb and the path that go with a system error.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> EvaluationError {
        let path = path.to_owned();
        move |source| EvaluationError::Io { action, path, source }
    }

    pub(crate) fn setting(
        name: &'static str,
        expected: impl Into<String>,
        found: &dyn fmt::Display,
    ) -> EvaluationError {
        EvaluationError::Setting { name, expected: expected.into(), found: found.to_string() }
    }

    pub(crate) fn content(
        path: &Path,
        expected: impl Into<String>,
        found: impl Into<String>,
        advice: &'static str,
    ) -> EvaluationError {
        let (path, expected, found) = (path.to_owned(), expected.into(), found.into());
        EvaluationError::Content { path, expected, found, advice }
    }

    pub(crate) fn images(
        name: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
        advice: &'static str,
    ) -> EvaluationError {
        let (name, expected, found) = (name.into(), expected.into(), found.into());
        EvaluationError::Images { name, expected, found, advice }
    }
}
