//! How fast each worker is: averages over the last steps of its own reports.

use std::collections::BTreeMap;

use protocol::WorkerId;
use serde::{Deserialize, Serialize};

use crate::membership::{Sight, StepReport, StepSeconds};

/// Steps that a worker's pace is averaged over: long enough to be calm.
const SMOOTHED_STEPS: f64 = 20.0;

/// A worker's last steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Pace {
    /// The last step that it reported.
    pub step: u64,
    /// Where its time went, averaged over its last steps.
    pub seconds: StepSeconds,
}

/// The pace of each worker.
#[derive(Debug, Default)]
pub(crate) struct Paces(BTreeMap<WorkerId, Pace>);

impl Paces {
    /// A worker has reported a step.
    pub(crate) fn note(&mut self, worker: WorkerId, report: &StepReport) {
        let (step, seconds) = (report.step, report.seconds);
        let pace = self.0.entry(worker).or_insert(Pace { step, seconds });
        pace.step = step;
        let mix = |before: &mut f64, now: f64| *before += (now - *before) / SMOOTHED_STEPS;
        mix(&mut pace.seconds.data, seconds.data);
        mix(&mut pace.seconds.forward, seconds.forward);
        mix(&mut pace.seconds.backward, seconds.backward);
        mix(&mut pace.seconds.all_reduce, seconds.all_reduce);
        mix(&mut pace.seconds.update, seconds.update);
        mix(&mut pace.seconds.step, seconds.step);
    }

    /// Adds to `sight` what is known, and forgets workers that are gone.
    pub(crate) fn complete(&mut self, sight: &mut Sight) {
        self.0.retain(|worker, _| sight.workers.iter().any(|seen| seen.worker == worker.0));
        for seen in &mut sight.workers {
            seen.pace = self.0.get(&WorkerId(seen.worker)).copied();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::{Doing, Phase, WorkerSight};

    fn report(step: u64, seconds: f64) -> StepReport {
        let seconds = StepSeconds { step: seconds, data: seconds / 4.0, ..StepSeconds::default() };
        StepReport { seconds, ..StepReport::usual(1, step) }
    }

    #[test]
    fn a_pace_is_calm_and_forgotten_with_its_worker() {
        let mut paces = Paces::default();
        paces.note(WorkerId(1), &report(1, 1.0));
        paces.note(WorkerId(1), &report(2, 21.0));
        paces.note(WorkerId(2), &report(2, 3.0));
        let worker = |worker| WorkerSight {
            worker,
            rank: None,
            description: String::new(),
            first_shard: 0,
            shard_count: 0,
            doing: Doing::Training,
            silent_ms: 0,
            pace: None,
        };
        let workers = vec![worker(1), worker(3)];
        let mut sight = Sight { phase: Phase::Training, generation: 1, step: 2, workers };
        paces.complete(&mut sight);
        let pace = sight.workers[0].pace.unwrap();
        assert_eq!((pace.step, pace.seconds.step, pace.seconds.data), (2, 2.0, 0.5));
        assert_eq!(sight.workers[1].pace, None);
        assert_eq!(paces.0.len(), 1, "worker 2 is gone");
    }
}
