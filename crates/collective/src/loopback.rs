//! The fold between threads of one process: for tests, and for a worker whose peers are its own threads.
//!
//! Every rank copies its sums to a place all can read, folds its own slice, and copies the slices of all. Two
//! meetings keep these phases apart; whoever leaves is missed at the next meeting, so nobody hangs.

use crate::engine::Engine;
use crate::interrupt::INTERRUPT_TICK;
use crate::layout::Layout;
use crate::tree::TreeFold;
use crate::{Collective, CollectiveError, Group, Limits, SubtreeSums};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// Where the threads of one run meet; clones are the same place.
#[derive(Clone, Debug, Default)]
pub struct Hub {
    lobby: Arc<(Mutex<Lobby>, Condvar)>,
}

/// The newest generation that anyone has asked for.
#[derive(Debug, Default)]
struct Lobby {
    newest: Option<Assembly>,
}

#[derive(Debug)]
struct Assembly {
    group: Group,
    bucket_len: usize,
    seated: Vec<bool>,
    room: Arc<Room>,
}

/// What one generation shares.
#[derive(Debug)]
struct Room {
    progress: Mutex<Progress>,
    moved: Condvar,
    /// The subtree sums of each rank, one after another.
    sums: Vec<RwLock<Vec<f32>>>,
    /// The folded slice of each rank.
    slices: Vec<RwLock<Vec<f32>>>,
}

#[derive(Debug)]
struct Progress {
    /// Meetings that each rank has come to.
    meetings: Vec<u64>,
    /// The step that each rank is in.
    steps: Vec<u64>,
    /// Ranks that come to no further meeting.
    gone: Vec<bool>,
}

/// One thread's place in a generation.
#[derive(Debug)]
struct Loopback {
    group: Group,
    limits: Limits,
    layout: Layout,
    tree: TreeFold,
    room: Arc<Room>,
    folded: Vec<f32>,
}

impl Hub {
    /// Waits until all ranks of `group` have come here.
    ///
    /// # Errors
    /// [`CollectiveError::Deadline`] names a rank that did not come, [`CollectiveError::Superseded`] means that
    /// someone has asked for a newer generation, [`CollectiveError::Protocol`] that two views of this one differ.
    pub fn assemble(&self, group: Group, limits: Limits) -> Result<Collective, CollectiveError> {
        let until = Instant::now() + limits.connect_deadline;
        let (lobby, changed) = &*self.lobby;
        let mut lobby = lock(lobby);
        let room = lobby.take_seat(&group, &limits)?;
        changed.notify_all();
        loop {
            let assembly = lobby.newest.as_mut().expect("a seat was taken in one");
            let theirs = assembly.group.generation();
            if theirs != group.generation() {
                return Err(CollectiveError::Superseded { ours: group.generation(), theirs });
            }
            let Some(missing) = assembly.seated.iter().position(|seated| !seated) else { break };
            let now = Instant::now();
            let given_up = match group.check_interrupt() {
                Ok(()) if now < until => None,
                Ok(()) => Some(late(missing, "the assembly of the group", limits.connect_deadline)),
                Err(interrupted) => Some(interrupted),
            };
            if let Some(error) = given_up {
                assembly.seated[group.rank()] = false;
                return Err(error);
            }
            let tick = INTERRUPT_TICK.min(until - now);
            lobby = changed.wait_timeout(lobby, tick).unwrap_or_else(PoisonError::into_inner).0;
        }
        let layout = Layout::new(limits.bucket_len, group.world(), limits.bucket_len.max(1));
        let tree = TreeFold::new(group.leases());
        let folded = vec![0.0; limits.bucket_len];
        let engine = Loopback { group: group.clone(), limits, layout, tree, room, folded };
        Ok(Collective::new(group, limits.bucket_len, Box::new(engine)))
    }
}

impl Lobby {
    fn take_seat(&mut self, group: &Group, limits: &Limits) -> Result<Arc<Room>, CollectiveError> {
        let stands = self.newest.as_ref().map(|assembly| assembly.group.generation());
        if let Some(theirs) = stands.filter(|theirs| *theirs > group.generation()) {
            return Err(CollectiveError::Superseded { ours: group.generation(), theirs });
        }
        // Once all are seated, the next who come assemble once more: a group may fold through several collectives.
        let is_open = self.newest.as_ref().is_some_and(|assembly| assembly.seated.contains(&false));
        if stands != Some(group.generation()) || !is_open {
            self.newest = Some(Assembly {
                group: group.clone(),
                bucket_len: limits.bucket_len,
                seated: vec![false; group.world()],
                room: Arc::new(Room::new(group, limits.bucket_len)),
            });
        }
        let assembly = self.newest.as_mut().expect("one was put there if there was none");
        let rank = assembly.group.rank();
        let pairs = [
            ("bucket length", limits.bucket_len as u64, assembly.bucket_len as u64),
            ("number of shards", group.shards().into(), assembly.group.shards().into()),
            ("leases (checksum)", group.leases_checksum().into(), assembly.group.leases_checksum().into()),
            ("run (first bytes)", run_number(group), run_number(&assembly.group)),
            (
                "seats taken at its rank",
                0,
                assembly.seated.get(group.rank()).copied().unwrap_or(false).into(),
            ),
        ];
        for (field, expected, found) in pairs {
            if expected != found {
                return Err(CollectiveError::Protocol { rank, field, expected, found });
            }
        }
        assembly.seated[group.rank()] = true;
        Ok(Arc::clone(&assembly.room))
    }
}

