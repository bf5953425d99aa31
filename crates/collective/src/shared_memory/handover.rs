//! Who may touch which floats when: the words that processes hand floats over by.
//!
//! Every fold has two phases. A rank *arrives* once its sums are written; when all have arrived, the chunks of the
//! bucket are *claimed* one by one by whoever is free, who reads all ranks' sums of it and writes their sum; when all
//! chunks are *folded*, all may read the result, and write their sums for the next fold. Nobody writes the result again
//! before all have arrived again, and so have finished reading it.
//!
//! The counters only rise. A rank that is done may arrive for the next fold while a slow one still waits to see the
//! end of this one, so arrivals are compared in order and not for equality; the others cannot run ahead.
//!
//! What is written before a `Release` is seen after the `Acquire` that reads it, or a later count of it: these two, on
//! `arrived` and `folded`, are all that the floats are protected by. Tests go through the interleavings of two ranks, and
//! fail if one of them is weakened.

use super::word::Word;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::Duration;

/// Words that different ranks write at the same time lie apart: processors fetch two cache lines at once.
#[derive(Debug, Default)]
#[repr(C, align(128))]
struct Apart<W>(W);

/// The words that all ranks share; all zero at first.
#[derive(Debug, Default)]
#[repr(C)]
pub(super) struct Handover<W> {
    /// Arrivals of all ranks in all folds.
    arrived: Apart<W>,
    /// Chunks claimed in all folds.
    claimed: Apart<W>,
    /// Chunks folded in all folds.
    folded: Apart<W>,
    /// Changes when a phase ends or a rank leaves: what those who wait sleep on.
    bell: Apart<W>,
    /// One more than the rank that left first.
    left: Apart<W>,
}

/// Where the counters stand in a fold: the same on every rank.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    world: u32,
    chunks: u32,
    /// What `arrived` comes to when all have arrived.
    arrivals: u32,
    /// What `claimed` and `folded` were when the fold began.
    first_chunk: u32,
}

impl Turn {
    /// Before the first fold of `chunks` chunks between `world` ranks.
    pub(super) fn new(world: u32, chunks: u32) -> Self {
        Self { world, chunks, arrivals: 0, first_chunk: chunks.wrapping_neg() }
    }

    /// Goes on to the next fold. Counters may overflow; they are far apart from half their range.
    pub(super) fn advance(&mut self) {
        self.arrivals = self.arrivals.wrapping_add(self.world);
        self.first_chunk = self.first_chunk.wrapping_add(self.chunks);
    }

    fn last_chunk_end(&self) -> u32 {
        self.first_chunk.wrapping_add(self.chunks)
    }
}

/// What a rank that waits finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It may go on.
    Over,
    /// A rank has left, without which this phase never ends.
    Abandoned { rank: u32 },
    /// It may sleep until the bell shows something else.
    Lasting { bell: u32 },
}

impl<W: Word> Handover<W> {
    /// Gives this rank's sums to all, to be read until the fold ends.
    pub(super) fn arrive(&self, turn: &Turn) {
        let arrived = self.arrived.0.fetch_add(1, Release).wrapping_add(1);
        // A single chunk is folded by the last to arrive before anyone else is awake.
        if arrived == turn.arrivals && turn.chunks > 1 {
            self.ring();
        }
    }

    /// Whether all ranks' sums may be read.
    pub(super) fn have_all_arrived(&self, turn: &Turn) -> bool {
        self.arrived.0.load(Acquire).wrapping_sub(turn.arrivals) as i32 >= 0
    }

    /// The next chunk that nobody folds yet; only once all have arrived. Whoever claims it must fold it.
    pub(super) fn claim(&self, turn: &Turn) -> Option<u32> {
        // Relaxed: that all have arrived is known, and a chunk is nobody else's once this has counted it.
        let mut next = self.claimed.0.load(Relaxed);
        while next != turn.last_chunk_end() {
            match self.claimed.0.compare_exchange(next, next.wrapping_add(1), Relaxed, Relaxed) {
                Ok(_) => return Some(next.wrapping_sub(turn.first_chunk)),
                Err(newer) => next = newer,
            }
        }
        None
    }

    /// Gives the sum of one claimed chunk to all.
    pub(super) fn finish_chunk(&self, turn: &Turn) {
        let folded = self.folded.0.fetch_add(1, Release).wrapping_add(1);
        if folded == turn.last_chunk_end() {
            self.ring();
        }
    }

    /// Whether the result may be read, and the own sums written again.
    pub(super) fn are_all_folded(&self, turn: &Turn) -> bool {
        self.folded.0.load(Acquire) == turn.last_chunk_end()
    }

    /// Tells all that `rank` comes to no further fold.
    pub(super) fn leave(&self, rank: u32) {
        // If another has left before, that one is told of.
        let _ = self.left.0.compare_exchange(0, rank + 1, Release, Relaxed);
        self.ring();
    }

