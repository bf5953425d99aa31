//! The fold: the sum of the shards' buckets, in an order that does not depend on the number of workers.
//!
//! Shards are the leaves of a fixed binary tree. A worker adds up the aligned subtrees of the shards it leases
//! ([`SubtreeSums`]); a [`Collective`] adds the rest, in the same tree, and leaves the same bits on every
//! worker. Floating-point addition is not associative, so this order is what makes a run a function of its
//! recipe and not of its cluster.
//!
//! This crate never knows what the floats mean, who coordinates, or what a step does with the sum.
//! Start at [`Node`], then [`SubtreeSums`], then [`Collective`], then [`tcp`].

mod checksum;
mod error;
mod group;
mod interrupt;
mod key;
mod layout;
pub mod loopback;
mod sums;
pub mod tcp;
mod tree;

#[cfg(test)]
mod testing;

pub use error::CollectiveError;
pub use group::{Group, GroupError};
pub use interrupt::Interrupt;
pub use key::Key;
pub use sums::SubtreeSums;
pub use tree::{Node, subtrees};

use std::time::Duration;

/// Folds buckets with the other workers of one generation.
pub trait Collective: Send {
    /// Sums the buckets of all shards into `folded` (`bucket_len` floats), bit-identical on every rank.
    ///
    /// Every rank calls this once a step, with the same `step` and complete sums of its own lease.
    ///
    /// # Errors
    /// The step's sum is then not to be used. An error ends the collective: every later fold fails with
    /// [`CollectiveError::Poisoned`], and the peers learn of it at once.
    fn fold(&mut self, step: u64, sums: &SubtreeSums, folded: &mut [f32]) -> Result<(), CollectiveError>;
}

/// How long a collective waits, and for how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Floats in a bucket; the same on every rank.
    pub bucket_len: usize,
    /// How long the assembly of the group may take, from its call.
    pub connect_deadline: Duration,
    /// How long one fold may take, from its call: it covers waiting for the slowest worker to come to it.
    pub step_deadline: Duration,
}

/// What every engine checks before it folds: the sums are whole, and are those of this lease and bucket.
fn check_arguments(
    group: &Group,
    limits: &Limits,
    sums: &SubtreeSums,
    folded: &[f32],
) -> Result<(), CollectiveError> {
    if sums.lease() != group.lease() {
        return Err(CollectiveError::ForeignSums { expected: group.lease(), found: sums.lease() });
    }
    if let Some(shard) = sums.next_shard() {
        return Err(CollectiveError::IncompleteSums { shard });
    }
    for found in [sums.bucket_len(), folded.len()] {
        if found != limits.bucket_len {
            return Err(CollectiveError::BucketLength { expected: limits.bucket_len, found });
        }
    }
    Ok(())
}
