//! A state as files, and back.
//!
//! `model.safetensors` holds weights and running statistics under the official SimSiam names, so PyTorch
//! loads it as it is; `optimizer.safetensors` the momentum under the same names; `progress.json` the position
//! and the hash that the state must have when it is read back.

use std::ops::Range;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use crate::parameters::{Entry, Layout};
use crate::state::State;

/// The name of the weights' file.
pub const MODEL: &str = "model.safetensors";
/// The name of the momentum's file.
pub const OPTIMIZER: &str = "optimizer.safetensors";
/// The name of the position's file.
pub const PROGRESS: &str = "progress.json";

/// Why a checkpoint's files do not give a state.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file of the three is not there.
    #[error("the checkpoint lacks {0}; it was not written whole, so use an earlier one")]
    Missing(&'static str),
    /// A file cannot be understood.
    #[error("read {file}: {problem}; the file is damaged, so use an earlier checkpoint")]
    Unreadable {
        /// Its name.
        file: &'static str,
        /// What the reader said.
        problem: String,
    },
    /// A tensor is missing, superfluous or of another shape: another network's checkpoint.
    #[error(
        "{file}: {name}: expected {expected}, found {found}; the checkpoint is of another recipe's network"
    )]
    Tensor {
        /// The file's name.
        file: &'static str,
        /// The tensor's name.
        name: String,
        /// Its shape by the recipe.
        expected: String,
        /// What is in the file.
        found: String,
    },
    /// Every file can be read, but together they are not what was written.
    #[error("the checkpoint's state has the hash {found}, but {expected} was written; use an earlier one")]
    Hash {
        /// By `progress.json`.
        expected: String,
        /// Of what was read.
        found: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Progress {
    /// Steps committed.
    step: u64,
    /// The last of them that were left out in a row.
    #[serde(default, skip_serializing_if = "is_zero")]
    skipped_steps: u32,
    state_hash: String,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// The three files of a checkpoint, as name and content. Each part of the state is let go as soon as it is in its file, so
/// that no more than one and a half times the state is held.
pub fn write(layout: &Layout, state: State) -> Vec<(&'static str, Vec<u8>)> {
    let progress = Progress {
        step: state.step,
        skipped_steps: state.skipped_steps,
        state_hash: state.hash().to_string(),
    };
    let progress = serde_json::to_vec_pretty(&progress).expect("a struct of numbers and text");
    let State { weights, statistics, momentum, .. } = state;
    let model = tensors(&layout.parameters, &weights).chain(tensors(&layout.statistics, &statistics));
    let model = serialize(model);
    drop(weights);
    let optimizer = serialize(tensors(&layout.parameters, &momentum));
    vec![(MODEL, model), (OPTIMIZER, optimizer), (PROGRESS, progress)]
}

/// The state in a checkpoint's files. `file` gives the content of a name.
///
/// # Errors
/// [`CheckpointError`]: files missing or damaged, or of another network.
pub fn read<'a>(
    layout: &Layout,
    file: impl Fn(&'static str) -> Option<&'a [u8]>,
) -> Result<State, CheckpointError> {
    let content = |name| file(name).ok_or(CheckpointError::Missing(name));
    let progress: Progress = serde_json::from_slice(content(PROGRESS)?)
        .map_err(|error| CheckpointError::Unreadable { file: PROGRESS, problem: error.to_string() })?;
    let model = File::parse(MODEL, content(MODEL)?)?;
    let optimizer = File::parse(OPTIMIZER, content(OPTIMIZER)?)?;
    let state = State {
        step: progress.step,
        skipped_steps: progress.skipped_steps,
        weights: model.values(&layout.parameters)?.into(),
        statistics: model.values(&layout.statistics)?,
        momentum: optimizer.values(&layout.parameters)?,
    };
    let found = state.hash().to_string();
    if found != progress.state_hash {
        return Err(CheckpointError::Hash { expected: progress.state_hash, found });
    }
    Ok(state)
}

fn tensors<'a>(entries: &'a [Entry], values: &'a [f32]) -> impl Iterator<Item = (&'a str, TensorView<'a>)> {
    entries.iter().map(|entry| {
        let bytes = bytemuck::cast_slice(&values[entry.range.clone()]);
        let view =
            TensorView::new(Dtype::F32, entry.shape.clone(), bytes).expect("a range has its shape's length");
        (entry.name.as_str(), view)
    })
}

fn serialize<'a>(tensors: impl Iterator<Item = (&'a str, TensorView<'a>)>) -> Vec<u8> {
    safetensors::serialize(tensors, None).expect("names are unique and shapes fit")
}

struct File<'a> {
    name: &'static str,
    tensors: SafeTensors<'a>,
}

impl<'a> File<'a> {
    fn parse(name: &'static str, content: &'a [u8]) -> Result<Self, CheckpointError> {
        let tensors = SafeTensors::deserialize(content)
            .map_err(|error| CheckpointError::Unreadable { file: name, problem: error.to_string() })?;
        Ok(File { name, tensors })
    }

    /// The entries' values, flat.
    fn values(&self, entries: &[Entry]) -> Result<Vec<f32>, CheckpointError> {
        let mut values = vec![0.0; entries.last().map_or(0, |entry| entry.range.end)];
        for entry in entries {
            self.read_into(entry, &mut values, entry.range.clone())?;
        }
        Ok(values)
    }

    fn read_into(
        &self,
        entry: &Entry,
        values: &mut [f32],
        range: Range<usize>,
    ) -> Result<(), CheckpointError> {
        let wrong = |found: String| CheckpointError::Tensor {
            file: self.name,
            name: entry.name.clone(),
            expected: format!("{:?} {:?}", Dtype::F32, entry.shape),
            found,
        };
        let view = self.tensors.tensor(&entry.name).map_err(|_| wrong("no such tensor".into()))?;
        if view.dtype() != Dtype::F32 || view.shape() != entry.shape {
            return Err(wrong(format!("{:?} {:?}", view.dtype(), view.shape())));
        }
        for (value, bytes) in values[range].iter_mut().zip(view.data().as_chunks::<4>().0) {
            *value = f32::from_le_bytes(*bytes);
        }
        Ok(())
    }
}
