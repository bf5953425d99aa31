//! BatchNorm, the sum with a shortcut, and ReLU in one pass, over channels-last `f32` slices.
//!
//! Sums run over blocks of rows whose size depends on the shape alone, then over the blocks in order and in
//! f64: no bit depends on the number of threads.

use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

use super::all_shards::Everywhere;

/// Numbers in a block: it is read twice, the second time from the second-level cache.
const BLOCK_VALUES: usize = 1 << 15;

/// PyTorch's default: added to the variance before the root.
pub(crate) const EPSILON: f64 = 1e-5;

/// `[groups x rows, channels]`, where every group has statistics of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) groups: usize,
    pub(crate) rows: usize,
    pub(crate) channels: usize,
}

impl Shape {
    /// The shape of `values` numbers.
    pub(crate) fn of(values: usize, channels: usize, groups: usize) -> Shape {
        let rows = values / channels / groups;
        assert_eq!(groups * rows * channels, values, "the batch divides into the groups");
        Shape { groups, rows, channels }
    }

    fn group_length(&self) -> usize {
        self.rows * self.channels
    }

    fn block_length(&self) -> usize {
        (BLOCK_VALUES / self.channels).max(1) * self.channels
    }
}

/// What a batch says of each channel, group after group: `[groups, channels]`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Moments {
    pub(crate) mean: Vec<f32>,
    pub(crate) inverse_deviation: Vec<f32>,
    pub(crate) unbiased_variance: Vec<f32>,
}

/// `y = x · scale + shift` per group and channel.
#[derive(Debug, Clone, Default)]
pub(crate) struct Affine {
    pub(crate) scale: Vec<f32>,
    pub(crate) shift: Vec<f32>,
}

impl Affine {
    /// Normalises with these statistics, then applies `gamma` and `beta`.
    pub(crate) fn new(mean: &[f32], inverse_deviation: &[f32], gamma: &[f32], beta: &[f32]) -> Affine {
        let scale = inverse_deviation
            .iter()
            .zip(gamma.iter().cycle())
            .map(|(d, gamma)| d * gamma)
            .collect::<Vec<_>>();
        let shift =
            mean.iter().zip(&scale).zip(beta.iter().cycle()).map(|((m, s), beta)| beta - m * s).collect();
        Affine { scale, shift }
    }

    /// By which every number counts as above zero.
    fn above_zero(channels: usize) -> Affine {
        Affine { scale: vec![0.0; channels], shift: vec![1.0; channels] }
    }
}

/// `1 / sqrt(variance + epsilon)`
pub(crate) fn inverse_deviation(variance: f64) -> f32 {
    (1.0 / (variance + EPSILON).sqrt()) as f32
}

/// Mean and variance of every group and channel. Within a block around the block's own mean, so that a large
/// mean costs no digits of the variance (Chan et al. 1979).
pub(crate) fn moments(x: &[f32], shape: Shape) -> Moments {
    let (arch, channels) = (Arch::new(), shape.channels);
    let mut moments = Moments::default();
    for group in x.chunks_exact(shape.group_length()) {
        let mut blocks = vec![0.0; group.len().div_ceil(shape.block_length()) * 2 * channels];
        blocks.par_chunks_mut(2 * channels).zip(group.par_chunks(shape.block_length())).for_each(
            |(moments, x)| {
                let (mean, square) = moments.split_at_mut(channels);
                arch.dispatch(BlockMoments { x, mean, square });
            },
        );
        let rows = |block: usize| block_rows(shape, block) as f64;
        for channel in 0..channels {
            let parts = || blocks.chunks_exact(2 * channels).enumerate();
            let mean =
                parts().map(|(b, part)| rows(b) * f64::from(part[channel])).sum::<f64>() / shape.rows as f64;
            let square = parts()
                .map(|(b, part)| {
                    let offset = f64::from(part[channel]) - mean;
                    f64::from(part[channels + channel]) + rows(b) * offset * offset
                })
                .sum::<f64>();
            moments.mean.push(mean as f32);
            moments.inverse_deviation.push(inverse_deviation(square / shape.rows as f64));
            moments.unbiased_variance.push((square / (shape.rows as f64 - 1.0).max(1.0)) as f32);
        }
    }
    moments
}

fn block_rows(shape: Shape, block: usize) -> usize {
    let rows = shape.block_length() / shape.channels;
    rows.min(shape.rows - block * rows)
}

