//! Kernels over flat vectors: gathering a bucket, looking at it, one step of SGD.

use std::sync::LazyLock;

use burn::backend::TensorMetadata;
use burn::tensor::{DType, Shape, Tensor};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::cuda::CudaRuntime;
use cubecl::future::block_on;
use cubecl::prelude::*;
use cubecl_runtime::runtime::Runtime;

use super::batch_norm::sum_of_column;
use super::cuda::{Parameters, Source};
use super::launch::{floats, like};
use crate::kernels::Part;
use crate::sgd::Step;

const UNITS: usize = 256;

/// Vectors that one launch gathers.
const GATHERED_PARTS: usize = 32;

/// Blocks that copy one of them.
const GATHERING_BLOCKS: usize = 64;

static GATHER: LazyLock<Source> =
    LazyLock::new(|| Source::new("gather", include_str!("cuda/gather.cu"), UNITS as u32));

/// Cubes that read a long vector together.
const CUBES: usize = 528;

/// The sum of the squares that each cube meets.
#[cube(launch_unchecked)]
fn sum_squares<N: Size>(values: &[Vector<f32, N>], sums: &mut [Vector<f32, N>], length: usize) {
    let mut sum = Vector::<f32, N>::new(0.0);
    let mut place = ABSOLUTE_POS;
    while place < length {
        let value = values[place];
        sum += value * value;
        place += CUBE_COUNT * CUBE_DIM as usize;
    }
    let sum = sum_of_column(sum, UNITS);
    if UNIT_POS == 0 {
        sums[CUBE_POS] = sum;
    }
}

/// See [`crate::sgd::update`].
#[cube(launch_unchecked)]
fn update_each(
    weights: &[f32],
    momentum_buffer: &[f32],
    gradient: &[f32],
    new_weights: &mut [f32],
    new_momentum_buffer: &mut [f32],
    scale: f32,
    momentum: f32,
    weight_decay: f32,
    first_rate: f32,
    second_rate: f32,
    second_start: usize,
    length: usize,
) {
    let place = ABSOLUTE_POS;
    if place < length {
        let weight = weights[place];
        let velocity = momentum * momentum_buffer[place] + (scale * gradient[place] + weight_decay * weight);
        let rate = select(place < second_start, first_rate, second_rate);
        new_momentum_buffer[place] = velocity;
        new_weights[place] = weight - rate * velocity;
    }
}

/// The parts one behind the other, and `filling` zeros behind them.
pub(crate) fn gather(parts: Vec<Part>, first_weight: f32, filling: usize) -> Tensor<1> {
    let mut parts: Vec<(CubeTensor, bool)> = parts
        .into_iter()
        .map(|part| match part {
            Part::Whole(tensor) => (primitive(tensor), false),
            Part::Views(tensor) => (primitive(tensor), true),
        })
        .collect();
    if filling > 0 {
        let device = tensor(parts[0].0.clone()).device();
        parts.push((primitive(Tensor::zeros([filling], &device)), false));
    }
    let length = |(tensor, is_mixed): &(CubeTensor, bool)| {
        tensor.shape().num_elements() / if *is_mixed { 2 } else { 1 }
    };
    let gathered = floats(&parts[0].0, [parts.iter().map(length).sum::<usize>()]);
    let mut offset = 0;
    for parts in parts.chunks(GATHERED_PARTS) {
        let mut parameters = Parameters::default();
        parameters.push_float(first_weight);
        for part in parts {
            parameters.push([offset, length(part), usize::from(part.1)]);
            offset += length(part);
        }
        // What is not there has no length.
        parameters.push(vec![0; 3 * (GATHERED_PARTS - parts.len())]);
        let sources = parts.iter().map(|(tensor, _)| tensor).chain(std::iter::repeat(&parts[0].0));
        let buffers: Vec<&CubeTensor> = sources.take(GATHERED_PARTS).chain([&gathered]).collect();
        GATHER.launch(&[], [GATHERING_BLOCKS, parts.len(), 1], &buffers, parameters);
    }
    tensor(gathered)
}

