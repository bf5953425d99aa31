//! The network's operations over channels-last activations, `[n, height, width, channels]`.
//!
//! In `f32` on the CPU (burn's flex backend) they are the kernels of this module, with backward passes written by
//! hand; on every other device, and in bf16, they are [`twin`]'s compositions of burn's own operations, which is
//! also what the tests compare the kernels with. burn's tensors and its autodiff tape stay in charge either way.
//!
//! The activations' type decides: weights are multiplied in it, normalisation and its statistics are in `f32`.

mod autodiff;
mod batch_norm;
mod buffer;
mod convolution;
mod flex;
mod pool;
#[cfg(test)]
mod tests;
mod twin;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, DispatchDevice, backend_extension};
use burn::tensor::{DType, Device, Tensor, TensorData};
use rayon::prelude::*;

/// What the CPU has kernels for. Tensors are `f32`; activations lie channels-last.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait Kernels: Backend {
    /// See [`convolution`].
    fn convolution(x: FloatTensor<Self>, weight: FloatTensor<Self>, stride: usize) -> FloatTensor<Self>;

    /// See [`batch_norm`]: output, mean, unbiased variance.
    fn batch_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        groups: usize,
        rectify: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// See [`batch_norm`], with a shortcut and ReLU.
    fn batch_norm_with_shortcut(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        shortcut: FloatTensor<Self>,
        groups: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// See [`max_pool`].
    fn max_pool(x: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// What the CPU has kernels for when nothing is trained.
#[backend_extension(Flex)]
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

/// BatchNorm of `x: [n, ..., channels]` with the statistics of each of `groups` equal parts of the batch.
pub(crate) fn batch_norm<const D: usize>(
    x: Tensor<D>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    groups: usize,
    then: Then<D>,
) -> Normalised<D> {
    if !has_kernels(&x) {
        return twin::batch_norm(x, &gamma, &beta, groups, then);
    }
    let (x, gamma, beta) = (x.into_dispatch(), gamma.into_dispatch(), beta.into_dispatch());
    let (output, mean, variance) = match then {
        Then::Nothing => <Dispatch as Kernels>::batch_norm(x, gamma, beta, groups, false),
        Then::Rectify => <Dispatch as Kernels>::batch_norm(x, gamma, beta, groups, true),
        Then::AddAndRectify(shortcut) => {
            <Dispatch as Kernels>::batch_norm_with_shortcut(x, gamma, beta, shortcut.into_dispatch(), groups)
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
    let ([n, _, _, channels], dtype) = (x.dims(), x.dtype());
    x.cast(DType::F32).mean_dims(&[1, 2]).reshape([n, channels]).cast(dtype)
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
    TensorData::from_bytes(buffer.into_bytes(), [values.len()], DType::F32)
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
    x.dtype() == DType::F32 && is_flex(&x.device())
}

/// Whether the device is the CPU, with or without gradients.
pub(crate) fn is_flex(device: &Device) -> bool {
    match device.as_dispatch() {
        DispatchDevice::Autodiff(inner) => matches!(**inner, DispatchDevice::Flex(_)),
        device => matches!(device, DispatchDevice::Flex(_)),
    }
}
