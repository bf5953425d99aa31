//! The kernels on burn's autodiff tape.

use std::sync::Arc;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, AutodiffBackend, Flex, TensorMetadata};
use burn::tensor::Shape;
use burn_flex::FlexTensor;

use super::batch_norm::{self, Moments, ParameterGradients, Saved};
use super::flex::{
    batch_norm_forward, contiguous, convolution_sizes, filled, image, image_view, max_pool_forward, owned,
    pool_sizes, values, vector,
};
use super::{Kernels, convolution, pool};

type Tracked = FloatTensor<Autodiff<Flex>>;

impl<C: CheckpointStrategy> Kernels for Autodiff<Flex, C> {
    fn convolution(x: Tracked, weight: Tracked, stride: usize) -> Tracked {
        let prepared = Convolution.prepare::<C>([x.node(), weight.node()]).compute_bound().stateful();
        let (x, weight) = (image_view(x.into_primitive()), weight.into_primitive());
        let y = Flex::convolution(x.clone(), weight.clone(), stride);
        match prepared {
            OpsKind::Tracked(prepared) => prepared.finish((x, weight, stride), y),
            OpsKind::UnTracked(prepared) => prepared.finish(y),
        }
    }

    fn batch_norm(
        x: Tracked,
        gamma: Tracked,
        beta: Tracked,
        groups: usize,
        rectify: bool,
    ) -> (Tracked, Tracked, Tracked) {
        let nodes = [x.node(), gamma.node(), beta.node()];
        let (x, gamma, beta) =
            (contiguous(x.into_primitive()), gamma.into_primitive(), beta.into_primitive());
        let (y, moments) = batch_norm_forward(&x, &gamma, &beta, None, groups, rectify);
        let statistics = statistics(&moments);
        let y = match BatchNorm.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                prepared.finish(Normalisation { x, gamma, beta, moments: moments.into(), groups, rectify }, y)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(y),
        };
        let [mean, variance] = statistics;
        (y, mean, variance)
    }

    fn batch_norm_with_shortcut(
        x: Tracked,
        gamma: Tracked,
        beta: Tracked,
        shortcut: Tracked,
        groups: usize,
    ) -> (Tracked, Tracked, Tracked) {
        let nodes = [x.node(), gamma.node(), beta.node(), shortcut.node()];
        let (x, gamma, beta) =
            (contiguous(x.into_primitive()), gamma.into_primitive(), beta.into_primitive());
        let (y, moments) =
            batch_norm_forward(&x, &gamma, &beta, Some(shortcut.into_primitive()), groups, true);
        let statistics = statistics(&moments);
        let y = match BatchNormWithShortcut.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                let state = Normalisation { x, gamma, beta, moments: moments.into(), groups, rectify: true };
                prepared.finish((state, y.clone()), y)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(y),
        };
        let [mean, variance] = statistics;
        (y, mean, variance)
    }

    fn max_pool(x: Tracked) -> Tracked {
        let shape = x.shape();
        let prepared = MaxPool.prepare::<C>([x.node()]).compute_bound().stateful();
        let (y, winners) = max_pool_forward(x.into_primitive());
        match prepared {
            OpsKind::Tracked(prepared) => prepared.finish((Arc::new(winners), shape), y),
            OpsKind::UnTracked(prepared) => prepared.finish(y),
        }
    }
}

/// Mean and unbiased variance, through which no gradient flows.
fn statistics(moments: &Moments) -> [Tracked; 2] {
    [&moments.mean, &moments.unbiased_variance].map(|values| Autodiff::<Flex>::from_inner(vector(values)))
}

#[derive(Debug)]
struct Convolution;

impl Backward<Flex, 2> for Convolution {
    type State = (FlexTensor, FlexTensor, usize);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let [x_node, weight_node] = ops.parents;
        let (x, weight, stride) = ops.state;
        let sizes = convolution_sizes(&x, &weight, stride);
        if let Some(node) = weight_node {
            let gradient = filled(weight.shape(), |gradient| {
                convolution::weight_gradient(&sizes, image(&x), values(&dy), gradient);
            });
            grads.register::<Flex>(node.id, gradient);
        }
        if let Some(node) = x_node {
            let shape = x.shape();
            // The largest tensor here: freed before its gradient is made.
            drop(x);
            let weight = contiguous(weight);
            let gradient = filled(shape, |gradient| {
                convolution::data_gradient(&sizes, values(&dy), values(&weight), gradient);
            });
            grads.register::<Flex>(node.id, gradient);
        }
    }
}

/// What a normalisation's backward pass needs.
#[derive(Debug, Clone)]
struct Normalisation {
    x: FlexTensor,
    gamma: FlexTensor,
    beta: FlexTensor,
    moments: Arc<Moments>,
    groups: usize,
    rectify: bool,
}

impl Normalisation {
    fn saved(&self) -> Saved<'_> {
        let (x, gamma) = (values(&self.x), values(&self.gamma));
        Saved {
            x,
            gamma,
            beta: values(&self.beta),
            moments: &self.moments,
            shape: batch_norm::Shape::of(x.len(), gamma.len(), self.groups),
            rectify: self.rectify,
        }
    }
}

#[derive(Debug)]
struct BatchNorm;

impl Backward<Flex, 3> for BatchNorm {
    type State = Normalisation;

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let mut gradient = owned(grads.consume::<Flex>(&ops.node));
        let [x, gamma, beta] = ops.parents;
        let parameters = batch_norm::gradient(&ops.state.saved(), gradient.storage_mut());
        register_parameters(parameters, [gamma.map(|n| n.id), beta.map(|n| n.id)], grads);
        if let Some(node) = x {
            grads.register::<Flex>(node.id, gradient);
        }
    }
}

#[derive(Debug)]
struct BatchNormWithShortcut;

impl Backward<Flex, 4> for BatchNormWithShortcut {
    type State = (Normalisation, FlexTensor);

    fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, _: &mut Checkpointer) {
        let mut gradient = owned(grads.consume::<Flex>(&ops.node));
        let [x, gamma, beta, shortcut] = ops.parents;
        let (state, y) = ops.state;
        let mut parameters = ParameterGradients::default();
        let dx = filled(state.x.shape(), |dx| {
            let gradient = gradient.storage_mut();
            parameters = batch_norm::gradient_and_shortcut(&state.saved(), values(&y), gradient, dx);
        });
        register_parameters(parameters, [gamma.map(|n| n.id), beta.map(|n| n.id)], grads);
        if let Some(node) = shortcut {
            grads.register::<Flex>(node.id, gradient);
        }
        if let Some(node) = x {
            grads.register::<Flex>(node.id, dx);
        }
    }
}

fn register_parameters(
    gradients: ParameterGradients,
    nodes: [Option<burn::backend::autodiff::NodeId>; 2],
    grads: &mut Gradients,
) {
    for (node, gradient) in nodes.into_iter().zip([gradients.gamma, gradients.beta]) {
        if let Some(node) = node {
            grads.register::<Flex>(node, vector(&gradient));
        }
    }
}

#[derive(Debug)]
struct MaxPool;

impl Backward<Flex, 1> for MaxPool {
    type State = (Arc<Vec<u8>>, Shape);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = contiguous(grads.consume::<Flex>(&ops.node));
        let [node] = ops.parents;
        let (winners, shape) = ops.state;
        if let Some(node) = node {
            let sizes = pool_sizes(&shape);
            let gradient = filled(shape, |dx| pool::gradient(&sizes, &winners, values(&dy), dx));
            grads.register::<Flex>(node.id, gradient);
        }
    }
}
