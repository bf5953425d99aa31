//! What a step says of the network's health, beside its loss.
//!
//! All of it is read from the folded bucket and the state that every worker holds, so it is the same on each.

use std::ops::Range;

use rayon::prelude::*;

use crate::bucket::Folded;
use crate::kernels;
use crate::parameters::Layout;
use crate::schedule::LearningRates;
use crate::state::State;
use crate::step::STATISTICS_MOMENTUM;

/// The parts of the network that learn in their own way.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Parts {
    /// The ResNet.
    pub backbone: f64,
    /// The layers from its features to `z`.
    pub projector: f64,
    /// The layers from `z` to `p`.
    pub predictor: f64,
}

/// The network's health after a step.
#[derive(Debug, Clone, PartialEq)]
pub struct Monitors {
    /// In how many directions the normalised z spread, between 1 (all alike) and their length d: the inverse of
    /// the mean of `(z_i · z_j)²` over pairs of images, which is `tr(M)² / tr(M²)` of their second moments `M`.
    pub effective_dimensions: f64,
    /// Euclidean norm of the mean gradient.
    pub gradient_norms: Parts,
    /// Length of the step over that of the weights: a thousandth is usual, a tenth leaves nothing as it was.
    pub update_ratios: Parts,
    /// Length of the change of BatchNorm's running statistics over their own length; 0 where they are not trained.
    pub statistics_change: f64,
    /// Parameters whose gradient is zero in every place.
    pub without_gradient: Vec<String>,
}

impl Monitors {
    /// Looks at a step that was committed: `folded` made `state` of the one before, at these `rates`.
    pub(crate) fn after(layout: &Layout, state: &State, folded: &Folded, rates: LearningRates) -> Monitors {
        let [backbone, projector, predictor] = layout.parts();
        let gradient_norm =
            |range: &Range<usize>| length(folded.gradient(range.clone())) * f64::from(folded.scale());
        let update_ratio = |range: &Range<usize>, rate: f64| {
            let weights = length(&state.weights[range.clone()]);
            rate * length(&state.momentum[range.clone()]) / weights.max(f64::MIN_POSITIVE)
        };
        let entries = layout.parameters.iter();
        let unmoved = entries.filter(|entry| folded.gradient(entry.range.clone()).iter().all(|g| *g == 0.0));
        Monitors {
            effective_dimensions: folded.effective_dimensions(),
            gradient_norms: Parts {
                backbone: gradient_norm(&backbone),
                projector: gradient_norm(&projector),
                predictor: gradient_norm(&predictor),
            },
            update_ratios: Parts {
                backbone: update_ratio(&backbone, rates.encoder),
                projector: update_ratio(&projector, rates.encoder),
                predictor: update_ratio(&predictor, rates.predictor),
            },
            statistics_change: statistics_change(state, folded),
            without_gradient: unmoved.map(|entry| entry.name.clone()).collect(),
        }
    }
}

/// From the statistics after a step and what the step added to them: `r' = k r + m s` gives `r`.
fn statistics_change(state: &State, folded: &Folded) -> f64 {
    let keep = f64::from((1.0 - STATISTICS_MOMENTUM) * (1.0 - STATISTICS_MOMENTUM));
    let (mut change, mut before) = (0.0, 0.0);
    for (&after, batch) in state.statistics.iter().zip(folded.statistics()) {
        let old = (f64::from(after) - f64::from(STATISTICS_MOMENTUM * batch)) / keep;
        change += (f64::from(after) - old).powi(2);
        before += old * old;
    }
    change.sqrt() / before.sqrt().max(f64::MIN_POSITIVE)
}

/// Euclidean norm.
fn length(values: &[f32]) -> f64 {
    let squares = |share: &[f32]| share.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
    // Collected in order, so that the number of threads changes no digit.
    let shares: Vec<f64> = values.par_chunks(kernels::SHARE).map(squares).collect();
    shares.iter().sum::<f64>().sqrt()
}
