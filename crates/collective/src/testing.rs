//! What the tests of this crate share: adversarial buckets, the plain recursive sum, groups.

use crate::{Collective, CollectiveError, Group, Key, Limits, Node, SubtreeSums};
use std::net::TcpListener;
use std::ops::Range;
use std::thread;
use std::time::Duration;

/// Shards of the groups of most tests.
pub(crate) const SHARDS: u32 = 8;

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

/// Leases of `shards` shards that end at every shard `s` for which `cut(s)` holds.
pub(crate) fn leases(shards: u32, cuts: &[bool]) -> Vec<Range<u32>> {
    let mut leases = Vec::new();
    let mut start = 0;
    for end in 1..=shards {
        if end == shards || cuts[end as usize] {
            leases.push(start..end);
            start = end;
        }
    }
    leases
}

/// Pushes the buckets of all shards of a lease; the seed stands for the step.
pub(crate) fn push_all(sums: &mut SubtreeSums, seed: u64) {
    sums.clear();
    while let Some(shard) = sums.next_shard() {
        let sum = sums.next_bucket();
        sum.copy_from_slice(&bucket(seed, shard, sum.len()));
        sums.commit();
    }
}

/// Folds one step and compares with the plain sum of the tree.
pub(crate) fn fold_and_compare(collective: &mut Collective, step: u64) {
    push_all(collective.sums(), step);
    let root = Node { level: collective.group().shards().ilog2(), index: 0 };
    let expected = reference(step, root, collective.bucket_len());
    assert_same_bits(collective.fold(step).unwrap(), &expected);
}

/// The error of a fold, after which there is no other.
pub(crate) fn fold_error(collective: &mut Collective, step: u64) -> CollectiveError {
    push_all(collective.sums(), step);
    let error = collective.fold(step).unwrap_err();
    push_all(collective.sums(), step + 1);
    let again = collective.fold(step + 1).unwrap_err();
    assert!(matches!(again, CollectiveError::Poisoned), "{again}");
    error
}

/// The key of all groups of these tests.
pub(crate) fn key() -> Key {
    Key::new([9; 32])
}

/// Limits that no healthy test comes near.
pub(crate) fn limits(bucket_len: usize) -> Limits {
    let long = Duration::from_secs(20);
    Limits { bucket_len, rounded_len: 0, connect_deadline: long, step_deadline: long }
}

pub(crate) fn listen() -> (TcpListener, String) {
    listen_at("127.0.0.1")
}

fn listen_at(host: &str) -> (TcpListener, String) {
    let listener = TcpListener::bind((host, 0)).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

/// Runs every rank of a new group on a thread of its own; each is given what `assemble` makes.
pub(crate) fn run_ranks<A: Send, T: Send>(
    world: usize,
    assemble: impl Fn(&TcpListener, Group, &[String]) -> A + Sync,
    rank_main: impl Fn(usize, A) -> T + Sync,
) -> Vec<T> {
    run_ranks_at(&vec!["127.0.0.1"; world], assemble, rank_main)
}

/// The same, where each rank listens at an address of its own. They all dial from 127.0.0.1, so that a rank which listens
/// at 127.0.0.2 takes those above it for workers of other hosts.
pub(crate) fn run_ranks_at<A: Send, T: Send>(
    hosts: &[&str],
    assemble: impl Fn(&TcpListener, Group, &[String]) -> A + Sync,
    rank_main: impl Fn(usize, A) -> T + Sync,
) -> Vec<T> {
    let world = hosts.len();
    let (listeners, addresses): (Vec<_>, Vec<_>) = hosts.iter().map(|host| listen_at(host)).unzip();
    thread::scope(|scope| {
        let ranks = listeners.iter().enumerate().map(|(rank, listener)| {
            let (addresses, assemble, rank_main) = (&addresses, &assemble, &rank_main);
            scope.spawn(move || rank_main(rank, assemble(listener, group(3, rank, world, SHARDS), addresses)))
        });
        let ranks: Vec<_> = ranks.collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}
