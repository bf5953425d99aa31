//! Inputs with few channels, whose taps are joined by copying them once.

use rayon::prelude::*;

use super::pairs::Grid;
use super::{Image, Sizes};
use crate::kernels::buffer::Buffer;

/// An input with few channels, copied with its padding, so that a kernel row is one run of numbers.
pub(super) struct Joined {
    pub(super) values: Buffer,
    padded: [usize; 2],
    /// Numbers under one row of the kernel.
    pub(super) run: usize,
}

impl Joined {
    pub(super) fn new(sizes: &Sizes, x: Image) -> Joined {
        let (padding, channels) = (sizes.kernel / 2, sizes.channels);
        let padded = [sizes.height + 2 * padding, sizes.width + 2 * padding];
        let mut values = Buffer::new(sizes.images * padded[0] * padded[1] * channels);
        values.par_chunks_mut(padded[0] * padded[1] * channels).enumerate().for_each(
            |(image, padded_image)| {
                padded_image.fill(0.0);
                for y in 0..sizes.height {
                    let start = ((y + padding) * padded[1] + padding) * channels;
                    let row = &mut padded_image[start..start + sizes.width * channels];
                    let from = image * x.strides[0] + y * x.strides[1];
                    for (column, pixel) in row.chunks_exact_mut(channels).enumerate() {
                        for (channel, value) in pixel.iter_mut().enumerate() {
                            *value = x.values[from + column * x.strides[2] + channel * x.strides[3]];
                        }
                    }
                }
            },
        );
        Joined { values, padded, run: sizes.kernel * channels }
    }

    pub(super) fn grid(&self, sizes: &Sizes) -> Grid {
        Grid { from: self.padded, kernel: [sizes.kernel, 1], padding: 0, ..Grid::forward(sizes) }
    }

    /// `[out, in, row, column]` to `[out, (column, in), row]`
    pub(super) fn weight(&self, sizes: &Sizes, weight: &[f32]) -> Vec<f32> {
        let mut joined = vec![0.0; weight.len()];
        self.for_each_place(sizes, |apart, place| joined[place] = weight[apart]);
        joined
    }

    /// The way back.
    pub(super) fn split(&self, sizes: &Sizes, joined: &[f32], weight: &mut [f32]) {
        self.for_each_place(sizes, |apart, place| weight[apart] = joined[place]);
    }

    fn for_each_place(&self, sizes: &Sizes, mut visit: impl FnMut(usize, usize)) {
        let (kernel, channels) = (sizes.kernel, sizes.channels);
        for apart in 0..sizes.output_channels * channels * kernel * kernel {
            let (rest, column) = (apart / kernel, apart % kernel);
            let (rest, row) = (rest / kernel, rest % kernel);
            let (output, channel) = (rest / channels, rest % channels);
            visit(apart, (output * self.run + column * channels + channel) * kernel + row);
        }
    }
}
