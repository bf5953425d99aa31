//! One step on one device: from two batches of views to a bucket, and from the folded bucket to new weights.

use std::time::Instant;

use burn::tensor::{DType, Device, Tensor, TensorData};
use recipe::{Precision, Recipe};

use crate::bucket::{BucketLayout, Folded, all_finite};
use crate::monitors::Monitors;
use crate::parameters::{Layout, Leaf, Parameters};
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

/// Where the time of one shard went. A GPU is waited for once, at the end: there `forward` is the time it took to tell
/// it what to do, and `backward` holds the rest.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PhaseSeconds {
    /// From views to loss.
    pub forward: f64,
    /// From loss to bucket.
    pub backward: f64,
}

/// What a commit did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Commit {
    /// Weights, momentum, statistics and position advanced.
    Applied,
    /// Only the position did: the recipe lets such steps be left out.
    Skipped(NonFinite),
}

/// The folded step holds values that are not finite; nothing of it was applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "step {}: loss or gradient is not finite, {}{}",
    .step + 1,
    told_shards(.shards),
    told_skipped(*.skipped_steps)
)]
pub struct NonFinite {
    /// Steps committed before it, which people count from 1.
    pub step: u64,
    /// The shards it came from; empty if every shard was finite and only their sum was not.
    pub shards: Vec<u32>,
    /// The steps before it that were left out, in a row.
    pub skipped_steps: u32,
}

fn told_shards(shards: &[u32]) -> String {
    match shards {
        [] => "though that of every shard is: their sum is too large".to_string(),
        [shard] => format!("in shard {shard}"),
        shards => format!("in shards {shards:?}"),
    }
}

fn told_skipped(steps: u32) -> String {
    if steps == 0 {
        String::new()
    } else {
        format!(", as in the {steps} steps before it, which were skipped")
    }
}

