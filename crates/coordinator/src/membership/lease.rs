//! Who gets which shards.

/// Shards that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// The first of them.
    pub first_shard: u32,
    /// How many there are.
    pub shard_count: u32,
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

    proptest! {
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
