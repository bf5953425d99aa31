//! The network's operations over channels-last activations, `[n, height, width, channels]`.
//!
//! In `f32` on the CPU (burn's flex backend) and in `f32` and bf16 on GPUs they are the kernels of this module, with
//! backward passes written by hand; in bf16 on the CPU they are [`twin`]'s compositions of burn's own operations,
//! which is also what the tests compare the kernels with. burn's tensors and its autodiff tape stay in charge either
//! way.
//!
//! The activations' type decides: weights are multiplied in it, normalisation and its statistics are in `f32`.

mod all_shards;
mod autodiff;
mod batch_norm;
mod borrowed;
mod buffer;
mod bytes;
mod convolution;
#[cfg(feature = "cuda")]
pub(crate) mod cube;
mod flex;
mod pool;
#[cfg(test)]
mod tests;
mod twin;

use std::ops::Range;
use std::sync::Arc;

pub use all_shards::{AllShards, ShardSum};
pub(crate) use all_shards::{Everywhere, Over};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, DispatchDevice, backend_extension};
use burn::tensor::{DType, Device, Tensor, TensorData};
use rayon::prelude::*;

/// What devices have kernels for. Parameters and statistics are `f32`; activations lie channels-last.
#[backend_extension(Cube: cfg(feature = "cuda"), Flex, Autodiff)]
pub(crate) trait Kernels: Backend {
    /// See [`convolution`].
    fn convolution(x: FloatTensor<Self>, weight: FloatTensor<Self>, stride: usize) -> FloatTensor<Self>;

