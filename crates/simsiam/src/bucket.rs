//! What one shard contributes to a step, as one flat `f32` slice: the gradient, and everything that must be
//! agreed on at the same moment.
//!
//! ```text
//! | gradient | batch statistics | Σz | Σz² | Σ(z·z')² | loss | non-finite, per shard | stop |
//! ```
//! Buckets of all shards are summed; [`Folded`] reads the sum. Every entry is therefore something whose sum
//! means something: a mean times the number of shards, or a count.

use std::borrow::Cow;
use std::ops::Range;

use burn::tensor::Tensor;
use rayon::prelude::*;
use recipe::Precision;

use crate::flat::Flat;
use crate::kernels;
use crate::parameters::Layout;
use crate::step::{DeviceFailure, read};

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

    /// How many of them, from the first on, may be rounded to `precision` on their way: the gradient. What rides along
    /// keeps all bits.
    pub fn rounded_values(&self, precision: Precision) -> usize {
        match precision {
            Precision::F32 => 0,
            Precision::Bf16 => self.gradient.end,
        }
    }

    /// Bytes of a bucket on its way over TCP, its gradient in `precision`.
    pub fn bytes_over_tcp(&self, precision: Precision) -> usize {
        size_of::<f32>() * self.values() - size_of::<u16>() * self.rounded_values(precision)
    }

    /// Completes a shard's bucket behind its sums: whether all of it is finite, and whether its worker wants the run to
    /// end after this step.
    pub(crate) fn flag(&self, bucket: &mut [f32], shard: u32, stop: bool) {
        bucket[self.non_finite.start..].fill(0.0);
        if !all_finite(bucket) {
            bucket[self.non_finite.start + shard as usize] = 1.0;
        }
        bucket[self.stop] = f32::from(u8::from(stop));
    }

    /// The same in the device's memory, of a bucket whose flags are zero.
    pub(crate) fn flagged(&self, bucket: Tensor<1>, shard: u32, stop: bool) -> DeviceBucket {
        // Infinity times zero is not a number, and neither is a sum with one.
        let squares = kernels::square_sums(bucket.clone(), self.loss + 1).sum();
        let is_sick = (squares * 0.0).is_nan().float();
        let place = self.non_finite.start + shard as usize;
        let mut bucket = bucket.slice_assign([place..=place], is_sick);
        if stop {
            let one = Tensor::ones([1], &bucket.device());
            bucket = bucket.slice_assign([self.stop..=self.stop], one);
        }
        DeviceBucket(bucket)
    }

    /// Reads the sum of all shards' buckets.
    pub fn read<'a>(&'a self, sum: &'a [f32]) -> Folded<'a> {
        assert_eq!(sum.len(), self.values(), "the sum has the layout of its summands");
        let (gradient, riders) = sum.split_at(self.gradient.end);
        Folded {
            layout: self,
            gradient: Flat::OnHost(gradient),
            riders: Cow::Borrowed(riders),
            square_sum: None,
        }
    }

    /// The same where the gradient stays on the device, which is waited for.
    ///
    /// # Errors
    /// [`DeviceFailure`]: whatever went wrong since the step before shows only now.
    pub fn read_on_device(&self, sum: DeviceBucket) -> Result<Folded<'_>, DeviceFailure> {
        // Of the whole bucket, as the gradient is not read.
        kernels::ensure_written(&sum.0).map_err(DeviceFailure::new)?;
        let squares = kernels::square_sums(sum.0.clone(), self.gradient.end);
        let riders = sum.0.clone().slice(self.gradient.end..self.values());
        let mut small = vec![0.0; riders.dims()[0] + squares.dims()[0]];
        read(Tensor::cat(vec![riders, squares], 0), &mut small)?;
        let squares = small.split_off(self.values() - self.gradient.end);
        let square_sum = Some(squares.into_iter().map(f64::from).sum());
        // Its tail is no gradient, and nobody who takes stretches of it looks there.
        let gradient = Flat::OnDevice(sum.0);
        let folded = Folded { layout: self, gradient, riders: Cow::Owned(small), square_sum };
        ensure_unit_length(folded.riders(self.z_square_mean.clone()), self.shards)?;
        Ok(folded)
    }

    /// Whether the sum of so many shards' buckets was computed, for which it is waited. Asked before it is added to those
    /// of other workers: of their sum nobody could say whose part is missing.
    ///
    /// # Errors
    /// [`DeviceFailure`].
    pub fn ensure_computed(&self, sum: &DeviceBucket, shards: u32) -> Result<(), DeviceFailure> {
        kernels::ensure_written(&sum.0).map_err(DeviceFailure::new)?;
        let mut squares = vec![0.0; self.z_square_mean.len()];
        read(sum.0.clone().slice(self.z_square_mean.clone()), &mut squares)?;
        ensure_unit_length(&squares, shards)
    }
}

/// A shard's bucket, or a sum of such, in the device's memory.
#[derive(Clone)]
pub struct DeviceBucket(pub(crate) Tensor<1>);

impl DeviceBucket {
    /// The sum of both.
    #[must_use]
    pub fn plus(self, right: DeviceBucket) -> DeviceBucket {
        DeviceBucket(self.0 + right.0)
    }

