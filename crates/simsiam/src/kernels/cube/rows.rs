//! Kernels over rows: the cosine of two, and the mean over the pixels of an image.

use burn::backend::TensorMetadata;
use burn::tensor::Shape;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::batch_norm::sum_of_column;
use super::launch::{elem_type, floats, like, widest_vector, with_shape};
use crate::kernels::twin::SMALLEST_SQUARE;

const UNITS: usize = 256;

/// A cube for each row. `products: [row, 3]` keeps the sums over `p²`, `z²` and `p z`.
#[cube(launch_unchecked)]
fn cosine_of_rows(
    p: &[f32],
    z: &[f32],
    cosines: &mut [f32],
    products: &mut [f32],
    columns: usize,
    smallest: f32,
) {
    let row = CUBE_POS;
    let mut p_square = 0.0f32;
    let mut z_square = 0.0f32;
    let mut product = 0.0f32;
    let mut column = UNIT_POS as usize;
    while column < columns {
        let a = p[row * columns + column];
        let b = z[row * columns + column];
        p_square += a * a;
        z_square += b * b;
        product += a * b;
        column += UNITS;
    }
    let p_square = sum_of_column(Vector::<f32, Const<1>>::new(p_square), UNITS);
    let z_square = sum_of_column(Vector::<f32, Const<1>>::new(z_square), UNITS);
    let product = sum_of_column(Vector::<f32, Const<1>>::new(product), UNITS);
    if UNIT_POS == 0 {
        let p_square = p_square.extract(0usize);
        let z_square = z_square.extract(0usize);
        let product = product.extract(0usize);
        products[row * 3] = p_square;
        products[row * 3 + 1] = z_square;
        products[row * 3 + 2] = product;
        cosines[row] = product / (f32::sqrt(max(p_square, smallest)) * f32::sqrt(max(z_square, smallest)));
    }
}

/// The gradient of `p`; with the operands exchanged, that of `z`.
#[cube(launch_unchecked)]
fn cosine_gradient(
    dy: &[f32],
    p: &[f32],
    z: &[f32],
    products: &[f32],
    dp: &mut [f32],
    columns: usize,
    numbers: usize,
    smallest: f32,
    #[comptime] own: usize,
) {
    let place = ABSOLUTE_POS;
    if place < numbers {
        let row = place / columns;
        let own_square = products[row * 3 + own];
        let other_square = products[row * 3 + (1 - own)];
        let scale = dy[row] / (f32::sqrt(max(own_square, smallest)) * f32::sqrt(max(other_square, smallest)));
        // A length that is bounded has no gradient.
        let along = select(own_square > smallest, products[row * 3 + 2] / max(own_square, smallest), 0.0);
        dp[place] = scale * (z[place] - along * p[place]);
    }
}

/// Rows of length 1.
#[cube(launch_unchecked)]
fn normalise_rows(x: &[f32], y: &mut [f32], columns: usize, smallest: f32) {
    let row = CUBE_POS;
    let mut square = 0.0f32;
    let mut column = UNIT_POS as usize;
    while column < columns {
        let value = x[row * columns + column];
        square += value * value;
        column += UNITS;
    }
    let square = sum_of_column(Vector::<f32, Const<1>>::new(square), UNITS).extract(0usize);
    let length = f32::sqrt(max(square, smallest));
    let mut column = UNIT_POS as usize;
    while column < columns {
        y[row * columns + column] = x[row * columns + column] / length;
        column += UNITS;
    }
}

#[cube(launch_unchecked)]
fn mean_of_pixels<F: Float, N: Size>(
    x: &[Vector<F, N>],
    y: &mut [Vector<F, N>],
    pixels: usize,
    columns: usize,
    outputs: usize,
    #[define(F)] _dtype: ElemType,
) {
    let place = ABSOLUTE_POS;
    if place < outputs {
        let column = place % columns;
        let first = place / columns * pixels * columns + column;
        let mut sum = Vector::<f32, N>::new(0.0);
        for pixel in 0..pixels {
            sum += Vector::<f32, N>::cast_from(x[first + pixel * columns]);
        }
        y[place] = Vector::<F, N>::cast_from(sum / Vector::<f32, N>::new(f32::cast_from(pixels)));
    }
}

#[cube(launch_unchecked)]
fn spread_over_pixels<F: Float, N: Size>(
    dy: &[Vector<F, N>],
    dx: &mut [Vector<F, N>],
    pixels: usize,
    columns: usize,
    inputs: usize,
    #[define(F)] _dtype: ElemType,
) {
    let place = ABSOLUTE_POS;
    if place < inputs {
        let column = place % columns;
        let image = place / columns / pixels;
        let gradient = Vector::<f32, N>::cast_from(dy[image * columns + column]);
        dx[place] = Vector::<F, N>::cast_from(gradient / Vector::<f32, N>::new(f32::cast_from(pixels)));
    }
}

