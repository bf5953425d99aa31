//! BatchNorm, what follows it and both their gradients, each in two passes over the activations.
//!
//! Activations are read as `[group, row, column]`: the batch in `groups` equal parts, a row for every pixel, and in
//! a column as many channels as a unit loads at once. A cube is a grid of units, columns by rows; every unit stays
//! in its column and walks down the rows of its cube. Sums over all rows go through one partial sum for each cube,
//! which a second kernel adds up in a fixed order: the same input gives the same bits.

use burn::backend::TensorMetadata;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::launch::{elem_type, floats, from_host, like, to_host, widest_vector};
use crate::kernels::autodiff::{Normalisation, NormalisationGradients};
use crate::kernels::batch_norm::{self as host, EPSILON};
use crate::kernels::{Everywhere, Over};

/// Units of a cube that passes over activations.
const UNITS: usize = 256;

/// Units of a cube that adds partial sums up, all of one column.
const SUMMING_UNITS: usize = 256;

/// Cubes that keep a large GPU busy, several for each of its multiprocessors.
const CUBES: usize = 1056;

/// Adds up what the units of one column hold, for all of them.
#[cube]
pub(super) fn sum_of_column<N: Size>(value: Vector<f32, N>, #[comptime] units: usize) -> Vector<f32, N> {
    let mut shared = Shared::<[Vector<f32, N>]>::new_slice(units);
    let unit = UNIT_POS as usize;
    shared[unit] = value;
    sync_cube();
    let mut distance = CUBE_DIM_Y as usize / 2;
    while distance > 0 {
        if (UNIT_POS_Y as usize) < distance {
            let sum = shared[unit] + shared[unit + distance * CUBE_DIM_X as usize];
            shared[unit] = sum;
        }
        sync_cube();
        distance /= 2;
    }
    shared[UNIT_POS_X as usize]
}

/// What one cube adds to the sums of the deviations from its group's first row, and of their squares.
/// `sums: [group, chunk, 2, column]`
#[cube(launch_unchecked)]
fn partial_moments<F: Float, N: Size>(
    x: &[Vector<F, N>],
    sums: &mut [Vector<f32, N>],
    columns: usize,
    rows: usize,
    chunk_rows: usize,
    #[define(F)] _dtype: ElemType,
) {
    let column = (CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X) as usize;
    let mut sum = Vector::<f32, N>::new(0.0);
    let mut squares = Vector::<f32, N>::new(0.0);
    if column < columns {
        let first = CUBE_POS_Z as usize * rows * columns + column;
        let shift = Vector::<f32, N>::cast_from(x[first]);
        let start = CUBE_POS_Y as usize * chunk_rows;
        let end = min(start + chunk_rows, rows);
        let mut row = start + UNIT_POS_Y as usize;
        while row < end {
            let deviation = Vector::<f32, N>::cast_from(x[first + row * columns]) - shift;
            sum += deviation;
            squares += deviation * deviation;
            row += CUBE_DIM_Y as usize;
        }
    }
    let sum = sum_of_column(sum, UNITS);
    let squares = sum_of_column(squares, UNITS);
    if UNIT_POS_Y == 0 && column < columns {
        let place = (CUBE_POS_Z * CUBE_COUNT_Y + CUBE_POS_Y) as usize * 2 * columns + column;
        sums[place] = sum;
        sums[place + columns] = squares;
    }
}

