//! A worker's part in one generation: its shards, their views, and the others.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use collective::{CollectiveError, Gpu, Group, Interrupt, Key, Limits, Standstill};
use dataset::BlockStore;
use protocol::{WorkerId, v1};
use recipe::{BatchNorm, Recipe};
use simsiam::{Device, Folded, NonFinite, Trainer};

use crate::WorkerError;
use crate::batches::{Batches, ShardBatch, images_of};
use crate::blame::{Blame, Culprit};
use crate::lockstep::Lockstep;
use crate::sums::{FoldError, Sums};
use crate::transport::Transport;

/// One generation, assembled: the others are connected and the first views are being made.
pub(crate) struct Session {
    generation: u64,
    rank: usize,
    /// In order of rank, as are the members.
    leases: Vec<Range<u32>>,
    members: Vec<WorkerId>,
    recipe: Recipe,
    store: Arc<BlockStore>,
    batches: Batches,
    sums: Sums,
    /// Where the shards meet in every BatchNorm, if they do.
    lockstep: Option<Arc<Lockstep>>,
    interrupt: Interrupt,
}

/// What a session needs to know of the run, whatever its generation.
pub(crate) struct RunParts<'a> {
    pub(crate) run_id: [u8; 16],
    pub(crate) key: &'a Key,
    pub(crate) recipe: &'a Recipe,
    pub(crate) store: &'a Arc<BlockStore>,
    pub(crate) transport: &'a Transport,
    pub(crate) trainer: &'a Trainer,
    pub(crate) device: &'a Device,
    /// For who looks at its folds.
    pub(crate) standstill: &'a Standstill,
    /// How long the slowest worker may take for a step.
    pub(crate) step_limit: Duration,
}

impl Session {
    /// Takes the place that `order` gives, for the steps `steps`, until `interrupt`.
    pub(crate) fn assemble(
        order: &v1::Assemble,
        interrupt: Interrupt,
        run: &RunParts,
        steps: Range<u64>,
    ) -> Result<Session, WorkerError> {
        let leases: Vec<Range<u32>> = order.members.iter().map(lease).collect();
        let rank = order.rank as usize;
        let group =
            Group::new(run.run_id, order.generation, rank, leases.clone(), run.recipe.training.shards)
                .map_err(|error| WorkerError::Unusable { what: "an order", problem: error.to_string() })?
                .interrupted_by(interrupt.clone())
                .observed_by(run.standstill.clone());
        let lease = group.lease();
        // Started before the others are waited for, so that the first views are ready when they come.
        let loader = run.trainer.loader();
        let mut batches = Batches::start(run.recipe, Arc::clone(run.store), loader, lease.clone(), steps);
        let members: Vec<WorkerId> = order.members.iter().map(|member| WorkerId(member.worker_id)).collect();
        let addresses: Vec<String> =
            order.members.iter().map(|member| member.collective_address.clone()).collect();
        let limits = Limits {
            bucket_len: run.trainer.bucket().values(),
            rounded_len: run.trainer.bucket().rounded_values(run.recipe.training.exchange_precision),
            connect_deadline: Duration::from_millis(order.deadline_ms),
            step_deadline: run.step_limit,
        };
        let failed = |source| collective_error(&members, source);
        // Assembled first: it has begun only once all are there, so that nobody takes one collective's callers for the
        // other's.
        let lockstep = match run.recipe.training.batch_norm {
            BatchNorm::Shard => None,
            BatchNorm::Sync => {
                let limits = Limits { bucket_len: run.trainer.longest_shard_sum(), rounded_len: 0, ..limits };
                let collective = run.transport.assemble_on_hosts(run.key, group.clone(), &addresses, limits);
                let lockstep = Lockstep::begin(collective.map_err(failed)?, lease.clone(), group.shards());
                Some(Arc::new(lockstep.map_err(failed)?))
            }
        };
        let gpu = simsiam::gpu(run.device).map(|(index, uuid)| Gpu { index, uuid });
        let assembled = run.transport.assemble(run.key, group, &addresses, limits, gpu);
        let sums = Sums::new(assembled.map_err(failed)?, run.trainer, lease);
        let (generation, workers) = (order.generation, members.len());
        tracing::info!(generation, workers, "gradients go through {}", sums.medium());
        batches.wait_for_first()?;
        Ok(Session {
            generation: order.generation,
            rank,
            leases,
            members,
            recipe: run.recipe.clone(),
            store: Arc::clone(run.store),
            batches,
            sums,
            lockstep,
            interrupt,
        })
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// The shards of this worker.
    pub(crate) fn lease(&self) -> Range<u32> {
        self.leases[self.rank].clone()
    }

    /// Whose images made a step not finite: every worker can tell, for all know who leases what and which images a
    /// step takes.
    pub(crate) fn blame(&self, found: NonFinite) -> Blame {
        let culprits = found.shards.iter().filter_map(|&shard| {
            let rank = self.leases.iter().position(|lease| lease.contains(&shard))?;
            let images = images_of(&self.recipe, self.store.manifest(), found.step, shard);
            Some(Culprit { shard, rank, worker: self.members[rank], images })
        });
        Blame { culprits: culprits.collect(), found }
    }

    /// The views of a shard's part of a step. Steps and shards must be asked for in order. Fails once this
    /// generation is interrupted, so that a step which will be discarded is not computed to its end.
    pub(crate) fn next_batch(&mut self, step: u64, shard: u32) -> Result<ShardBatch, WorkerError> {
        if self.interrupt.is_raised() {
            return Err(self.halted());
        }
        let batch = self.batches.next()?;
        assert_eq!((batch.step, batch.shard), (step, shard), "batches are made in the order of their use");
        Ok(batch)
    }

    /// What a generation ends with when that was ordered.
    pub(crate) fn halted(&self) -> WorkerError {
        self.collective_error(CollectiveError::Interrupted { generation: self.generation })
    }

    /// What a failure means that the workers have together.
    pub(crate) fn collective_error(&self, source: CollectiveError) -> WorkerError {
        collective_error(&self.members, source)
    }

    /// Where this worker's shards, and those of the others, meet in every BatchNorm, if they do.
    pub(crate) fn lockstep(&self) -> Option<&Arc<Lockstep>> {
        self.lockstep.as_ref()
    }

    /// Where the buckets of this worker's shards are added up.
    pub(crate) fn sums(&mut self) -> &mut Sums {
        &mut self.sums
    }

    /// The sum over all shards of the run, once those of this worker are complete.
    pub(crate) fn fold<'a>(&'a mut self, trainer: &'a Trainer, step: u64) -> Result<Folded<'a>, WorkerError> {
        self.sums.fold(trainer, step).map_err(|error| match error {
            FoldError::Collective(source) => collective_error(&self.members, source),
            FoldError::Device(failure) => failure.into(),
        })
    }
}

fn lease(member: &v1::Member) -> Range<u32> {
    // Numbers that overflow do not make a group, which says so.
    member.first_shard..member.first_shard.saturating_add(member.shard_count)
}

fn collective_error(members: &[WorkerId], source: CollectiveError) -> WorkerError {
    let suspect = source.peer().and_then(|rank| members.get(rank)).copied();
    WorkerError::Collective { source, suspect }
}
