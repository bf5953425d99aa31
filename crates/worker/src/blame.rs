//! Whose images made a step not finite.

use std::fmt;

use protocol::WorkerId;
use simsiam::NonFinite;

/// Images that are named one by one; the rest is counted. `worker replay` lists them all.
const IMAGES_NAMED: usize = 8;

/// A step with values that are not finite, and whose they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blame {
    /// What was found.
    pub found: NonFinite,
    /// One for each of its shards.
    pub culprits: Vec<Culprit>,
}

/// A shard whose loss or gradient is not finite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Culprit {
    /// Which one.
    pub shard: u32,
    /// The rank that leases it.
    pub rank: usize,
    /// The worker of this rank.
    pub worker: WorkerId,
    /// Its part of the batch, as places in the dealt order of all images.
    pub images: Vec<u64>,
}

impl fmt::Display for Blame {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}", self.found)?;
        self.culprits.iter().try_for_each(|culprit| write!(f, "; {culprit}"))
    }
}

impl fmt::Display for Culprit {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Culprit { shard, rank, worker, images } = self;
        let named: Vec<String> = images.iter().take(IMAGES_NAMED).map(u64::to_string).collect();
        let rest = images.len().saturating_sub(IMAGES_NAMED);
        let rest = if rest == 0 { String::new() } else { format!(" and {rest} more") };
        write!(
            f,
            "shard {shard} was computed by rank {rank}, worker {worker}, from images {}{rest}",
            named.join(", ")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shard_rank_worker_and_images_are_named() {
        let found = NonFinite { step: 41, shards: vec![3], skipped_steps: 2 };
        let culprit = |images| Culprit { shard: 3, rank: 1, worker: WorkerId(5), images };
        for (images, expected) in [
            (vec![900, 17], "from images 900, 17"),
            ((0..10).collect(), "from images 0, 1, 2, 3, 4, 5, 6, 7 and 2 more"),
        ] {
            let blame = Blame { found: found.clone(), culprits: vec![culprit(images)] };
            assert_eq!(
                blame.to_string(),
                format!(
                    "step 42: loss or gradient is not finite, in shard 3, as in the 2 steps before it, which were \
                     skipped; shard 3 was computed by rank 1, worker 5, {expected}"
                )
            );
        }
    }
}
