//! The stem's pooling over channels-last `f32` slices: the greatest of 3x3 pixels at every second one.

use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

const KERNEL: usize = 3;
const STRIDE: usize = 2;
const PADDING: usize = 1;

/// `[images, height, width, channels]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) images: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) channels: usize,
}

impl Sizes {
    /// Height and width of the output.
    pub(crate) fn output(&self) -> [usize; 2] {
        [self.height, self.width].map(|length| (length + 2 * PADDING - KERNEL) / STRIDE + 1)
    }
}

/// Fills `y` with the greatest values, and `winners` with the places in the 3x3 window that they came from.
pub(crate) fn forward(sizes: &Sizes, x: &[f32], y: &mut [f32], winners: &mut [u8]) {
    let arch = Arch::new();
    let row_length = sizes.output()[1] * sizes.channels;
    y.par_chunks_mut(row_length)
        .zip(winners.par_chunks_mut(row_length))
        .enumerate()
        .for_each(|(row, (y, winners))| arch.dispatch(OutputRow { sizes, x, row, y, winners }));
}

/// One row of the output, counted through all images.
struct OutputRow<'a> {
    sizes: &'a Sizes,
    x: &'a [f32],
    row: usize,
    y: &'a mut [f32],
    winners: &'a mut [u8],
}

impl NullaryFnOnce for OutputRow<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Sizes { height, width, channels, .. } = *self.sizes;
        let output_height = self.sizes.output()[0];
        let (image, to_y) = (self.row / output_height, self.row % output_height);
        self.y.fill(f32::NEG_INFINITY);
        let pixels = self.y.chunks_exact_mut(channels).zip(self.winners.chunks_exact_mut(channels));
        for (to_x, (y, winners)) in pixels.enumerate() {
            for tap in 0..KERNEL * KERNEL {
                let Some(from_y) = source(to_y, tap / KERNEL, height) else { continue };
                let Some(from_x) = source(to_x, tap % KERNEL, width) else { continue };
                let x = &self.x[((image * height + from_y) * width + from_x) * channels..][..channels];
                for ((&x, y), winner) in x.iter().zip(y.iter_mut()).zip(winners.iter_mut()) {
                    // NaN is greater than everything, as in PyTorch.
                    let wins = x > *y || x.is_nan();
                    *y = if wins { x } else { *y };
                    *winner = if wins { tap as u8 } else { *winner };
                }
            }
        }
    }
}

/// `dx` of `dy`: every output's gradient goes to its winner.
pub(crate) fn gradient(sizes: &Sizes, winners: &[u8], dy: &[f32], dx: &mut [f32]) {
    let arch = Arch::new();
    dx.par_chunks_mut(sizes.width * sizes.channels)
        .enumerate()
        .for_each(|(row, dx)| arch.dispatch(InputRow { sizes, winners, dy, row, dx }));
}

/// The gradient of one row of the input, counted through all images.
struct InputRow<'a> {
    sizes: &'a Sizes,
    winners: &'a [u8],
    dy: &'a [f32],
    row: usize,
    dx: &'a mut [f32],
}

impl NullaryFnOnce for InputRow<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Sizes { height, channels, .. } = *self.sizes;
        let [output_height, output_width] = self.sizes.output();
        let (image, from_y) = (self.row / height, self.row % height);
        self.dx.fill(0.0);
        for (from_x, dx) in self.dx.chunks_exact_mut(channels).enumerate() {
            for tap in 0..KERNEL * KERNEL {
                let Some(to_y) = target(from_y, tap / KERNEL, output_height) else { continue };
                let Some(to_x) = target(from_x, tap % KERNEL, output_width) else { continue };
                let to = ((image * output_height + to_y) * output_width + to_x) * channels;
                let (dy, winners) = (&self.dy[to..to + channels], &self.winners[to..to + channels]);
                for ((dx, &dy), &winner) in dx.iter_mut().zip(dy).zip(winners) {
                    *dx += if winner == tap as u8 { dy } else { 0.0 };
                }
            }
        }
    }
}

/// The input place that a tap of output place `to` reads.
fn source(to: usize, tap: usize, length: usize) -> Option<usize> {
    (to * STRIDE + tap).checked_sub(PADDING).filter(|&place| place < length)
}

/// The output place that reads input place `from` through a tap.
fn target(from: usize, tap: usize, length: usize) -> Option<usize> {
    let place = (from + PADDING).checked_sub(tap)?;
    (place.is_multiple_of(STRIDE) && place / STRIDE < length).then_some(place / STRIDE)
}