/// Enough of the run's name to tell two runs apart in a message.
fn run_number(group: &Group) -> u64 {
    u64::from_be_bytes(group.run().first_chunk().copied().expect("a run has 16 bytes"))
}

fn late(rank: usize, what: &'static str, limit: Duration) -> CollectiveError {
    CollectiveError::Deadline { rank, what, limit_ms: limit.as_millis() as u64 }
}

/// The guarded value, also after a panic elsewhere: that thread's place is then given up by its drop.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Room {
    fn new(group: &Group, bucket_len: usize) -> Self {
        let layout = Layout::new(bucket_len, group.world(), bucket_len.max(1));
        let world = group.world();
        let floats = |len: usize| RwLock::new(vec![0.0; len]);
        Self {
            progress: Mutex::new(Progress {
                meetings: vec![0; world],
                steps: vec![0; world],
                gone: vec![false; world],
            }),
            moved: Condvar::new(),
            sums: group
                .leases()
                .iter()
                .map(|lease| floats(SubtreeSums::node_count(lease) * bucket_len))
                .collect(),
            slices: (0..world).map(|rank| floats(layout.slice(rank).len())).collect(),
        }
    }

    /// Comes to the next meeting and waits for all others.
    fn meet(&self, group: &Group, step: u64, until: Instant, limit: Duration) -> Result<(), CollectiveError> {
        let rank = group.rank();
        let mut progress = lock(&self.progress);
        progress.steps[rank] = step;
        progress.meetings[rank] += 1;
        let meeting = progress.meetings[rank];
        self.moved.notify_all();
        loop {
            let absent = |rank: &usize| progress.meetings[*rank] < meeting;
            let world = progress.meetings.len();
            if let Some(rank) = (0..world).filter(absent).find(|rank| progress.gone[*rank]) {
                return Err(CollectiveError::PeerLost {
                    rank,
                    reason: "its thread gave up the group".into(),
                });
            }
            let Some(missing) = (0..world).find(absent) else { return Ok(()) };
            group.check_interrupt()?;
            let now = Instant::now();
            if now >= until {
                return Err(late(missing, "the fold", limit));
            }
            let tick = INTERRUPT_TICK.min(until - now);
            progress = self.moved.wait_timeout(progress, tick).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Checks that all are in the same step. Only for the time between a fold's two meetings: after the second
    /// the first ones may be on their way to the next step.
    fn check_steps(&self, expected: u64) -> Result<(), CollectiveError> {
        let progress = lock(&self.progress);
        match progress.steps.iter().copied().enumerate().find(|(_, step)| *step != expected) {
            None => Ok(()),
            Some((rank, found)) => Err(CollectiveError::Protocol { rank, field: "step", expected, found }),
        }
    }

    fn leave(&self, rank: usize) {
        lock(&self.progress).gone[rank] = true;
        self.moved.notify_all();
    }
}

impl Engine for Loopback {
    fn medium(&self) -> &'static str {
        "memory of this process"
    }

    fn fold(&mut self, step: u64, sums: &SubtreeSums) -> Result<(), CollectiveError> {
        let Self { group, limits, layout, tree, room, folded } = self;
        let rank = group.rank();
        let until = Instant::now() + limits.step_deadline;
        {
            let mut shared = room.sums[rank].write().unwrap_or_else(PoisonError::into_inner);
            for (shared, (_, sum)) in shared.chunks_mut(limits.bucket_len.max(1)).zip(sums.nodes()) {
                shared.copy_from_slice(sum);
            }
        }
        room.meet(group, step, until, limits.step_deadline)?;
        room.check_steps(step)?;
        {
            let all: Vec<_> =
                room.sums.iter().map(|sums| sums.read().unwrap_or_else(PoisonError::into_inner)).collect();
            let slice = layout.slice(rank);
            let mut out = room.slices[rank].write().unwrap_or_else(PoisonError::into_inner);
            tree.fold(&mut out, |source, range| {
                let start = source.position * limits.bucket_len + slice.start;
                &all[source.rank][start + range.start..start + range.end]
            });
        }
        room.meet(group, step, until, limits.step_deadline)?;
        // The next writer of a slice has been to the next step's first meeting, and so has every reader here.
        for (rank, slice) in room.slices.iter().enumerate() {
            let slice = slice.read().unwrap_or_else(PoisonError::into_inner);
            folded[layout.slice(rank)].copy_from_slice(&slice);
        }
        Ok(())
    }

    fn folded<'a>(&'a self, _sums: &'a SubtreeSums) -> &'a [f32] {
        &self.folded
    }

    fn leave(&mut self) {
        self.room.leave(self.group.rank());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Interrupt;
    use crate::testing::{fold_and_compare, fold_error, group, limits};
    use std::thread;

    #[test]
    fn every_world_and_size_folds_to_the_same_bits() {
        for world in [1, 2, 3, 4, 8] {
            for len in [1, 15, 16, 17, 1000, 100_003] {
                let hub = Hub::default();
                thread::scope(|scope| {
                    for rank in 0..world {
                        let hub = hub.clone();
                        scope.spawn(move || {
                            let group = group(1, rank, world, 8);
                            let mut collective = hub.assemble(group, limits(len)).unwrap();
                            for step in 0..4 {
                                fold_and_compare(&mut collective, step);
                            }
                        });
                    }
                });
            }
        }
    }

    /// Lets `world` threads assemble; the last does `other`, the rest fold step 0 and return their errors.
    fn fold_without(
        world: usize,
        limits: Limits,
        other: impl Fn(Collective) -> Option<Collective> + Sync,
    ) -> Vec<CollectiveError> {
        let hub = Hub::default();
        let kept = Mutex::new(Vec::new());
        thread::scope(|scope| {
            let fold = |rank| {
                let group = group(1, rank, world, 8);
                let mut collective = hub.assemble(group, limits).unwrap();
                if rank == world - 1 {
                    kept.lock().unwrap().extend(other(collective));
                    return None;
                }
                Some(fold_error(&mut collective, 0))
            };
            let threads: Vec<_> = (0..world).map(|rank| scope.spawn(move || fold(rank))).collect();
            threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn a_dropped_member_fails_the_others_at_once() {
        let errors = fold_without(3, limits(100), |collective| {
            drop(collective);
            None
        });
        assert_eq!(errors.len(), 2);
        assert!(errors.iter().all(|error| matches!(error, CollectiveError::PeerLost { .. })), "{errors:?}");
    }

    #[test]
    fn a_stalled_member_is_late() {
        let short = Limits { step_deadline: Duration::from_millis(50), ..limits(100) };
        let errors = fold_without(3, short, Some);
        assert!(
            errors.iter().any(|error| matches!(error, CollectiveError::Deadline { rank: 2, .. })),
            "{errors:?}"
        );
    }

    #[test]
    fn another_step_is_named() {
        let errors = fold_without(2, limits(100), |mut collective| {
            fold_error(&mut collective, 5);
            None
        });
        let expected = |error: &CollectiveError| {
            matches!(error, CollectiveError::Protocol { rank: 1, field: "step", expected: 0, found: 5 })
        };
        assert!(errors.iter().all(expected), "{errors:?}");
    }

    #[test]
    fn generations_are_fenced() {
        let hub = Hub::default();
        let short = Limits { connect_deadline: Duration::from_millis(20), ..limits(10) };
        let alone = hub.assemble(group(4, 0, 2, 4), short).unwrap_err();
        assert!(matches!(alone, CollectiveError::Deadline { rank: 1, .. }), "{alone}");
        let stale = hub.assemble(group(3, 0, 2, 4), limits(10)).unwrap_err();
        assert!(matches!(stale, CollectiveError::Superseded { ours: 3, theirs: 4 }), "{stale}");
        let longer = hub.assemble(group(4, 0, 2, 4), limits(11)).unwrap_err();
        let named = CollectiveError::Protocol { rank: 0, field: "bucket length", expected: 11, found: 10 };
        assert_eq!(longer.to_string(), named.to_string());
        let waiting = thread::spawn({
            let hub = hub.clone();
            move || hub.assemble(group(4, 0, 2, 4), limits(10)).unwrap_err()
        });
        while !hub.lobby.0.lock().unwrap().newest.as_ref().is_some_and(|assembly| assembly.seated[0]) {
            thread::yield_now();
        }
        hub.assemble(group(5, 0, 1, 4), limits(10)).unwrap();
        let superseded = waiting.join().unwrap();
        assert!(matches!(superseded, CollectiveError::Superseded { ours: 4, theirs: 5 }), "{superseded}");
    }

    #[test]
    fn an_interrupt_ends_assembly_and_fold() {
        let hub = Hub::default();
        let interrupt = Interrupt::default();
        interrupt.raise();
        let alone = hub.assemble(group(1, 0, 2, 4).interrupted_by(interrupt), limits(10)).unwrap_err();
        assert!(matches!(alone, CollectiveError::Interrupted { generation: 1 }), "{alone}");
        // And the seat is free for who was told to take it.
        let interrupt = Interrupt::default();
        thread::scope(|scope| {
            let first = group(1, 0, 2, 4).interrupted_by(interrupt.clone());
            let waiting = scope.spawn(|| {
                let mut collective = hub.assemble(first, limits(10)).unwrap();
                fold_error(&mut collective, 0)
            });
            let _silent = hub.assemble(group(1, 1, 2, 4), limits(10)).unwrap();
            interrupt.raise();
            let error = waiting.join().unwrap();
            assert!(matches!(error, CollectiveError::Interrupted { generation: 1 }), "{error}");
        });
    }
}
