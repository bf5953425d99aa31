//! What a step says of the network's health, beside its loss.
//!
//! All of it is read from the folded bucket and the state that every worker holds, so it is the same on each.

use std::ops::Range;

use crate::bucket::Folded;
use crate::parameters::Layout;
use crate::replica::Replica;
use crate::schedule::LearningRates;
use crate::step::{DeviceFailure, STATISTICS_MOMENTUM};

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
    /// Looks at a step that was committed: `folded` made `replica` of the one before, at these `rates`.
    pub(crate) fn after(
        layout: &Layout,
        replica: &Replica,
        folded: &Folded,
        rates: LearningRates,
    ) -> Result<Monitors, DeviceFailure> {
        let parts = layout.parts();
        let entries: Vec<Range<usize>> = layout.parameters.iter().map(|entry| entry.range.clone()).collect();
        let gradients = folded.gradient().square_sums(&entries)?;
        let gradient_norm = |part: &Range<usize>| {
            let squares = entries.iter().zip(&gradients).filter(|(entry, _)| part.contains(&entry.start));
            squares.map(|(_, square)| square).sum::<f64>().sqrt() * f64::from(folded.scale())
        };
        let weights = replica.weights().square_sums(&parts)?;
        let momentum = replica.momentum().square_sums(&parts)?;
        let update_ratio =
            |part: usize, rate: f64| rate * (momentum[part] / weights[part].max(f64::MIN_POSITIVE)).sqrt();
        let unmoved = layout.parameters.iter().zip(&gradients).filter(|(_, square)| **square == 0.0);
        let [backbone, projector, predictor] = &parts;
        Ok(Monitors {
            effective_dimensions: folded.effective_dimensions(),
            gradient_norms: Parts {
                backbone: gradient_norm(backbone),
                projector: gradient_norm(projector),
                predictor: gradient_norm(predictor),
            },
            update_ratios: Parts {
                backbone: update_ratio(0, rates.encoder),
                projector: update_ratio(1, rates.encoder),
                predictor: update_ratio(2, rates.predictor),
            },
            statistics_change: statistics_change(&replica.host.statistics, folded),
            without_gradient: unmoved.map(|(entry, _)| entry.name.clone()).collect(),
        })
    }
}

/// From the statistics after a step and what the step added to them: `r' = k r + m s` gives `r`.
fn statistics_change(statistics: &[f32], folded: &Folded) -> f64 {
    let keep = f64::from((1.0 - STATISTICS_MOMENTUM) * (1.0 - STATISTICS_MOMENTUM));
    let (mut change, mut before) = (0.0, 0.0);
    for (&after, batch) in statistics.iter().zip(folded.statistics()) {
        let old = (f64::from(after) - f64::from(STATISTICS_MOMENTUM * batch)) / keep;
        change += (f64::from(after) - old).powi(2);
        before += old * old;
    }
    change.sqrt() / before.sqrt().max(f64::MIN_POSITIVE)
}
