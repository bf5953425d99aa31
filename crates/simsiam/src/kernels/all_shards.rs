//! Statistics over the shards of a whole run, for BatchNorm as PyTorch's `SyncBatchNorm`.
//!
//! Each shard is computed by a thread of its own, wherever; in every BatchNorm they wait for each other and add up what
//! each brings: forward its mean and variance, backward the sums that its gradient needs.

use std::fmt::{self, Debug, Formatter};
use std::sync::Arc;

use super::batch_norm::{Moments, inverse_deviation};

/// Adds up numbers of all shards of a run, which are computed side by side.
pub trait ShardSum: Send + Sync {
    /// Turns the numbers of this shard into the sum over all, the same bits for each. All shards call this equally often,
    /// with as many numbers each time.
    ///
    /// If the others cannot be reached, it leaves the numbers as they are: whoever made it knows, and throws the step
    /// away.
    fn sum(&self, shard: u32, values: &mut [f32]);
}

/// One shard among all of its run.
#[derive(Clone)]
pub struct AllShards {
    sum: Arc<dyn ShardSum>,
    shard: u32,
    shards: u32,
}

impl AllShards {
    /// `shard` of `shards`, which meet in `sum`.
    pub fn new(sum: Arc<dyn ShardSum>, shard: u32, shards: u32) -> AllShards {
        AllShards { sum, shard, shards }
    }

    /// Turns the numbers of this shard into the mean over all.
    pub(super) fn mean(&self, values: &mut [f32]) {
        self.sum.sum(self.shard, values);
        // Exact, because the number of shards is a power of two.
        let scale = 1.0 / self.shards as f32;
        values.iter_mut().for_each(|value| *value *= scale);
    }
}

impl Debug for AllShards {
    fn fmt(&self, formatter: &mut Formatter) -> fmt::Result {
        write!(formatter, "shard {} of {}", self.shard, self.shards)
    }
}

/// Over which rows of a batch a normalisation takes its statistics.
#[derive(Debug, Clone)]
pub(crate) struct Over {
    /// Equal parts of the batch, each with statistics of its own.
    pub(crate) groups: usize,
    /// The same part of every shard's batch, if not this shard's alone.
    pub(crate) everywhere: Option<Everywhere>,
}

/// All shards, and what their means lie near to.
#[derive(Debug, Clone)]
pub(crate) struct Everywhere {
    pub(crate) shards: AllShards,
    /// The running mean, `[channels]`, which all shards know. Sums are taken around it, so that a mean far from zero
    /// costs no digits of the variance.
    pub(crate) near: Arc<[f32]>,
}

impl Everywhere {
    /// Turns the moments of this shard's `rows` rows into those of all shards' rows.
    pub(super) fn moments(&self, moments: &mut Moments, rows: usize) {
        let Moments { mean, inverse_deviation: deviation, unbiased_variance } = moments;
        let rows = rows as f64;
        let near = || self.near.iter().cycle().map(|near| f64::from(*near));
        let offsets = mean.iter().zip(near()).map(|(mean, near)| f64::from(*mean) - near);
        let squares = offsets.clone().zip(unbiased_variance.iter()).map(|(offset, variance)| {
            // The mean square of the rows' own offsets.
            f64::from(*variance) * (rows - 1.0) / rows + offset * offset
        });
        let mut brought: Vec<f32> = offsets.clone().chain(squares).map(|value| value as f32).collect();
        self.shards.mean(&mut brought);
        let (offsets, squares) = brought.split_at(mean.len());
        let all_rows = rows * f64::from(self.shards.shards);
        for (place, near) in (0..offsets.len()).zip(near()) {
            let (offset, square) = (f64::from(offsets[place]), f64::from(squares[place]));
            // Not `max`, which would make a number of NaN: it must reach the check of the step.
            let variance = if square < offset * offset { 0.0 } else { square - offset * offset };
            mean[place] = (near + offset) as f32;
            deviation[place] = inverse_deviation(variance);
            unbiased_variance[place] = (variance * all_rows / (all_rows - 1.0).max(1.0)) as f32;
        }
    }
}
