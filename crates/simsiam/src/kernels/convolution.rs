//! Convolution over channels-last `f32` slices: forward, data gradient, weight gradient.
//!
//! A kernel tap pairs output pixels with input pixels, and that list of pairs is all there is to it:
//! ```text
//! forward:          y[o]  += x[i]  · W[tap]      for every pair (o, i) of every tap
//! data gradient:    dx[i] += dy[o] · W[tap]ᵀ
//! weight gradient:  dW[tap] += x[i] ⊗ dy[o]
//! ```
//! Padding and stride only decide which pairs exist, so no pixel is multiplied with padding, no input is
//! unfolded into a buffer, and the first two are one function. Each sum runs in one accumulator in one order,
//! whatever the number of threads and of SIMD lanes, so the bits depend on neither (with fused
//! multiply-add, which AVX2, AVX-512 and NEON all have).

mod correlate;
mod joined;
mod multiply;
mod pairs;
mod panel;

use self::correlate::correlate;
use self::joined::Joined;
use self::multiply::{Abreast, Weight, multiply};
use self::pairs::Grid;

/// With fewer channels than this, the taps of a kernel row are joined into one run of channels: a tap then
/// costs more in set-up than in multiplication.
pub(super) const FEW_CHANNELS: usize = 16;

/// The sizes of a square convolution, padded by half its kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) images: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) channels: usize,
    pub(crate) output_channels: usize,
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
}

impl Sizes {
    /// Height and width of the output.
    pub(crate) fn output(&self) -> [usize; 2] {
        let along = |length: usize| (length + 2 * (self.kernel / 2) - self.kernel) / self.stride + 1;
        [along(self.height), along(self.width)]
    }

    fn taps(&self) -> usize {
        self.kernel * self.kernel
    }

    fn joins_taps(&self) -> bool {
        self.kernel > 1 && self.channels < FEW_CHANNELS
    }
}

/// `x: [images, height, width, channels]` by steps between its entries: any view of an image batch.
#[derive(Clone, Copy)]
pub(crate) struct Image<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) strides: [usize; 4],
}

/// `y: [images, h, w, output_channels]` of `x` and `weight: [output_channels, channels, kernel, kernel]`.
pub(crate) fn forward(sizes: &Sizes, x: Image, weight: &[f32], y: &mut [f32]) {
    if sizes.joins_taps() {
        let joined = Joined::new(sizes, x);
        let weight = joined.weight(sizes, weight);
        let weight =
            Weight::abreast(&weight, [sizes.output_channels, joined.run, sizes.kernel], Abreast::Outputs);
        return multiply(&joined.grid(sizes), &joined.values, &weight, y);
    }
    let shape = [sizes.output_channels, sizes.channels, sizes.taps()];
    multiply(&Grid::forward(sizes), x.values, &Weight::abreast(weight, shape, Abreast::Outputs), y);
}

/// `dx: [images, height, width, channels]` of `dy`, shaped as `y`.
pub(crate) fn data_gradient(sizes: &Sizes, dy: &[f32], weight: &[f32], dx: &mut [f32]) {
    let shape = [sizes.output_channels, sizes.channels, sizes.taps()];
    let grid = Grid::backward(sizes);
    // Without a stride it is a convolution itself, with the taps turned round.
    let abreast = if grid.is_forward { Abreast::InputsTurned } else { Abreast::Inputs };
    multiply(&grid, dy, &Weight::abreast(weight, shape, abreast), dx);
}

/// `dweight`, shaped as the weight, of `x` and `dy`.
pub(crate) fn weight_gradient(sizes: &Sizes, x: Image, dy: &[f32], dweight: &mut [f32]) {
    if sizes.joins_taps() {
        let joined = Joined::new(sizes, x);
        let mut gradient = vec![0.0; dweight.len()];
        let shape = [sizes.output_channels, joined.run, sizes.kernel];
        correlate(&joined.grid(sizes), &joined.values, dy, shape, &mut gradient);
        return joined.split(sizes, &gradient, dweight);
    }
    let shape = [sizes.output_channels, sizes.channels, sizes.taps()];
    correlate(&Grid::forward(sizes), x.values, dy, shape, dweight);
}