/// A block's mean, and its sum of squares around it. Both start at zero.
struct BlockMoments<'a> {
    x: &'a [f32],
    mean: &'a mut [f32],
    square: &'a mut [f32],
}

impl NullaryFnOnce for BlockMoments<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let BlockMoments { x, mean, square } = self;
        let channels = mean.len();
        for row in x.chunks_exact(channels) {
            for (mean, x) in mean.iter_mut().zip(row) {
                *mean += x;
            }
        }
        let scale = channels as f32 / x.len() as f32;
        for mean in mean.iter_mut() {
            *mean *= scale;
        }
        for row in x.chunks_exact(channels) {
            for ((square, mean), x) in square.iter_mut().zip(mean.iter()).zip(row) {
                *square += (x - mean) * (x - mean);
            }
        }
    }
}

/// `y = x · scale + shift (+ residual)`, then ReLU if `rectify`.
pub(crate) fn apply(
    x: &[f32],
    residual: Option<&[f32]>,
    affine: &Affine,
    shape: Shape,
    rectify: bool,
    y: &mut [f32],
) {
    let arch = Arch::new();
    // NaN passes through: it must reach the check of the step.
    let floor = if rectify { 0.0 } else { f32::NEG_INFINITY };
    let (group_length, length) = (shape.group_length(), shape.block_length());
    for group in 0..shape.groups {
        let values = group * group_length..(group + 1) * group_length;
        let channels = group * shape.channels..(group + 1) * shape.channels;
        let (scale, shift) = (&affine.scale[channels.clone()], &affine.shift[channels]);
        let blocks = y[values.clone()].par_chunks_mut(length).zip(x[values.clone()].par_chunks(length));
        match residual {
            None => blocks.for_each(|(y, x)| arch.dispatch(Scale { x, scale, shift, floor, y })),
            Some(residual) => {
                blocks.zip(residual[values].par_chunks(length)).for_each(|((y, x), residual)| {
                    arch.dispatch(ScaleAndAdd { x, residual, scale, shift, floor, y });
                });
            }
        }
    }
}

struct Scale<'a> {
    x: &'a [f32],
    scale: &'a [f32],
    shift: &'a [f32],
    floor: f32,
    y: &'a mut [f32],
}

impl NullaryFnOnce for Scale<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Scale { x, scale, shift, floor, y } = self;
        let channels = scale.len();
        for (y, x) in y.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
            for (((y, x), scale), shift) in y.iter_mut().zip(x).zip(scale).zip(shift) {
                let value = x * scale + shift;
                *y = if value < floor { floor } else { value };
            }
        }
    }
}

struct ScaleAndAdd<'a> {
    x: &'a [f32],
    residual: &'a [f32],
    scale: &'a [f32],
    shift: &'a [f32],
    floor: f32,
    y: &'a mut [f32],
}

impl NullaryFnOnce for ScaleAndAdd<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let ScaleAndAdd { x, residual, scale, shift, floor, y } = self;
        let channels = scale.len();
        let inputs = x.chunks_exact(channels).zip(residual.chunks_exact(channels));
        for (y, (x, residual)) in y.chunks_exact_mut(channels).zip(inputs) {
            for ((((y, x), residual), scale), shift) in
                y.iter_mut().zip(x).zip(residual).zip(scale).zip(shift)
            {
                let value = x * scale + shift + residual;
                *y = if value < floor { floor } else { value };
            }
        }
    }
}

/// What the forward pass leaves for the backward pass.
pub(crate) struct Saved<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) gamma: &'a [f32],
    pub(crate) beta: &'a [f32],
    pub(crate) moments: &'a Moments,
    pub(crate) shape: Shape,
    pub(crate) rectify: bool,
    pub(crate) everywhere: Option<&'a Everywhere>,
}

/// Gradients of `gamma` and of `beta`.
#[derive(Debug, Default)]
pub(crate) struct ParameterGradients {
    pub(crate) gamma: Vec<f32>,
    pub(crate) beta: Vec<f32>,
}