/// Statistics of every group from the partial sums, each `[group, column]`.
#[cube(launch_unchecked)]
fn moments<F: Float, N: Size>(
    x: &[Vector<F, N>],
    sums: &[Vector<f32, N>],
    mean: &mut [Vector<f32, N>],
    inverse_deviation: &mut [Vector<f32, N>],
    unbiased_variance: &mut [Vector<f32, N>],
    rows: usize,
    chunks: usize,
    epsilon: f32,
    #[define(F)] _dtype: ElemType,
) {
    let column = CUBE_POS_X as usize;
    let columns = CUBE_COUNT_X as usize;
    let group = CUBE_POS_Z as usize;
    let mut sum = Vector::<f32, N>::new(0.0);
    let mut squares = Vector::<f32, N>::new(0.0);
    let mut chunk = UNIT_POS_Y as usize;
    while chunk < chunks {
        let place = (group * chunks + chunk) * 2 * columns + column;
        sum += sums[place];
        squares += sums[place + columns];
        chunk += CUBE_DIM_Y as usize;
    }
    let sum = sum_of_column(sum, SUMMING_UNITS);
    let squares = sum_of_column(squares, SUMMING_UNITS);
    if UNIT_POS_Y == 0 {
        let count = f32::cast_from(rows);
        let deviation = sum / Vector::<f32, N>::new(count);
        let spread = max(squares - deviation * sum, Vector::<f32, N>::new(0.0));
        let variance = spread / Vector::<f32, N>::new(count);
        let place = group * columns + column;
        let shift = Vector::<f32, N>::cast_from(x[group * rows * columns + column]);
        mean[place] = shift + deviation;
        inverse_deviation[place] =
            Vector::<f32, N>::new(1.0) / Vector::<f32, N>::sqrt(variance + Vector::<f32, N>::new(epsilon));
        unbiased_variance[place] = spread / Vector::<f32, N>::new(max(count - 1.0, 1.0));
    }
}

/// `y = gamma * (x - mean) * inverse_deviation + beta`, and what follows.
#[cube(launch_unchecked)]
fn apply<F: Float, N: Size>(
    x: &[Vector<F, N>],
    shortcut: &[Vector<F, N>],
    gamma: &[Vector<f32, N>],
    beta: &[Vector<f32, N>],
    mean: &[Vector<f32, N>],
    inverse_deviation: &[Vector<f32, N>],
    y: &mut [Vector<F, N>],
    columns: usize,
    rows: usize,
    chunk_rows: usize,
    #[comptime] then: After,
    #[define(F)] _dtype: ElemType,
) {
    let column = (CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X) as usize;
    if column < columns {
        let group = CUBE_POS_Z as usize;
        let statistic = group * columns + column;
        let scale = gamma[column] * inverse_deviation[statistic];
        let shift = beta[column] - mean[statistic] * scale;
        let zero = Vector::<f32, N>::new(0.0);
        let first = group * rows * columns + column;
        let start = CUBE_POS_Y as usize * chunk_rows;
        let end = min(start + chunk_rows, rows);
        let mut row = start + UNIT_POS_Y as usize;
        while row < end {
            let place = first + row * columns;
            let mut value = Vector::<f32, N>::cast_from(x[place]) * scale + shift;
            if comptime!(then == After::AddAndRectify) {
                value += Vector::<f32, N>::cast_from(shortcut[place]);
            }
            if comptime!(then != After::Nothing) {
                // What is not a number stays so, and is seen.
                value = select_many(value.less_than(&zero), zero, value);
            }
            y[place] = Vector::<F, N>::cast_from(value);
            row += CUBE_DIM_Y as usize;
        }
    }
}

