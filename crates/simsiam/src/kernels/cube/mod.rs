//! The kernels over a GPU's tensors.

mod batch_norm;
mod convolution;
mod cuda;
pub(crate) mod flat;
mod launch;
mod layout;
mod pool;
mod rows;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, AutodiffBackend, TensorMetadata};
use burn::tensor::Shape;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::autodiff::{Differentiable, Normalisation, NormalisationGradients};
use super::batch_norm::EPSILON;
use super::{EvaluationKernels, GpuKernels, Kernels, Over};

impl Kernels for CubeBackend {
    fn convolution(x: CubeTensor, weight: CubeTensor, stride: usize) -> CubeTensor {
        Self::convolution_forward(x, weight, stride).0
    }

    fn batch_norm(
        x: CubeTensor,
        gamma: CubeTensor,
        beta: CubeTensor,
        over: Over,
        rectify: bool,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        let (y, _, moments) = Self::batch_norm_forward(x, &gamma, &beta, None, &over, rectify);
        (y, moments.mean, moments.unbiased_variance)
    }

    fn batch_norm_with_shortcut(
        x: CubeTensor,
        gamma: CubeTensor,
        beta: CubeTensor,
        shortcut: CubeTensor,
        over: Over,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        let (y, _, moments) = Self::batch_norm_forward(x, &gamma, &beta, Some(shortcut), &over, true);
        (y, moments.mean, moments.unbiased_variance)
    }

    fn max_pool(x: CubeTensor) -> CubeTensor {
        Self::max_pool_forward(x).0
    }
}

impl EvaluationKernels for CubeBackend {
    fn batch_norm_running(
        x: CubeTensor,
        gamma: CubeTensor,
        beta: CubeTensor,
        mean: CubeTensor,
        variance: CubeTensor,
        rectify: bool,
    ) -> CubeTensor {
        normalise_running(x, [&gamma, &beta], &mean, variance, None, rectify)
    }

    fn batch_norm_running_with_shortcut(
        x: CubeTensor,
        gamma: CubeTensor,
        beta: CubeTensor,
        mean: CubeTensor,
        variance: CubeTensor,
        shortcut: CubeTensor,
    ) -> CubeTensor {
        normalise_running(x, [&gamma, &beta], &mean, variance, Some(shortcut), true)
    }
}

impl GpuKernels for CubeBackend {
    fn average_pool(x: CubeTensor) -> CubeTensor {
        rows::average_pool(x)
    }

    fn cosine(p: CubeTensor, z: CubeTensor) -> CubeTensor {
        let [cosine, _] = rows::cosine(&into_contiguous(p), &into_contiguous(z));
        cosine
    }

    fn normalise(x: CubeTensor) -> CubeTensor {
        rows::normalise(x)
    }
}

impl<C: CheckpointStrategy> GpuKernels for Autodiff<CubeBackend, C> {
    fn average_pool(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let shape = x.shape();
        let prepared = AveragePool.prepare::<C>([x.node()]).compute_bound().stateful();
        let y = rows::average_pool(x.into_primitive());
        match prepared {
            OpsKind::Tracked(prepared) => prepared.finish(shape, y),
            OpsKind::UnTracked(prepared) => prepared.finish(y),
        }
    }

    fn cosine(p: FloatTensor<Self>, z: FloatTensor<Self>) -> FloatTensor<Self> {
        let prepared = Cosine.prepare::<C>([p.node(), z.node()]).compute_bound().stateful();
        let operands = [into_contiguous(p.into_primitive()), into_contiguous(z.into_primitive())];
        let [cosine, products] = rows::cosine(&operands[0], &operands[1]);
        match prepared {
            OpsKind::Tracked(prepared) => prepared.finish((operands, products), cosine),
            OpsKind::UnTracked(prepared) => prepared.finish(cosine),
        }
    }

    fn normalise(x: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::from_inner(rows::normalise(x.into_primitive()))
    }
}

