//! Workers' clocks, brought together.
//!
//! They differ. But an all-reduce ends for all workers at the same moment, to within the time that a message takes; so
//! those moments, over all steps that two workers made together, tell how their clocks differ.

use std::collections::BTreeMap;

use coordinator::flight_recorder::{Span, StepPhase, StepSpans};

/// When all-reduces ended, by the clock of each worker.
#[derive(Debug, Default)]
pub(crate) struct Clocks {
    /// By worker, then by generation and step.
    ends_us: BTreeMap<u64, BTreeMap<(u64, u64), i64>>,
}

impl Clocks {
    /// Those that `steps` tell of.
    pub(crate) fn of(steps: &[StepSpans]) -> Clocks {
        let mut clocks = Clocks::default();
        steps.iter().for_each(|step| clocks.hear(step));
        clocks
    }

    /// A worker has made a step.
    pub(crate) fn hear(&mut self, step: &StepSpans) {
        if let Some(fold) = last_all_reduce(step) {
            let in_step_us = i64::from(fold.start_us) + i64::from(fold.duration_us);
            let end_us = (step.began_unix_us as i64).saturating_add(in_step_us);
            self.ends_us.entry(step.worker).or_default().insert((step.generation, step.step), end_us);
        }
    }

    /// Forgets all before this step of this generation, and the workers of which nothing is left.
    pub(crate) fn forget_before(&mut self, first: (u64, u64)) {
        for ends_us in self.ends_us.values_mut() {
            *ends_us = ends_us.split_off(&first);
        }
        self.ends_us.retain(|_, ends_us| !ends_us.is_empty());
    }

    /// What to add to a worker's clock, in microseconds: what brings the ends of its all-reduces to those of the first
    /// worker, by the median over their steps.
    pub(crate) fn corrections_us(&self) -> BTreeMap<u64, i64> {
        let mut corrections: BTreeMap<u64, i64> = BTreeMap::new();
        for (worker, own) in &self.ends_us {
            // Of those that have one already, the first that it made steps with.
            let correction = corrections.iter().find_map(|(other, correction)| {
                let theirs = &self.ends_us[other];
                let differences =
                    own.iter().filter_map(|(step, end_us)| Some(theirs.get(step)?.saturating_sub(*end_us)));
                let mut differences: Vec<i64> = differences.collect();
                differences.sort_unstable();
                Some(correction.saturating_add(*differences.get(differences.len() / 2)?))
            });
            corrections.insert(*worker, correction.unwrap_or(0));
        }
        corrections
    }
}

/// The all-reduce of the gradients, which is the last one in a step.
pub(crate) fn last_all_reduce(step: &StepSpans) -> Option<&Span> {
    step.spans.iter().rfind(|span| span.phase == StepPhase::AllReduce)
}

/// When a worker's step began and ended, in microseconds since 1970, with what its clock lacks.
pub(crate) fn interval_us(step: &StepSpans, correction_us: i64) -> (i64, i64) {
    let begin_us = (step.began_unix_us as i64).saturating_add(correction_us);
    let ends_us = step.spans.iter().map(|span| i64::from(span.start_us) + i64::from(span.duration_us));
    (begin_us, begin_us.saturating_add(ends_us.max().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(worker: u64, step: u64, clock_us: u64) -> StepSpans {
        let fold = Span { phase: StepPhase::AllReduce, shard: None, start_us: 10, duration_us: 20 };
        StepSpans { worker, generation: 1, step, began_unix_us: clock_us + 1000 * step, spans: vec![fold] }
    }

    #[test]
    fn what_is_forgotten_counts_no_more() {
        let steps: Vec<StepSpans> =
            (1..=9).flat_map(|number| [step(1, number, 0), step(2, number, 500)]).collect();
        let mut clocks = Clocks::of(&steps);
        assert_eq!(clocks.corrections_us(), [(1, 0), (2, -500)].into());
        // From step 10 on, the clock of worker 2 has been set.
        (10..=12).for_each(|number| {
            [step(1, number, 0), step(2, number, 0)].iter().for_each(|step| clocks.hear(step));
        });
        assert_eq!(clocks.corrections_us(), [(1, 0), (2, -500)].into());
        clocks.forget_before((1, 10));
        assert_eq!(clocks.corrections_us(), [(1, 0), (2, 0)].into());
        clocks.forget_before((2, 1));
        assert!(clocks.corrections_us().is_empty());
    }

    #[test]
    fn a_clock_that_nobody_can_have_breaks_nothing() {
        let clocks =
            Clocks::of(&[step(1, 1, 0), step(2, 1, u64::MAX / 2 - 1000), step(3, 1, i64::MAX as u64)]);
        for correction_us in clocks.corrections_us().into_values() {
            interval_us(&step(2, 1, i64::MAX as u64 - 2000), correction_us);
        }
    }
}
