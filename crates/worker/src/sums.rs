//! Where the buckets of a worker's shards are added up.

use std::ops::Range;
use std::sync::Arc;

use collective::{Assembled, Collective, CollectiveError, Node};
use simsiam::{Bound, DeviceBucket, DeviceFailure, Folded, PhaseSeconds, Replica, Trainer, Views};

use crate::lockstep::Lockstep;

/// The sums of a worker's shards, on their way to the sum over all.
pub(crate) enum Sums {
    /// In the host's memory, and then with the other workers.
    OnHost(Collective),
    /// In the device's memory, by a worker that is alone and so never needs them anywhere else.
    OnDevice(DeviceSums),
    /// In each worker's GPU, and then between them.
    #[cfg(feature = "cuda")]
    BetweenGpus(DeviceSums, collective::nccl::GpuCollective),
}

/// Why there is no sum over all shards.
pub(crate) enum FoldError {
    Collective(CollectiveError),
    Device(DeviceFailure),
}

impl Sums {
    /// Of the shards `lease`, which go through what was assembled.
    pub(crate) fn new(assembled: Assembled, trainer: &Trainer, lease: Range<u32>) -> Sums {
        match assembled {
            Assembled::Hosts(collective) if collective.is_alone() && trainer.trains_on_device() => {
                Sums::OnDevice(DeviceSums::new(lease))
            }
            Assembled::Hosts(collective) => Sums::OnHost(collective),
            #[cfg(feature = "cuda")]
            Assembled::Gpus(gpus) => Sums::BetweenGpus(DeviceSums::new(lease), gpus),
        }
    }

    /// Begins a step.
    pub(crate) fn clear(&mut self) {
        match self {
            Sums::OnHost(collective) => collective.sums().clear(),
            Sums::OnDevice(sums) => sums.clear(),
            #[cfg(feature = "cuda")]
            Sums::BetweenGpus(sums, _) => sums.clear(),
        }
    }

    /// The shard that comes next; `None` once all are added.
    pub(crate) fn next_shard(&mut self) -> Option<u32> {
        match self {
            Sums::OnHost(collective) => collective.sums().next_shard(),
            Sums::OnDevice(sums) => sums.next_shard(),
            #[cfg(feature = "cuda")]
            Sums::BetweenGpus(sums, _) => sums.next_shard(),
        }
    }

    /// Computes the next shard's bucket and adds it. With `stop`, this worker wants the run to end.
    ///
    /// # Panics
    /// If there is no shard left.
    pub(crate) fn add(
        &mut self,
        trainer: &Trainer,
        network: &Bound,
        views: Views,
        stop: bool,
    ) -> Result<PhaseSeconds, DeviceFailure> {
        let shard = self.next_shard().expect("whoever adds has asked which shard comes next");
        let sums = match self {
            Sums::OnHost(collective) => {
                let bucket = collective.sums().next_bucket();
                let seconds = trainer.forward_backward(network, shard, views, stop, bucket)?;
                collective.sums().commit();
                return Ok(seconds);
            }
            Sums::OnDevice(sums) => sums,
            #[cfg(feature = "cuda")]
            Sums::BetweenGpus(sums, _) => sums,
        };
        let (bucket, seconds) = trainer.forward_backward_on_device(network, shard, views, stop);
        sums.push(bucket);
        Ok(seconds)
    }

    /// Computes the buckets of all shards, in order and side by side, and adds them. The seconds are those of the slowest.
    pub(crate) fn add_side_by_side(
        &mut self,
        trainer: &Trainer,
        replica: &Replica,
        lockstep: &Arc<Lockstep>,
        shards: Vec<(u32, Views)>,
        stop: bool,
    ) -> Result<PhaseSeconds, DeviceFailure> {
        let mut slowest = PhaseSeconds::default();
        let mut note = |seconds: PhaseSeconds| {
            slowest.forward = slowest.forward.max(seconds.forward);
            slowest.backward = slowest.backward.max(seconds.backward);
        };
        let sums = match self {
            Sums::OnHost(collective) => {
                let computed = lockstep.compute(trainer, replica, shards, |network, shard, views| {
                    let mut bucket = vec![0.0; trainer.bucket().values()];
                    let seconds = trainer.forward_backward(network, shard, views, stop, &mut bucket)?;
                    Ok((bucket, seconds))
                });
                for computed in computed {
                    let (bucket, seconds) = computed?;
                    note(seconds);
                    collective.sums().next_bucket().copy_from_slice(&bucket);
                    collective.sums().commit();
                }
                return Ok(slowest);
            }
            Sums::OnDevice(sums) => sums,
            #[cfg(feature = "cuda")]
            Sums::BetweenGpus(sums, _) => sums,
        };
        let computed = lockstep.compute(trainer, replica, shards, |network, shard, views| {
            trainer.forward_backward_on_device(network, shard, views, stop)
        });
        for (bucket, seconds) in computed {
            note(seconds);
            sums.push(bucket);
        }
        Ok(slowest)
    }

    /// The sum over all shards of the run, once those of this worker are complete.
    pub(crate) fn fold<'a>(&'a mut self, trainer: &'a Trainer, step: u64) -> Result<Folded<'a>, FoldError> {
        let sum = match self {
            Sums::OnHost(collective) => {
                let sum = collective.fold(step).map_err(FoldError::Collective)?;
                return Ok(trainer.bucket().read(sum));
            }
            Sums::OnDevice(sums) => sums.take(),
            #[cfg(feature = "cuda")]
            Sums::BetweenGpus(sums, gpus) => {
                let (mut sum, shards) = (sums.take(), sums.lease.len() as u32);
                trainer.bucket().ensure_computed(&sum, shards).map_err(FoldError::Device)?;
                // SAFETY: the bucket is complete and nothing else touches it until the sum is there.
                let summed = sum.at_rest(|pointer, floats| unsafe { gpus.sum(pointer, floats) });
                summed.map_err(FoldError::Device)?.map_err(FoldError::Collective)?;
                sum
            }
        };
        trainer.bucket().read_on_device(sum).map_err(FoldError::Device)
    }

