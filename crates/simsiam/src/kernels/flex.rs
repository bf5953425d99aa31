//! The kernels over flex's tensors.

use std::sync::Arc;

use burn::backend::{Flex, TensorMetadata};
use burn::tensor::{DType, Shape};
use burn_flex::{FlexTensor, Layout};

use super::autodiff::{Differentiable, Normalisation, NormalisationGradients};
use super::batch_norm::{self, Affine, Moments, ParameterGradients};
use super::buffer::Buffer;
use super::bytes::into_bytes;
use super::convolution::{self, Image};
use super::{EvaluationKernels, Kernels, Over, pool};

impl Kernels for Flex {
    fn convolution(x: FlexTensor, weight: FlexTensor, stride: usize) -> FlexTensor {
        let sizes = convolution_sizes(&x.shape(), &weight, stride);
        let [height, width] = sizes.output();
        let (view, weight) = (image_view(x), contiguous(weight));
        filled([sizes.images, height, width, sizes.output_channels], |y| {
            convolution::forward(&sizes, image(&view), values(&weight), y);
        })
    }

    fn batch_norm(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        over: Over,
        rectify: bool,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let (y, moments) = batch_norm_forward(&contiguous(x), &gamma, &beta, None, &over, rectify);
        (y, vector(&moments.mean), vector(&moments.unbiased_variance))
    }

    fn batch_norm_with_shortcut(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        shortcut: FlexTensor,
        over: Over,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let (y, moments) = batch_norm_forward(&contiguous(x), &gamma, &beta, Some(shortcut), &over, true);
        (y, vector(&moments.mean), vector(&moments.unbiased_variance))
    }

    fn max_pool(x: FlexTensor) -> FlexTensor {
        max_pool_forward(x).0
    }
}

impl Differentiable for Flex {
    type Moments = Arc<Moments>;
    type Winners = Arc<Vec<u8>>;

    fn convolution_forward(
        x: FlexTensor,
        weight: FlexTensor,
        stride: usize,
    ) -> (FlexTensor, [FlexTensor; 2]) {
        let x = image_view(x);
        (Self::convolution(x.clone(), weight.clone(), stride), [x, weight])
    }

    fn convolution_weight_gradient(
        x: &FlexTensor,
        weight: &FlexTensor,
        stride: usize,
        dy: &FlexTensor,
    ) -> FlexTensor {
        let (sizes, dy) = (convolution_sizes(&x.shape(), weight, stride), contiguous(dy.clone()));
        filled(weight.shape(), |gradient| {
            convolution::weight_gradient(&sizes, image(x), values(&dy), gradient);
        })
    }

    fn convolution_data_gradient(x: Shape, weight: FlexTensor, stride: usize, dy: FlexTensor) -> FlexTensor {
        let sizes = convolution_sizes(&x, &weight, stride);
        let (weight, dy) = (contiguous(weight), contiguous(dy));
        filled(x, |gradient| convolution::data_gradient(&sizes, values(&dy), values(&weight), gradient))
    }

    fn batch_norm_forward(
        x: FlexTensor,
        gamma: &FlexTensor,
        beta: &FlexTensor,
        shortcut: Option<FlexTensor>,
        over: &Over,
        rectify: bool,
    ) -> (FlexTensor, FlexTensor, Arc<Moments>) {
        let x = contiguous(x);
        let (y, moments) = batch_norm_forward(&x, gamma, beta, shortcut, over, rectify);
        (y, x, Arc::new(moments))
    }

    fn statistics(moments: &Arc<Moments>) -> [FlexTensor; 2] {
        [&moments.mean, &moments.unbiased_variance].map(|values| vector(values))
    }

    fn batch_norm_gradients(
        saved: Normalisation<Self>,
        y: Option<FlexTensor>,
        dy: FlexTensor,
    ) -> NormalisationGradients<Self> {
        let (x, gamma) = (values(&saved.x), values(&saved.gamma));
        let forward = batch_norm::Saved {
            x,
            gamma,
            beta: values(&saved.beta),
            moments: &saved.moments,
            shape: batch_norm::Shape::of(x.len(), gamma.len(), saved.over.groups),
            rectify: saved.rectify,
            everywhere: saved.over.everywhere.as_ref(),
        };
        // Overwritten by the gradient before the ReLU, which is the shortcut's, or without one by that of `x`.
        let mut gradient = owned(dy);
        let mut parameters = ParameterGradients::default();
        let (x, shortcut) = if let Some(y) = y {
            let dx = filled(saved.x.shape(), |dx| {
                let gradient = gradient.storage_mut();
                parameters = batch_norm::gradient_and_shortcut(&forward, values(&y), gradient, dx);
            });
            (dx, Some(gradient))
        } else {
            parameters = batch_norm::gradient(&forward, gradient.storage_mut());
            (gradient, None)
        };
        NormalisationGradients {
            x,
            gamma: vector(&parameters.gamma),
            beta: vector(&parameters.beta),
            shortcut,
        }
    }

    fn max_pool_forward(x: FlexTensor) -> (FlexTensor, Arc<Vec<u8>>) {
        let (y, winners) = max_pool_forward(x);
        (y, Arc::new(winners))
    }

    fn max_pool_gradient(x: Shape, winners: Arc<Vec<u8>>, dy: FlexTensor) -> FlexTensor {
        let (sizes, dy) = (pool_sizes(&x), contiguous(dy));
        filled(x, |dx| pool::gradient(&sizes, &winners, values(&dy), dx))
    }
}

