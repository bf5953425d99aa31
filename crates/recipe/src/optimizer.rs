//! SGD and its learning rate.

use serde::{Deserialize, Serialize};

/// SGD with momentum, as PyTorch's: no dampening, weight decay on every parameter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Optimizer {
    /// The learning rate at a batch of 256; a run uses `base_learning_rate * batch / 256`.
    pub base_learning_rate: f64,
    /// Share of the last update that is kept.
    pub momentum: f64,
    /// Pull towards zero, added to the gradient.
    pub weight_decay: f64,
    /// Epochs of linear rise from zero, before the cosine.
    #[serde(default)]
    pub warmup_epochs: f64,
    /// Keep the predictor's learning rate constant (table 1c of the paper: 67.7 -> 68.1).
    #[serde(default = "crate::yes")]
    pub fixed_predictor_learning_rate: bool,
}
