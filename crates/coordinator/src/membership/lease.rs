//! Who gets which shards.

/// How much longer the slowest rank must take with even leases than with those that follow the ranks' paces, for these to
/// be dealt: shards that move are fetched, and a pace is never the same twice.
const WORTH_MOVING: f64 = 1.25;

/// Shards that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lease {
    /// The first of them.
    pub first_shard: u32,
    /// How many there are.
    pub shard_count: u32,
}

impl Lease {
    /// How many sums its holder brings to a fold: one for each of the largest parts of the shards' tree that it can add up
    /// alone, which are what crate `collective` calls subtrees.
    pub fn sums(&self) -> u32 {
        let (mut start, mut left, mut sums) = (self.first_shard, self.shard_count, 0);
        while left > 0 {
            let shards = 1_u32 << start.trailing_zeros().min(left.ilog2());
            start = start.wrapping_add(shards);
            left -= shards;
            sums += 1;
        }
        sums
    }

    /// How many whole buckets its holder sends to the others in a fold of so many workers: each worker folds a slice, so it
    /// sends the others their slices of its sums, and then its own slice of the result to each. Through shared memory the
    /// others read as much of it. Around NCCL's ring, every worker sends as much as one that brings a single sum.
    pub fn buckets_sent(&self, workers: u32) -> f64 {
        let others = f64::from(workers.saturating_sub(1));
        f64::from(self.sums() + 1) * others / f64::from(workers.max(1))
    }
}

/// Deals `shards` to `workers` ranks: contiguous, in order of rank, and as evenly as possible: the first
/// `shards % workers` ranks get one more. `workers` is at least 1.
pub fn lease(shards: u32, workers: u32) -> Vec<Lease> {
    let (each, with_one_more) = (shards / workers, shards % workers);
    let mut first_shard = 0;
    (0..workers)
        .map(|rank| {
            let lease = Lease { first_shard, shard_count: each + u32::from(rank < with_one_more) };
            first_shard += lease.shard_count;
            lease
        })
        .collect()
}

/// Deals `shards` to ranks of which some are known to be slow, given as seconds for a shard: so that the slowest one is
/// done as early as can be, if that is worth it, and else evenly. Whose pace is not known counts as fast as the middle one of
/// the others. There is at least one rank, and at most as many as shards.
pub(super) fn lease_by_pace(shards: u32, paces: &[Option<f64>]) -> Vec<Lease> {
    let even = lease(shards, paces.len() as u32);
    let usable = |pace: &f64| pace.is_finite() && *pace > 0.0;
    let mut known: Vec<f64> = paces.iter().flatten().copied().filter(usable).collect();
    known.sort_by(f64::total_cmp);
    let Some(&usual) = known.get(known.len() / 2) else { return even };
    let paces: Vec<f64> = paces.iter().map(|pace| pace.filter(usable).unwrap_or(usual)).collect();
    let mut counts = vec![1; paces.len()];
    for _ in paces.len()..shards as usize {
        let with_one_more = |rank: &usize| f64::from(counts[*rank] + 1) * paces[*rank];
        let soonest = (0..paces.len()).min_by(|a, b| with_one_more(a).total_cmp(&with_one_more(b)));
        counts[soonest.expect("there is a rank")] += 1;
    }
    let longest = |counts: &mut dyn Iterator<Item = u32>| {
        counts.zip(&paces).map(|(count, pace)| f64::from(count) * pace).fold(0.0, f64::max)
    };
    let by_pace = longest(&mut counts.iter().copied());
    if longest(&mut even.iter().map(|lease| lease.shard_count)) < WORTH_MOVING * by_pace {
        return even;
    }
    let mut first_shard = 0;
    counts
        .into_iter()
        .map(|shard_count| {
            let lease = Lease { first_shard, shard_count };
            first_shard += shard_count;
            lease
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn eight_shards_are_dealt_evenly() {
        for (workers, expected) in
            [(1, vec![8]), (2, vec![4, 4]), (3, vec![3, 3, 2]), (5, vec![2, 2, 2, 1, 1]), (8, vec![1; 8])]
        {
            let counts: Vec<u32> = lease(8, workers).iter().map(|lease| lease.shard_count).collect();
            assert_eq!(counts, expected, "{workers} workers");
        }
    }

    #[test]
    fn whoever_is_alone_sends_nothing_and_who_brings_more_sums_sends_more() {
        for (first_shard, shard_count, workers, sums, sent) in [
            (0, 8, 1, 1, 0.0),
            (0, 4, 2, 1, 1.0),
            (4, 1, 8, 1, 1.75),
            // 0 and 1, 2 alone.
            (0, 3, 3, 2, 2.0),
            // 1 alone, 2 and 3, 4 and 5, 6 alone.
            (1, 6, 2, 4, 2.5),
            (0, 0, 0, 0, 0.0),
        ] {
            let lease = Lease { first_shard, shard_count };
            assert_eq!((lease.sums(), lease.buckets_sent(workers)), (sums, sent), "{lease:?}");
        }
    }

    #[test]
    fn a_slow_worker_gets_fewer_shards_if_that_is_worth_it() {
        for (shards, paces, expected) in [
            (8, &[Some(1.0), Some(1.0), Some(3.0)][..], &[4, 3, 1][..]),
            (8, &[Some(3.0), Some(1.0)], &[2, 6]),
            // A newcomer counts as one of the others.
            (8, &[Some(1.0), None, Some(4.0), Some(1.0)], &[3, 2, 1, 2]),
            // What a busy machine makes of equal workers.
            (8, &[Some(1.0), Some(1.2), Some(1.1), Some(0.9)], &[2, 2, 2, 2]),
            // With a shard each there is nothing to move.
            (4, &[Some(1.0), Some(9.0), Some(1.0), Some(1.0)], &[1, 1, 1, 1]),
            (8, &[None, None, None], &[3, 3, 2]),
            (8, &[Some(f64::NAN), Some(0.0), Some(-1.0)], &[3, 3, 2]),
        ] {
            let counts: Vec<u32> =
                lease_by_pace(shards, paces).iter().map(|lease| lease.shard_count).collect();
            assert_eq!(counts, expected, "{paces:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_the_paces_every_shard_has_one_owner(
            more_shards in 0u32..500,
            paces in proptest::collection::vec(proptest::option::of(proptest::num::f64::ANY), 1..40),
        ) {
            let shards = paces.len() as u32 + more_shards;
            let leases = lease_by_pace(shards, &paces);
            prop_assert_eq!(leases.len(), paces.len());
            let mut next = 0;
            for lease in leases {
                prop_assert_eq!(lease.first_shard, next);
                prop_assert!(lease.shard_count > 0);
                next += lease.shard_count;
            }
            prop_assert_eq!(next, shards);
        }

        #[test]
        fn every_shard_has_one_owner(shards in 1u32..5000, workers in 1u32..100) {
            let leases = lease(shards, workers);
            prop_assert_eq!(leases.len(), workers as usize);
            let mut next = 0;
            for lease in &leases {
                prop_assert_eq!(lease.first_shard, next);
                next += lease.shard_count;
            }
            prop_assert_eq!(next, shards);
            let counts = || leases.iter().map(|lease| lease.shard_count);
            prop_assert!(counts().max().unwrap() - counts().min().unwrap() <= 1);
        }
    }
}
