//! A worker's own part of the fold: the sums of the subtrees of its lease, added up as shards are finished.

use crate::tree::{Node, add_right, subtrees};
use std::ops::Range;

/// Adds up the buckets of one worker's shards, pushed in rising order.
///
/// Siblings are added as soon as both exist, like the carries of a binary counter, so that at most
/// `2 + log2(shards)` buckets are held for an aligned lease; once all shards are pushed there is one sum for
/// each node of [`subtrees`] of the lease. Buffers are kept from step to step.
#[derive(Debug)]
pub struct SubtreeSums {
    lease: Range<u32>,
    bucket_len: usize,
    next_shard: u32,
    /// Sums that have no sibling yet, from the left.
    pending: Vec<(Node, Vec<f32>)>,
    /// Buffers out of use.
    spare: Vec<Vec<f32>>,
}

impl SubtreeSums {
    /// Sums for the shards `lease`, of `bucket_len` floats each.
    pub fn new(lease: Range<u32>, bucket_len: usize) -> Self {
        let next_shard = lease.start;
        Self { lease, bucket_len, next_shard, pending: Vec::new(), spare: Vec::new() }
    }

    /// Forgets all pushed buckets, for the next step; memory is kept.
    pub fn clear(&mut self) {
        self.next_shard = self.lease.start;
        self.spare.extend(self.pending.drain(..).map(|(_, sum)| sum));
    }

    /// The bucket (`bucket_len` floats, contents arbitrary) to be filled for [`next_shard`](Self::next_shard);
    /// it counts once [`commit`](Self::commit) is called.
    pub fn next_bucket(&mut self) -> &mut [f32] {
        if self.spare.is_empty() {
            self.spare.push(vec![0.0; self.bucket_len]);
        }
        self.spare.last_mut().expect("one was pushed if there was none")
    }

    /// Takes the bucket of the next shard and adds what can be added.
    ///
    /// # Panics
    /// If the lease is already complete, or no bucket was filled: a mistake of the caller's.
    pub fn commit(&mut self) {
        let shard = self.next_shard().expect("a lease has no more shards than it names");
        let mut node = Node::leaf(shard);
        let mut sum = self.spare.pop().expect("next_bucket comes before commit");
        while let Some(parent) = self.pending.last().and_then(|(left, _)| left.join(node)) {
            let (_, mut left) = self.pending.pop().expect("a parent was found for the last entry");
            add_right(&mut left, &sum);
            self.spare.push(std::mem::replace(&mut sum, left));
            node = parent;
        }
        self.pending.push((node, sum));
        self.next_shard += 1;
    }

    /// The shard whose bucket comes next; `None` once the lease is complete.
    pub fn next_shard(&self) -> Option<u32> {
        (self.next_shard < self.lease.end).then_some(self.next_shard)
    }

    /// The shards that are summed.
    pub fn lease(&self) -> Range<u32> {
        self.lease.clone()
    }

    /// Floats in a bucket.
    pub fn bucket_len(&self) -> usize {
        self.bucket_len
    }

    /// The nodes summed so far, from the left, each with its sum; of a complete lease, its [`subtrees`].
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = (Node, &[f32])> {
        self.pending.iter().map(|(node, sum)| (*node, sum.as_slice()))
    }

    /// The sum of the node at `position` in [`nodes`](Self::nodes).
    pub(crate) fn node_sum(&self, position: usize) -> &[f32] {
        &self.pending[position].1
    }

    /// How many nodes a complete lease has.
    pub(crate) fn node_count(lease: &Range<u32>) -> usize {
        subtrees(lease.clone()).len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_grows_with_the_logarithm_and_is_reused() {
        let mut sums = SubtreeSums::new(0..64, 8);
        for _ in 0..3 {
            while let Some(shard) = sums.next_shard() {
                sums.next_bucket().fill(shard as f32);
                sums.commit();
                assert!(sums.pending.len() + sums.spare.len() <= 8);
            }
            let nodes: Vec<_> = sums.nodes().collect();
            assert_eq!(nodes, [(Node { level: 6, index: 0 }, [2016.0; 8].as_slice())]);
            sums.clear();
            assert_eq!((sums.next_shard(), sums.pending.len()), (Some(0), 0));
        }
    }
}
