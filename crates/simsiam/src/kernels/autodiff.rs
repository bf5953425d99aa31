//! The kernels on burn's autodiff tape.

use std::fmt::Debug;

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, AutodiffBackend, Backend, TensorMetadata};
use burn::tensor::Shape;

use super::{Kernels, Over};

/// The forward passes with what they keep, and the backward passes that need it.
pub(super) trait Differentiable: Kernels {
    /// A batch's statistics, as a normalisation keeps them.
    type Moments: Debug + Clone + Send + Sync + 'static;
    /// Which number of every window a pool took.
    type Winners: Debug + Clone + Send + Sync + 'static;

    /// A convolution's output, and its operands as its backward pass reads them.
    fn convolution_forward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        stride: usize,
    ) -> (FloatTensor<Self>, [FloatTensor<Self>; 2]);

    /// The weight's gradient.
    fn convolution_weight_gradient(
        x: &FloatTensor<Self>,
        weight: &FloatTensor<Self>,
        stride: usize,
        dy: &FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// The gradient of an input of shape `x`.
    fn convolution_data_gradient(
        x: Shape,
        weight: FloatTensor<Self>,
        stride: usize,
        dy: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// A normalisation's output, and its input as the backward pass reads it. With a shortcut it rectifies.
    fn batch_norm_forward(
        x: FloatTensor<Self>,
        gamma: &FloatTensor<Self>,
        beta: &FloatTensor<Self>,
        shortcut: Option<FloatTensor<Self>>,
        over: &Over,
        rectify: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, Self::Moments);

    /// Mean and unbiased variance, each `[groups x channels]`.
    fn statistics(moments: &Self::Moments) -> [FloatTensor<Self>; 2];

    /// The gradients of a normalisation; `y` is its output where there was a shortcut.
    fn batch_norm_gradients(
        saved: Normalisation<Self>,
        y: Option<FloatTensor<Self>>,
        dy: FloatTensor<Self>,
    ) -> NormalisationGradients<Self>;

    /// A pool's output, and what it took.
    fn max_pool_forward(x: FloatTensor<Self>) -> (FloatTensor<Self>, Self::Winners);

    /// The gradient of a pool's input of shape `x`.
    fn max_pool_gradient(x: Shape, winners: Self::Winners, dy: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// What a normalisation's backward pass needs.
#[derive(Debug, Clone)]
pub(super) struct Normalisation<B: Differentiable> {
    pub(super) x: FloatTensor<B>,
    pub(super) gamma: FloatTensor<B>,
    pub(super) beta: FloatTensor<B>,
    pub(super) moments: B::Moments,
    pub(super) over: Over,
    pub(super) rectify: bool,
}

/// What a normalisation's backward pass gives.
pub(super) struct NormalisationGradients<B: Backend> {
    pub(super) x: FloatTensor<B>,
    pub(super) gamma: FloatTensor<B>,
    pub(super) beta: FloatTensor<B>,
    /// Where there was a shortcut.
    pub(super) shortcut: Option<FloatTensor<B>>,
}

type Tracked<B, C> = FloatTensor<Autodiff<B, C>>;

impl<B: Differentiable, C: CheckpointStrategy> Kernels for Autodiff<B, C> {
    fn convolution(x: Tracked<B, C>, weight: Tracked<B, C>, stride: usize) -> Tracked<B, C> {
        let prepared = Convolution.prepare::<C>([x.node(), weight.node()]).compute_bound().stateful();
        let (y, [x, weight]) = B::convolution_forward(x.into_primitive(), weight.into_primitive(), stride);
        match prepared {
            OpsKind::Tracked(prepared) => prepared.finish((x, weight, stride), y),
            OpsKind::UnTracked(prepared) => prepared.finish(y),
        }
    }

    fn batch_norm(
        x: Tracked<B, C>,
        gamma: Tracked<B, C>,
        beta: Tracked<B, C>,
        over: Over,
        rectify: bool,
    ) -> (Tracked<B, C>, Tracked<B, C>, Tracked<B, C>) {
        let nodes = [x.node(), gamma.node(), beta.node()];
        let (gamma, beta) = (gamma.into_primitive(), beta.into_primitive());
        let (y, x, moments) = B::batch_norm_forward(x.into_primitive(), &gamma, &beta, None, &over, rectify);
        let [mean, variance] = B::statistics(&moments).map(Self::from_inner);
        let y = match BatchNorm.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                prepared.finish(Normalisation { x, gamma, beta, moments, over, rectify }, y)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(y),
        };
        (y, mean, variance)
    }

    fn batch_norm_with_shortcut(
        x: Tracked<B, C>,
        gamma: Tracked<B, C>,
        beta: Tracked<B, C>,
        shortcut: Tracked<B, C>,
        over: Over,
    ) -> (Tracked<B, C>, Tracked<B, C>, Tracked<B, C>) {
        let nodes = [x.node(), gamma.node(), beta.node(), shortcut.node()];
        let (gamma, beta) = (gamma.into_primitive(), beta.into_primitive());
        let shortcut = Some(shortcut.into_primitive());
        let (y, x, moments) = B::batch_norm_forward(x.into_primitive(), &gamma, &beta, shortcut, &over, true);
        let [mean, variance] = B::statistics(&moments).map(Self::from_inner);
        let y = match BatchNormWithShortcut.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                let saved = Normalisation { x, gamma, beta, moments, over, rectify: true };
                prepared.finish((saved, y.clone()), y)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(y),
        };
        (y, mean, variance)
    }

    fn max_pool(x: Tracked<B, C>) -> Tracked<B, C> {
        let shape = x.shape();
        let prepared = MaxPool.prepare::<C>([x.node()]).compute_bound().stateful();
        let (y, winners) = B::max_pool_forward(x.into_primitive());
        match prepared {
            OpsKind::Tracked(prepared) => prepared.finish((winners, shape), y),
            OpsKind::UnTracked(prepared) => prepared.finish(y),
        }
    }
}

#[derive(Debug)]
struct Convolution;

impl<B: Differentiable> Backward<B, 2> for Convolution {
    type State = (FloatTensor<B>, FloatTensor<B>, usize);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let [x_node, weight_node] = ops.parents;
        let (x, weight, stride) = ops.state;
        if let Some(node) = weight_node {
            let gradient = B::convolution_weight_gradient(&x, &weight, stride, &dy);
            grads.register::<B>(node.id, gradient);
        }
        if let Some(node) = x_node {
            let shape = x.shape();
            // The largest tensor here: freed before its gradient is made.
            drop(x);
            let gradient = B::convolution_data_gradient(shape, weight, stride, dy);
            grads.register::<B>(node.id, gradient);
        }
    }
}

