//! Which worker the others wait for.
//!
//! In synchronous training every step takes as long as its slowest worker. What a worker's own work takes is told
//! apart from its waiting, because each reports its phases: all but the all-reduce are its own.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use protocol::WorkerId;

use super::StepSeconds;

/// Steps over which a worker's pace is judged: enough that a pause of a few steps is none.
const WINDOW_STEPS: usize = 20;

/// How much slower than its peers a worker is that is named.
const STRAGGLING_RATIO: f64 = 2.0;

/// How fast the workers of one generation are.
#[derive(Debug, Default)]
pub(super) struct Stragglers {
    /// Seconds per shard of the last steps.
    seconds: BTreeMap<WorkerId, VecDeque<f64>>,
    /// Those that were named; once is enough.
    named: BTreeSet<WorkerId>,
}

impl Stragglers {
    /// Seconds for a shard of each worker that was watched for long enough.
    pub(super) fn paces(&self) -> impl Iterator<Item = (WorkerId, f64)> {
        let watched = self.seconds.iter().filter(|(_, window)| window.len() == WINDOW_STEPS);
        watched.filter_map(|(&worker, window)| Some((worker, median(window.iter().copied())?)))
    }

    /// Takes a worker's times for a step of `shards` shards. How many times slower than the median of its peers it is,
    /// if that is too much and was not said yet.
    pub(super) fn judge(&mut self, worker: WorkerId, seconds: &StepSeconds, shards: u32) -> Option<f64> {
        let own = seconds.data + seconds.forward + seconds.backward + seconds.update;
        let window = self.seconds.entry(worker).or_default();
        window.push_back(own / f64::from(shards.max(1)));
        if window.len() <= WINDOW_STEPS {
            return None;
        }
        window.pop_front();
        let mine = median(window.iter().copied())?;
        let full =
            |(peer, window): &(&WorkerId, &VecDeque<f64>)| **peer != worker && window.len() == WINDOW_STEPS;
        let peers = self.seconds.iter().filter(full).filter_map(|(_, window)| median(window.iter().copied()));
        let ratio = mine / median(peers)?;
        (ratio >= STRAGGLING_RATIO && self.named.insert(worker)).then_some(ratio)
    }
}

/// The lower one of the two in the middle.
fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len().checked_sub(1)? / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who is named when worker `w` takes `seconds[w - 1]` for each of its `shards[w - 1]` shards.
    fn named(seconds: &[f64], shards: &[u32], steps: usize) -> Vec<(u64, f64)> {
        let mut stragglers = Stragglers::default();
        let mut named = Vec::new();
        for _ in 0..steps {
            for ((seconds, shards), worker) in seconds.iter().zip(shards).zip(1..) {
                let own = seconds * f64::from(*shards);
                // The fast ones wait for the slow one, which is not their work.
                let seconds = StepSeconds {
                    forward: 0.25 * own,
                    backward: 0.75 * own,
                    all_reduce: 9.0,
                    ..StepSeconds::default()
                };
                named.extend(
                    stragglers.judge(WorkerId(worker), &seconds, *shards).map(|ratio| (worker, ratio)),
                );
            }
        }
        named
    }

    #[test]
    fn who_takes_twice_as_long_is_named_once() {
        for (seconds, shards, steps, expected) in [
            (&[1.0, 1.0, 3.0, 1.0][..], &[1, 1, 1, 1][..], 100, &[(3, 3.0)][..]),
            (&[1.0, 1.9, 1.0], &[1, 1, 1], 100, &[]),
            (&[2.0, 1.0], &[1, 1], 100, &[(1, 2.0)]),
            // More shards take longer, which is no fault.
            (&[1.0, 1.0, 1.0], &[3, 3, 1], 100, &[]),
            (&[1.0, 1.0, 4.0], &[3, 3, 2], 100, &[(3, 4.0)]),
            // Too early to tell, and nobody to compare with.
            (&[1.0, 3.0], &[1, 1], WINDOW_STEPS, &[]),
            (&[3.0], &[4], 100, &[]),
        ] {
            assert_eq!(named(seconds, shards, steps), expected, "{seconds:?} {shards:?}");
        }
    }

    #[test]
    fn a_short_pause_is_no_straggling() {
        let mut stragglers = Stragglers::default();
        for step in 0..100 {
            for worker in 1..=3 {
                let pause = if worker == 2 && (50..58).contains(&step) { 30.0 } else { 0.0 };
                let seconds = StepSeconds { forward: 1.0 + pause, ..StepSeconds::default() };
                assert_eq!(stragglers.judge(WorkerId(worker), &seconds, 1), None, "step {step}");
            }
        }
    }
}