/// The cosines `[n, 1]` of the rows of `p, z: [n, d]`, and what their gradients need.
pub(super) fn cosine(p: &CubeTensor, z: &CubeTensor) -> [CubeTensor; 2] {
    let [rows, columns] = p.shape().dims();
    let (cosines, products) = (floats(p, [rows, 1]), floats(p, [rows, 3]));
    // SAFETY: both operands have `rows` rows of `columns` numbers, and every row a cosine and three products.
    unsafe {
        cosine_of_rows::launch_unchecked(
            &p.client,
            CubeCount::new_1d(rows as u32),
            CubeDim::new_2d(1, UNITS as u32),
            p.clone().into_buffer_arg(),
            z.clone().into_buffer_arg(),
            cosines.clone().into_buffer_arg(),
            products.clone().into_buffer_arg(),
            columns,
            SMALLEST_SQUARE,
        );
    }
    [cosines, products]
}

/// The gradient of one of the operands of a cosine, the first (0) or the second (1).
pub(super) fn cosine_gradient_of(
    own: usize,
    operands: [&CubeTensor; 2],
    products: &CubeTensor,
    dy: &CubeTensor,
) -> CubeTensor {
    let [p, z] = [operands[own], operands[1 - own]];
    let [_, columns] = p.shape().dims();
    let (gradient, numbers) = (like(p), p.shape().num_elements());
    // SAFETY: operands and gradient have `numbers` numbers, a product and a `dy` belongs to each of their rows.
    unsafe {
        cosine_gradient::launch_unchecked(
            &p.client,
            CubeCount::new_1d(numbers.div_ceil(UNITS) as u32),
            CubeDim::new_1d(UNITS as u32),
            into_contiguous(dy.clone()).into_buffer_arg(),
            p.clone().into_buffer_arg(),
            z.clone().into_buffer_arg(),
            products.clone().into_buffer_arg(),
            gradient.clone().into_buffer_arg(),
            columns,
            numbers,
            SMALLEST_SQUARE,
            own,
        );
    }
    gradient
}

/// `x: [n, d]` with every row scaled to length 1.
pub(super) fn normalise(x: CubeTensor) -> CubeTensor {
    let x = into_contiguous(x);
    let [rows, columns] = x.shape().dims();
    let y = like(&x);
    // SAFETY: both have `rows` rows of `columns` numbers.
    unsafe {
        normalise_rows::launch_unchecked(
            &x.client,
            CubeCount::new_1d(rows as u32),
            CubeDim::new_2d(1, UNITS as u32),
            x.clone().into_buffer_arg(),
            y.clone().into_buffer_arg(),
            columns,
            SMALLEST_SQUARE,
        );
    }
    y
}

/// `[n, h, w, c] -> [n, c]`
pub(super) fn average_pool(x: CubeTensor) -> CubeTensor {
    let x = into_contiguous(x);
    let [images, height, width, channels] = x.shape().dims();
    let y = with_shape(&x, Shape::from([images, channels]));
    let vector = widest_vector(&x, channels);
    let outputs = images * channels / vector;
    // SAFETY: `y` has `outputs` places, each of which stands for the pixels of one image.
    unsafe {
        mean_of_pixels::launch_unchecked(
            &x.client,
            CubeCount::new_1d(outputs.div_ceil(UNITS) as u32),
            CubeDim::new_1d(UNITS as u32),
            vector,
            x.clone().into_buffer_arg(),
            y.clone().into_buffer_arg(),
            height * width,
            channels / vector,
            outputs,
            elem_type(&x),
        );
    }
    y
}

/// The gradient of an input of shape `x`.
pub(super) fn average_pool_gradient(x: Shape, dy: CubeTensor) -> CubeTensor {
    let dy = into_contiguous(dy);
    let [_, height, width, channels] = x.dims();
    let dx = with_shape(&dy, x);
    let vector = widest_vector(&dy, channels);
    let inputs = dx.shape().num_elements() / vector;
    // SAFETY: `dx` has `inputs` places, and `dy` one for the image and the channels of each.
    unsafe {
        spread_over_pixels::launch_unchecked(
            &dy.client,
            CubeCount::new_1d(inputs.div_ceil(UNITS) as u32),
            CubeDim::new_1d(UNITS as u32),
            vector,
            dy.clone().into_buffer_arg(),
            dx.clone().into_buffer_arg(),
            height * width,
            channels / vector,
            inputs,
            elem_type(&dy),
        );
    }
    dx
}
