//! The greatest of 3x3 pixels at every second one, and its gradient. A unit makes a few channels of one pixel.

#![expect(clippy::manual_div_ceil, reason = "what runs on the GPU has no such method")]

use burn::backend::TensorMetadata;
use burn::tensor::Shape;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::launch::{elem_type, widest_vector, with_shape};

const UNITS: u32 = 256;

/// `winners` holds the place of what was taken in its window, 0 to 8, as a number of the activations' type.
#[cube(launch_unchecked)]
fn forward<F: Float, N: Size>(
    x: &[Vector<F, N>],
    y: &mut [Vector<F, N>],
    winners: &mut [Vector<F, N>],
    columns: usize,
    height: usize,
    width: usize,
    output_height: usize,
    output_width: usize,
    outputs: usize,
    #[define(F)] _dtype: ElemType,
) {
    let place = ABSOLUTE_POS;
    if place < outputs {
        let column = place % columns;
        let pixel = place / columns;
        let output_x = pixel % output_width;
        let output_y = pixel / output_width % output_height;
        let image = pixel / output_width / output_height;
        let mut best = Vector::<F, N>::new(F::min_value());
        let mut winner = Vector::<F, N>::new(F::new(0.0));
        #[unroll]
        for window in 0..9usize {
            // One more than the place in the input, which may lie outside.
            let y1 = output_y * 2 + window / 3;
            let x1 = output_x * 2 + window % 3;
            if y1 >= 1 && y1 <= height && x1 >= 1 && x1 <= width {
                let value = x[((image * height + y1 - 1) * width + x1 - 1) * columns + column];
                // What is not a number is taken, so that it is seen.
                let stays = value.less_equal(&best);
                best = select_many(stays, best, value);
                winner = select_many(stays, winner, Vector::<F, N>::new(F::cast_from(window)));
            }
        }
        y[place] = best;
        winners[place] = winner;
    }
}

/// Every pixel of the input lies in one or two windows along each axis.
#[cube(launch_unchecked)]
fn backward<F: Float, N: Size>(
    dy: &[Vector<F, N>],
    winners: &[Vector<F, N>],
    dx: &mut [Vector<F, N>],
    columns: usize,
    height: usize,
    width: usize,
    output_height: usize,
    output_width: usize,
    inputs: usize,
    #[define(F)] _dtype: ElemType,
) {
    let place = ABSOLUTE_POS;
    if place < inputs {
        let column = place % columns;
        let pixel = place / columns;
        let input_x = pixel % width;
        let input_y = pixel / width % height;
        let image = pixel / width / height;
        let zero = Vector::<f32, N>::new(0.0);
        let mut sum = zero;
        let end_y = min((input_y + 1) / 2 + 1, output_height);
        let end_x = min((input_x + 1) / 2 + 1, output_width);
        for output_y in input_y / 2..end_y {
            for output_x in input_x / 2..end_x {
                let window = (input_y + 1 - output_y * 2) * 3 + input_x + 1 - output_x * 2;
                let output =
                    ((image * output_height + output_y) * output_width + output_x) * columns + column;
                let won = winners[output].equal(&Vector::<F, N>::new(F::cast_from(window)));
                sum += select_many(won, Vector::<f32, N>::cast_from(dy[output]), zero);
            }
        }
        dx[place] = Vector::<F, N>::cast_from(sum);
    }
}

/// `x: [n, h, w, c]`, `-> [n, h / 2, w / 2, c]` and which of every window was taken.
pub(super) fn max_pool(x: CubeTensor) -> [CubeTensor; 2] {
    let x = into_contiguous(x);
    let [images, height, width, channels] = x.shape().dims();
    let (output_height, output_width) = (height.div_ceil(2), width.div_ceil(2));
    let [y, winners] =
        [0; 2].map(|_| with_shape(&x, Shape::from([images, output_height, output_width, channels])));
    let vector = widest_vector(&x, channels);
    let outputs = y.shape().num_elements() / vector;
    // SAFETY: output and winners have `outputs` places, and the kernel reads no pixel outside an image.
    unsafe {
        forward::launch_unchecked(
            &x.client,
            CubeCount::new_1d(outputs.div_ceil(UNITS as usize) as u32),
            CubeDim::new_1d(UNITS),
            vector,
            x.clone().into_buffer_arg(),
            y.clone().into_buffer_arg(),
            winners.clone().into_buffer_arg(),
            channels / vector,
            height,
            width,
            output_height,
            output_width,
            outputs,
            elem_type(&x),
        );
    }
    [y, winners]
}

/// The gradient of an input of shape `x`.
pub(super) fn gradient(x: Shape, winners: CubeTensor, dy: CubeTensor) -> CubeTensor {
    let dy = into_contiguous(dy);
    let [_, height, width, channels] = x.dims();
    let [_, output_height, output_width, _] = dy.shape().dims();
    let dx = with_shape(&dy, x);
    let vector = widest_vector(&dy, channels);
    let inputs = dx.shape().num_elements() / vector;
    // SAFETY: `dx` has `inputs` places, and the kernel reads no pixel outside the output.
    unsafe {
        backward::launch_unchecked(
            &dy.client,
            CubeCount::new_1d(inputs.div_ceil(UNITS as usize) as u32),
            CubeDim::new_1d(UNITS),
            vector,
            dy.clone().into_buffer_arg(),
            winners.into_buffer_arg(),
            dx.clone().into_buffer_arg(),
            channels / vector,
            height,
            width,
            output_height,
            output_width,
            inputs,
            elem_type(&dy),
        );
    }
    dx
}