    /// How a phase stands whose end `is_over` tells.
    pub(super) fn look(&self, is_over: impl Fn(&Self) -> bool) -> Phase {
        // In this order. What happened before the bell came to show this is seen; what happens later changes the bell,
        // and nobody falls asleep over it. A rank that leaves has done its part of all folds before: if that has ended
        // the phase, it is seen to be over.
        let bell = self.bell.0.load(Acquire);
        let left = self.left.0.load(Acquire);
        match left.checked_sub(1) {
            _ if is_over(self) => Phase::Over,
            Some(rank) => Phase::Abandoned { rank },
            None => Phase::Lasting { bell },
        }
    }

    /// Sleeps until the bell no longer shows `seen`, or for `limit`, or for no reason.
    pub(super) fn sleep(&self, seen: u32, limit: Duration) {
        self.bell.0.sleep_while(seen, limit);
    }

    fn ring(&self) {
        self.bell.0.fetch_add(1, Release);
        self.bell.0.wake_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared_memory::word::LoomWord;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    const CHUNKS: u32 = 2;

    /// What a segment holds, of floats that loom watches: it fails when two threads may be at one of them, one writing.
    struct Memory {
        handover: Handover<LoomWord>,
        /// Of each rank, a sum for each chunk.
        sums: [[UnsafeCell<u32>; CHUNKS as usize]; 2],
        result: [UnsafeCell<u32>; CHUNKS as usize],
    }

    // SAFETY: not the compiler but loom sees to it that cells are not used by two threads at once.
    unsafe impl Sync for Memory {}

    fn wait(handover: &Handover<LoomWord>, is_over: impl Fn(&Handover<LoomWord>) -> bool) {
        loop {
            match handover.look(&is_over) {
                Phase::Over => return,
                Phase::Abandoned { rank } => panic!("rank {rank} left only after its last fold"),
                Phase::Lasting { bell } => handover.sleep(bell, Duration::MAX),
            }
        }
    }

    fn read(cell: &UnsafeCell<u32>) -> u32 {
        // SAFETY: as above.
        cell.with(|value| unsafe { *value })
    }

    fn write(cell: &UnsafeCell<u32>, new: u32) {
        // SAFETY: as above.
        cell.with_mut(|value| unsafe { *value = new });
    }

    fn rank_main(memory: &Memory, rank: usize, folds: u32) {
        let Memory { handover, sums, result } = memory;
        let mut turn = Turn::new(2, CHUNKS);
        for fold in 0..folds {
            turn.advance();
            for (chunk, sum) in (0..).zip(&sums[rank]) {
                write(sum, 100 * fold + 10 * rank as u32 + chunk);
            }
            handover.arrive(&turn);
            wait(handover, |handover| handover.have_all_arrived(&turn));
            while let Some(chunk) = handover.claim(&turn) {
                let [left, right] = sums.each_ref().map(|sums| read(&sums[chunk as usize]));
                write(&result[chunk as usize], left + right);
                handover.finish_chunk(&turn);
            }
            wait(handover, |handover| handover.are_all_folded(&turn));
            for (chunk, sum) in (0..).zip(result) {
                assert_eq!(read(sum), 200 * fold + 10 + 2 * chunk);
            }
        }
        handover.leave(rank as u32);
    }

    #[test]
    fn no_interleaving_of_two_ranks_races_or_sleeps_for_ever() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(2);
        model.check(|| {
            let cell = || UnsafeCell::new(0);
            let cells = || [cell(), cell()];
            let memory = Memory { handover: Handover::default(), sums: [cells(), cells()], result: cells() };
            let memory = Arc::new(memory);
            let other = thread::spawn({
                let memory = Arc::clone(&memory);
                move || rank_main(&memory, 1, 2)
            });
            rank_main(&memory, 0, 2);
            other.join().unwrap();
        });
    }

    #[test]
    fn who_leaves_wakes_who_waits() {
        loom::model(|| {
            let handover = Arc::new(Handover::<LoomWord>::default());
            let other = thread::spawn({
                let handover = Arc::clone(&handover);
                move || handover.leave(1)
            });
            while let Phase::Lasting { bell } = handover.look(|_| false) {
                handover.sleep(bell, Duration::MAX);
            }
            assert_eq!(handover.look(|_| false), Phase::Abandoned { rank: 1 });
            other.join().unwrap();
        });
    }

    #[test]
    fn counters_may_overflow() {
        let handover = Handover::<std::sync::atomic::AtomicU32>::default();
        let mut turn = Turn::new(1, 3);
        let start = u32::MAX - 4;
        turn.arrivals = start;
        turn.first_chunk = start.wrapping_sub(3);
        for counter in [&handover.arrived, &handover.claimed, &handover.folded] {
            counter.0.store(start, Relaxed);
        }
        for _ in 0..10 {
            turn.advance();
            assert!(!handover.have_all_arrived(&turn));
            handover.arrive(&turn);
            assert!(handover.have_all_arrived(&turn));
            for chunk in 0..3 {
                assert!(!handover.are_all_folded(&turn));
                assert_eq!(handover.claim(&turn), Some(chunk));
                handover.finish_chunk(&turn);
            }
            assert_eq!(handover.claim(&turn), None);
            assert!(handover.are_all_folded(&turn));
        }
    }
}