#[derive(Debug)]
struct BatchNorm;

impl<B: Differentiable> Backward<B, 3> for BatchNorm {
    type State = Normalisation<B>;

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let nodes = ops.parents.map(|node| node.map(|node| node.id));
        let found = B::batch_norm_gradients(ops.state, None, dy);
        register::<B, 3>(nodes, [found.x, found.gamma, found.beta], grads);
    }
}

#[derive(Debug)]
struct BatchNormWithShortcut;

impl<B: Differentiable> Backward<B, 4> for BatchNormWithShortcut {
    type State = (Normalisation<B>, FloatTensor<B>);

    fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let nodes = ops.parents.map(|node| node.map(|node| node.id));
        let (saved, y) = ops.state;
        let found = B::batch_norm_gradients(saved, Some(y), dy);
        let shortcut = found.shortcut.expect("there was a shortcut");
        register::<B, 4>(nodes, [found.x, found.gamma, found.beta, shortcut], grads);
    }
}

/// Hands on the gradients of those parents that want theirs.
fn register<B: Backend, const N: usize>(
    nodes: [Option<NodeId>; N],
    gradients: [FloatTensor<B>; N],
    grads: &mut Gradients,
) {
    for (node, gradient) in nodes.into_iter().zip(gradients) {
        if let Some(node) = node {
            grads.register::<B>(node, gradient);
        }
    }
}

#[derive(Debug)]
struct MaxPool;

impl<B: Differentiable> Backward<B, 1> for MaxPool {
    type State = (B::Winners, Shape);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let [node] = ops.parents;
        let (winners, shape) = ops.state;
        if let Some(node) = node {
            grads.register::<B>(node.id, B::max_pool_gradient(shape, winners, dy));
        }
    }
}
