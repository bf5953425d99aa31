//! What one shard contributes to a step, as one flat `f32` slice: the gradient, and everything that must be
//! agreed on at the same moment.
//!
//! ```text
//! | gradient | batch statistics | Σz | Σz² | Σ(z·z')² | loss | non-finite, per shard | stop |
//! ```
//! Buckets of all shards are summed; [`Folded`] reads the sum. Every entry is therefore something whose sum
//! means something: a mean times the number of shards, or a count.

use std::ops::Range;

use rayon::prelude::*;

use crate::kernels;
use crate::parameters::Layout;

/// Places in a bucket.
#[derive(Debug, Clone, PartialEq)]
pub struct BucketLayout {
    pub(crate) gradient: Range<usize>,
    pub(crate) statistics: Range<usize>,
    /// Mean over a shard's samples and both views of every coordinate of the normalised z, and of its square.
    pub(crate) z_mean: Range<usize>,
    pub(crate) z_square_mean: Range<usize>,
    /// Mean over a shard's pairs of different images of the square of the product of their normalised z.
    pub(crate) pair_square_mean: usize,
    pub(crate) loss: usize,
    /// One place per shard, 1 where its loss or gradient is not finite: a NaN in the sum names nobody.
    pub(crate) non_finite: Range<usize>,
    /// How many shards' workers were asked to stop.
    pub(crate) stop: usize,
    shards: u32,
}

impl BucketLayout {
    /// The bucket of a network with this layout, in a run of `shards` shards, `z` being of length `dim`.
    pub fn new(layout: &Layout, dim: usize, shards: u32) -> Self {
        let gradient = 0..layout.parameter_count();
        let statistics = gradient.end..gradient.end + layout.statistic_count();
        let z_mean = statistics.end..statistics.end + dim;
        let z_square_mean = z_mean.end..z_mean.end + dim;
        let pair_square_mean = z_square_mean.end;
        let loss = pair_square_mean + 1;
        let non_finite = loss + 1..loss + 1 + shards as usize;
        let stop = non_finite.end;
        BucketLayout {
            gradient,
            statistics,
            z_mean,
            z_square_mean,
            pair_square_mean,
            loss,
            non_finite,
            stop,
            shards,
        }
    }

    /// Number of `f32` values in a bucket.
    pub fn values(&self) -> usize {
        self.stop + 1
    }

    /// Marks a shard's bucket: its worker wants the run to end after this step.
    pub fn request_stop(&self, bucket: &mut [f32]) {
        bucket[self.stop] = 1.0;
    }

    /// Reads the sum of all shards' buckets.
    pub fn read<'a>(&'a self, sum: &'a [f32]) -> Folded<'a> {
        assert_eq!(sum.len(), self.values(), "the sum has the layout of its summands");
        Folded { layout: self, sum }
    }
}

/// The sum of all shards' buckets; every value it gives is the mean over the shards.
#[derive(Clone, Copy)]
pub struct Folded<'a> {
    layout: &'a BucketLayout,
    sum: &'a [f32],
}

impl Folded<'_> {
    /// Mean loss, between -1 and 1.
    pub fn loss(&self) -> f64 {
        f64::from(self.sum[self.layout.loss]) / self.shards()
    }

    /// Standard deviation of the normalised z over the whole batch and both views, averaged over the
    /// coordinates, times sqrt(d): near 1 for z spread over the sphere, 0 for z collapsed to a point
    /// (figure 2 of the paper, middle).
    pub fn collapse_level(&self) -> f64 {
        let means = &self.sum[self.layout.z_mean.clone()];
        let squares = &self.sum[self.layout.z_square_mean.clone()];
        let dim = means.len() as f64;
        let sum_of_std: f64 = means
            .iter()
            .zip(squares)
            .map(|(&mean, &square)| {
                let (mean, square) = (f64::from(mean) / self.shards(), f64::from(square) / self.shards());
                (square - mean * mean).max(0.0).sqrt()
            })
            .sum();
        sum_of_std / dim * dim.sqrt()
    }

    /// In how many directions the normalised z spread: see [`Monitors`](crate::Monitors).
    pub(crate) fn effective_dimensions(&self) -> f64 {
        self.shards() / f64::from(self.sum[self.layout.pair_square_mean]).max(f64::MIN_POSITIVE)
    }

    /// Euclidean norm of the mean gradient.
    pub fn gradient_norm(&self) -> f64 {
        let squares: f64 = self.sum[self.layout.gradient.clone()].iter().map(|&g| f64::from(g).powi(2)).sum();
        squares.sqrt() / self.shards()
    }

    /// The shards whose loss or gradient was not finite.
    pub fn non_finite_shards(&self) -> Vec<u32> {
        let flags = &self.sum[self.layout.non_finite.clone()];
        // Not `> 0.0`: a flag that is itself NaN counts.
        (0..).zip(flags).filter(|&(_, &flag)| flag != 0.0).map(|(shard, _)| shard).collect()
    }

    /// Whether any worker was asked to stop: all stop after this step.
    pub fn stop_requested(&self) -> bool {
        self.sum[self.layout.stop] != 0.0
    }

    /// A stretch of the gradient, which times [`scale`](Self::scale) is the mean.
    pub(crate) fn gradient(&self, range: Range<usize>) -> &[f32] {
        &self.sum[range]
    }

    /// What makes a mean of a sum. Exact, because the number of shards is a power of two.
    pub(crate) fn scale(&self) -> f32 {
        1.0 / self.layout.shards as f32
    }

    /// The mean of the batch statistics.
    pub(crate) fn statistics(&self) -> impl Iterator<Item = f32> {
        let scale = self.scale();
        self.sum[self.layout.statistics.clone()].iter().map(move |value| value * scale)
    }

    pub(crate) fn is_finite(&self) -> bool {
        all_finite(self.sum)
    }

    fn shards(&self) -> f64 {
        f64::from(self.layout.shards)
    }
}

/// Whether no value is infinite or not a number.
pub(crate) fn all_finite(values: &[f32]) -> bool {
    // Within a share without leaving early, which is what lets the compiler compare many at once.
    values
        .par_chunks(kernels::SHARE)
        .all(|share| share.iter().fold(true, |all, value| all & value.is_finite()))
}