impl EvaluationKernels for Flex {
    fn batch_norm_running(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        mean: FlexTensor,
        variance: FlexTensor,
        rectify: bool,
    ) -> FlexTensor {
        normalise(x, &affine(&gamma, &beta, &mean, &variance), None, rectify)
    }

    fn batch_norm_running_with_shortcut(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        mean: FlexTensor,
        variance: FlexTensor,
        shortcut: FlexTensor,
    ) -> FlexTensor {
        normalise(x, &affine(&gamma, &beta, &mean, &variance), Some(shortcut), true)
    }
}

/// Output and batch statistics of a contiguous `x`.
fn batch_norm_forward(
    x: &FlexTensor,
    gamma: &FlexTensor,
    beta: &FlexTensor,
    shortcut: Option<FlexTensor>,
    over: &Over,
    rectify: bool,
) -> (FlexTensor, Moments) {
    let shape = batch_norm::Shape::of(values(x).len(), gamma.shape()[0], over.groups);
    let mut moments = batch_norm::moments(values(x), shape);
    if let Some(everywhere) = &over.everywhere {
        everywhere.moments(&mut moments, shape.rows);
    }
    let affine = Affine::new(&moments.mean, &moments.inverse_deviation, values(gamma), values(beta));
    let shortcut = shortcut.map(contiguous);
    let y = filled(x.shape(), |y| {
        batch_norm::apply(values(x), shortcut.as_ref().map(values), &affine, shape, rectify, y);
    });
    (y, moments)
}

/// Output, and for every number of it its place in the 3x3 window.
fn max_pool_forward(x: FlexTensor) -> (FlexTensor, Vec<u8>) {
    let x = contiguous(x);
    let sizes = pool_sizes(&x.shape());
    let [height, width] = sizes.output();
    let mut winners = vec![0; sizes.images * height * width * sizes.channels];
    let y = filled([sizes.images, height, width, sizes.channels], |y| {
        pool::forward(&sizes, values(&x), y, &mut winners);
    });
    (y, winners)
}

fn pool_sizes(shape: &Shape) -> pool::Sizes {
    pool::Sizes { images: shape[0], height: shape[1], width: shape[2], channels: shape[3] }
}

fn convolution_sizes(x: &Shape, weight: &FlexTensor, stride: usize) -> convolution::Sizes {
    let weight = weight.shape();
    assert_eq!(x[3], weight[1], "the input has the channels that the weight expects");
    convolution::Sizes {
        images: x[0],
        height: x[1],
        width: x[2],
        channels: x[3],
        output_channels: weight[0],
        kernel: weight[2],
        stride,
    }
}

fn affine(gamma: &FlexTensor, beta: &FlexTensor, mean: &FlexTensor, variance: &FlexTensor) -> Affine {
    let deviation =
        values(variance).iter().map(|&v| batch_norm::inverse_deviation(f64::from(v))).collect::<Vec<_>>();
    Affine::new(values(mean), &deviation, values(gamma), values(beta))
}

fn normalise(x: FlexTensor, affine: &Affine, shortcut: Option<FlexTensor>, rectify: bool) -> FlexTensor {
    let (x, shortcut) = (contiguous(x), shortcut.map(contiguous));
    let shape = batch_norm::Shape::of(values(&x).len(), affine.scale.len(), 1);
    filled(x.shape(), |y| {
        batch_norm::apply(values(&x), shortcut.as_ref().map(values), affine, shape, rectify, y);
    })
}

/// An image batch as the convolution reads it: of few channels any view, otherwise contiguous.
fn image_view(x: FlexTensor) -> FlexTensor {
    let reads_views =
        x.shape()[3] < convolution::FEW_CHANNELS && x.layout().strides().iter().all(|&s| s >= 0);
    if reads_views { x } else { contiguous(x) }
}

fn image(view: &FlexTensor) -> Image<'_> {
    let mut strides = [0; 4];
    for (stride, &signed) in strides.iter_mut().zip(view.layout().strides()) {
        *stride = usize::try_from(signed).expect("image_view keeps views with forward strides only");
    }
    Image { values: &view.storage::<f32>()[view.layout().start_offset()..], strides }
}

/// The same tensor as one stretch of its buffer.
fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.layout().contiguous_offsets().is_some() { tensor } else { tensor.to_contiguous() }
}

/// The same tensor in a buffer of its own, to be overwritten.
fn owned(tensor: FlexTensor) -> FlexTensor {
    let covers_its_buffer = tensor.bytes().len() == tensor.layout().num_elements() * size_of::<f32>();
    let is_plain = tensor.is_contiguous() && tensor.layout().start_offset() == 0 && covers_its_buffer;
    if is_plain { tensor } else { tensor.to_contiguous() }
}

/// The numbers of a contiguous tensor.
fn values(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().expect("a contiguous f32 tensor")
}

fn vector(values: &[f32]) -> FlexTensor {
    filled([values.len()], |to| to.copy_from_slice(values))
}

/// A new tensor whose numbers `fill` writes, every one.
fn filled(shape: impl Into<Shape>, fill: impl FnOnce(&mut [f32])) -> FlexTensor {
    let shape = shape.into();
    let mut values = Buffer::new(shape.num_elements());
    fill(&mut values);
    FlexTensor::new(into_bytes(values), Layout::contiguous(shape), DType::F32)
}