/// Backward without a shortcut: `gradient` comes in as that of `y` and leaves as that of `x`.
pub(crate) fn gradient(saved: &Saved, gradient: &mut [f32]) -> ParameterGradients {
    let affine = if saved.rectify {
        Affine::new(&saved.moments.mean, &saved.moments.inverse_deviation, saved.gamma, saved.beta)
    } else {
        Affine::above_zero(saved.moments.mean.len())
    };
    let (arch, shape, length) = (Arch::new(), saved.shape, saved.shape.block_length());
    let mut totals = Vec::new();
    for (index, dy) in gradient.chunks_exact(shape.group_length()).enumerate() {
        let group = Group::new(saved, &affine, index);
        let mut sums = vec![0.0; dy.len().div_ceil(length) * 2 * shape.channels];
        sums.par_chunks_mut(2 * shape.channels)
            .zip(group.x.par_chunks(length).zip(dy.par_chunks(length)))
            .for_each(|(sums, (x, dy))| arch.dispatch(BlockSums { group: &group, x, dy, sums }));
        totals.extend(group_totals(&sums, shape.channels));
    }
    let (parameters, lines) = saved.input_gradient(totals);
    for ((index, dy), line) in gradient.chunks_exact_mut(shape.group_length()).enumerate().zip(&lines) {
        let group = Group::new(saved, &affine, index);
        dy.par_chunks_mut(length).zip(group.x.par_chunks(length)).for_each(|(gradient, x)| {
            arch.dispatch(BlockGradient { group: &group, line, x, gradient });
        });
    }
    parameters
}

/// Backward with a shortcut and ReLU: `gradient` comes in as that of `y` and leaves as the shortcut's; `dx` is
/// that of `x`.
pub(crate) fn gradient_and_shortcut(
    saved: &Saved,
    y: &[f32],
    gradient: &mut [f32],
    dx: &mut [f32],
) -> ParameterGradients {
    let affine = Affine::above_zero(saved.moments.mean.len());
    let (arch, shape, length) = (Arch::new(), saved.shape, saved.shape.block_length());
    let mut totals = Vec::new();
    for (index, dy) in gradient.chunks_exact_mut(shape.group_length()).enumerate() {
        let group = Group::new(saved, &affine, index);
        let y = &y[index * shape.group_length()..][..shape.group_length()];
        let mut sums = vec![0.0; dy.len().div_ceil(length) * 2 * shape.channels];
        sums.par_chunks_mut(2 * shape.channels)
            .zip(group.x.par_chunks(length).zip(y.par_chunks(length).zip(dy.par_chunks_mut(length))))
            .for_each(|(sums, (x, (y, dy)))| {
                arch.dispatch(Rectify { y, dy });
                arch.dispatch(BlockSums { group: &group, x, dy, sums });
            });
        totals.extend(group_totals(&sums, shape.channels));
    }
    let (parameters, lines) = saved.input_gradient(totals);
    let groups = gradient.chunks_exact(shape.group_length()).zip(dx.chunks_exact_mut(shape.group_length()));
    for ((index, (dy, dx)), line) in groups.enumerate().zip(&lines) {
        let group = Group::new(saved, &affine, index);
        let blocks = dx.par_chunks_mut(length).zip(dy.par_chunks(length).zip(group.x.par_chunks(length)));
        blocks.for_each(|(gradient, (dy, x))| {
            gradient.copy_from_slice(dy);
            arch.dispatch(BlockGradient { group: &group, line, x, gradient });
        });
    }
    parameters
}

/// A group's sums of `dy` and of `dy (x - mean)`, `[2, channels]`, from those of its blocks.
fn group_totals(sums: &[f32], channels: usize) -> impl Iterator<Item = f64> {
    let total = move |place| sums.chunks_exact(2 * channels).map(|part| f64::from(part[place])).sum::<f64>();
    (0..2 * channels).map(total)
}

