//! A worker's own part of the fold: the sums of the subtrees of its lease, added up as shards are finished.

use crate::tree::{Node, add_right, subtrees};
use std::fmt::Debug;
use std::ops::{DerefMut, Range};

/// Where a bucket lies: in this process's own memory, or in memory that others read during a fold.
pub(crate) trait Bucket: DerefMut<Target = [f32]> + Debug + Send {}

impl<T: DerefMut<Target = [f32]> + Debug + Send> Bucket for T {}

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
    /// What a complete lease has sums of.
    nodes: Vec<Node>,
    /// The buffer that the sum of each of these nodes ends up in, while it is out of use. A parent's sum takes the
    /// place of its left child's, so that is the buffer which the node's first shard is pushed into.
    homes: Vec<Option<Box<dyn Bucket>>>,
    /// Sums that have no sibling yet, from the left.
    pending: Vec<(Node, Box<dyn Bucket>)>,
    /// Other buffers out of use.
    spare: Vec<Box<dyn Bucket>>,
}

impl SubtreeSums {
    /// Sums for the shards `lease`, of `bucket_len` floats each, in memory of this process.
    pub fn new(lease: Range<u32>, bucket_len: usize) -> Self {
        let home = |_| Box::new(vec![0.0_f32; bucket_len]) as Box<dyn Bucket>;
        let homes = subtrees(lease.clone()).into_iter().map(home).collect();
        Self::at_home(lease, bucket_len, homes)
    }

    /// The same, whose last sums lie in `homes`, one of `bucket_len` floats for each of the lease's [`subtrees`].
    pub(crate) fn at_home(lease: Range<u32>, bucket_len: usize, homes: Vec<Box<dyn Bucket>>) -> Self {
        let nodes = subtrees(lease.clone());
        assert_eq!(homes.len(), nodes.len(), "each subtree has a home");
        assert!(homes.iter().all(|home| home.len() == bucket_len), "homes have the length of a bucket");
        let next_shard = lease.start;
        let homes = homes.into_iter().map(Some).collect();
        Self { lease, bucket_len, next_shard, nodes, homes, pending: Vec::new(), spare: Vec::new() }
    }

    /// Forgets all pushed buckets, for the next step; memory is kept.
    pub fn clear(&mut self) {
        self.next_shard = self.lease.start;
        for (position, (node, sum)) in std::mem::take(&mut self.pending).into_iter().enumerate() {
            match self.is_home(position, node.shards().start) {
                true => self.homes[position] = Some(sum),
                false => self.spare.push(sum),
            }
        }
    }

    /// Whether the sum at `position`, which begins with `shard`, lies in a home: it does if a subtree begins there.
    /// Left of it there is then just one sum for each subtree before.
    fn is_home(&self, position: usize, shard: u32) -> bool {
        self.nodes.get(position).is_some_and(|node| node.shards().start == shard)
    }

    /// The bucket (`bucket_len` floats, contents arbitrary) to be filled for [`next_shard`](Self::next_shard);
    /// it counts once [`commit`](Self::commit) is called.
    pub fn next_bucket(&mut self) -> &mut [f32] {
        let position = self.pending.len();
        if self.is_home(position, self.next_shard) {
            return self.homes[position].as_mut().expect("a subtree that has not begun is not in its home");
        }
        if self.spare.is_empty() {
            self.spare.push(Box::new(vec![0.0_f32; self.bucket_len]));
        }
        self.spare.last_mut().expect("one was pushed if there was none")
    }

    /// Takes the bucket of the next shard and adds what can be added.
    ///
    /// # Panics
    /// If the lease is already complete, or no bucket was filled: a mistake of the caller's.
    pub fn commit(&mut self) {
        let shard = self.next_shard().expect("a lease has no more shards than it names");
        let position = self.pending.len();
        let filled = match self.is_home(position, shard) {
            true => self.homes[position].take(),
            false => self.spare.pop(),
        };
        let mut node = Node::leaf(shard);
        let mut sum = filled.expect("next_bucket comes before commit");
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

    /// The nodes summed so far, from the left, each with its sum; of a complete lease, its [`subtrees`].
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = (Node, &[f32])> {
        self.pending.iter().map(|(node, sum)| (*node, &***sum))
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

    #[test]
    fn the_last_sums_are_at_home_however_often_a_step_is_broken_off() {
        for lease in [0..1, 0..8, 3..6, 1..8, 5..8, 2..13] {
            let mut sums = SubtreeSums::new(lease.clone(), 4);
            let homes: Vec<*const f32> = sums.homes.iter().flatten().map(|home| home.as_ptr()).collect();
            for broken_off in lease.clone().chain([lease.end]) {
                while let Some(shard) = sums.next_shard().filter(|shard| *shard < broken_off) {
                    sums.next_bucket().fill(shard as f32);
                    sums.commit();
                }
                sums.next_bucket();
                if broken_off == lease.end {
                    let found: Vec<_> = sums.nodes().map(|(_, sum)| sum.as_ptr()).collect();
                    assert_eq!(found, homes, "{lease:?}");
                }
                sums.clear();
            }
        }
    }
}
