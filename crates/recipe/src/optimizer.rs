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
    /// What a run that went wrong was gone on with; see [`OnCollapse::Rollback`](crate::OnCollapse::Rollback).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub learning_rate_changes: Vec<LearningRateChange>,
}

/// From a step on, all learning rates are multiplied by a factor. The recipe with its changes makes the same run from the
/// beginning that had them made on its way.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LearningRateChange {
    /// Steps committed before the first one with the new rates.
    pub after_step: u64,
    /// By how much they are multiplied, on top of the changes before.
    pub factor: f64,
}

/// Whether runs with these changes are the same up to the state after `step` steps.
pub fn same_learning_rates_until(
    step: u64,
    one: &[LearningRateChange],
    other: &[LearningRateChange],
) -> bool {
    let until = |changes: &[LearningRateChange]| {
        changes.iter().filter(|change| change.after_step < step).copied().collect::<Vec<_>>()
    };
    until(one) == until(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_the_same_until_their_rates_differ() {
        let change = |after_step| LearningRateChange { after_step, factor: 0.5 };
        let (one, two) = (vec![change(10)], vec![change(10), change(30)]);
        for (step, first, second, expected) in [
            (10, &[] as &[_], &one[..], true),
            (11, &[], &one, false),
            (30, &one, &two, true),
            (31, &one, &two, false),
            (99, &two, &two, true),
        ] {
            assert_eq!(same_learning_rates_until(step, first, second), expected, "{step}");
            assert_eq!(same_learning_rates_until(step, second, first), expected, "{step}");
        }
    }
}