/// What one cube adds to the sums of the gradient before the ReLU, `g`, and of `g` times the normalised `x`.
/// `sums: [group, chunk, 2, column]`. After a shortcut, `g` is also the shortcut's gradient, and is written.
#[cube(launch_unchecked)]
fn partial_gradients<F: Float, N: Size>(
    dy: &[Vector<F, N>],
    x: &[Vector<F, N>],
    y: &[Vector<F, N>],
    gamma: &[Vector<f32, N>],
    beta: &[Vector<f32, N>],
    mean: &[Vector<f32, N>],
    inverse_deviation: &[Vector<f32, N>],
    g: &mut [Vector<F, N>],
    sums: &mut [Vector<f32, N>],
    columns: usize,
    rows: usize,
    chunk_rows: usize,
    #[comptime] then: After,
    #[define(F)] _dtype: ElemType,
) {
    let column = (CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X) as usize;
    let mut sum = Vector::<f32, N>::new(0.0);
    let mut products = Vector::<f32, N>::new(0.0);
    if column < columns {
        let group = CUBE_POS_Z as usize;
        let statistic = group * columns + column;
        let mean = mean[statistic];
        let inverse_deviation = inverse_deviation[statistic];
        let scale = gamma[column] * inverse_deviation;
        let shift = beta[column] - mean * scale;
        let zero = Vector::<f32, N>::new(0.0);
        let first = group * rows * columns + column;
        let start = CUBE_POS_Y as usize * chunk_rows;
        let end = min(start + chunk_rows, rows);
        let mut row = start + UNIT_POS_Y as usize;
        while row < end {
            let place = first + row * columns;
            let x = Vector::<f32, N>::cast_from(x[place]);
            let mut gradient = Vector::<f32, N>::cast_from(dy[place]);
            if comptime!(then == After::Rectify) {
                gradient = select_many((x * scale + shift).less_equal(&zero), zero, gradient);
            }
            if comptime!(then == After::AddAndRectify) {
                let y = Vector::<f32, N>::cast_from(y[place]);
                gradient = select_many(y.less_equal(&zero), zero, gradient);
                g[place] = Vector::<F, N>::cast_from(gradient);
            }
            sum += gradient;
            products += gradient * ((x - mean) * inverse_deviation);
            row += CUBE_DIM_Y as usize;
        }
    }
    let sum = sum_of_column(sum, UNITS);
    let products = sum_of_column(products, UNITS);
    if UNIT_POS_Y == 0 && column < columns {
        let place = (CUBE_POS_Z * CUBE_COUNT_Y + CUBE_POS_Y) as usize * 2 * columns + column;
        sums[place] = sum;
        sums[place + columns] = products;
    }
}

/// The gradients of gamma and beta, and the sums that they are made of for every group, `[group, 2, column]`.
#[cube(launch_unchecked)]
fn parameter_gradients<N: Size>(
    sums: &[Vector<f32, N>],
    group_sums: &mut [Vector<f32, N>],
    gamma: &mut [Vector<f32, N>],
    beta: &mut [Vector<f32, N>],
    groups: usize,
    chunks: usize,
) {
    let column = CUBE_POS_X as usize;
    let columns = CUBE_COUNT_X as usize;
    let mut beta_gradient = Vector::<f32, N>::new(0.0);
    let mut gamma_gradient = Vector::<f32, N>::new(0.0);
    for group in 0..groups {
        let mut sum = Vector::<f32, N>::new(0.0);
        let mut products = Vector::<f32, N>::new(0.0);
        let mut chunk = UNIT_POS_Y as usize;
        while chunk < chunks {
            let place = (group * chunks + chunk) * 2 * columns + column;
            sum += sums[place];
            products += sums[place + columns];
            chunk += CUBE_DIM_Y as usize;
        }
        let sum = sum_of_column(sum, SUMMING_UNITS);
        let products = sum_of_column(products, SUMMING_UNITS);
        // Before the next group writes to what was just read.
        sync_cube();
        if UNIT_POS_Y == 0 {
            group_sums[group * 2 * columns + column] = sum;
            group_sums[(group * 2 + 1) * columns + column] = products;
        }
        beta_gradient += sum;
        gamma_gradient += products;
    }
    if UNIT_POS_Y == 0 {
        beta[column] = beta_gradient;
        gamma[column] = gamma_gradient;
    }
}