#[derive(Debug)]
struct AveragePool;

impl Backward<CubeBackend, 1> for AveragePool {
    type State = Shape;

    fn backward(self, ops: Ops<Shape, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<CubeBackend>(&ops.node);
        let [node] = ops.parents;
        if let Some(node) = node {
            let gradient = rows::average_pool_gradient(ops.state, dy);
            grads.register::<CubeBackend>(node.id, gradient);
        }
    }
}

#[derive(Debug)]
struct Cosine;

impl Backward<CubeBackend, 2> for Cosine {
    type State = ([CubeTensor; 2], CubeTensor);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<CubeBackend>(&ops.node);
        let ([p, z], products) = &ops.state;
        for (own, node) in ops.parents.iter().enumerate() {
            if let Some(node) = node {
                let gradient = rows::cosine_gradient_of(own, [p, z], products, &dy);
                grads.register::<CubeBackend>(node.id, gradient);
            }
        }
    }
}

impl Differentiable for CubeBackend {
    type Moments = batch_norm::Moments;
    type Winners = CubeTensor;

    fn convolution_forward(
        x: CubeTensor,
        weight: CubeTensor,
        stride: usize,
    ) -> (CubeTensor, [CubeTensor; 2]) {
        let [y, x] = convolution::forward(x, &weight, stride);
        (y, [x, weight])
    }

    fn convolution_weight_gradient(
        x: &CubeTensor,
        weight: &CubeTensor,
        stride: usize,
        dy: &CubeTensor,
    ) -> CubeTensor {
        convolution::weight_gradient(x, weight.shape(), stride, dy.clone())
    }

    fn convolution_data_gradient(x: Shape, weight: CubeTensor, stride: usize, dy: CubeTensor) -> CubeTensor {
        // The channels may have been filled up.
        let [images, height, width, _] = x.dims();
        convolution::data_gradient([images, height, width], &weight, stride, dy)
    }

    fn batch_norm_forward(
        x: CubeTensor,
        gamma: &CubeTensor,
        beta: &CubeTensor,
        shortcut: Option<CubeTensor>,
        over: &Over,
        rectify: bool,
    ) -> (CubeTensor, CubeTensor, batch_norm::Moments) {
        let x = into_contiguous(x);
        let moments = batch_norm::batch_moments(&x, gamma.shape().num_elements(), over);
        let statistics = [&moments.mean, &moments.inverse_deviation];
        let y = batch_norm::normalise(&x, [gamma, beta], statistics, shortcut, over.groups, rectify);
        (y, x, moments)
    }

    fn statistics(moments: &batch_norm::Moments) -> [CubeTensor; 2] {
        [moments.mean.clone(), moments.unbiased_variance.clone()]
    }

    fn batch_norm_gradients(
        saved: Normalisation<Self>,
        y: Option<CubeTensor>,
        dy: CubeTensor,
    ) -> NormalisationGradients<Self> {
        batch_norm::gradients(&saved, y.as_ref(), dy)
    }

    fn max_pool_forward(x: CubeTensor) -> (CubeTensor, CubeTensor) {
        let [y, winners] = pool::max_pool(x);
        (y, winners)
    }

    fn max_pool_gradient(x: Shape, winners: CubeTensor, dy: CubeTensor) -> CubeTensor {
        pool::gradient(x, winners, dy)
    }
}

fn normalise_running(
    x: CubeTensor,
    affine: [&CubeTensor; 2],
    mean: &CubeTensor,
    variance: CubeTensor,
    shortcut: Option<CubeTensor>,
    rectify: bool,
) -> CubeTensor {
    let deviation = CubeBackend::float_sqrt(CubeBackend::float_add_scalar(variance, EPSILON.into()));
    let inverse_deviation = CubeBackend::float_recip(deviation);
    batch_norm::normalise(&into_contiguous(x), affine, [mean, &inverse_deviation], shortcut, 1, rectify)
}
