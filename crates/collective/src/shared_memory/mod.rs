//! The fold through memory that processes of one host share.
//!
//! All ranks map one segment. Each adds up its buckets so that its last sums lie in the segment without being copied
//! ([`SubtreeSums::at_home`]). The bucket is cut into chunks; whoever is free claims the next one, adds the sums of all
//! ranks in tree order, and writes the result, which all read where it lies. `handover.rs` tells who may touch which
//! floats when, `segment.rs` what lies where, `passing.rs` how a rank gets the segment.
//!
//! The connections over which the group was assembled stay open, with nothing sent: when a process is killed, the
//! kernel closes them, and the others notice.
//!
//! There are no checksums, as nothing is sent. A peer has proven to know the run's key and is trusted not to write
//! where it has no business; it could as well send wrong gradients. What it cannot do is to change the segment's size.

mod handover;
mod passing;
mod segment;
#[cfg(test)]
mod tests;
mod word;

pub(crate) use passing::{NAME_LEN, Offer};
pub(crate) use segment::Segment;

use crate::engine::Engine;
use crate::mesh::{BROKEN_OFF, Mesh, Peer, lost};
use crate::sums::Bucket;
use crate::tree::TreeFold;
use crate::{Collective, CollectiveError, Group, Limits, SubtreeSums};
use handover::{Handover, Phase, Turn};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use segment::{Home, Progress};
use std::hint;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

/// Floats in a chunk (128 KiB).
const CHUNK_LEN: usize = 32 * 1024;

/// How long a rank that waits sleeps before it looks whether a peer has ended, or the generation was interrupted.
const TICK: Duration = Duration::from_millis(4);

/// How long a rank looks for the others before it sleeps, where each has a processor: to be woken takes longer.
const SPIN_LIMIT: Duration = Duration::from_micros(30);

/// One worker's place in a segment.
#[derive(Debug)]
struct SharedMemory {
    group: Group,
    limits: Limits,
    tree: TreeFold,
    segment: Arc<Segment>,
    /// Nothing is sent to them.
    peers: Vec<Peer>,
    turn: Turn,
    folds: u64,
    spin_limit: Duration,
}

/// The fold through `segment`, between the workers of `mesh`.
pub(crate) fn collective(segment: Segment, mesh: Mesh, group: Group, limits: Limits) -> Collective {
    let segment = Arc::new(segment);
    let nodes = SubtreeSums::node_count(&group.lease());
    // SAFETY: the collective that they are given to lends its sums neither during a fold, which borrows it, nor after one
    // that has failed, when it takes others.
    let homes = unsafe { Home::all(&segment, nodes) };
    let homes = homes.into_iter().map(|home| Box::new(home) as Box<dyn Bucket>).collect();
    let sums = SubtreeSums::at_home(group.lease(), limits.bucket_len, homes);
    let chunks = limits.bucket_len.div_ceil(CHUNK_LEN);
    let has_processors = thread::available_parallelism().is_ok_and(|count| count.get() >= group.world());
    let engine = SharedMemory {
        group: group.clone(),
        limits,
        tree: TreeFold::new(group.leases()),
        segment,
        peers: mesh.peers,
        turn: Turn::new(group.world() as u32, chunks as u32),
        folds: 0,
        spin_limit: if has_processors { SPIN_LIMIT } else { Duration::ZERO },
    };
    Collective::with_sums(group, limits.bucket_len, sums, Box::new(engine))
}

impl Engine for SharedMemory {
    fn medium(&self) -> &'static str {
        "shared memory"
    }

    fn fold(&mut self, step: u64, _sums: &SubtreeSums) -> Result<(), CollectiveError> {
        let until = Instant::now() + self.limits.step_deadline;
        // Nothing is under way here: until it ends, a fold stands still.
        let _folding = self.group.standstill().fold();
        self.turn.advance();
        self.folds += 1;
        let turn = self.turn;
        let own = &self.segment.progress()[self.group.rank()];
        own.steps[self.steps_in_use()].store(step, Relaxed);
        own.phases.store(2 * self.folds - 1, Relaxed);
        self.handover().arrive(&turn);
        self.wait(until, |handover| handover.have_all_arrived(&turn))?;
        self.check_steps(step)?;
        while let Some(chunk) = self.handover().claim(&turn) {
            self.fold_chunk(chunk as usize);
            self.handover().finish_chunk(&turn);
        }
        self.segment.progress()[self.group.rank()].phases.store(2 * self.folds, Relaxed);
        self.wait(until, |handover| handover.are_all_folded(&turn))
    }

    fn folded<'a>(&'a self, _sums: &'a SubtreeSums) -> &'a [f32] {
        // SAFETY: the fold has ended, and while its result is borrowed this rank begins no other.
        unsafe { self.segment.result(0..self.limits.bucket_len) }
    }

    fn leave(&mut self) {
        self.handover().leave(self.group.rank() as u32);
    }
}