/// `dx = gamma * inverse_deviation * (g - mean of g - normalised x * mean of g * normalised x)`
/// (Ioffe & Szegedy 2015, section 3). `g` comes masked where `then` is not to mask it.
#[cube(launch_unchecked)]
fn data_gradient<F: Float, N: Size>(
    g: &[Vector<F, N>],
    x: &[Vector<F, N>],
    gamma: &[Vector<f32, N>],
    beta: &[Vector<f32, N>],
    mean: &[Vector<f32, N>],
    inverse_deviation: &[Vector<f32, N>],
    group_sums: &[Vector<f32, N>],
    dx: &mut [Vector<F, N>],
    columns: usize,
    rows: usize,
    chunk_rows: usize,
    #[comptime] rectify: bool,
    #[define(F)] _dtype: ElemType,
) {
    let column = (CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X) as usize;
    if column < columns {
        let group = CUBE_POS_Z as usize;
        let statistic = group * columns + column;
        let mean = mean[statistic];
        let inverse_deviation = inverse_deviation[statistic];
        let scale = gamma[column] * inverse_deviation;
        let shift = beta[column] - mean * scale;
        let zero = Vector::<f32, N>::new(0.0);
        let count = Vector::<f32, N>::new(f32::cast_from(rows));
        let mean_gradient = group_sums[group * 2 * columns + column] / count;
        let mean_product = group_sums[(group * 2 + 1) * columns + column] / count;
        let first = group * rows * columns + column;
        let start = CUBE_POS_Y as usize * chunk_rows;
        let end = min(start + chunk_rows, rows);
        let mut row = start + UNIT_POS_Y as usize;
        while row < end {
            let place = first + row * columns;
            let x = Vector::<f32, N>::cast_from(x[place]);
            let mut gradient = Vector::<f32, N>::cast_from(g[place]);
            if comptime!(rectify) {
                gradient = select_many((x * scale + shift).less_equal(&zero), zero, gradient);
            }
            let normalised = (x - mean) * inverse_deviation;
            let value = scale * (gradient - mean_gradient - normalised * mean_product);
            dx[place] = Vector::<F, N>::cast_from(value);
            row += CUBE_DIM_Y as usize;
        }
    }
}

/// What a kernel does after the normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum After {
    Nothing,
    Rectify,
    AddAndRectify,
}

impl After {
    fn of(has_shortcut: bool, rectify: bool) -> After {
        match (has_shortcut, rectify) {
            (true, _) => After::AddAndRectify,
            (false, true) => After::Rectify,
            (false, false) => After::Nothing,
        }
    }
}

/// How a pass over activations is shared out.
#[derive(Clone, Copy)]
struct Grid {
    groups: usize,
    rows: usize,
    columns: usize,
    /// Channels in a column.
    vector: usize,
    chunk_rows: usize,
}

impl Grid {
    fn of(x: &CubeTensor, channels: usize, groups: usize) -> Grid {
        let vector = widest_vector(x, channels);
        let columns = channels / vector;
        let rows = x.shape().num_elements() / channels / groups;
        let mut grid = Grid { groups, rows, columns, vector, chunk_rows: rows };
        let [units_x, units_y] = grid.units();
        let chunks = (CUBES / (columns.div_ceil(units_x) * groups)).max(1);
        grid.chunk_rows = rows.div_ceil(chunks).next_multiple_of(units_y);
        grid
    }

    /// Columns and rows of a cube's units, powers of two.
    fn units(&self) -> [usize; 2] {
        let columns = 1 << self.columns.min(32).ilog2();
        [columns, UNITS / columns]
    }

    fn chunks(&self) -> usize {
        self.rows.div_ceil(self.chunk_rows)
    }

    fn cubes(&self) -> CubeCount {
        let [units_x, _] = self.units();
        CubeCount::Static(self.columns.div_ceil(units_x) as u32, self.chunks() as u32, self.groups as u32)
    }

    fn cube(&self) -> CubeDim {
        let [units_x, units_y] = self.units();
        CubeDim::new_2d(units_x as u32, units_y as u32)
    }

    fn cubes_that_sum(&self, groups: usize) -> CubeCount {
        CubeCount::Static(self.columns as u32, 1, groups as u32)
    }

    fn channels(&self) -> usize {
        self.columns * self.vector
    }
}

/// A cube that adds partial sums up.
fn summing_cube() -> CubeDim {
    CubeDim::new_2d(1, SUMMING_UNITS as u32)
}

/// Statistics of a batch, each `[groups x channels]` in `f32`.
#[derive(Debug, Clone)]
pub(crate) struct Moments {
    pub(super) mean: CubeTensor,
    pub(super) inverse_deviation: CubeTensor,
    pub(super) unbiased_variance: CubeTensor,
}