impl Saved<'_> {
    /// From the groups' sums, `[groups, 2, channels]`: the parameters' gradients, and for each group `x`'s as a function of
    /// `dy` and `x`.
    fn input_gradient(&self, mut totals: Vec<f64>) -> (ParameterGradients, Vec<Line>) {
        let channels = self.shape.channels;
        let mut parameters = ParameterGradients::zeros(channels);
        for (totals, deviation) in
            totals.chunks_exact(2 * channels).zip(self.moments.inverse_deviation.chunks_exact(channels))
        {
            let (sum, product) = totals.split_at(channels);
            for channel in 0..channels {
                parameters.beta[channel] += sum[channel] as f32;
                parameters.gamma[channel] += (product[channel] * f64::from(deviation[channel])) as f32;
            }
        }
        if let Some(everywhere) = self.everywhere {
            let mut means: Vec<f32> = totals.iter().map(|total| *total as f32).collect();
            everywhere.shards.mean(&mut means);
            totals = means.into_iter().map(f64::from).collect();
        }
        let statistics = self.moments.mean.iter().zip(&self.moments.inverse_deviation).collect::<Vec<_>>();
        let lines = totals.chunks_exact(2 * channels).zip(statistics.chunks_exact(channels));
        let lines = lines.map(|(totals, statistics)| {
            let (sum, product) = totals.split_at(channels);
            let count = self.shape.rows as f64;
            let mut line = Line::default();
            for (channel, (mean, deviation)) in statistics.iter().enumerate() {
                let (mean, deviation) = (f64::from(**mean), f64::from(**deviation));
                let scale = f64::from(self.gamma[channel]) * deviation;
                let slope = -scale * deviation * deviation * product[channel] / count;
                line.of_dy.push(scale as f32);
                line.of_x.push(slope as f32);
                line.constant.push((-scale * sum[channel] / count - slope * mean) as f32);
            }
            line
        });
        let lines = lines.collect();
        (parameters, lines)
    }
}

struct Rectify<'a> {
    y: &'a [f32],
    dy: &'a mut [f32],
}

impl NullaryFnOnce for Rectify<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for (dy, &y) in self.dy.iter_mut().zip(self.y) {
            *dy = if y <= 0.0 { 0.0 } else { *dy };
        }
    }
}

/// One group's part of [`Saved`].
struct Group<'a> {
    x: &'a [f32],
    mean: &'a [f32],
    /// `x · scale + shift` is the output, as far as its sign goes.
    scale: &'a [f32],
    shift: &'a [f32],
}

impl<'a> Group<'a> {
    fn new(saved: &Saved<'a>, affine: &'a Affine, index: usize) -> Group<'a> {
        let channels = index * saved.shape.channels..(index + 1) * saved.shape.channels;
        Group {
            x: &saved.x[index * saved.shape.group_length()..][..saved.shape.group_length()],
            mean: &saved.moments.mean[channels.clone()],
            scale: &affine.scale[channels.clone()],
            shift: &affine.shift[channels],
        }
    }
}

impl ParameterGradients {
    fn zeros(channels: usize) -> Self {
        ParameterGradients { gamma: vec![0.0; channels], beta: vec![0.0; channels] }
    }
}

/// `dx = dy · of_dy + x · of_x + constant` per channel.
#[derive(Default)]
struct Line {
    of_dy: Vec<f32>,
    of_x: Vec<f32>,
    constant: Vec<f32>,
}

/// A block's sums of `dy` and of `dy (x - mean)`, side by side, where the output is above zero. They start at
/// zero.
struct BlockSums<'a> {
    group: &'a Group<'a>,
    x: &'a [f32],
    dy: &'a [f32],
    sums: &'a mut [f32],
}

impl NullaryFnOnce for BlockSums<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Group { mean, scale, shift, .. } = *self.group;
        let channels = mean.len();
        let (sum, product) = self.sums.split_at_mut(channels);
        let (scale, shift, product) = (&scale[..channels], &shift[..channels], &mut product[..channels]);
        for (x, dy) in self.x.chunks_exact(channels).zip(self.dy.chunks_exact(channels)) {
            for channel in 0..channels {
                let output = x[channel] * scale[channel] + shift[channel];
                let gradient = if output <= 0.0 { 0.0 } else { dy[channel] };
                sum[channel] += gradient;
                product[channel] += gradient * (x[channel] - mean[channel]);
            }
        }
    }
}

/// A block's gradient, from that of `y` to that of `x`.
struct BlockGradient<'a> {
    group: &'a Group<'a>,
    line: &'a Line,
    x: &'a [f32],
    gradient: &'a mut [f32],
}

impl NullaryFnOnce for BlockGradient<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Group { scale, shift, .. } = *self.group;
        let channels = scale.len();
        let shift = &shift[..channels];
        let (of_dy, of_x) = (&self.line.of_dy[..channels], &self.line.of_x[..channels]);
        let constant = &self.line.constant[..channels];
        for (gradient, x) in self.gradient.chunks_exact_mut(channels).zip(self.x.chunks_exact(channels)) {
            for channel in 0..channels {
                let output = x[channel] * scale[channel] + shift[channel];
                let dy = if output <= 0.0 { 0.0 } else { gradient[channel] };
                gradient[channel] = dy * of_dy[channel] + x[channel] * of_x[channel] + constant[channel];
            }
        }
    }
}
