//! Fine-tuning: the backbone with a new linear classifier on top, all of it trained with labels.
//!
//! ```text
//! logits = classifier(backbone(x))                   # n-by-classes, BatchNorm with the batch's statistics
//! L = mean over images of -log softmax(logits)[label]
//! ```
//! It measures how good a start the weights are. Of the frozen features it says nothing: the backbone moves.

use std::sync::Arc;

use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Tensor, TensorData};

use crate::bucket::all_finite;
use crate::features::image_tensor;
use crate::layers::{BatchStatistics, Linear, Statistics};
use crate::parameters::{Layout, Leaf, Parameters};
use crate::resnet::ResNet;
use crate::state::State;
use crate::step::STATISTICS_MOMENTUM;
use crate::{kernels, sgd};

/// The name of the linear layer's parameters, before `.weight` and `.bias`.
const CLASSIFIER: &str = "classifier";

/// Trains a recipe's backbone and a linear classifier on one device. What it trains is a [`State`] of its own
/// layout: the backbone as in SimSiam's, then the classifier instead of projector and predictor.
pub struct FineTuner {
    model: recipe::Model,
    classes: usize,
    layout: Layout,
    optimizer: recipe::Optimizer,
    device: Device,
}

/// The learning rates of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TuningRates {
    /// For the backbone, which has learned already.
    pub backbone: f64,
    /// For the classifier, which has not.
    pub classifier: f64,
}

/// A step's loss, gradient or statistics are not finite; nothing was applied.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("step {step}: the loss, {loss}, or what follows from it is not finite; nothing was changed")]
pub struct Diverged {
    /// The step that was not taken, counted from 0.
    pub step: u64,
    /// Its loss, which may be finite when its gradient is not.
    pub loss: f64,
}

impl FineTuner {
    /// For images of `classes` classes. Momentum and weight decay as [`recipe::Optimizer`]'s; the learning
    /// rates come with each step.
    pub fn new(
        model: &recipe::Model,
        classes: usize,
        momentum: f64,
        weight_decay: f64,
        device: &Device,
    ) -> FineTuner {
        let flex = Device::flex();
        let mut outline = Parameters::zeros(&flex);
        Network::new(&mut outline, model, classes);
        let layout = outline.layout;
        let optimizer = recipe::Optimizer {
            base_learning_rate: 0.0,
            momentum,
            weight_decay,
            warmup_epochs: 0.0,
            fixed_predictor_learning_rate: false,
            learning_rate_changes: Vec::new(),
        };
        FineTuner { model: model.clone(), classes, layout, optimizer, device: device.clone() }
    }

    /// The network's parameters and statistics.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The state before the first step: the backbone of `pretrained`, a state of the same recipe's SimSiam, and
    /// a classifier that is a function of the seed alone.
    pub fn initial(&self, pretrained: &State, seed: u64) -> State {
        let mut state = State::initial(&self.layout, seed);
        // Both layouts begin with the backbone; what else SimSiam has follows it.
        let (weights, statistics) = (self.backbone_count(), self.layout.statistic_count());
        Arc::make_mut(&mut state.weights)[..weights].copy_from_slice(&pretrained.weights[..weights]);
        state.statistics.copy_from_slice(&pretrained.statistics[..statistics]);
        state
    }

    /// One step on a batch of normalised images `[n, 3, side_px, side_px]` with a label each: weights, momentum,
    /// running statistics and position advance together, or nothing does. Gives the loss before the step.
    ///
    /// # Errors
    /// [`Diverged`].
    ///
    /// # Panics
    /// If there is not one label below the number of classes for each image.
    pub fn step(
        &self,
        state: &mut State,
        images: Vec<f32>,
        side_px: usize,
        labels: &[u8],
        rates: TuningRates,
    ) -> Result<f64, Diverged> {
        let (gradient, statistics, loss) = self.forward_backward(state, images, side_px, labels);
        if !(loss.is_finite() && all_finite(&gradient) && all_finite(&statistics)) {
            return Err(Diverged { step: state.step, loss });
        }
        self.apply(state, &gradient, &statistics, rates);
        Ok(loss)
    }

