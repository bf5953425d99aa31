//! Forward and data gradient: products of pixels with weights, tile by tile.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::pairs::{Grid, Pair, Segment};
use super::panel::{MOST_WIDTH, TILE, TRANSPOSED, load, panel_width, store};
use crate::kernels::buffer::Buffer;

/// Output pixels between two visits to the same accumulators: their rows stay in the second-level cache.
const CHUNK_PIXELS: usize = 256;

/// Which side of a weight lies side by side in its panels, and is not summed over.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Abreast {
    Outputs,
    Inputs,
    /// Inputs, and the taps in reverse.
    InputsTurned,
}

/// `[outputs, inputs, taps]`, as panels want it.
pub(super) struct Weight<'a> {
    values: &'a [f32],
    inputs: usize,
    taps: usize,
    /// Numbers abreast, in all panels together.
    columns: usize,
    /// Numbers that are summed over, per tap.
    depth: usize,
    abreast: Abreast,
}

impl<'a> Weight<'a> {
    pub(super) fn abreast(values: &'a [f32], shape: [usize; 3], abreast: Abreast) -> Weight<'a> {
        let [outputs, inputs, taps] = shape;
        let is_of_outputs = abreast == Abreast::Outputs;
        let (columns, depth) = if is_of_outputs { (outputs, inputs) } else { (inputs, outputs) };
        Weight { values, inputs, taps, columns, depth, abreast }
    }

    fn panel_length(&self) -> usize {
        self.depth * self.taps * panel_width()
    }

    /// Fills `packed` with panel number `panel`: `[tap][depth][panel_width]`.
    fn pack(&self, panel: usize, packed: &mut [f32]) {
        let width = panel_width();
        let columns = panel * width..self.columns.min((panel + 1) * width);
        if columns.len() < width {
            packed.fill(0.0);
        }
        match self.abreast {
            Abreast::Outputs => self.pack_outputs(columns, width, packed),
            Abreast::Inputs | Abreast::InputsTurned => self.pack_inputs(columns, width, packed),
        }
    }

    fn pack_outputs(&self, columns: Range<usize>, width: usize, packed: &mut [f32]) {
        let row_length = self.inputs * self.taps;
        let rows = &self.values[columns.start * row_length..columns.end * row_length];
        let mut block = [0.0; TRANSPOSED * MOST_WIDTH];
        for start in (0..row_length).step_by(TRANSPOSED) {
            let places = start..row_length.min(start + TRANSPOSED);
            for (column, row) in rows.chunks_exact(row_length).enumerate() {
                for (place, &value) in row[places.clone()].iter().enumerate() {
                    block[place * width + column] = value;
                }
            }
            for (place, values) in places.zip(block.chunks_exact(width)) {
                let (input, tap) = (place / self.taps, place % self.taps);
                packed[(tap * self.inputs + input) * width..][..width].copy_from_slice(values);
            }
        }
    }

    fn pack_inputs(&self, columns: Range<usize>, width: usize, packed: &mut [f32]) {
        let row_length = self.inputs * self.taps;
        for (output, row) in self.values.chunks_exact(row_length).enumerate() {
            let row = &row[columns.start * self.taps..columns.end * self.taps];
            for (column, values) in row.chunks_exact(self.taps).enumerate() {
                for (tap, &value) in values.iter().enumerate() {
                    let turned = self.abreast == Abreast::InputsTurned;
                    let tap = if turned { self.taps - 1 - tap } else { tap };
                    packed[(tap * self.depth + output) * width + column] = value;
                }
            }
        }
    }
}

/// `to[t] = Σ_taps Σ_pairs from[f] · weight`
pub(super) fn multiply(grid: &Grid, from: &[f32], weight: &Weight, to: &mut [f32]) {
    assert!(from.len().max(to.len()) <= u32::MAX as usize, "a batch of at most 2^32 numbers");
    let panels = weight.columns.div_ceil(panel_width());
    // Either way the same sums run in the same order. What is larger, weight or output, is gone through once.
    if weight.values.len() > to.len() && panels >= rayon::current_num_threads() {
        multiply_by_panels(grid, from, weight, to);
    } else {
        multiply_by_rows(grid, from, weight, to);
    }
}

/// Threads take panels: each packs its own and uses it while it is in the cache.
fn multiply_by_panels(grid: &Grid, from: &[f32], weight: &Weight, to: &mut [f32]) {
    let (arch, width) = (Arch::new(), panel_width());
    let grid = Grid { to_pitch: width, ..*grid };
    let segments = grid.segments(&(0..grid.rows()));
    let length = grid.rows() * grid.to[1] * width;
    let mut apart = Buffer::new(weight.columns.div_ceil(width) * length);
    apart.par_chunks_mut(length).enumerate().for_each(|(panel, to)| {
        let mut packed = Buffer::new(weight.panel_length());
        weight.pack(panel, &mut packed);
        to.fill(0.0);
        arch.dispatch(Multiply { to, pitch: width, from, packed: &packed, weight, segments: &segments });
    });
    to.par_chunks_mut(weight.columns).enumerate().for_each(|(pixel, to)| {
        for (columns, panel) in to.chunks_mut(width).zip(apart.chunks_exact(length)) {
            columns.copy_from_slice(&panel[pixel * width..][..columns.len()]);
        }
    });
}

/// All panels are packed, then threads take rows of `to`.
fn multiply_by_rows(grid: &Grid, from: &[f32], weight: &Weight, to: &mut [f32]) {
    let arch = Arch::new();
    let length = weight.panel_length();
    let mut packed = Buffer::new(weight.columns.div_ceil(panel_width()) * length);
    packed.par_chunks_mut(length).enumerate().for_each(|(panel, packed)| weight.pack(panel, packed));

    let row_length = grid.to[1] * grid.to_pitch;
    let rows = chunk_rows(grid);
    to.par_chunks_mut(rows * row_length).enumerate().for_each(|(chunk, to)| {
        let start = chunk * rows;
        let segments = grid.segments(&(start..start + to.len() / row_length));
        to.fill(0.0);
        let pitch = grid.to_pitch;
        arch.dispatch(Multiply { to, pitch, from, packed: &packed, weight, segments: &segments });
    });
}

/// Rows of a chunk of work. No bit depends on it, so it may look at the number of threads: as many chunks as
/// divide well among them.
fn chunk_rows(grid: &Grid) -> usize {
    let threads = rayon::current_num_threads();
    let chunks = (grid.rows() * grid.to[1]).div_ceil(CHUNK_PIXELS).next_multiple_of(threads);
    grid.rows().div_ceil(chunks).max(1)
}

struct Multiply<'a> {
    to: &'a mut [f32],
    pitch: usize,
    from: &'a [f32],
    /// Panels, one after the other, each `[tap][depth][panel_width]`.
    packed: &'a [f32],
    weight: &'a Weight<'a>,
    segments: &'a [Segment],
}

