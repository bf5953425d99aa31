//! The weight gradient: outer products of pixels, summed tile by tile.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::pairs::{Grid, Pair};
use super::panel::{MOST_WIDTH, TILE, TRANSPOSED, load, panel_width};
use crate::kernels::buffer::Buffer;

/// Output pixels that all tiles of a task go over before the next ones: their gradients fit the first-level cache.
const CORRELATED_PIXELS: usize = 96;

/// `gradient[output, input, tap] = Σ_pairs x[from, input] · dy[to, output]`, shape `[outputs, inputs, taps]`.
pub(super) fn correlate(grid: &Grid, x: &[f32], dy: &[f32], shape: [usize; 3], gradient: &mut [f32]) {
    assert!(x.len().max(dy.len()) <= u32::MAX as usize, "a batch of at most 2^32 numbers");
    let [outputs, inputs, taps] = shape;
    let width = panel_width();
    let tiles_of_inputs = inputs.div_ceil(TILE);
    // [panel][tile of inputs][tap], each TILE by width numbers: the taps of a tile read the same inputs.
    let tiles = outputs.div_ceil(width) * taps * tiles_of_inputs;
    let mut values = Buffer::new(tiles * TILE * width);

    // Each tile sums over all pixels in order, so how tiles are dealt to threads decides no bit.
    let tiles_of_task = tiles.div_ceil(2 * rayon::current_num_threads());
    let arch = Arch::new();
    values.par_chunks_mut(tiles_of_task * TILE * width).enumerate().for_each(|(task, sums)| {
        let first_tile = task * tiles_of_task;
        sums.fill(0.0);
        arch.dispatch(Correlate { grid, x, dy, inputs, outputs, taps, tiles_of_inputs, first_tile, sums });
    });

    let (panel_length, row_length) = (taps * tiles_of_inputs * TILE * width, inputs * taps);
    let panels = values.par_chunks(panel_length);
    panels.zip(gradient.par_chunks_mut(width * row_length)).for_each(|(panel, rows)| {
        let mut block = [0.0; TRANSPOSED * MOST_WIDTH];
        for start in (0..row_length).step_by(TRANSPOSED) {
            let places = start..row_length.min(start + TRANSPOSED);
            for (place, values) in places.clone().zip(block.chunks_exact_mut(width)) {
                let (input, tap) = (place / taps, place % taps);
                let row = (input / TILE * taps + tap) * TILE + input % TILE;
                values.copy_from_slice(&panel[row * width..][..width]);
            }
            for (column, row) in rows.chunks_exact_mut(row_length).enumerate() {
                for (place, value) in row[places.clone()].iter_mut().enumerate() {
                    *value = block[place * width + column];
                }
            }
        }
    });
}

struct Correlate<'a> {
    grid: &'a Grid,
    x: &'a [f32],
    dy: &'a [f32],
    inputs: usize,
    outputs: usize,
    taps: usize,
    tiles_of_inputs: usize,
    first_tile: usize,
    sums: &'a mut [f32],
}

impl WithSimd for Correlate<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if S::F32_LANES == 8 { self.run::<S, 2>(simd) } else { self.run::<S, 4>(simd) }
    }
}

impl Correlate<'_> {
    #[inline(always)]
    fn run<S: Simd, const VECTORS: usize>(mut self, simd: S) {
        let rows_of_chunk = CORRELATED_PIXELS.div_ceil(self.grid.to[1]);
        let row_length = self.grid.to[1] * self.grid.to_pitch;
        let columns = (0..self.grid.kernel[1]).map(|tap| self.grid.column_pairs(tap)).collect::<Vec<_>>();
        let mut pairs = vec![Vec::new(); self.taps];
        for start in (0..self.grid.rows()).step_by(rows_of_chunk) {
            let rows = start..self.grid.rows().min(start + rows_of_chunk);
            let dy = &self.dy[start * row_length..rows.end * row_length];
            for (tap, pairs) in pairs.iter_mut().enumerate() {
                let [row_tap, column_tap] = [tap / self.grid.kernel[1], tap % self.grid.kernel[1]];
                self.grid.pairs(row_tap, &columns[column_tap], &rows, pairs);
            }
            for index in 0..self.sums.len() / (TILE * VECTORS * S::F32_LANES) {
                let tile = self.first_tile + index;
                let (rest, tap) = (tile / self.taps, tile % self.taps);
                let (panel, tile_of_inputs) = (rest / self.tiles_of_inputs, rest % self.tiles_of_inputs);
                let pairs = &pairs[tap];
                let (column, input) = (panel * VECTORS * S::F32_LANES, tile_of_inputs * TILE);
                let place = Place { column, input, index };
                let has_all_columns = column + VECTORS * S::F32_LANES <= self.outputs;
                match (has_all_columns, input + TILE <= self.inputs) {
                    (true, true) => self.tile::<S, VECTORS, true, true>(simd, pairs, dy, place),
                    (true, false) => self.tile::<S, VECTORS, true, false>(simd, pairs, dy, place),
                    (false, true) => self.tile::<S, VECTORS, false, true>(simd, pairs, dy, place),
                    (false, false) => self.tile::<S, VECTORS, false, false>(simd, pairs, dy, place),
                }
            }
        }
    }

    /// Adds a chunk of pixels to the sums of [`TILE`] inputs and a panel's width of outputs.
    #[inline(always)]
    fn tile<S: Simd, const VECTORS: usize, const ALL_COLUMNS: bool, const ALL_INPUTS: bool>(
        &mut self,
        simd: S,
        pairs: &[Pair],
        dy: &[f32],
        place: Place,
    ) {
        let Place { column, input, index } = place;
        let width = if ALL_COLUMNS { VECTORS * S::F32_LANES } else { self.outputs - column };
        let inputs = if ALL_INPUTS { TILE } else { self.inputs - input };
        let tile_length = TILE * VECTORS * S::F32_LANES;
        let places = S::as_mut_simd_f32s(&mut self.sums[index * tile_length..][..tile_length]).0;
        let places = places.as_chunks_mut::<VECTORS>().0;
        let mut sums = [[simd.splat_f32s(0.0); VECTORS]; TILE];
        sums.copy_from_slice(places);
        for pair in pairs {
            let dy = load::<S, VECTORS, ALL_COLUMNS>(simd, &dy[pair.to as usize + column..][..width]);
            let x = &self.x[pair.from as usize + input..][..inputs];
            for (tile_row, sums) in sums.iter_mut().enumerate() {
                // A short tile repeats its last input; nobody reads the result.
                let value = simd.splat_f32s(x[if ALL_INPUTS { tile_row } else { tile_row.min(inputs - 1) }]);
                for (sum, dy) in sums.iter_mut().zip(dy) {
                    *sum = simd.mul_add_e_f32s(value, dy, *sum);
                }
            }
        }
        places.copy_from_slice(&sums);
    }
}

/// Where a tile lies: its first output and input, and its number in the task's sums.
#[derive(Clone, Copy)]
struct Place {
    column: usize,
    input: usize,
    index: usize,
}
