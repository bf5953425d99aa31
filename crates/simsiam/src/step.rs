//! One step on one device: from two batches of views to a bucket, and from the folded bucket to new weights.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Instant;

use burn::tensor::{Device, Tensor};
use recipe::{LearningRateChange, Recipe};

use crate::bucket::{BucketLayout, DeviceBucket, Folded, all_finite, ensure_unit_length};
use crate::flat::Flat;
use crate::kernels::{self, AllShards, Part};
use crate::monitors::Monitors;
use crate::parameters::{Layout, Leaf, Parameters};
use crate::replica::Replica;
use crate::schedule::{LearningRates, Schedule};
use crate::sgd;
use crate::simsiam::{Encoded, SimSiam};
use crate::state::State;
use crate::views::{ViewLoader, Views};

/// PyTorch's default share of a new batch in the running statistics.
pub(crate) const STATISTICS_MOMENTUM: f32 = 0.1;

/// The recipe's network and optimizer on one device.
pub struct Trainer {
    recipe: Recipe,
    device: Device,
    /// Whether weights and momentum lie in the device's memory.
    trains_on_device: bool,
    layout: Layout,
    bucket: BucketLayout,
    schedule: Schedule,
}

/// The network with one step's weights; serves any number of shards, one after the other. On the CPU it reads the weights
/// of the replica that it is of, which so cannot be changed as long as there is one.
pub struct Bound<'a> {
    network: SimSiam,
    leaves: Vec<Leaf>,
    /// With whom the statistics of batches are shared.
    shards: Option<AllShards>,
    replica: PhantomData<&'a Replica>,
}

/// Where the time of one shard went. A GPU is told what to do long before it has done it: then `forward` is the time
/// that telling took, and so is `backward`, unless it ends with a bucket on the host and so waits for all of it.
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
    "the device failed: {0}. If its memory is full, raise training.shards, which makes each part of a batch smaller, as \
     long as 3 images are left in each, or lower training.batch"
)]
pub struct DeviceFailure(String);

impl DeviceFailure {
    pub(crate) fn new(problem: String) -> DeviceFailure {
        DeviceFailure(problem)
    }
}

impl Trainer {
    /// A trainer for a run over `images` images.
    pub fn new(recipe: &Recipe, images: u64, device: Device) -> Trainer {
        let layout = Layout::of(&recipe.model);
        let bucket = BucketLayout::new(&layout, recipe.model.projector_dim as usize, recipe.training.shards);
        let schedule = Schedule::new(recipe, images);
        let trains_on_device = !kernels::is_flex(&device);
        let device = device.autodiff();
        Trainer { recipe: recipe.clone(), device, trains_on_device, layout, bucket, schedule }
    }

    /// The same, treating the CPU as if it had a memory of its own, as GPUs do: what tests can see of that way.
    #[must_use]
    pub fn with_state_on_device(mut self) -> Trainer {
        self.trains_on_device = true;
        self
    }