    /// See [`batch_norm`]: output, mean, unbiased variance.
    fn batch_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        over: Over,
        rectify: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// See [`batch_norm`], with a shortcut and ReLU.
    fn batch_norm_with_shortcut(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        shortcut: FloatTensor<Self>,
        over: Over,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// See [`max_pool`].
    fn max_pool(x: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// What devices have kernels for when nothing is trained.
#[backend_extension(Cube: cfg(feature = "cuda"), Flex)]
pub(crate) trait EvaluationKernels: Backend {
    /// See [`batch_norm_running`].
    fn batch_norm_running(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        variance: FloatTensor<Self>,
        rectify: bool,
    ) -> FloatTensor<Self>;

    /// See [`batch_norm_running`], with a shortcut and ReLU.
    fn batch_norm_running_with_shortcut(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        variance: FloatTensor<Self>,
        shortcut: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
}

/// What GPUs have kernels for where the CPU is as fast with burn's operations.
#[cfg(feature = "cuda")]
#[backend_extension(Cube, Autodiff)]
pub(crate) trait GpuKernels: Backend {
    /// See [`average_pool`].
    fn average_pool(x: FloatTensor<Self>) -> FloatTensor<Self>;

    /// See [`cosine`].
    fn cosine(p: FloatTensor<Self>, z: FloatTensor<Self>) -> FloatTensor<Self>;

    /// See [`normalise`].
    fn normalise(x: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// A part of a flat vector that is gathered.
pub(crate) enum Part {
    /// As it is.
    Whole(Tensor<1>),
    /// The numbers of both views, one behind the other, of which a weighted sum is gathered.
    Views(Tensor<1>),
}

/// What follows a normalisation, in the same pass.
#[expect(clippy::large_enum_variant, reason = "it lives from one call to the next and is never stored")]
pub(crate) enum Then<const D: usize> {
    /// Nothing.
    Nothing,
    /// ReLU.
    Rectify,
    /// The sum with a residual block's shortcut, then ReLU.
    AddAndRectify(Tensor<D>),
}

impl<const D: usize> Then<D> {
    fn map(self, change: impl FnOnce(Tensor<D>) -> Tensor<D>) -> Then<D> {
        match self {
            Then::AddAndRectify(shortcut) => Then::AddAndRectify(change(shortcut)),
            other => other,
        }
    }
}

/// BatchNorm's output and what it saw, group after group: `mean, variance: [groups x channels]`.
pub(crate) struct Normalised<const D: usize> {
    pub(crate) output: Tensor<D>,
    pub(crate) mean: Tensor<1>,
    /// The unbiased one.
    pub(crate) variance: Tensor<1>,
}

/// `x: [n, h, w, in]`, `weight: [out, in, kernel, kernel]` `-> [n, h / stride, w / stride, out]`, padded by
/// half the kernel.
pub(crate) fn convolution(x: Tensor<4>, weight: Tensor<4>, stride: usize) -> Tensor<4> {
    if !has_kernels(&x) {
        return twin::convolution(x, weight, stride);
    }
    let y = <Dispatch as Kernels>::convolution(x.into_dispatch(), weight.into_dispatch(), stride);
    Tensor::from_dispatch(y)
}

/// `x: [n, in]`, `weight: [out, in]` `-> [n, out]`.
pub(crate) fn linear(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    if !has_kernels(&x) {
        return twin::linear(x, weight);
    }
    // A convolution of one pixel: it packs the weight itself, so nothing is transposed beforehand.
    let ([n, input], [output, _]) = (x.dims(), weight.dims());
    let y = convolution(x.reshape([n, 1, 1, input]), weight.reshape([output, input, 1, 1]), 1);
    y.reshape([n, output])
}

/// BatchNorm of `x: [n, ..., channels]` with the statistics of the batch.
pub(crate) fn batch_norm<const D: usize>(
    x: Tensor<D>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    over: Over,
    then: Then<D>,
) -> Normalised<D> {
    if !has_kernels(&x) {
        if over.everywhere.is_none() {
            return twin::batch_norm(x, &gamma, &beta, over.groups, then);
        }
        // The statistics of other shards are for the kernels only, which take `f32` on the CPU.
        let (dtype, then) = (x.dtype(), then.map(|shortcut| shortcut.cast(DType::F32)));
        let normalised = batch_norm(x.cast(DType::F32), gamma, beta, over, then);
        return Normalised { output: normalised.output.cast(dtype), ..normalised };
    }
    let (x, gamma, beta) = (x.into_dispatch(), gamma.into_dispatch(), beta.into_dispatch());
    let (output, mean, variance) = match then {
        Then::Nothing => <Dispatch as Kernels>::batch_norm(x, gamma, beta, over, false),
        Then::Rectify => <Dispatch as Kernels>::batch_norm(x, gamma, beta, over, true),
        Then::AddAndRectify(shortcut) => {
            <Dispatch as Kernels>::batch_norm_with_shortcut(x, gamma, beta, shortcut.into_dispatch(), over)
        }
    };
    Normalised {
        output: Tensor::from_dispatch(output),
        mean: Tensor::from_dispatch(mean),
        variance: Tensor::from_dispatch(variance),
    }
}

/// BatchNorm of `x: [n, ..., channels]` with given statistics.
pub(crate) fn batch_norm_running<const D: usize>(
    x: Tensor<D>,
    [gamma, beta]: [Tensor<1>; 2],
    [mean, variance]: [Tensor<1>; 2],
    then: Then<D>,
) -> Tensor<D> {
    if x.device().is_autodiff() || !has_kernels(&x) {
        return twin::batch_norm_running(x, [gamma, beta], [mean, variance], then);
    }
    let (x, gamma, beta) = (x.into_dispatch(), gamma.into_dispatch(), beta.into_dispatch());
    let (mean, variance) = (mean.into_dispatch(), variance.into_dispatch());
    Tensor::from_dispatch(match then {
        Then::Nothing => {
            <Dispatch as EvaluationKernels>::batch_norm_running(x, gamma, beta, mean, variance, false)
        }
        Then::Rectify => {
            <Dispatch as EvaluationKernels>::batch_norm_running(x, gamma, beta, mean, variance, true)
        }
        Then::AddAndRectify(shortcut) => <Dispatch as EvaluationKernels>::batch_norm_running_with_shortcut(
            x,
            gamma,
            beta,
            mean,
            variance,
            shortcut.into_dispatch(),
        ),
    })
}

/// The mean over all pixels, `[n, h, w, c] -> [n, c]`.
pub(crate) fn average_pool(x: Tensor<4>) -> Tensor<2> {
    #[cfg(feature = "cuda")]
    if !is_flex(&x.device()) {
        return Tensor::from_dispatch(<Dispatch as GpuKernels>::average_pool(x.into_dispatch()));
    }
    twin::average_pool(x)
}

/// The cosines `[n, 1]` between the rows of `p` and `z`, both `[n, d]` in `f32`.
pub(crate) fn cosine(p: Tensor<2>, z: Tensor<2>) -> Tensor<2> {
    #[cfg(feature = "cuda")]
    if !is_flex(&p.device()) {
        let cosine = <Dispatch as GpuKernels>::cosine(p.into_dispatch(), z.into_dispatch());
        return Tensor::from_dispatch(cosine);
    }
    twin::cosine(p, z)
}

/// Every row of `x: [n, d]`, in `f32`, scaled to length 1. No gradient flows through it.
pub(crate) fn normalise(x: Tensor<2>) -> Tensor<2> {
    #[cfg(feature = "cuda")]
    if !is_flex(&x.device()) {
        return Tensor::from_dispatch(<Dispatch as GpuKernels>::normalise(x.into_dispatch()));
    }
    twin::normalise(x.detach())
}

/// The parts one behind the other, and `filling` zeros behind them; of two views, the sum after the first is taken
/// `first_weight` times.
pub(crate) fn gather(parts: Vec<Part>, first_weight: f32, filling: usize) -> Tensor<1> {
    #[cfg(feature = "cuda")]
    if let Some(Part::Whole(tensor) | Part::Views(tensor)) = parts.first()
        && !is_flex(&tensor.device())
    {
        return cube::flat::gather(parts, first_weight, filling);
    }
    let mut parts: Vec<Tensor<1>> = parts.into_iter().map(|part| part.resolve(first_weight)).collect();
    if filling > 0 {
        parts.push(Tensor::zeros([filling], &parts[0].device()));
    }
    Tensor::cat(parts, 0)
}

impl Part {
    /// Its numbers, with the views' weighted sum taken.
    pub(crate) fn resolve(self, first_weight: f32) -> Tensor<1> {
        match self {
            Part::Whole(tensor) => tensor,
            Part::Views(tensor) => {
                let [first, second] = halves(tensor);
                first * first_weight + second
            }
        }
    }
}

fn halves(tensor: Tensor<1>) -> [Tensor<1>; 2] {
    let half = tensor.dims()[0] / 2;
    [tensor.clone().slice(0..half), tensor.slice(half..2 * half)]
}

/// Sums of squares that together cover the first `length` numbers: not finite if one of them is not.
pub(crate) fn square_sums(values: Tensor<1>, length: usize) -> Tensor<1> {
    #[cfg(feature = "cuda")]
    if !is_flex(&values.device()) {
        return cube::flat::square_sums(values, length);
    }
    values.slice(0..length).square().sum()
}

/// Whether everything that was to write these numbers was done.
///
/// # Errors
/// What was not done, in the device's words.
pub(crate) fn ensure_written(values: &Tensor<1>) -> Result<(), String> {
    #[cfg(feature = "cuda")]
    if !is_flex(&values.device()) {
        return cube::flat::ensure_written(values);
    }
    // The CPU does what it is told at once, or panics.
    let _ = values;
    Ok(())
}

/// A stretch of a vector, without copying it where that can be.
pub(crate) fn stretch(values: Tensor<1>, range: Range<usize>) -> Tensor<1> {
    #[cfg(feature = "cuda")]
    if !is_flex(&values.device()) {
        return cube::flat::stretch(values, range);
    }
    values.slice(range)
}

/// The greatest of 3x3 pixels at every second one, `[n, h, w, c] -> [n, h / 2, w / 2, c]`.
pub(crate) fn max_pool(x: Tensor<4>) -> Tensor<4> {
    if !has_kernels(&x) {
        return twin::max_pool(x);
    }
    Tensor::from_dispatch(<Dispatch as Kernels>::max_pool(x.into_dispatch()))
}

/// These numbers, in memory that is used again.
pub(crate) fn tensor_data(values: &[f32]) -> TensorData {
    let mut buffer = buffer::Buffer::new(values.len());
    copy(values, &mut buffer);
    TensorData::from_bytes(bytes::into_bytes(buffer), [values.len()], DType::F32)
}

/// These of the numbers, read where they lie as long as nobody changes the tensor.
pub(crate) fn borrowed(values: &Arc<[f32]>, range: Range<usize>) -> TensorData {
    let length = range.len();
    let bytes = bytes::into_bytes(borrowed::Borrowed::new(values, range));
    TensorData::from_bytes(bytes, [length], DType::F32)
}

/// Copies with every thread: one alone does not fill the way to the memory.
pub(crate) fn copy(from: &[f32], to: &mut [f32]) {
    assert_eq!(from.len(), to.len(), "what is copied has its place's length");
    to.par_chunks_mut(SHARE).zip(from.par_chunks(SHARE)).for_each(|(to, from)| to.copy_from_slice(from));
}

/// Numbers of one thread's turn in work that is a pass over memory: long beside the cost of handing it out.
pub(crate) const SHARE: usize = 1 << 16;

/// Whether this module's own kernels can take `x`.
fn has_kernels<const D: usize>(x: &Tensor<D>) -> bool {
    x.dtype() == DType::F32 || !is_flex(&x.device())
}

/// Whether the device is the CPU, with or without gradients.
pub(crate) fn is_flex(device: &Device) -> bool {
    match device.as_dispatch() {
        DispatchDevice::Autodiff(inner) => matches!(**inner, DispatchDevice::Flex(_)),
        device => matches!(device, DispatchDevice::Flex(_)),
    }
}
