//! A step computed once more, by one process that needs no coordinator and no other worker.
//!
//! A run is a function of its recipe: which images a step takes, how each is seen, and in which order the shards are
//! summed depend on nothing else. So whatever was strange about a step can be looked at again.

use std::sync::Arc;

use collective::SubtreeSums;
use dataset::{BlockStore, DatasetError};
use recipe::{BatchNorm, Recipe};
use simsiam::{Bound, Commit, Device, NonFinite, State, Trainer};

use crate::WorkerError;
use crate::batches::{Batches, images_of};
use crate::lockstep::Lockstep;

/// A step, shard by shard and as a whole.
#[derive(Debug)]
pub struct Replayed {
    /// Each shard's part, in order.
    pub shards: Vec<ReplayedShard>,
    /// Mean loss over all shards.
    pub loss: f64,
    /// Near 1 healthy, 0 collapsed.
    pub collapse_level: f64,
    /// Euclidean norm of the mean gradient.
    pub gradient_norm: f64,
    /// What a run does with it.
    pub commit: Result<Commit, NonFinite>,
    /// What it leads to.
    pub state: State,
}

/// One shard's part of a step.
#[derive(Debug)]
pub struct ReplayedShard {
    /// Which one.
    pub shard: u32,
    /// Its images, as places in the dealt order of all.
    pub images: Vec<u64>,
    /// Its loss.
    pub loss: f64,
    /// Euclidean norm of its gradient.
    pub gradient_norm: f64,
    /// What is not finite: parameters by their names, for their gradients, and what rides along.
    pub non_finite: Vec<String>,
}

/// Computes the step after `state`.
///
/// # Errors
/// Images that cannot be had, or a device that fails.
///
/// # Panics
/// If the run has no step after `state`.
pub fn replay(
    recipe: &Recipe,
    store: &Arc<BlockStore>,
    device: Device,
    state: State,
) -> Result<Replayed, WorkerError> {
    let trainer = Trainer::new(recipe, store.manifest().images, device);
    let step = state.step;
    assert!(step < trainer.schedule().total_steps(), "the run has a step after {step}");
    let lease = 0..recipe.training.shards;
    let mut batches =
        Batches::start(recipe, Arc::clone(store), trainer.loader(), lease.clone(), step..step + 1);
    let mut replica = trainer.place(state);
    let mut sums = SubtreeSums::new(lease.clone(), trainer.bucket().values());
    let mut shards = Vec::new();
    let mut add = |shard, bucket: &[f32]| {
        let alone = trainer.bucket().read(bucket);
        // As a mean over all shards it is that much smaller.
        let count = f64::from(recipe.training.shards);
        shards.push(ReplayedShard {
            shard,
            images: images_of(recipe, store.manifest(), step, shard),
            loss: alone.loss() * count,
            gradient_norm: alone.gradient_norm() * count,
            non_finite: trainer.non_finite_parts(bucket),
        });
        sums.next_bucket().copy_from_slice(bucket);
        sums.commit();
    };
    let compute = |network: &Bound, shard, views| {
        let mut bucket = vec![0.0; trainer.bucket().values()];
        trainer.forward_backward(network, shard, views, false, &mut bucket).map(|_| bucket)
    };
    match recipe.training.batch_norm {
        BatchNorm::Shard => {
            let network = trainer.bind(&replica);
            for shard in lease {
                add(shard, &compute(&network, shard, batches.next()?.views)?);
            }
        }
        BatchNorm::Sync => {
            let views: Result<Vec<_>, DatasetError> =
                lease.clone().map(|shard| Ok((shard, batches.next()?.views))).collect();
            let lockstep = Arc::new(Lockstep::alone(recipe.training.shards, trainer.longest_shard_sum()));
            let buckets = lockstep.compute(&trainer, &replica, views?, compute);
            for (shard, bucket) in lease.zip(buckets) {
                add(shard, &bucket?);
            }
        }
    }
    let (_, sum) = sums.nodes().next().expect("all shards of a run are one subtree");
    let folded = trainer.bucket().read(sum);
    let commit = trainer.commit(&mut replica, &folded, trainer.schedule().at(step));
    Ok(Replayed {
        shards,
        loss: folded.loss(),
        collapse_level: folded.collapse_level(),
        gradient_norm: folded.gradient_norm(),
        commit,
        state: replica.state()?.clone(),
    })
}