/// Sums of squares that together cover the first `length` numbers: not finite if one of them is not.
pub(crate) fn square_sums(values: Tensor<1>, length: usize) -> Tensor<1> {
    let values = primitive(values);
    let sums = floats(&values, [CUBES]);
    // SAFETY: the values are at least `length` long, and every cube has a sum.
    unsafe {
        sum_squares::launch_unchecked(
            &sums.client,
            CubeCount::new_1d(CUBES as u32),
            CubeDim::new_2d(1, UNITS as u32),
            1,
            values.into_buffer_arg(),
            sums.clone().into_buffer_arg(),
            length,
        );
    }
    tensor(sums)
}

/// New weights and momentum.
pub(crate) fn sgd_update(
    weights: Tensor<1>,
    momentum_buffer: Tensor<1>,
    gradient: Tensor<1>,
    step: &Step,
) -> [Tensor<1>; 2] {
    let [weights, momentum_buffer, gradient] = [weights, momentum_buffer, gradient].map(primitive);
    let length = weights.shape().num_elements();
    let [new_weights, new_momentum_buffer] = [0; 2].map(|_| like(&weights));
    // SAFETY: all five are flat and at least as long as the weights, whose length the kernel is told.
    unsafe {
        update_each::launch_unchecked(
            &new_weights.client,
            CubeCount::new_1d(length.div_ceil(UNITS) as u32),
            CubeDim::new_1d(UNITS as u32),
            weights.into_buffer_arg(),
            momentum_buffer.into_buffer_arg(),
            gradient.into_buffer_arg(),
            new_weights.clone().into_buffer_arg(),
            new_momentum_buffer.clone().into_buffer_arg(),
            step.scale,
            step.momentum,
            step.weight_decay,
            step.rates[0],
            step.rates[1],
            step.second_start,
            length,
        );
    }
    [new_weights, new_momentum_buffer].map(tensor)
}

/// A stretch of a vector, where it lies if loads can begin there.
pub(crate) fn stretch(values: Tensor<1>, range: std::ops::Range<usize>) -> Tensor<1> {
    const LOAD_BYTES: usize = 32;
    let bytes = size_of::<f32>();
    if !(range.start * bytes).is_multiple_of(LOAD_BYTES) {
        return values.slice(range);
    }
    let values = primitive(values);
    let behind = values.shape().num_elements() - range.end;
    let handle = values.handle.clone();
    let handle = handle.offset_start((range.start * bytes) as u64).offset_end((behind * bytes) as u64);
    let shape = Shape::from([range.len()]);
    let stretch = CubeTensor::new_contiguous(values.client, values.device, shape, handle, DType::F32);
    tensor(stretch)
}

/// Whether everything that was to write these numbers was done, as far as it is known by now. Asked of whole vectors: of a
/// stretch of one, cubecl 0.11.3 does not always tell.
///
/// # Errors
/// What was not done, in its words.
pub(crate) fn ensure_written(values: &Tensor<1>) -> Result<(), String> {
    let values = primitive(values.clone());
    values.client.check([&values.handle]).map_err(|error| format!("{error:?}"))
}

/// Tells `work` where the numbers of a vector lie, once they are all written. Nothing else touches them before it
/// returns.
pub(crate) fn at_rest<T>(values: Tensor<1>, work: impl FnOnce(u64) -> T) -> Result<T, String> {
    ensure_written(&values)?;
    let values = primitive(values);
    // Another thread's queue may write them: this thread's waits for that one from here on, and then the host for both.
    let resource = values.client.get_resource::<<CudaRuntime as Runtime>::Server>(values.handle.clone());
    let resource = resource.map_err(|error| format!("{error:?}"))?;
    block_on(values.client.sync()).map_err(|error| format!("{error:?}"))?;
    Ok(work(resource.resource().ptr))
}

fn primitive(values: Tensor<1>) -> CubeTensor {
    let primitive = values.try_into_primitive::<CubeBackend>();
    into_contiguous(primitive.expect("whoever asks for these kernels has looked at the device"))
}

fn tensor(values: CubeTensor) -> Tensor<1> {
    Tensor::from_primitive::<CubeBackend>(values)
}