    /// Gradient, statistics of the batch, and loss.
    fn forward_backward(
        &self,
        state: &State,
        images: Vec<f32>,
        side_px: usize,
        labels: &[u8],
    ) -> (Vec<f32>, Vec<f32>, f64) {
        let device = self.device.clone().autodiff();
        let (network, leaves) = self.bind(state, &device);
        let mut statistics = BatchStatistics::of(1);
        let x = image_tensor(images, side_px, &device); // [n, 3, side, side]
        let logits = network.forward(x, &mut Statistics::Batch(&mut statistics)); // [n, classes]
        let loss = self.cross_entropy(logits, labels);

        let mut gradients = loss.backward();
        let mut gradient = vec![0.0; self.layout.parameter_count()];
        for (leaf, entry) in leaves.iter().zip(&self.layout.parameters) {
            let values = leaf(&mut gradients).expect("every parameter takes part in the loss");
            let values = values.into_data();
            kernels::copy(values.as_slice().expect("training is in f32"), &mut gradient[entry.range.clone()]);
        }
        let statistics = Tensor::cat(statistics.into_tensors().collect(), 0);
        let statistics = statistics.into_data().try_into_vec::<f32>().expect("statistics are f32");
        let loss = loss.into_data().iter::<f64>().next().expect("a loss is one number");
        (gradient, statistics, loss)
    }

    /// The network with the state's weights, only to be looked with: no gradients, BatchNorm with its running
    /// statistics.
    pub fn frozen(&self, state: &State) -> FrozenClassifier {
        FrozenClassifier { network: self.bind(state, &self.device).0, device: self.device.clone() }
    }

    fn apply(&self, state: &mut State, gradient: &[f32], statistics: &[f32], rates: TuningRates) {
        let (start, end) = (self.backbone_count(), self.layout.parameter_count());
        let all_weights = Arc::make_mut(&mut state.weights);
        for (range, rate) in [(0..start, rates.backbone), (start..end, rates.classifier)] {
            let (weights, momentum) = (&mut all_weights[range.clone()], &mut state.momentum[range.clone()]);
            sgd::update(weights, momentum, &gradient[range], 1.0, rate, &self.optimizer);
        }
        for (running, batch) in state.statistics.iter_mut().zip(statistics) {
            *running = (1.0 - STATISTICS_MOMENTUM) * *running + STATISTICS_MOMENTUM * batch;
        }
        state.step += 1;
    }

    /// The mean over images of minus the logarithm of the label's probability, `logits: [n, classes]`.
    fn cross_entropy(&self, logits: Tensor<2>, labels: &[u8]) -> Tensor<1> {
        let [n, classes] = logits.dims();
        assert_eq!(n, labels.len(), "one label for each image");
        let mut truth = vec![0.0f32; n * self.classes];
        for (row, label) in truth.chunks_exact_mut(self.classes).zip(labels) {
            row[usize::from(*label)] = 1.0;
        }
        let truth = Tensor::from_data(TensorData::new(truth, [n, classes]), &logits.device()); // [n, classes]
        -(log_softmax(logits, 1) * truth).sum_dim(1).mean()
    }

    fn bind(&self, state: &State, device: &Device) -> (Network, Vec<Leaf>) {
        let mut parameters = Parameters::of_state(state, device);
        let network = Network::new(&mut parameters, &self.model, self.classes);
        (network, parameters.leaves)
    }

    fn backbone_count(&self) -> usize {
        let mut entries = self.layout.parameters.iter();
        let classifier = entries.find(|entry| entry.name.starts_with(CLASSIFIER));
        classifier.expect("the layout ends with the classifier").range.start
    }
}

/// A fine-tuned network that only looks.
pub struct FrozenClassifier {
    network: Network,
    device: Device,
}

impl FrozenClassifier {
    /// The classes' logits, row after row, of normalised images `[n, 3, side_px, side_px]`.
    ///
    /// # Panics
    /// If `images` does not hold a whole number of such images, at least one.
    pub fn logits(&self, images: Vec<f32>, side_px: usize) -> Vec<f32> {
        let x = image_tensor(images, side_px, &self.device); // [n, 3, side, side]
        let logits = self.network.forward(x, &mut Statistics::Running); // [n, classes]
        logits.into_data().try_into_vec().expect("logits are f32")
    }
}

/// Backbone and linear classifier.
struct Network {
    backbone: ResNet,
    classifier: Linear,
}

impl Network {
    fn new(p: &mut Parameters, model: &recipe::Model, classes: usize) -> Self {
        let backbone = ResNet::new(p, "encoder", model);
        let classifier = Linear::classifier(p, CLASSIFIER, [backbone.features, classes]);
        Network { backbone, classifier }
    }

    /// `x: [n, 3, h, w] -> [n, classes]`
    fn forward(&self, x: Tensor<4>, statistics: &mut Statistics) -> Tensor<2> {
        self.classifier.forward(self.backbone.forward(x, statistics))
    }
}