/// The statistics of `x: [n, ..., channels]`, which is contiguous.
pub(super) fn batch_moments(x: &CubeTensor, channels: usize, over: &Over) -> Moments {
    let groups = over.groups;
    let grid = Grid::of(x, channels, groups);
    let sums = floats(x, [groups * grid.chunks() * 2 * channels]);
    let dtype = elem_type(x);
    // SAFETY: the sums have a place for both of every cube's and column's; rows and columns are those of `x`.
    unsafe {
        partial_moments::launch_unchecked(
            &x.client,
            grid.cubes(),
            grid.cube(),
            grid.vector,
            x.clone().into_buffer_arg(),
            sums.clone().into_buffer_arg(),
            grid.columns,
            grid.rows,
            grid.chunk_rows,
            dtype,
        );
    }
    let [mean, inverse_deviation, unbiased_variance] = [0; 3].map(|_| floats(x, [groups * channels]));
    // SAFETY: the kernel has one cube for every column and group, and the statistics a place for each.
    unsafe {
        moments::launch_unchecked(
            &x.client,
            grid.cubes_that_sum(groups),
            summing_cube(),
            grid.vector,
            x.clone().into_buffer_arg(),
            sums.into_buffer_arg(),
            mean.clone().into_buffer_arg(),
            inverse_deviation.clone().into_buffer_arg(),
            unbiased_variance.clone().into_buffer_arg(),
            grid.rows,
            grid.chunks(),
            EPSILON as f32,
            dtype,
        );
    }
    let moments = Moments { mean, inverse_deviation, unbiased_variance };
    match &over.everywhere {
        Some(everywhere) => moments_everywhere(&moments, everywhere, grid.rows),
        None => moments,
    }
}

/// The statistics of all shards' rows, by way of the host, which has their sum.
fn moments_everywhere(moments: &Moments, everywhere: &Everywhere, rows: usize) -> Moments {
    let (mean, unbiased_variance) = (to_host(&moments.mean), to_host(&moments.unbiased_variance));
    let inverse_deviation = vec![0.0; mean.len()];
    let mut on_host = host::Moments { mean, inverse_deviation, unbiased_variance };
    everywhere.moments(&mut on_host, rows);
    let [mean, inverse_deviation, unbiased_variance] =
        [on_host.mean, on_host.inverse_deviation, on_host.unbiased_variance]
            .map(|values| from_host(values, &moments.mean));
    Moments { mean, inverse_deviation, unbiased_variance }
}

/// `x`, which is contiguous, normalised with the statistics of each of `groups` equal parts, and what follows.
pub(super) fn normalise(
    x: &CubeTensor,
    [gamma, beta]: [&CubeTensor; 2],
    [mean, inverse_deviation]: [&CubeTensor; 2],
    shortcut: Option<CubeTensor>,
    groups: usize,
    rectify: bool,
) -> CubeTensor {
    let grid = Grid::of(x, gamma.shape().num_elements(), groups);
    let then = After::of(shortcut.is_some(), rectify);
    let shortcut = shortcut.map_or_else(|| x.clone(), into_contiguous);
    let y = like(x);
    // SAFETY: shortcut and output have the shape of `x`, whose rows and columns the kernel is told.
    unsafe {
        apply::launch_unchecked(
            &x.client,
            grid.cubes(),
            grid.cube(),
            grid.vector,
            x.clone().into_buffer_arg(),
            shortcut.into_buffer_arg(),
            gamma.clone().into_buffer_arg(),
            beta.clone().into_buffer_arg(),
            mean.clone().into_buffer_arg(),
            inverse_deviation.clone().into_buffer_arg(),
            y.clone().into_buffer_arg(),
            grid.columns,
            grid.rows,
            grid.chunk_rows,
            then,
            elem_type(x),
        );
    }
    y
}

