//! Shards that are computed side by side, because BatchNorm takes its statistics over all of them.
//!
//! In every BatchNorm, forward and backward, the threads of a worker's shards meet here, and the last to come adds up what
//! all have brought with the other workers, in the order of the tree. So the sums, and with them every bit that follows,
//! do not depend on who leases what.

use std::ops::Range;
use std::panic::resume_unwind;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use collective::loopback::Hub;
use collective::{Collective, CollectiveError, Group, Limits};
use simsiam::{AllShards, Bound, DeviceQueue, Replica, ShardSum, Trainer, Views};

/// Never waited for.
const ALONE: Duration = Duration::from_secs(1);

/// Where the shards of one worker meet, and those of the others.
pub(crate) struct Lockstep {
    lease: Range<u32>,
    shards: u32,
    meeting: Mutex<Meeting>,
    concluded: Condvar,
}

/// What the next sum is made of.
struct Meeting {
    collective: Collective,
    /// By the shards of the lease.
    brought: Vec<Vec<f32>>,
    arrived: usize,
    /// How many sums there were.
    turn: u64,
    /// Spent in them since somebody asked: on waiting for the other workers, mostly.
    seconds: f64,
    sum: Vec<f32>,
    /// No sum comes any more.
    is_over: bool,
    /// Why, until somebody asks.
    failure: Option<CollectiveError>,
}

impl Lockstep {
    /// Of the shards `lease`, of `shards` in the run, whose sums go through `collective`. Waits until every worker is here:
    /// from then on nobody looks for others who assemble the same.
    pub(crate) fn begin(
        collective: Collective,
        lease: Range<u32>,
        shards: u32,
    ) -> Result<Lockstep, CollectiveError> {
        let brought = vec![vec![0.0]; lease.len()];
        let (sum, failure) = (Vec::new(), None);
        let mut meeting =
            Meeting { collective, brought, arrived: 0, turn: 0, seconds: 0.0, sum, is_over: false, failure };
        meeting.fold()?;
        Ok(Lockstep { lease, shards, meeting: Mutex::new(meeting), concluded: Condvar::new() })
    }

    /// Of all `shards` of a run that nobody shares, which add up at most `longest` numbers at once.
    pub(crate) fn alone(shards: u32, longest: usize) -> Lockstep {
        let leases = std::iter::once(0..shards).collect();
        let group = Group::new([0; 16], 1, 0, leases, shards).expect("one lease of all shards is a group");
        let limits =
            Limits { bucket_len: longest, rounded_len: 0, connect_deadline: ALONE, step_deadline: ALONE };
        let collective = Hub::default().assemble(group, limits);
        let lockstep = collective.and_then(|collective| Lockstep::begin(collective, 0..shards, shards));
        lockstep.expect("who is alone waits for nobody")
    }

    /// Computes every shard on a thread of its own, with a network of its own. What comes of it is worth nothing if there is
    /// a [`failure`](Self::failure) afterwards.
    pub(crate) fn compute<T: Send>(
        self: &Arc<Self>,
        trainer: &Trainer,
        replica: &Replica,
        shards: Vec<(u32, Views)>,
        work: impl Fn(&Bound, u32, Views) -> T + Sync,
    ) -> Vec<T> {
        // A GPU would keep memory for every thread that ever was, one for each shard of each step.
        let queue = DeviceQueue::current();
        thread::scope(|scope| {
            let threads = shards.into_iter().map(|(shard, views)| {
                let (lockstep, work) = (Arc::clone(self), &work);
                let compute = move || {
                    let presence = Presence(&lockstep);
                    let shards = AllShards::new(lockstep.clone(), shard, lockstep.shards);
                    let done = work(&trainer.bind(replica).among(shards), shard, views);
                    drop(presence);
                    done
                };
                scope.spawn(move || queue.executes(compute))
            });
            let threads: Vec<_> = threads.collect();
            let joined = threads.into_iter().map(thread::ScopedJoinHandle::join);
            joined.map(|outcome| outcome.unwrap_or_else(|panic| resume_unwind(panic))).collect()
        })
    }

    /// How long the sums since the last call of this took, half of them forward and half backward.
    pub(crate) fn take_seconds(&self) -> f64 {
        std::mem::take(&mut self.meeting().seconds)
    }

    /// Why a sum did not come about.
    pub(crate) fn failure(&self) -> Option<CollectiveError> {
        self.meeting().failure.take()
    }

