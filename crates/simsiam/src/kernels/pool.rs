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
    let channels = sizes.channels;
    let [height, width] = sizes.output();
    let row_length = width * channels;
    y.par_chunks_mut(row_length).zip(winners.par_chunks_mut(row_length)).enumerate().for_each(
        |(row, (y, winners))| {
            let (image, to_y) = (row / height, row % height);
            y.fill(f32::NEG_INFINITY);
            for tap in 0..KERNEL * KERNEL {
                let Some(from_y) = source(to_y, tap / KERNEL, sizes.height) else { continue };
                for to_x in 0..width {
                    let Some(from_x) = source(to_x, tap % KERNEL, sizes.width) else { continue };
                    let from = ((image * sizes.height + from_y) * sizes.width + from_x) * channels;
                    let to = to_x * channels..(to_x + 1) * channels;
                    let x = &x[from..from + channels];
                    let (y, winners) = (&mut y[to.clone()], &mut winners[to]);
                    arch.dispatch(TakeGreater { x, tap: tap as u8, y, winners });
                }
            }
        },
    );
}

struct TakeGreater<'a> {
    x: &'a [f32],
    tap: u8,
    y: &'a mut [f32],
    winners: &'a mut [u8],
}

impl NullaryFnOnce for TakeGreater<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for ((&x, y), winner) in self.x.iter().zip(self.y).zip(self.winners) {
            // NaN is greater than everything, as in PyTorch.
            let wins = x > *y || x.is_nan();
            *y = if wins { x } else { *y };
            *winner = if wins { self.tap } else { *winner };
        }
    }
}

/// `dx` of `dy`: every output's gradient goes to its winner.
pub(crate) fn gradient(sizes: &Sizes, winners: &[u8], dy: &[f32], dx: &mut [f32]) {
    let arch = Arch::new();
    let channels = sizes.channels;
    let [height, width] = sizes.output();
    dx.par_chunks_mut(sizes.width * channels).enumerate().for_each(|(row, dx)| {
        let (image, from_y) = (row / sizes.height, row % sizes.height);
        dx.fill(0.0);
        for tap in 0..KERNEL * KERNEL {
            let Some(to_y) = target(from_y, tap / KERNEL, height) else { continue };
            for (from_x, dx) in dx.chunks_exact_mut(channels).enumerate() {
                let Some(to_x) = target(from_x, tap % KERNEL, width) else { continue };
                let to = ((image * height + to_y) * width + to_x) * channels;
                let (dy, winners) = (&dy[to..to + channels], &winners[to..to + channels]);
                arch.dispatch(AddIfWon { dy, winners, tap: tap as u8, dx });
            }
        }
    });
}

struct AddIfWon<'a> {
    dy: &'a [f32],
    winners: &'a [u8],
    tap: u8,
    dx: &'a mut [f32],
}

impl NullaryFnOnce for AddIfWon<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for ((dx, &dy), &winner) in self.dx.iter_mut().zip(self.dy).zip(self.winners) {
            *dx += if winner == self.tap { dy } else { 0.0 };
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
    (place % STRIDE == 0 && place / STRIDE < length).then_some(place / STRIDE)
}
