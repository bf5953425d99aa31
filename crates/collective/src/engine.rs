//! One worker's place in a generation, whatever carries the floats: when a fold may begin, and what a failure ends.

use crate::{CollectiveError, Group, SubtreeSums};
use std::fmt::Debug;

/// What carries the floats between the workers of a group.
pub(crate) trait Engine: Debug + Send {
    /// What it carries them through, in words.
    fn medium(&self) -> &'static str;

    /// Sums all ranks' complete `sums` up to the root.
    fn fold(&mut self, step: u64, sums: &SubtreeSums) -> Result<(), CollectiveError>;

    /// The sum that the last fold left, given the sums that it was called with.
    fn folded<'a>(&'a self, sums: &'a SubtreeSums) -> &'a [f32];

    /// Ends this rank's part, so that the peers stop waiting at once. May be called again.
    fn leave(&mut self);
}

/// Folds buckets with the other workers of one generation.
#[derive(Debug)]
pub struct Collective {
    group: Group,
    bucket_len: usize,
    sums: SubtreeSums,
    engine: Box<dyn Engine>,
    is_poisoned: bool,
}

impl Collective {
    /// Sums that lie in memory of this process, and an engine that folds them.
    pub(crate) fn new(group: Group, bucket_len: usize, engine: Box<dyn Engine>) -> Self {
        let sums = SubtreeSums::new(group.lease(), bucket_len);
        Self::with_sums(group, bucket_len, sums, engine)
    }

    /// The same with sums that lie where the engine wants them.
    pub(crate) fn with_sums(
        group: Group,
        bucket_len: usize,
        sums: SubtreeSums,
        engine: Box<dyn Engine>,
    ) -> Self {
        let engine = if group.world() == 1 { Box::new(Alone) } else { engine };
        Self { group, bucket_len, sums, engine, is_poisoned: false }
    }

    /// Where the buckets of this worker's shards are added up. It must be complete before each fold, and is the
    /// same after it.
    pub fn sums(&mut self) -> &mut SubtreeSums {
        &mut self.sums
    }

    /// The sum of the buckets of all shards, bit-identical on every rank.
    ///
    /// Every rank calls this once a step, with the same `step`.
    ///
    /// # Errors
    /// An error ends the collective: every later fold fails with [`CollectiveError::Poisoned`], and the peers stop
    /// waiting at once. Those that have all they need from this rank may still end the same fold, and fail in the next.
    pub fn fold(&mut self, step: u64) -> Result<&[f32], CollectiveError> {
        if self.is_poisoned {
            return Err(CollectiveError::Poisoned);
        }
        let outcome = match self.sums.next_shard() {
            Some(shard) => Err(CollectiveError::IncompleteSums { shard }),
            None => self.engine.fold(step, &self.sums),
        };
        if let Err(error) = outcome {
            self.is_poisoned = true;
            self.engine.leave();
            // Peers may still read the old ones, where they lie in memory that is shared.
            self.sums = SubtreeSums::new(self.group.lease(), self.bucket_len);
            return Err(error);
        }
        Ok(self.engine.folded(&self.sums))
    }

    /// Whether its worker is the only one, whose own sum is the sum over all.
    pub fn is_alone(&self) -> bool {
        self.group.world() == 1
    }

    /// What the floats go through between the workers, in words.
    pub fn medium(&self) -> &'static str {
        self.engine.medium()
    }

    #[cfg(test)]
    pub(crate) fn group(&self) -> &Group {
        &self.group
    }

    #[cfg(test)]
    pub(crate) fn bucket_len(&self) -> usize {
        self.bucket_len
    }
}

impl Drop for Collective {
    fn drop(&mut self) {
        self.engine.leave();
    }
}

/// The only worker of its group: it leases all shards, so its sums have one node, and that is the root.
#[derive(Debug)]
struct Alone;

impl Engine for Alone {
    fn medium(&self) -> &'static str {
        "nothing"
    }

    fn fold(&mut self, _step: u64, _sums: &SubtreeSums) -> Result<(), CollectiveError> {
        Ok(())
    }

    fn folded<'a>(&'a self, sums: &'a SubtreeSums) -> &'a [f32] {
        sums.node_sum(0)
    }

    fn leave(&mut self) {}
}