    /// Tells `work` where it lies in the GPU's memory and how many `f32` long it is, once it is complete. What `work`
    /// leaves there is the bucket from then on.
    ///
    /// # Errors
    /// [`DeviceFailure`].
    #[cfg(feature = "cuda")]
    pub fn at_rest<T>(&mut self, work: impl FnOnce(u64, usize) -> T) -> Result<T, DeviceFailure> {
        let floats = self.0.dims()[0];
        kernels::cube::flat::at_rest(self.0.clone(), |pointer| work(pointer, floats))
            .map_err(DeviceFailure::new)
    }
}

/// The sum of all shards' buckets; every value it gives is the mean over the shards.
pub struct Folded<'a> {
    layout: &'a BucketLayout,
    gradient: Flat<'a>,
    /// Everything behind the gradient.
    riders: Cow<'a, [f32]>,
    /// Of the gradient, if it is known already.
    square_sum: Option<f64>,
}

impl Folded<'_> {
    /// Mean loss, between -1 and 1.
    pub fn loss(&self) -> f64 {
        f64::from(self.riders(self.layout.loss..self.layout.loss + 1)[0]) / self.shards()
    }

    /// Standard deviation of the normalised z over the whole batch and both views, averaged over the
    /// coordinates, times sqrt(d): near 1 for z spread over the sphere, 0 for z collapsed to a point
    /// (figure 2 of the paper, middle).
    pub fn collapse_level(&self) -> f64 {
        let means = self.riders(self.layout.z_mean.clone());
        let squares = self.riders(self.layout.z_square_mean.clone());
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
        let place = self.layout.pair_square_mean;
        self.shards() / f64::from(self.riders(place..place + 1)[0]).max(f64::MIN_POSITIVE)
    }

    /// Euclidean norm of the mean gradient.
    pub fn gradient_norm(&self) -> f64 {
        let squares = self.square_sum.unwrap_or_else(|| match &self.gradient {
            Flat::OnHost(values) => values.iter().map(|&g| f64::from(g).powi(2)).sum(),
            Flat::OnDevice(_) => unreachable!("the square sum comes with a gradient on a device"),
        });
        squares.sqrt() / self.shards()
    }

    /// The shards whose loss or gradient was not finite.
    pub fn non_finite_shards(&self) -> Vec<u32> {
        let flags = self.riders(self.layout.non_finite.clone());
        // Not `> 0.0`: a flag that is itself NaN counts.
        (0..).zip(flags).filter(|&(_, &flag)| flag != 0.0).map(|(shard, _)| shard).collect()
    }

    /// Whether any worker was asked to stop: all stop after this step.
    pub fn stop_requested(&self) -> bool {
        self.riders(self.layout.stop..self.layout.stop + 1)[0] != 0.0
    }

    /// The gradient, which times [`scale`](Self::scale) is the mean.
    pub(crate) fn gradient(&self) -> &Flat<'_> {
        &self.gradient
    }

    /// What makes a mean of a sum. Exact, because the number of shards is a power of two.
    pub(crate) fn scale(&self) -> f32 {
        1.0 / self.layout.shards as f32
    }

    /// The mean of the batch statistics.
    pub(crate) fn statistics(&self) -> impl Iterator<Item = f32> {
        let scale = self.scale();
        self.riders(self.layout.statistics.clone()).iter().map(move |value| value * scale)
    }

    pub(crate) fn is_finite(&self) -> bool {
        let gradient = match &self.gradient {
            Flat::OnHost(values) => all_finite(values),
            // A sum of squares beyond what `f32` holds belongs to a gradient that no step survives.
            Flat::OnDevice(_) => self.square_sum.is_some_and(f64::is_finite),
        };
        gradient && all_finite(&self.riders)
    }

    /// Numbers at places of the bucket, behind the gradient.
    fn riders(&self, places: Range<usize>) -> &[f32] {
        let start = self.layout.gradient.end;
        &self.riders[places.start - start..places.end - start]
    }

    fn shards(&self) -> f64 {
        f64::from(self.layout.shards)
    }
}

/// Whether z has the length that it was scaled to, by the sum of so many shards' [`z_square_mean`](BucketLayout::z_square_mean).
/// A device that has no memory for a tensor may leave out what was to be computed, and not say so before the next
/// step; what then lies in memory is not of length 1.
pub(crate) fn ensure_unit_length(squares: &[f32], shards: u32) -> Result<(), DeviceFailure> {
    let length = squares.iter().map(|&square| f64::from(square)).sum::<f64>() / f64::from(shards);
    // What is not a number is looked for elsewhere, and named.
    if length.is_finite() && (length - 1.0).abs() > 0.01 {
        return Err(DeviceFailure::new(format!(
            "the squares of the normalised z add up to {length:.3} instead of 1, so a part of the step was not \
             computed, or z is zero for every image"
        )));
    }
    Ok(())
}

/// Whether no value is infinite or not a number.
pub(crate) fn all_finite(values: &[f32]) -> bool {
    // Within a share without leaving early, which is what lets the compiler compare many at once.
    values
        .par_chunks(kernels::SHARE)
        .all(|share| share.iter().fold(true, |all, value| all & value.is_finite()))
}
