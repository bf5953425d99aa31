//! How long the rest of a run takes, said once, as soon as that can be said.

use crate::journal::Record;
use crate::membership::StepReport;

/// Steps that are looked at. The first of them waits for whatever is compiled or fetched, and others may be disturbed: so the
/// one in the middle counts.
const SEEN_STEPS: usize = 10;

/// Watches the first steps that a coordinator hears of.
#[derive(Debug)]
pub(crate) struct Outlook {
    total_steps: u64,
    /// How long each of them took.
    seconds: Vec<f64>,
}

impl Outlook {
    /// Of a run of so many steps.
    pub(crate) fn new(total_steps: u64) -> Outlook {
        Outlook { total_steps, seconds: Vec::with_capacity(SEEN_STEPS) }
    }

    /// Takes a committed step. With the last one that is looked at, it says how long those take that are left then, if there
    /// are any.
    pub(crate) fn note(&mut self, report: &StepReport) -> Option<Record> {
        if self.seconds.len() == SEEN_STEPS {
            return None;
        }
        self.seconds.push(report.seconds.step);
        if self.seconds.len() < SEEN_STEPS {
            return None;
        }
        self.seconds.sort_by(f64::total_cmp);
        let steps_left = self.total_steps.saturating_sub(report.step);
        let seconds_left = self.seconds[SEEN_STEPS / 2] * steps_left as f64;
        // Workers may report anything.
        let can_be_said = seconds_left.is_finite() && seconds_left > 0.0;
        can_be_said.then_some(Record::Predicted { step: report.step, steps_left, seconds_left })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::StepSeconds;

    /// What is said of a run of `total_steps` that goes on after `first_step`, whose steps take so long.
    fn told(total_steps: u64, first_step: u64, seconds: &[f64]) -> Vec<Record> {
        let mut outlook = Outlook::new(total_steps);
        let report = |(step, seconds): (u64, &f64)| {
            let seconds = StepSeconds { step: *seconds, ..StepSeconds::default() };
            StepReport { seconds, ..StepReport::usual(1, step) }
        };
        (first_step + 1..).zip(seconds).filter_map(|step| outlook.note(&report(step))).collect()
    }

    #[test]
    fn the_rest_is_told_once_after_ten_steps_and_a_slow_first_one_does_not_count() {
        let usual = [[9.0].as_slice(), &[0.5; 30]].concat();
        let predicted = |step, steps_left, seconds_left| Record::Predicted { step, steps_left, seconds_left };
        for (total_steps, first_step, seconds, expected) in [
            (480, 0, usual.as_slice(), vec![predicted(10, 470, 235.0)]),
            (480, 200, &usual, vec![predicted(210, 270, 135.0)]),
            // Nothing is left, or too little was seen.
            (10, 0, &usual, vec![]),
            (480, 0, &usual[..9], vec![]),
            (480, 0, &[0.0; 20], vec![]),
            (480, 0, &[f64::NAN; 20], vec![]),
            (480, 0, &[f64::INFINITY; 20], vec![]),
        ] {
            assert_eq!(told(total_steps, first_step, seconds), expected, "{first_step} of {total_steps}");
        }
    }
}