/// The device could not do its part of a step, of which nothing is left.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the device failed: {0}. If its memory is full, raise training.shards, which makes each part of a batch smaller, or \
     lower training.batch"
)]
pub struct DeviceFailure(String);

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
    ///
    /// # Errors
    /// [`DeviceFailure`]: on a GPU, whatever went wrong since the step before shows only now.
    pub fn forward_backward(
        &self,
        bound: &Bound,
        shard: u32,
        [x1, x2]: [Vec<f32>; 2],
        bucket: &mut [f32],
    ) -> Result<PhaseSeconds, DeviceFailure> {
        let start = Instant::now();
        let Encoded { loss, z, statistics } = bound.network.forward(self.batch(x1), self.batch(x2));
        let forward = start.elapsed().as_secs_f64();

        let start = Instant::now();
        let mut gradients = loss.backward();
        let gradients = bound
            .leaves
            .iter()
            .map(|leaf| leaf(&mut gradients).expect("every parameter takes part in the loss"));
        let statistics = statistics.map(layers::BatchStatistics::into_flat);
        self.collect(gradients.chain(riders(loss, z, statistics)), bucket)?;
        self.flag_if_not_finite(shard, bucket);
        Ok(PhaseSeconds { forward, backward: start.elapsed().as_secs_f64() })
    }

    /// Commits a step: weights, momentum, running statistics and position advance together. If anything is not
    /// finite, only the position does, as often in a row as the recipe allows; after that nothing.
    ///
    /// # Errors
    /// [`NonFinite`], with the shards that it came from.
    pub fn commit(
        &self,
        state: &mut State,
        folded: &Folded,
        rates: LearningRates,
    ) -> Result<Commit, NonFinite> {
        let shards = folded.non_finite_shards();
        if !shards.is_empty() || !folded.is_finite() {
            let found = NonFinite { step: state.step, shards, skipped_steps: state.skipped_steps };
            if state.skipped_steps >= self.recipe.training.max_skipped_steps {
                return Err(found);
            }
            state.step += 1;
            state.skipped_steps += 1;
            return Ok(Commit::Skipped(found));
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
        state.skipped_steps = 0;
        Ok(Commit::Applied)
    }

    /// What in a shard's bucket is not finite: the parameters whose gradient is not, and what rides along with them.
    pub fn non_finite_parts(&self, bucket: &[f32]) -> Vec<String> {
        let places = &self.bucket;
        let parameters =
            self.layout.parameters.iter().map(|entry| (entry.name.as_str(), entry.range.clone()));
        let riders = [
            ("batch statistics", places.statistics.clone()),
            ("z", places.z_mean.start..places.loss),
            ("loss", places.loss..places.loss + 1),
        ];
        let parts = parameters.chain(riders).filter(|(_, range)| !all_finite(&bucket[range.clone()]));
        parts.map(|(name, _)| name.to_string()).collect()
    }

    /// What the step that made `state`, which was committed with `folded` at these `rates`, says of the network.
    pub fn monitors(&self, state: &State, folded: &Folded, rates: LearningRates) -> Monitors {
        Monitors::after(&self.layout, state, folded, rates)
    }

    fn batch(&self, values: Vec<f32>) -> Tensor<4> {
        let side = self.recipe.views.crop_px as usize;
        let n = values.len() / (3 * side * side);
        let x = Tensor::from_data(TensorData::new(values, [n, 3, side, side]), &self.device);
        match self.recipe.training.precision {
            Precision::F32 => x,
            // The network's layers follow their input.
            Precision::Bf16 => x.cast(DType::BF16),
        }
    }

    /// Writes everything that is a sum over shards into the bucket, whose beginning it is.
    fn collect(
        &self,
        parts: impl Iterator<Item = Tensor<1>>,
        bucket: &mut [f32],
    ) -> Result<(), DeviceFailure> {
        let bucket = &mut bucket[..=self.bucket.loss];
        if !kernels::is_flex(&self.device) {
            // Gathered on the device: one transfer, and the only wait of the shard.
            return read(Tensor::cat(parts.collect(), 0), bucket);
        }
        let mut rest = bucket;
        for part in parts {
            let place = rest.split_off_mut(..part.dims()[0]).expect("the bucket has a place for every part");
            read(part, place)?;
        }
        Ok(())
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
    let mut parameters = Parameters::of(state, device);
    let network = SimSiam::new(&mut parameters, model);
    (network, parameters.leaves)
}

impl SimSiam {
    /// The recipe's network with the state's weights, without gradients: for evaluation.
    pub fn from_state(model: &recipe::Model, state: &State, device: &Device) -> SimSiam {
        bind(model, state, device).0
    }
}

/// What rides along behind the gradient, in the bucket's order.
fn riders(loss: Tensor<1>, z: [Tensor<2>; 2], [first, second]: [Tensor<1>; 2]) -> [Tensor<1>; 5] {
    let z = z.map(Tensor::inner);
    let pairs = pair_square_mean(z[0].clone());
    let z = Tensor::cat(z.to_vec(), 0); // [2n, d]
    [
        first * (1.0 - STATISTICS_MOMENTUM) + second,
        z.clone().mean_dim(0).flatten(0, 1),
        z.square().mean_dim(0).flatten(0, 1),
        pairs,
        loss.inner(),
    ]
}

/// The mean of `(z_i · z_j)²` over all pairs of different rows of `z: [n, d]`, whose rows have length 1.
fn pair_square_mean(z: Tensor<2>) -> Tensor<1> {
    let n = z.dims()[0] as f32;
    let products = z.clone().matmul(z.transpose()); // [n, n], ones on the diagonal
    (products.square().sum() - n) / (n * (n - 1.0))
}

fn read(tensor: Tensor<1>, into: &mut [f32]) -> Result<(), DeviceFailure> {
    let data = tensor.try_into_data().map_err(|error| DeviceFailure(format!("{error:?}")))?;
    kernels::copy(data.as_slice().expect("gradients and what rides along are f32"), into);
    Ok(())
}