    /// What the sums go through, in words.
    pub(crate) fn medium(&self) -> &'static str {
        match self {
            Sums::OnHost(collective) => collective.medium(),
            Sums::OnDevice(_) => "the device's memory",
            #[cfg(feature = "cuda")]
            Sums::BetweenGpus(..) => "NCCL",
        }
    }
}

/// The same tree as [`collective::SubtreeSums`], over buckets that a device holds.
pub(crate) struct DeviceSums {
    lease: Range<u32>,
    next_shard: u32,
    /// Sums that have no sibling yet, from the left.
    pending: Vec<(Node, DeviceBucket)>,
}

impl DeviceSums {
    fn new(lease: Range<u32>) -> DeviceSums {
        DeviceSums { next_shard: lease.start, lease, pending: Vec::new() }
    }

    fn clear(&mut self) {
        *self = DeviceSums::new(self.lease.clone());
    }

    fn next_shard(&self) -> Option<u32> {
        (self.next_shard < self.lease.end).then_some(self.next_shard)
    }

    fn push(&mut self, bucket: DeviceBucket) {
        let (mut node, mut sum) = (Node::leaf(self.next_shard), bucket);
        while let Some(parent) = self.pending.last().and_then(|(left, _)| left.join(node)) {
            let (_, left) = self.pending.pop().expect("a parent was found for the last entry");
            (node, sum) = (parent, left.plus(sum));
        }
        self.pending.push((node, sum));
        self.next_shard += 1;
    }

    /// The sum over the lease, whose subtrees are added from the left.
    fn take(&mut self) -> DeviceBucket {
        let sums = self.pending.drain(..).map(|(_, sum)| sum);
        sums.reduce(DeviceBucket::plus).expect("a fold comes after all shards")
    }
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "a lease is a range, and one worker has one")]
mod tests {
    use std::time::Duration;

    use collective::loopback::Hub;
    use collective::{Group, Limits};
    use recipe::{Draws, Purpose, Recipe};
    use simsiam::{Device, DeviceQueue, State};

    use super::*;

    const SHARDS: u32 = 4;

    fn trainer() -> Trainer {
        let set = [
            "training.batch=16",
            "training.shards=4",
            "views.crop_px=16",
            "model.width=4",
            "model.projector_dim=16",
            "model.predictor_dim=8",
        ];
        let set: Vec<String> = set.iter().map(|change| (*change).to_string()).collect();
        Trainer::new(&Recipe::from_toml(recipe::QUICKSTART, &set).unwrap(), 64, Device::flex())
    }

    fn alone(trainer: &Trainer) -> Sums {
        let group = Group::new([0; 16], 1, 0, vec![0..SHARDS], SHARDS).unwrap();
        let second = Duration::from_secs(1);
        let limits = Limits {
            bucket_len: trainer.bucket().values(),
            rounded_len: 0,
            connect_deadline: second,
            step_deadline: second,
        };
        let collective = Hub::default().assemble(group, limits).unwrap();
        Sums::new(Assembled::Hosts(collective), trainer, 0..SHARDS)
    }

    fn noise(trainer: &Trainer, shard: u32, step: u64) -> Views {
        let mut draws = Draws::new(1, Purpose::View, 0, u64::from(shard), step);
        trainer.loader().load((0..2 * 4 * 3 * 16 * 16).map(|_| draws.normal()).collect())
    }

    /// Each thread's own would be one more for every shard of every step.
    #[test]
    fn shards_in_lockstep_queue_up_where_their_worker_does() {
        let trainer = trainer();
        let replica = trainer.place(State::initial(trainer.layout(), 0));
        let lockstep = Arc::new(Lockstep::alone(SHARDS, trainer.longest_shard_sum()));
        let shards = (0..SHARDS).map(|shard| (shard, noise(&trainer, shard, 0))).collect();
        let queues = lockstep.compute(&trainer, &replica, shards, |_, _, _| DeviceQueue::current());
        assert_eq!(queues, [DeviceQueue::current(); SHARDS as usize]);
    }

    #[test]
    fn who_is_alone_sums_in_the_devices_memory_what_it_would_in_the_hosts() {
        let loss = |trainer: &Trainer, medium: &str| {
            let mut sums = alone(trainer);
            assert_eq!(sums.medium(), medium);
            let replica = trainer.place(State::initial(trainer.layout(), 0));
            let network = trainer.bind(&replica);
            let mut losses = Vec::new();
            for step in 0..2 {
                sums.clear();
                while let Some(shard) = sums.next_shard() {
                    let views = noise(trainer, shard, step);
                    sums.add(trainer, &network, views, shard == 2 && step == 1).unwrap();
                }
                let Ok(folded) = sums.fold(trainer, step) else { panic!("nothing can fail alone") };
                assert_eq!((folded.stop_requested(), folded.non_finite_shards()), (step == 1, Vec::new()));
                losses.push([folded.loss(), folded.collapse_level(), folded.gradient_norm()]);
            }
            losses
        };
        let expected = loss(&trainer(), "nothing");
        let found = loss(&trainer().with_state_on_device(), "the device's memory");
        for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
            assert!((found - expected).abs() <= 1e-5 * expected.abs(), "{found} is not {expected}");
        }
    }
}
