//! Who folds together: one generation's workers and the shards each of them leases.

use crate::checksum::Checksum;
use crate::{CollectiveError, Interrupt, Standstill};
use std::ops::Range;

/// One generation of a run, seen by one of its workers. A value of this type is always valid.
#[derive(Clone, Debug)]
pub struct Group {
    run: [u8; 16],
    generation: u64,
    rank: usize,
    leases: Vec<Range<u32>>,
    shards: u32,
    interrupt: Interrupt,
    standstill: Standstill,
}

/// Why leases and ranks do not make a group.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// The tree needs a power of two.
    #[error("expected a power of two of shards, found {0}")]
    Shards(u32),
    /// The rank is not one of the leases'.
    #[error("expected a rank below {world}, found {rank}")]
    Rank {
        /// This worker's rank.
        rank: usize,
        /// Workers in the group.
        world: usize,
    },
    /// More workers than a frame can name.
    #[error("expected at most 65536 workers, found {0}")]
    World(usize),
    /// A lease is empty, overlaps its neighbour or leaves a gap.
    #[error(
        "expected the lease of rank {rank} to start at shard {expected} and not be empty, found {found:?}"
    )]
    Lease {
        /// Whose lease.
        rank: usize,
        /// The first shard no lower rank holds.
        expected: u32,
        /// The lease given.
        found: Range<u32>,
    },
    /// The leases end before, or after, the last shard.
    #[error("expected the leases to end at shard {expected}, found {found}")]
    End {
        /// The number of shards.
        expected: u32,
        /// Where the last lease ends.
        found: u32,
    },
}

impl Group {
    /// A group in which rank `r` leases `leases[r]`; the leases must partition `0..shards` in rank order.
    ///
    /// # Errors
    /// Says what keeps the arguments from being a group.
    pub fn new(
        run: [u8; 16],
        generation: u64,
        rank: usize,
        leases: Vec<Range<u32>>,
        shards: u32,
    ) -> Result<Self, GroupError> {
        let world = leases.len();
        if !shards.is_power_of_two() {
            return Err(GroupError::Shards(shards));
        }
        if rank >= world {
            return Err(GroupError::Rank { rank, world });
        }
        if world > usize::from(u16::MAX) + 1 {
            return Err(GroupError::World(world));
        }
        let mut expected = 0;
        for (rank, lease) in leases.iter().enumerate() {
            if lease.start != expected || lease.is_empty() {
                return Err(GroupError::Lease { rank, expected, found: lease.clone() });
            }
            expected = lease.end;
        }
        if expected != shards {
            return Err(GroupError::End { expected: shards, found: expected });
        }
        let (interrupt, standstill) = (Interrupt::default(), Standstill::default());
        Ok(Self { run, generation, rank, leases, shards, interrupt, standstill })
    }

    /// The same group, whose waiting `interrupt` ends.
    #[must_use]
    pub fn interrupted_by(self, interrupt: Interrupt) -> Self {
        Self { interrupt, ..self }
    }

    /// What ends this generation's waiting.
    #[cfg(feature = "nccl")]
    pub(crate) fn interrupt(&self) -> Interrupt {
        self.interrupt.clone()
    }

    /// The same group, where `standstill` tells how its folds move.
    #[must_use]
    pub fn observed_by(self, standstill: Standstill) -> Self {
        Self { standstill, ..self }
    }

    pub(crate) fn standstill(&self) -> &Standstill {
        &self.standstill
    }

    /// Fails once this generation is interrupted.
    pub(crate) fn check_interrupt(&self) -> Result<(), CollectiveError> {
        match self.interrupt.is_raised() {
            true => Err(CollectiveError::Interrupted { generation: self.generation }),
            false => Ok(()),
        }
    }

    /// The run, so that workers of two runs never mix.
    pub fn run(&self) -> [u8; 16] {
        self.run
    }

    /// The generation: one fixed membership.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// This worker's place in the generation.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Workers in the generation.
    pub fn world(&self) -> usize {
        self.leases.len()
    }

    /// The shards of every rank, in rank order.
    pub fn leases(&self) -> &[Range<u32>] {
        &self.leases
    }

    /// The shards of this worker.
    pub fn lease(&self) -> Range<u32> {
        self.leases[self.rank].clone()
    }

    /// Shards in the run.
    pub fn shards(&self) -> u32 {
        self.shards
    }

    /// One number that two workers share only if they hold the same view of the leases.
    pub(crate) fn leases_checksum(&self) -> u32 {
        let mut checksum = Checksum::default();
        for end in self.leases.iter().flat_map(|lease| [lease.start, lease.end]) {
            checksum.add(&end.to_le_bytes());
        }
        checksum.value()
    }
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "a lease is a range, and one worker has one")]
mod tests {
    use super::*;

    #[test]
    fn only_partitions_in_rank_order_are_groups() {
        let check = |rank, leases: &[Range<u32>], shards| {
            Group::new([0; 16], 1, rank, leases.to_vec(), shards).map(|_| ())
        };
        assert_eq!(check(0, &[0..1], 1), Ok(()));
        assert_eq!(check(2, &[0..3, 3..6, 6..8], 8), Ok(()));
        assert_eq!(check(0, &[0..6], 6), Err(GroupError::Shards(6)));
        assert_eq!(check(0, &[0..0], 0), Err(GroupError::Shards(0)));
        assert_eq!(check(1, &[0..4], 4), Err(GroupError::Rank { rank: 1, world: 1 }));
        assert_eq!(check(0, &[], 4), Err(GroupError::Rank { rank: 0, world: 0 }));
        assert_eq!(check(0, &[0..2, 3..4], 4), Err(GroupError::Lease { rank: 1, expected: 2, found: 3..4 }));
        assert_eq!(check(0, &[0..3, 2..4], 4), Err(GroupError::Lease { rank: 1, expected: 3, found: 2..4 }));
        assert_eq!(check(0, &[0..4, 4..4], 4), Err(GroupError::Lease { rank: 1, expected: 4, found: 4..4 }));
        assert_eq!(check(0, &[2..4, 0..2], 4), Err(GroupError::Lease { rank: 0, expected: 0, found: 2..4 }));
        assert_eq!(check(0, &[0..2], 4), Err(GroupError::End { expected: 4, found: 2 }));
        assert_eq!(check(0, &[0..2, 2..5], 4), Err(GroupError::End { expected: 4, found: 5 }));
    }
}