    /// Whether it keeps weights and momentum in its device's memory: then buckets may stay there as well.
    pub fn trains_on_device(&self) -> bool {
        self.trains_on_device
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

    /// From now on the rates are changed as these say, in place of the recipe's own changes.
    pub fn change_learning_rates(&mut self, changes: Vec<LearningRateChange>) {
        self.schedule.changes = changes;
    }

    /// What brings views to the device.
    pub fn loader(&self) -> ViewLoader {
        ViewLoader::new(&self.recipe, &self.device)
    }

    /// Takes a state to where it is trained.
    pub fn place(&self, state: State) -> Replica {
        match self.trains_on_device {
            true => Replica::on_device(state, &self.device),
            false => Replica::on_host(state),
        }
    }

    /// The network with the replica's weights, for one step.
    pub fn bind<'a>(&self, replica: &'a Replica) -> Bound<'a> {
        let mut parameters = match &replica.device {
            Some(on) => {
                // Taken along each time, for they are little: over all shards, sums are taken around the running means, which
                // must be the same for a worker that has just come.
                let statistics = Flat::OnHost(&replica.host.statistics).on(&on.weights.device());
                Parameters::of_tensors(on.weights.clone(), statistics, &self.device)
            }
            None => Parameters::of_state(&replica.host, &self.device),
        };
        let network = SimSiam::new(&mut parameters, &self.recipe.model);
        let network =
            if self.recipe.training.stop_gradient { network } else { network.without_stop_gradient() };
        Bound { network, leaves: parameters.leaves, shards: None, replica: PhantomData }
    }

    /// The most numbers that shards add up at once, where BatchNorm's statistics are over all of them: two for every
    /// channel of either view.
    pub fn longest_shard_sum(&self) -> usize {
        let channels = self.layout.statistics.iter().map(|entry| entry.range.len());
        2 * 2 * channels.max().unwrap_or(0)
    }

    /// Forward and backward of one shard: fills its `bucket` from its part of the batch. With `stop`, its worker wants
    /// the run to end after this step.
    ///
    /// # Errors
    /// [`DeviceFailure`]: on a GPU, whatever went wrong since the step before shows only now.
    pub fn forward_backward(
        &self,
        bound: &Bound,
        shard: u32,
        views: Views,
        stop: bool,
        bucket: &mut [f32],
    ) -> Result<PhaseSeconds, DeviceFailure> {
        let (encoded, forward) = timed(|| bound.network.forward(views.0, bound.shards.clone()));
        let (collected, backward) = timed(|| {
            let (parts, mut sums) = (bound.backward(encoded), &mut bucket[..=self.bucket.loss]);
            if self.trains_on_device {
                // Gathered there: one transfer, and the only wait of the shard.
                return read(kernels::gather(parts, FIRST_VIEW, 0), sums);
            }
            parts.into_iter().map(|part| part.resolve(FIRST_VIEW)).try_for_each(|part| {
                let place =
                    sums.split_off_mut(..part.dims()[0]).expect("the bucket has a place for every part");
                read(part, place)
            })
        });
        collected?;
        if self.trains_on_device {
            // Not of the sum with other workers', which could not tell whose part is missing.
            ensure_unit_length(&bucket[self.bucket.z_square_mean.clone()], 1)?;
        }
        self.bucket.flag(bucket, shard, stop);
        Ok(PhaseSeconds { forward, backward })
    }

    /// The same with the bucket in the device's memory, without waiting for it.
    pub fn forward_backward_on_device(
        &self,
        bound: &Bound,
        shard: u32,
        views: Views,
        stop: bool,
    ) -> (DeviceBucket, PhaseSeconds) {
        let (encoded, forward) = timed(|| bound.network.forward(views.0, bound.shards.clone()));
        let (bucket, backward) = timed(|| {
            let flags = self.bucket.values() - self.bucket.loss - 1;
            let bucket = kernels::gather(bound.backward(encoded), FIRST_VIEW, flags);
            self.bucket.flagged(bucket, shard, stop)
        });
        (bucket, PhaseSeconds { forward, backward })
    }

    /// Commits a step: weights, momentum, running statistics and position advance together. If anything is not
    /// finite, only the position does, as often in a row as the recipe allows; after that nothing.
    ///
    /// # Errors
    /// [`NonFinite`], with the shards that it came from.
    pub fn commit(
        &self,
        replica: &mut Replica,
        folded: &Folded,
        rates: LearningRates,
    ) -> Result<Commit, NonFinite> {
        let Replica { host: state, device } = replica;
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
        let (predictor, optimizer) = (self.layout.predictor(), &self.recipe.optimizer);
        let scale = folded.scale();
        match (device, folded.gradient()) {
            (Some(device), gradient) => device.update(
                gradient,
                &sgd::Step {
                    scale,
                    momentum: optimizer.momentum as f32,
                    weight_decay: optimizer.weight_decay as f32,
                    rates: [rates.encoder as f32, rates.predictor as f32],
                    second_start: predictor.start,
                },
            ),
            (None, Flat::OnHost(gradient)) => {
                let all_weights = Arc::make_mut(&mut state.weights);
                for (range, rate) in [(0..predictor.start, rates.encoder), (predictor, rates.predictor)] {
                    let (weights, momentum) =
                        (&mut all_weights[range.clone()], &mut state.momentum[range.clone()]);
                    sgd::update(weights, momentum, &gradient[range], scale, rate, optimizer);
                }
            }
            (None, Flat::OnDevice(_)) => unreachable!("what trains on the host folds on the host"),
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

    /// What the step that made `replica`, which was committed with `folded` at these `rates`, says of the network.
    ///
    /// # Errors
    /// [`DeviceFailure`].
    pub fn monitors(
        &self,
        replica: &Replica,
        folded: &Folded,
        rates: LearningRates,
    ) -> Result<Monitors, DeviceFailure> {
        Monitors::after(&self.layout, replica, folded, rates)
    }
}

impl Bound<'_> {
    /// The same for one shard, whose BatchNorms take the statistics of `shards`: each waits there until all have come. So
    /// each of a worker's shards has a thread, and a network, of its own: burn holds a lock on what it has recorded of
    /// one as long as a backward pass through it lasts.
    #[must_use]
    pub fn among(self, shards: AllShards) -> Self {
        Bound { shards: Some(shards), ..self }
    }

    /// What a shard adds to the sums over shards, in the bucket's order: gradients and what rides along.
    fn backward(&self, encoded: Encoded) -> Vec<Part> {
        let Encoded { loss, z, statistics } = encoded;
        let mut gradients = loss.backward();
        let leaves = self.leaves.iter();
        let gradients =
            leaves.map(|leaf| leaf(&mut gradients).expect("every parameter takes part in the loss"));
        let mut parts: Vec<Part> = gradients.map(Part::Whole).collect();
        parts.extend(statistics.into_tensors().map(Part::Views));
        parts.extend(riders(loss, z).map(Part::Whole));
        parts
    }
}