impl SharedMemory {
    fn handover(&self) -> &Handover<AtomicU32> {
        &self.segment.header().handover
    }

    /// Which of the two steps of each rank is that of this fold.
    fn steps_in_use(&self) -> usize {
        (self.folds % 2) as usize
    }

    /// Writes the sum of one chunk, which this rank has claimed.
    fn fold_chunk(&mut self, chunk: usize) {
        let start = chunk * CHUNK_LEN;
        let end = (start + CHUNK_LEN).min(self.limits.bucket_len);
        let segment = &*self.segment;
        // SAFETY: the chunk is claimed and not finished.
        let out = unsafe { segment.result_mut(start..end) };
        self.tree.fold(out, |source, range| {
            // SAFETY: all have arrived, and this chunk is not folded yet.
            unsafe { segment.sum(source.rank, source.position, start + range.start..start + range.end) }
        });
    }

    /// Whether all are in the same step; only once all have arrived.
    fn check_steps(&self, expected: u64) -> Result<(), CollectiveError> {
        let steps = self.segment.progress().iter().map(|rank| rank.steps[self.steps_in_use()].load(Relaxed));
        match steps.enumerate().find(|(_, step)| *step != expected) {
            None => Ok(()),
            Some((rank, found)) => Err(CollectiveError::Protocol { rank, field: "step", expected, found }),
        }
    }

    /// Waits for the end of a phase. One that has ended is never a failure, whoever has left since.
    fn wait(
        &self,
        until: Instant,
        is_over: impl Fn(&Handover<AtomicU32>) -> bool,
    ) -> Result<(), CollectiveError> {
        let handover = self.handover();
        let begin = Instant::now();
        while !is_over(handover) && begin.elapsed() < self.spin_limit {
            hint::spin_loop();
        }
        let mut peers = Ok(());
        loop {
            let bell = match handover.look(&is_over) {
                Phase::Over => return Ok(()),
                Phase::Abandoned { rank } => {
                    let reason = "it gave up this generation".to_string();
                    return Err(CollectiveError::PeerLost { rank: rank as usize, reason });
                }
                Phase::Lasting { bell } => bell,
            };
            peers?;
            self.group.check_interrupt()?;
            let now = Instant::now();
            if now >= until {
                let limit_ms = self.limits.step_deadline.as_millis() as u64;
                return Err(CollectiveError::Deadline {
                    rank: self.latest_rank(),
                    what: "the fold",
                    limit_ms,
                });
            }
            handover.sleep(bell, TICK.min(until - now));
            // Before the next look at the phase: a peer may end once it has done its part.
            peers = if now.elapsed() >= TICK { self.check_peers() } else { Ok(()) };
        }
    }

    /// The rank that is furthest behind.
    fn latest_rank(&self) -> usize {
        let phases = |progress: &Progress| progress.phases.load(Relaxed);
        let ranks = self.segment.progress().iter().map(phases).enumerate();
        ranks.min_by_key(|(_, phases)| *phases).map_or(0, |(rank, _)| rank)
    }

    /// Whether the processes of all peers still hold their connections.
    fn check_peers(&self) -> Result<(), CollectiveError> {
        let mut polled: Vec<_> =
            self.peers.iter().map(|peer| PollFd::new(&peer.stream, BROKEN_OFF)).collect();
        match poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                return Err(CollectiveError::Socket { what: "look after peers", source: error.into() });
            }
        }
        let gone = PollFlags::HUP | PollFlags::ERR | BROKEN_OFF;
        match self.peers.iter().zip(&polled).find(|(_, polled)| polled.revents().intersects(gone)) {
            None => Ok(()),
            Some((peer, _)) => Err(lost(peer.rank, &io::ErrorKind::ConnectionReset.into())),
        }
    }
}