/// `y` is the output after a shortcut, where there was one.
pub(super) fn gradients(
    saved: &Normalisation<CubeBackend>,
    y: Option<&CubeTensor>,
    dy: CubeTensor,
) -> NormalisationGradients<CubeBackend> {
    let Normalisation { x, gamma, beta, moments, over, rectify } = saved;
    let grid = Grid::of(x, gamma.shape().num_elements(), over.groups);
    let then = After::of(y.is_some(), *rectify);
    let (masked, sums) = gradient_sums(saved, grid, then, y, into_contiguous(dy));
    let [mut group_sums, gamma_gradient, beta_gradient] = sums_of_groups(x, grid, sums);
    if let Some(everywhere) = &over.everywhere {
        let mut means = to_host(&group_sums);
        everywhere.shards.mean(&mut means);
        group_sums = from_host(means, &group_sums);
    }
    let dx = like(x);
    // SAFETY: every activation has the shape of `x`; statistics and sums have a place for every group and column.
    unsafe {
        data_gradient::launch_unchecked(
            &x.client,
            grid.cubes(),
            grid.cube(),
            grid.vector,
            masked.clone().into_buffer_arg(),
            x.clone().into_buffer_arg(),
            gamma.clone().into_buffer_arg(),
            beta.clone().into_buffer_arg(),
            moments.mean.clone().into_buffer_arg(),
            moments.inverse_deviation.clone().into_buffer_arg(),
            group_sums.into_buffer_arg(),
            dx.clone().into_buffer_arg(),
            grid.columns,
            grid.rows,
            grid.chunk_rows,
            then == After::Rectify,
            elem_type(x),
        );
    }
    NormalisationGradients { x: dx, gamma: gamma_gradient, beta: beta_gradient, shortcut: y.map(|_| masked) }
}

/// The gradient before the ReLU after a shortcut, otherwise `dy` itself; and every cube's partial sums.
fn gradient_sums(
    saved: &Normalisation<CubeBackend>,
    grid: Grid,
    then: After,
    y: Option<&CubeTensor>,
    dy: CubeTensor,
) -> (CubeTensor, CubeTensor) {
    let Normalisation { x, gamma, beta, moments, .. } = saved;
    // Without a shortcut nothing is written there.
    let masked = if y.is_some() { like(x) } else { dy.clone() };
    let sums = floats(x, [grid.groups * grid.chunks() * 2 * grid.channels()]);
    // SAFETY: every activation has the shape of `x`; the sums have a place for both of every cube's and column's.
    unsafe {
        partial_gradients::launch_unchecked(
            &x.client,
            grid.cubes(),
            grid.cube(),
            grid.vector,
            dy.into_buffer_arg(),
            x.clone().into_buffer_arg(),
            y.unwrap_or(x).clone().into_buffer_arg(),
            gamma.clone().into_buffer_arg(),
            beta.clone().into_buffer_arg(),
            moments.mean.clone().into_buffer_arg(),
            moments.inverse_deviation.clone().into_buffer_arg(),
            masked.clone().into_buffer_arg(),
            sums.clone().into_buffer_arg(),
            grid.columns,
            grid.rows,
            grid.chunk_rows,
            then,
            elem_type(x),
        );
    }
    (masked, sums)
}

/// The sums of every group, `[group, 2, column]`, and over all groups the gradients of gamma and beta.
fn sums_of_groups(x: &CubeTensor, grid: Grid, sums: CubeTensor) -> [CubeTensor; 3] {
    let group_sums = floats(x, [grid.groups * 2 * grid.channels()]);
    let [gamma, beta] = [0; 2].map(|_| floats(x, [grid.channels()]));
    // SAFETY: the kernel has one cube for every column, and everything it writes a place for each.
    unsafe {
        parameter_gradients::launch_unchecked(
            &x.client,
            grid.cubes_that_sum(1),
            summing_cube(),
            grid.vector,
            sums.into_buffer_arg(),
            group_sums.clone().into_buffer_arg(),
            gamma.clone().into_buffer_arg(),
            beta.clone().into_buffer_arg(),
            grid.groups,
            grid.chunks(),
        );
    }
    [group_sums, gamma, beta]
}