impl WithSimd for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if S::F32_LANES == 8 { self.run::<S, 2>(simd) } else { self.run::<S, 4>(simd) }
    }
}

impl Multiply<'_> {
    #[inline(always)]
    fn run<S: Simd, const VECTORS: usize>(mut self, simd: S) {
        let width = VECTORS * S::F32_LANES;
        let depth = self.weight.depth;
        for (index, panel) in self.packed.chunks_exact(depth * self.weight.taps * width).enumerate() {
            let column = index * width;
            let is_whole = column + width <= self.pitch;
            for segment in self.segments {
                let weights = &panel[segment.taps.start * depth * width..segment.taps.end * depth * width];
                let weights = S::as_simd_f32s(weights).0.as_chunks::<VECTORS>().0;
                for pairs in segment.pairs.chunks(TILE) {
                    if is_whole {
                        self.tile::<S, VECTORS, true>(simd, pairs, column, weights);
                    } else {
                        self.tile::<S, VECTORS, false>(simd, pairs, column, weights);
                    }
                }
            }
        }
    }

    /// Adds one segment's products to the columns of up to [`TILE`] pixels.
    #[inline(always)]
    fn tile<S: Simd, const VECTORS: usize, const WHOLE: bool>(
        &mut self,
        simd: S,
        pairs: &[Pair],
        column: usize,
        weights: &[[S::f32s; VECTORS]],
    ) {
        let width = if WHOLE { VECTORS * S::F32_LANES } else { self.pitch - column };
        let mut rows = [&self.from[..0]; TILE];
        let mut sums = [[simd.splat_f32s(0.0); VECTORS]; TILE];
        for (tile_row, (row, sums)) in rows.iter_mut().zip(&mut sums).enumerate() {
            // A short tile repeats its last pixel and drops the result.
            let pair = pairs[tile_row.min(pairs.len() - 1)];
            *row = &self.from[pair.from as usize..][..weights.len()];
            let to = &self.to[pair.to as usize + column..][..width];
            *sums = load::<S, VECTORS, WHOLE>(simd, to);
        }
        for (depth, weights) in weights.iter().enumerate() {
            for (row, sums) in rows.iter().zip(&mut sums) {
                let value = simd.splat_f32s(row[depth]);
                for (sum, &weight) in sums.iter_mut().zip(weights) {
                    *sum = simd.mul_add_e_f32s(value, weight, *sum);
                }
            }
        }
        for (pair, sums) in pairs.iter().zip(sums) {
            store::<S, VECTORS, WHOLE>(simd, sums, &mut self.to[pair.to as usize + column..][..width]);
        }
    }
}
