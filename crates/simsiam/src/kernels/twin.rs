//! The same operations from burn's own: for every device but the CPU, and for bf16.
//!
//! burn's convolutions and pools want channels first and, on a GPU, work channels-last inside: there the
//! permutations are views and cost nothing.

use burn::tensor::activation::relu;
use burn::tensor::module::{batch_norm_train, conv2d, max_pool2d};
use burn::tensor::ops::{ConvOptions, MaxPoolOptions};
use burn::tensor::{DType, Tensor};

use super::batch_norm::EPSILON;
use super::{Normalised, Then};

/// The bound of a length is PyTorch's (1e-8, squared), inside the root so that a row of zeros has a finite gradient.
pub(super) const SMALLEST_SQUARE: f32 = 1e-16;

const CHANNELS_FIRST: [usize; 4] = [0, 3, 1, 2];
const CHANNELS_LAST: [usize; 4] = [0, 2, 3, 1];

pub(super) fn convolution(x: Tensor<4>, weight: Tensor<4>, stride: usize) -> Tensor<4> {
    let padding = weight.dims()[2] / 2;
    let options = ConvOptions::new([stride; 2], [padding; 2], [1; 2], 1);
    let weight = weight.cast(x.dtype());
    conv2d(x.permute(CHANNELS_FIRST), weight, None, options).permute(CHANNELS_LAST)
}

pub(super) fn linear(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    let weight = weight.cast(x.dtype());
    x.matmul(weight.transpose())
}

pub(super) fn batch_norm<const D: usize>(
    x: Tensor<D>,
    gamma: &Tensor<1>,
    beta: &Tensor<1>,
    groups: usize,
    then: Then<D>,
) -> Normalised<D> {
    let (shape, dtype, channels) = (x.dims(), x.dtype(), gamma.dims()[0]);
    let rows = shape.iter().product::<usize>() / channels / groups;
    let (mut outputs, mut means, mut variances) = (Vec::new(), Vec::new(), Vec::new());
    for group in x.cast(DType::F32).reshape([groups * rows, channels]).chunk(groups, 0) {
        let normalised = batch_norm_train(group, gamma.clone(), beta.clone(), EPSILON);
        outputs.push(normalised.output);
        means.push(normalised.mean);
        // burn gives the biased variance; PyTorch keeps the unbiased one.
        variances.push(normalised.variance * (rows as f32 / (rows as f32 - 1.0).max(1.0)));
    }
    Normalised {
        output: finish(Tensor::cat(outputs, 0).reshape(shape), then).cast(dtype),
        mean: Tensor::cat(means, 0),
        variance: Tensor::cat(variances, 0),
    }
}

pub(super) fn batch_norm_running<const D: usize>(
    x: Tensor<D>,
    [gamma, beta]: [Tensor<1>; 2],
    [mean, variance]: [Tensor<1>; 2],
    then: Then<D>,
) -> Tensor<D> {
    let (shape, dtype) = (x.dims(), x.dtype());
    let x = x.cast(DType::F32).reshape([-1, gamma.dims()[0] as isize]);
    let y = burn::tensor::module::batch_norm(x, gamma, beta, mean, variance, EPSILON);
    finish(y.reshape(shape), then).cast(dtype)
}

fn finish<const D: usize>(x: Tensor<D>, then: Then<D>) -> Tensor<D> {
    match then {
        Then::Nothing => x,
        Then::Rectify => relu(x),
        Then::AddAndRectify(shortcut) => relu(x + shortcut.cast(DType::F32)),
    }
}

pub(super) fn average_pool(x: Tensor<4>) -> Tensor<2> {
    let ([n, _, _, channels], dtype) = (x.dims(), x.dtype());
    x.cast(DType::F32).mean_dims(&[1, 2]).reshape([n, channels]).cast(dtype)
}

pub(super) fn cosine(p: Tensor<2>, z: Tensor<2>) -> Tensor<2> {
    (normalise(p) * normalise(z)).sum_dim(1)
}

pub(super) fn normalise(x: Tensor<2>) -> Tensor<2> {
    let length = x.clone().square().sum_dim(1).clamp_min(SMALLEST_SQUARE).sqrt(); // [n, 1]
    x / length
}

pub(super) fn max_pool(x: Tensor<4>) -> Tensor<4> {
    let options = MaxPoolOptions::new([3; 2]).with_stride([2; 2]).with_padding([1; 2]);
    max_pool2d(x.permute(CHANNELS_FIRST), options).permute(CHANNELS_LAST)
}