    /// A meeting is whole at every point where a thread may panic.
    fn meeting(&self) -> MutexGuard<'_, Meeting> {
        self.meeting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ShardSum for Lockstep {
    fn sum(&self, shard: u32, values: &mut [f32]) {
        let mut meeting = self.meeting();
        let place = &mut meeting.brought[(shard - self.lease.start) as usize];
        place.clear();
        place.extend_from_slice(values);
        meeting.arrived += 1;
        if meeting.arrived == self.lease.len() {
            meeting.conclude();
            self.concluded.notify_all();
        } else {
            let turn = meeting.turn;
            let lasts = |meeting: &mut Meeting| meeting.turn == turn && !meeting.is_over;
            meeting = self.concluded.wait_while(meeting, lasts).unwrap_or_else(PoisonError::into_inner);
        }
        if !meeting.is_over {
            values.copy_from_slice(&meeting.sum);
        }
    }
}

impl Meeting {
    fn conclude(&mut self) {
        let begin = Instant::now();
        if !self.is_over
            && let Err(failure) = self.fold()
        {
            (self.failure, self.is_over) = (Some(failure), true);
        }
        self.seconds += begin.elapsed().as_secs_f64();
        self.arrived = 0;
        self.turn += 1;
    }

    /// Adds up what has been brought, which is equally long everywhere; what is left in the buckets behind it is of no
    /// interest.
    fn fold(&mut self) -> Result<(), CollectiveError> {
        let sums = self.collective.sums();
        sums.clear();
        for values in &self.brought {
            sums.next_bucket()[..values.len()].copy_from_slice(values);
            sums.commit();
        }
        let length = self.brought[0].len();
        let sum = self.collective.fold(self.turn)?;
        self.sum.clear();
        self.sum.extend_from_slice(&sum[..length]);
        Ok(())
    }
}

/// That a thread will come to the next meeting. If it panics, nobody waits for it.
struct Presence<'a>(&'a Lockstep);

impl Drop for Presence<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.meeting().is_over = true;
            self.0.concluded.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    /// Of one worker of a group in `hub`.
    fn lockstep(hub: &Hub, rank: usize, leases: &[Range<u32>], shards: u32) -> Arc<Lockstep> {
        let group = Group::new([0; 16], 1, rank, leases.to_vec(), shards).unwrap();
        let limit = Duration::from_secs(20);
        let limits = Limits { bucket_len: 4, rounded_len: 0, connect_deadline: limit, step_deadline: limit };
        let collective = hub.assemble(group, limits).unwrap();
        Arc::new(Lockstep::begin(collective, leases[rank].clone(), shards).unwrap())
    }

    /// What each of four shards finds in three sums of which the second is longer.
    fn found(leases: &[Range<u32>]) -> Vec<Vec<u32>> {
        let hub = Hub::default();
        let shard = |lockstep: &Lockstep, shard: u32| {
            let mut found = Vec::new();
            for length in [2, 4, 1] {
                let mut values: Vec<f32> = (0..length).map(|place| 0.1 * (shard + place) as f32).collect();
                lockstep.sum(shard, &mut values);
                found.extend(values.into_iter().map(f32::to_bits));
            }
            found
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..leases.len())
                .map(|rank| {
                    let (hub, shard) = (&hub, &shard);
                    scope.spawn(move || {
                        let lockstep = &lockstep(hub, rank, leases, 4);
                        thread::scope(|scope| {
                            let of = |number| scope.spawn(move || shard(lockstep, number));
                            let shards: Vec<_> = leases[rank].clone().map(of).collect();
                            shards.into_iter().map(|shard| shard.join().unwrap()).collect::<Vec<_>>()
                        })
                    })
                })
                .collect();
            workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
        })
    }

    #[test]
    #[expect(clippy::single_range_in_vec_init, reason = "a lease is a range, and one worker has one")]
    fn every_shard_finds_the_same_bits_whoever_leases_what() {
        let alone = found(&[0..4]);
        assert!(alone.iter().all(|shard| *shard == alone[0]));
        // 0.0 + 0.1 + 0.2 + 0.3, by twos.
        assert_eq!(alone[0][0], ((0.0 + 0.1_f32) + (0.1 * 2.0_f32 + 0.1 * 3.0_f32)).to_bits());
        for leases in [&[0..1, 1..4][..], &[0..2, 2..4], &[0..1, 1..2, 2..3, 3..4]] {
            assert_eq!(found(leases), alone, "{leases:?}");
        }
    }

    #[test]
    fn nobody_waits_for_who_panics_or_for_a_worker_that_is_gone() {
        let alone = Lockstep::alone(2, 4);
        thread::scope(|scope| {
            let _waits = scope.spawn(|| alone.sum(0, &mut [1.0]));
            let panics = scope.spawn(|| {
                let _presence = Presence(&alone);
                panic!("as a kernel might");
            });
            panics.join().unwrap_err();
        });
        assert!(alone.failure().is_none(), "the panic says it");

        let (hub, leases, both) = (Hub::default(), [0..1, 1..2], Barrier::new(2));
        thread::scope(|scope| {
            scope.spawn(|| {
                let left = lockstep(&hub, 1, &leases, 2);
                both.wait();
                drop(left);
            });
            let stays = lockstep(&hub, 0, &leases, 2);
            both.wait();
            let mut values = [1.5];
            stays.sum(0, &mut values);
            assert_eq!(values, [1.5], "as they were");
            assert!(stays.failure().is_some());
        });
    }
}
