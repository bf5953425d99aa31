//! What the tests of this crate share: adversarial buckets, the plain recursive sum, groups.

use crate::{Group, Key, Limits, Node, SubtreeSums};
use std::ops::Range;
use std::time::Duration;

/// A bucket whose floats span 40 binary orders and both signs, so that the order of addition shows.
pub(crate) fn bucket(seed: u64, shard: u32, len: usize) -> Vec<f32> {
    let mut state = seed ^ (u64::from(shard) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb)
    };
    let float = |bits: u64| {
        let exponent = 107 + (bits >> 32) as u32 % 40;
        f32::from_bits((bits as u32 & 0x807f_ffff) | exponent << 23)
    };
    (0..len).map(|_| float(next())).collect()
}

/// The sum at `node`, by the definition: left child + right child.
pub(crate) fn reference(seed: u64, node: Node, len: usize) -> Vec<f32> {
    if node.level == 0 {
        return bucket(seed, node.index, len);
    }
    let child = |index| reference(seed, Node { level: node.level - 1, index }, len);
    child(2 * node.index).iter().zip(child(2 * node.index + 1)).map(|(left, right)| left + right).collect()
}

pub(crate) fn assert_same_bits(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (place, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found.to_bits(), expected.to_bits(), "float {place}: {found} is not {expected}");
    }
}

/// Rank `rank` of `world`, the shards dealt as evenly as possible, the first ranks getting more.
pub(crate) fn group(generation: u64, rank: usize, world: usize, shards: u32) -> Group {
    let mut leases: Vec<Range<u32>> = Vec::new();
    for place in 0..world as u32 {
        let start = leases.last().map_or(0, |lease| lease.end);
        let more = u32::from(place < shards % world as u32);
        leases.push(start..start + shards / world as u32 + more);
    }
    Group::new([7; 16], generation, rank, leases, shards).unwrap()
}

/// The complete sums of one lease; the seed stands for the step.
pub(crate) fn sums(seed: u64, lease: Range<u32>, len: usize) -> SubtreeSums {
    let mut sums = SubtreeSums::new(lease.clone(), len);
    for shard in lease {
        sums.next_bucket().copy_from_slice(&bucket(seed, shard, len));
        sums.commit();
    }
    sums
}

/// The key of all groups of these tests.
pub(crate) fn key() -> Key {
    Key::new([9; 32])
}

/// Limits that no healthy test comes near.
pub(crate) fn limits(bucket_len: usize) -> Limits {
    let long = Duration::from_secs(20);
    Limits { bucket_len, connect_deadline: long, step_deadline: long }
}
