//! Whether all workers hold the same, and if not, who is the odd one.

use std::fmt::Display;

use protocol::WorkerId;

use super::{Digest, Holding};

/// Why workers that hold these cannot train together, if they cannot.
pub(super) fn differing_holdings(holdings: &[(WorkerId, Holding)]) -> Option<String> {
    let values = || holdings.iter().map(|(worker, holding)| (*worker, holding));
    disagreement(
        "network layout",
        "start all workers from the same version",
        values().map(|(w, h)| (w, &h.layout_hash)),
    )
    .or_else(|| {
        let advice = "all must start from the same checkpoint: start again";
        disagreement("next step", advice, values().map(|(w, h)| (w, h.step)))
    })
    .or_else(|| {
        let advice = "weights or momentum differ before the first step: start all workers from the same \
                          version, on the same kind of device";
        disagreement("state hash", advice, values().map(|(w, h)| (w, &h.state_hash)))
    })
}

/// Why a run that ended so is not one run, if it is not.
pub(super) fn differing_ends(ends: &[(WorkerId, u64, Digest)]) -> Option<String> {
    let advice = "the workers did not stop after the same step, which must not happen: report it";
    disagreement("last step", advice, ends.iter().map(|(worker, step, _)| (*worker, step))).or_else(|| {
        let advice = "the odd one computed something else, look at its device and its log";
        disagreement("final state hash", advice, ends.iter().map(|(worker, _, hash)| (*worker, hash)))
    })
}

/// Why workers that hold these after `step` are not replicas of one state, if they are not.
pub(super) fn differing_replicas(hashes: &[(WorkerId, Digest)], step: u64) -> Option<String> {
    let advice = "a replica has gone its own way, by a fault of its memory or its device; checkpoints since the last \
                  comparison may be of the odd one";
    let what = format!("state hash after step {step}");
    disagreement(&what, advice, hashes.iter().map(|(worker, hash)| (*worker, hash)))
}

/// Names both values and who holds which, where the first differing one is told from the most common one.
fn disagreement<T: Display + PartialEq + Copy>(
    what: &str,
    advice: &str,
    values: impl Iterator<Item = (WorkerId, T)>,
) -> Option<String> {
    let values: Vec<(WorkerId, T)> = values.collect();
    let holders = |wanted: T| values.iter().filter(move |(_, value)| *value == wanted);
    // The first of the most common ones, so that the answer does not depend on chance.
    let (_, common) = *values.iter().rev().max_by_key(|(_, value)| holders(*value).count())?;
    let (_, odd) = *values.iter().find(|(_, value)| *value != common)?;
    let names = |value| {
        let names: Vec<String> = holders(value).map(|(worker, _)| format!("worker {worker}")).collect();
        names.join(", ")
    };
    Some(format!(
        "the workers differ in their {what}: {} has {odd}, {} has {common}; {advice}",
        names(odd),
        names(common)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_odd_one_is_named_with_both_values() {
        for (values, expected) in [
            (vec![7, 7, 7], None),
            (vec![7], None),
            (vec![7, 8, 7], Some("worker 2 has 8, worker 1, worker 3 has 7;")),
            (vec![8, 7, 7], Some("worker 1 has 8, worker 2, worker 3 has 7;")),
            (vec![7, 8], Some("worker 2 has 8, worker 1 has 7;")),
        ] {
            let numbered = values.iter().zip(1..).map(|(value, worker)| (WorkerId(worker), *value));
            let answer = disagreement("number", "count again", numbered);
            match (answer, expected) {
                (None, None) => {}
                (Some(answer), Some(expected)) => assert!(answer.contains(expected), "{answer}"),
                (answer, expected) => panic!("{values:?}: {answer:?}, expected {expected:?}"),
            }
        }
    }
}