impl SimSiam {
    /// The recipe's network with the state's weights, without gradients: for evaluation.
    pub fn from_state(model: &recipe::Model, state: &State, device: &Device) -> SimSiam {
        SimSiam::new(&mut Parameters::of_state(state, device), model)
    }
}

/// What PyTorch's two updates of the running statistics, one for each view, leave of the first view's in their sum.
const FIRST_VIEW: f32 = 1.0 - STATISTICS_MOMENTUM;

/// What rides along behind gradient and statistics, in the bucket's order.
fn riders(loss: Tensor<1>, z: [Tensor<2>; 2]) -> [Tensor<1>; 4] {
    let pairs = pair_square_mean(z[0].clone());
    let z = Tensor::cat(Vec::from(z), 0); // [2n, d]
    [z.clone().mean_dim(0).flatten(0, 1), z.square().mean_dim(0).flatten(0, 1), pairs, loss.inner()]
}

/// The mean of `(z_i · z_j)²` over all pairs of different rows of `z: [n, d]`, whose rows have length 1.
fn pair_square_mean(z: Tensor<2>) -> Tensor<1> {
    let n = z.dims()[0] as f32;
    let products = kernels::linear(z.clone(), z); // [n, n], ones on the diagonal
    (products.square().sum() - n) / (n * (n - 1.0))
}

/// Waits for the numbers of a tensor.
pub(crate) fn read(tensor: Tensor<1>, into: &mut [f32]) -> Result<(), DeviceFailure> {
    let data = tensor.try_into_data().map_err(|error| DeviceFailure(format!("{error:?}")))?;
    kernels::copy(data.as_slice().expect("gradients and what rides along are f32"), into);
    Ok(())
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let begin = Instant::now();
    let result = work();
    (result, begin.elapsed().as_secs_f64())
}
