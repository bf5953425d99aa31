//! Whether the workers still hold the same: every so many steps each reports the hash of its state.

use std::collections::BTreeMap;

use protocol::WorkerId;

use super::{Digest, agreement};

/// Steps whose hashes may be incomplete at a time. Workers are at most one step apart, but a report can get lost.
const STEPS_OPEN: usize = 4;

/// The hashes that have come in of one generation.
#[derive(Debug, Default)]
pub(super) struct Replicas {
    hashes: BTreeMap<u64, BTreeMap<WorkerId, Digest>>,
}

impl Replicas {
    /// Takes a worker's hash after `step`. Once all of `ranks` have told theirs: why these are not replicas of one
    /// state, if they are not.
    pub(super) fn compare(
        &mut self,
        worker: WorkerId,
        step: u64,
        hash: Digest,
        ranks: &[WorkerId],
    ) -> Option<String> {
        let told = self.hashes.entry(step).or_default();
        told.insert(worker, hash);
        if !ranks.iter().all(|rank| told.contains_key(rank)) {
            if self.hashes.len() > STEPS_OPEN {
                self.hashes.pop_first();
            }
            return None;
        }
        let told: Vec<(WorkerId, Digest)> = told.iter().map(|(&worker, &hash)| (worker, hash)).collect();
        self.hashes = self.hashes.split_off(&(step + 1));
        agreement::differing_replicas(&told, step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANKS: [WorkerId; 3] = [WorkerId(1), WorkerId(2), WorkerId(5)];

    #[test]
    fn the_odd_one_is_named_once_all_have_told() {
        let mut replicas = Replicas::default();
        let mut tell =
            |worker, step, hash| replicas.compare(WorkerId(worker), step, Digest([hash; 32]), &RANKS);
        // Reports of two steps mix, and one comes twice.
        for (worker, step, hash) in
            [(1, 100, 7), (2, 100, 7), (1, 200, 8), (1, 100, 7), (5, 100, 7), (5, 200, 9)]
        {
            assert_eq!(tell(worker, step, hash), None, "worker {worker}, step {step}");
        }
        let reason = tell(2, 200, 8).unwrap();
        for phrase in ["after step 200", "worker 5 has 0909", "worker 1, worker 2 has 0808"] {
            assert!(reason.contains(phrase), "{reason:?} lacks {phrase:?}");
        }
    }

    #[test]
    fn what_is_never_complete_is_forgotten() {
        let mut replicas = Replicas::default();
        for step in 1..100 {
            assert_eq!(replicas.compare(WorkerId(1), step, Digest([1; 32]), &RANKS), None);
            assert!(replicas.hashes.len() <= STEPS_OPEN);
        }
    }
}
