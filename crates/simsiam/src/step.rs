//! One step on one device: from two batches of views to a bucket, and from the folded bucket to new weights.

use std::time::Instant;

use burn::tensor::{Device, Tensor, TensorData};
use recipe::Recipe;

use crate::bucket::{BucketLayout, Folded, all_finite};
use crate::parameters::{Kind, Layout, Leaf, Parameters};
use crate::schedule::{LearningRates, Schedule};
use crate::simsiam::{Encoded, SimSiam};
use crate::state::State;
use crate::{kernels, layers, sgd};

/// PyTorch's default share of a new batch in the running statistics.
pub(crate) const STATISTICS_MOMENTUM: f32 = 0.1;

/// The recipe's network and optimizer on one device.
pub struct Trainer {
    recipe: Recipe,
    device: Device,
    layout: Layout,
    bucket: BucketLayout,
    schedule: Schedule,
}

/// The network with one step's weights; serves any number of shards.
pub struct Bound {
    network: SimSiam,
    leaves: Vec<Leaf>,
}

/// Where the time of one shard went.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PhaseSeconds {
    /// From views to loss.
    pub forward: f64,
    /// From loss to bucket.
    pub backward: f64,
}

/// The folded step holds values that are not finite; nothing was applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "step {step}: loss or gradient is not finite in shard(s) {shards:?}; the weights are those of the step \
     before. Start a new run with a lower optimizer.base_learning_rate or a longer warmup"
)]
pub struct NonFinite {
    /// The step that was not committed, counted from 0.
    pub step: u64,
    /// The shards it came from; empty if every shard was finite and only their sum was not.
    pub shards: Vec<u32>,
}

impl Trainer {
    /// A trainer for a run over `images` images.
    pub fn new(recipe: &Recipe, images: u64, device: Device) -> Trainer {
        let layout = Layout::of(&recipe.model);
        let bucket = BucketLayout::new(&layout, recipe.model.projector_dim as usize, recipe.training.shards);
        let schedule = Schedule::new(recipe, images);
        Trainer { recipe: recipe.clone(), device: device.autodiff(), layout, bucket, schedule }
    }

    /// The network's parameters and statistics.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What lies where in a bucket.
    pub fn bucket(&self) -> &BucketLayout {
        &self.bucket
    }

    /// The learning rates of every step.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// The network with the state's weights, for one step.
    pub fn bind(&self, state: &State) -> Bound {
        let (network, leaves) = bind(&self.recipe.model, state, &self.device);
        let network =
            if self.recipe.training.stop_gradient { network } else { network.without_stop_gradient() };
        Bound { network, leaves }
    }

    /// Forward and backward of one shard: fills its `bucket` from its part of the batch, two views of every
    /// image as `[n, 3, crop_px, crop_px]`.
    pub fn forward_backward(
        &self,
        bound: &Bound,
        shard: u32,
        [x1, x2]: [Vec<f32>; 2],
        bucket: &mut [f32],
    ) -> PhaseSeconds {
        let start = Instant::now();
        let Encoded { loss, z, statistics } = bound.network.forward(self.batch(x1), self.batch(x2));
        let forward = start.elapsed().as_secs_f64();

        let start = Instant::now();
        let mut gradients = loss.backward();
        for (leaf, entry) in bound.leaves.iter().zip(&self.layout.parameters) {
            let gradient = leaf(&mut gradients).expect("every parameter takes part in the loss");
            copy(&gradient, &mut bucket[entry.range.clone()]);
        }
        let [first, second] = statistics.map(layers::BatchStatistics::into_flat);
        for ((place, first), second) in
            bucket[self.bucket.statistics.clone()].iter_mut().zip(first).zip(second)
        {
            *place = (1.0 - STATISTICS_MOMENTUM) * first + second;
        }
        self.read_monitors(loss, z, bucket);
        self.flag_if_not_finite(shard, bucket);
        PhaseSeconds { forward, backward: start.elapsed().as_secs_f64() }
    }

    /// Commits a step: weights, momentum, running statistics and position advance together, or, if anything
    /// is not finite, nothing does.
    ///
    /// # Errors
    /// [`NonFinite`], with the shards that it came from.
    pub fn commit(&self, state: &mut State, folded: &Folded, rates: LearningRates) -> Result<(), NonFinite> {
        let shards = folded.non_finite_shards();
        if !shards.is_empty() || !folded.is_finite() {
            return Err(NonFinite { step: state.step, shards });
        }
        let predictor = self.layout.predictor();
        for (range, rate) in [(0..predictor.start, rates.encoder), (predictor, rates.predictor)] {
            let gradient = folded.gradient(range.clone());
            let (weights, momentum) = (&mut state.weights[range.clone()], &mut state.momentum[range]);
            sgd::update(weights, momentum, gradient, folded.scale(), rate, &self.recipe.optimizer);
        }
        // PyTorch updates twice a step, once a view: r = (1-m) ((1-m) r + m s1) + m s2.
        let keep = (1.0 - STATISTICS_MOMENTUM) * (1.0 - STATISTICS_MOMENTUM);
        for (running, batch) in state.statistics.iter_mut().zip(folded.statistics()) {
            *running = keep * *running + STATISTICS_MOMENTUM * batch;
        }
        state.step += 1;
        Ok(())
    }

    fn batch(&self, values: Vec<f32>) -> Tensor<4> {
        let side = self.recipe.views.crop_px as usize;
        let n = values.len() / (3 * side * side);
        Tensor::from_data(TensorData::new(values, [n, 3, side, side]), &self.device)
    }

    fn read_monitors(&self, loss: Tensor<1>, z: [Tensor<2>; 2], bucket: &mut [f32]) {
        let [z1, z2] = z; // each [n, d]
        let z = Tensor::cat(vec![z1, z2], 0); // [2n, d]
        read(z.clone().mean_dim(0).flatten(0, 1), &mut bucket[self.bucket.z_mean.clone()]);
        read(z.square().mean_dim(0).flatten(0, 1), &mut bucket[self.bucket.z_square_mean.clone()]);
        let loss_at = self.bucket.loss;
        read(loss, &mut bucket[loss_at..=loss_at]);
    }

    fn flag_if_not_finite(&self, shard: u32, bucket: &mut [f32]) {
        bucket[self.bucket.non_finite.start..].fill(0.0);
        if !all_finite(bucket) {
            bucket[self.bucket.non_finite.start + shard as usize] = 1.0;
        }
    }
}

/// The recipe's network with the state's weights. Parameters have gradients if the device records them.
pub(crate) fn bind(model: &recipe::Model, state: &State, device: &Device) -> (SimSiam, Vec<Leaf>) {
    let mut parameters = Parameters::new(device, |kind, range| match kind {
        Kind::Parameter => kernels::tensor_data(&state.weights[range]),
        Kind::Statistic => kernels::tensor_data(&state.statistics[range]),
    });
    let network = SimSiam::new(&mut parameters, model);
    (network, parameters.leaves)
}

impl SimSiam {
    /// The recipe's network with the state's weights, without gradients: for evaluation.
    pub fn from_state(model: &recipe::Model, state: &State, device: &Device) -> SimSiam {
        bind(model, state, device).0
    }
}

fn read(tensor: Tensor<1>, into: &mut [f32]) {
    copy(&tensor.into_data(), into);
}

fn copy(data: &TensorData, into: &mut [f32]) {
    kernels::copy(data.as_slice().expect("training is in f32"), into);
}
