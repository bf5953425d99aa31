//! The fixed binary tree over the shards: which nodes a worker can sum alone, and how nodes make the root.

use std::ops::Range;

/// A node of the tree: the sum of the shards `index << level .. (index + 1) << level`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Node {
    /// Height above the leaves; a leaf is a shard.
    pub level: u32,
    /// Place among the nodes of its level, from the left.
    pub index: u32,
}

impl Node {
    /// The leaf of one shard.
    pub fn leaf(shard: u32) -> Self {
        Self { level: 0, index: shard }
    }

    /// The shards that this node sums.
    pub fn shards(self) -> Range<u32> {
        self.index << self.level..(self.index + 1) << self.level
    }

    /// The parent, if `right` is this node's right sibling.
    pub fn join(self, right: Node) -> Option<Node> {
        let siblings =
            self.level == right.level && self.index.is_multiple_of(2) && right.index == self.index + 1;
        siblings.then_some(Node { level: self.level + 1, index: self.index / 2 })
    }
}

/// The maximal nodes within a contiguous range of shards, from the left: what its holder can sum alone.
pub fn subtrees(leased: Range<u32>) -> Vec<Node> {
    let mut nodes = Vec::new();
    let mut start = leased.start;
    while start < leased.end {
        let aligned = start.trailing_zeros();
        let fitting = (leased.end - start).ilog2();
        let level = aligned.min(fitting);
        nodes.push(Node { level, index: start >> level });
        start += 1 << level;
    }
    nodes
}

/// Floats folded at a time: with a tree's scratch they stay in the first-level cache (4 KiB each).
const BLOCK_LEN: usize = 1024;

/// Adds the nodes of all ranks up to the root, always as left + right.
#[derive(Debug)]
pub(crate) struct TreeFold {
    root: Branch,
    sources: Vec<Source>,
    scratch: Vec<f32>,
}

/// A subtree sum that one rank brings: the `position`-th of its nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) rank: usize,
    pub(crate) position: usize,
}

#[derive(Debug)]
enum Branch {
    Source(usize),
    Sum(Box<Branch>, Box<Branch>),
}

impl TreeFold {
    /// The fold of a group's leases, which partition a power of two of shards.
    pub(crate) fn new(leases: &[Range<u32>]) -> Self {
        let mut sources = Vec::new();
        let mut stack: Vec<(Node, Branch)> = Vec::new();
        for (rank, lease) in leases.iter().enumerate() {
            for (position, mut node) in subtrees(lease.clone()).into_iter().enumerate() {
                let mut branch = Branch::Source(sources.len());
                sources.push(Source { rank, position });
                while let Some(parent) = stack.last().and_then(|(left, _)| left.join(node)) {
                    let (_, left) = stack.pop().expect("a parent was found for the last entry");
                    branch = Branch::Sum(Box::new(left), Box::new(branch));
                    node = parent;
                }
                stack.push((node, branch));
            }
        }
        let (_, root) = stack.pop().expect("a group has at least one lease");
        assert!(stack.is_empty(), "the leases of a group cover the whole tree");
        let scratch = vec![0.0; root.scratch_blocks() * BLOCK_LEN];
        Self { root, sources, scratch }
    }

    /// Writes the sum of all sources to `out`. `source(s, range)` lends the floats `range` of source `s`,
    /// counted from the first float of `out`.
    pub(crate) fn fold<'a>(&mut self, out: &mut [f32], source: impl Fn(Source, Range<usize>) -> &'a [f32]) {
        for (block, out) in out.chunks_mut(BLOCK_LEN).enumerate() {
            let range = block * BLOCK_LEN..block * BLOCK_LEN + out.len();
            let lend = |index: usize| source(self.sources[index], range.clone());
            self.root.write(out, &mut self.scratch, &lend);
        }
    }
}

impl Branch {
    /// Blocks of scratch that `write` needs: one for each right branch that is itself a sum.
    fn scratch_blocks(&self) -> usize {
        match self {
            Branch::Source(_) => 0,
            Branch::Sum(left, right) => {
                let held =
                    usize::from(matches!(**right, Branch::Sum(..)) && matches!(**left, Branch::Sum(..)));
                left.scratch_blocks().max(held + right.scratch_blocks())
            }
        }
    }

    /// `out = left + right`, all the way down; equal lengths throughout.
    fn write<'a>(&self, out: &mut [f32], scratch: &mut [f32], source: &impl Fn(usize) -> &'a [f32]) {
        let (left, right) = match self {
            Branch::Source(index) => return out.copy_from_slice(source(*index)),
            Branch::Sum(left, right) => (&**left, &**right),
        };
        match (left, right) {
            (Branch::Source(left), Branch::Source(right)) => {
                for ((out, left), right) in out.iter_mut().zip(source(*left)).zip(source(*right)) {
                    *out = left + right;
                }
            }
            (_, Branch::Source(right)) => {
                left.write(out, scratch, source);
                add_right(out, source(*right));
            }
            (Branch::Source(left), _) => {
                right.write(out, scratch, source);
                for (out, left) in out.iter_mut().zip(source(*left)) {
                    *out += left; // commutes bit for bit, but for which NaN it makes of two
                }
            }
            (Branch::Sum(..), Branch::Sum(..)) => {
                left.write(out, scratch, source);
                let (held, scratch) = scratch.split_at_mut(out.len());
                right.write(held, scratch, source);
                add_right(out, held);
            }
        }
    }
}

/// `left += right`, element by element.
pub(crate) fn add_right(left: &mut [f32], right: &[f32]) {
    for (left, right) in left.iter_mut().zip(right) {
        *left += right;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SubtreeSums;
    use crate::testing::{assert_same_bits, leases, push_all, reference};
    use proptest::prelude::*;

    #[test]
    fn subtrees_are_the_maximal_aligned_nodes() {
        let check = |leased, expected: &[(u32, u32)]| {
            let nodes: Vec<_> = subtrees(leased).into_iter().map(|node| (node.level, node.index)).collect();
            assert_eq!(nodes, expected);
        };
        check(0..1, &[(0, 0)]);
        check(0..8, &[(3, 0)]);
        check(0..3, &[(1, 0), (0, 2)]);
        check(3..6, &[(0, 3), (1, 2)]);
        check(6..8, &[(1, 3)]);
        check(1..8, &[(0, 1), (1, 1), (2, 1)]);
        check(5..5, &[]);
    }

    proptest! {
        #[test]
        fn any_partition_folds_to_the_bits_of_the_whole_tree(
            depth in 0_u32..=6,
            cuts in proptest::collection::vec(any::<bool>(), 64),
            len in prop_oneof![1_usize..40, 1020_usize..2100],
            seed in any::<u64>(),
        ) {
            let shards = 1 << depth;
            let leases = leases(shards, &cuts);
            let sums: Vec<SubtreeSums> = leases.iter().map(|lease| {
                let mut sums = SubtreeSums::new(lease.clone(), len);
                push_all(&mut sums, seed);
                let nodes: Vec<Node> = sums.nodes().map(|(node, _)| node).collect();
                assert_eq!(nodes, subtrees(lease.clone()));
                sums
            }).collect();
            let mut folded = vec![f32::NAN; len];
            TreeFold::new(&leases).fold(&mut folded, |source, range| {
                &sums[source.rank].node_sum(source.position)[range]
            });
            assert_same_bits(&folded, &reference(seed, Node { level: depth, index: 0 }, len));
        }
    }
}
