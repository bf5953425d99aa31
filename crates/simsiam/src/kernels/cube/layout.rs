//! Changes of layout: what convolutions want their operands in, and what their weight's gradient comes from.

use burn::backend::TensorMetadata;
use burn::tensor::{DType, Shape};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::launch::{elem_type, floats, load_numbers};

const UNITS: u32 = 256;

/// Gathers the last axis of any view into vectors, which zeros fill up.
#[cube(launch_unchecked)]
fn gather<I: Float, O: Float, N: Size>(
    from: &[I],
    to: &mut [Vector<O, N>],
    shape_1: usize,
    shape_2: usize,
    columns: usize,
    channels: usize,
    stride_0: usize,
    stride_1: usize,
    stride_2: usize,
    stride_3: usize,
    outputs: usize,
    #[define(I, O)] _dtypes: [ElemType; 2],
) {
    let place = ABSOLUTE_POS;
    if place < outputs {
        let column = place % columns;
        let pixel = place / columns;
        let index_2 = pixel % shape_2;
        let index_1 = pixel / shape_2 % shape_1;
        let index_0 = pixel / shape_2 / shape_1;
        let start = index_0 * stride_0 + index_1 * stride_1 + index_2 * stride_2;
        let mut gathered = Vector::<O, N>::new(O::new(0.0));
        #[unroll]
        for lane in 0..N::value() {
            let channel = column * N::value() + lane;
            if channel < channels {
                gathered.insert(lane, O::cast_from(from[start + channel * stride_3]));
            }
        }
        to[place] = gathered;
    }
}

/// Sums of parts `[part, out, tap, channel]`, some channels of which are filling, as `[out, channel, tap]`.
#[cube(launch_unchecked)]
fn sum_of_parts(
    parts: &[f32],
    sums: &mut [f32],
    taps: usize,
    channels: usize,
    filled_channels: usize,
    part_length: usize,
    part_count: usize,
    outputs: usize,
) {
    let place = ABSOLUTE_POS;
    if place < outputs {
        // In the order of the parts, which are many.
        let channel = place % channels;
        let tap = place / channels % taps;
        let out = place / channels / taps;
        let first = (out * taps + tap) * filled_channels + channel;
        let mut sum = 0.0f32;
        for part in 0..part_count {
            sum += parts[first + part * part_length];
        }
        sums[(out * channels + channel) * taps + tap] = sum;
    }
}

/// A view `[a, b, c, channels]` in memory of its own and of this type, with zeros behind the channels so that whole
/// loads cover them.
pub(super) fn filled(view: CubeTensor, dtype: DType) -> CubeTensor {
    let shape = view.shape();
    let [shape_0, shape_1, shape_2, channels] = shape.dims();
    let vector = load_numbers(dtype);
    let columns = channels.div_ceil(vector);
    if view.dtype == dtype && channels == columns * vector && view.is_contiguous() {
        return view;
    }
    let filled_shape = Shape::from([shape_0, shape_1, shape_2, columns * vector]);
    let (client, device) = (view.client.clone(), view.device.clone());
    let filled = empty_device_contiguous_dtype(client, device, filled_shape, dtype);
    let outputs = shape_0 * shape_1 * shape_2 * columns;
    let strides = view.meta.strides().clone();
    let dtypes = [elem_type(&view), elem_type(&filled)];
    // SAFETY: the view's strides keep every index of its shape inside its memory, and `filled` has `outputs` places.
    unsafe {
        gather::launch_unchecked(
            &filled.client,
            CubeCount::new_1d(outputs.div_ceil(UNITS as usize) as u32),
            CubeDim::new_1d(UNITS),
            vector,
            view.into_buffer_arg(),
            filled.clone().into_buffer_arg(),
            shape_1,
            shape_2,
            columns,
            channels,
            strides[0],
            strides[1],
            strides[2],
            strides[3],
            outputs,
            dtypes,
        );
    }
    filled
}

/// The gradient of a weight `[out, channels, kernel, kernel]` from its parts.
pub(super) fn weight_gradient(parts: CubeTensor, part_count: usize, shape: Shape) -> CubeTensor {
    let [out, channels, height, width] = shape.dims();
    let (taps, outputs) = (height * width, shape.num_elements());
    let part_length = parts.shape().num_elements() / part_count;
    let gradient = floats(&parts, shape);
    // SAFETY: every index into the parts is below `part_length * part_count`, and the gradient has `outputs` places.
    unsafe {
        sum_of_parts::launch_unchecked(
            &gradient.client,
            CubeCount::new_1d(outputs.div_ceil(UNITS as usize) as u32),
            CubeDim::new_1d(UNITS),
            parts.into_buffer_arg(),
            gradient.clone().into_buffer_arg(),
            taps,
            channels,
            part_length / (out * taps),
            part_length,
            part_count,
            outputs,
        );
    }
    gradient
}
