//! What a person sees of a run: one calm line that moves on a terminal, plain lines elsewhere.

mod screen;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use coordinator::journal::Record;
use coordinator::{Evaluated, Outcome, Progress, StepMetrics};
use dashboard::time_of_end;

pub(crate) use screen::Screen;

/// Between two plain lines: few enough for a log, often enough to see that it goes on.
pub(crate) const PLAIN_INTERVAL: Duration = Duration::from_secs(10);

/// Steps that the shown speed and shares are averaged over: long enough to be calm.
const SMOOTHED_STEPS: f64 = 20.0;

/// Shows a run's progress.
pub(crate) struct Display {
    screen: Screen,
    average: Option<Average>,
    shown_at: Option<Instant>,
    last: Option<StepMetrics>,
    /// Steps in the newest checkpoint that was told of.
    saved_step: u64,
}

/// Exponential averages over the last steps, in seconds.
#[derive(Debug, Clone, Copy)]
struct Average {
    step: f64,
    data: f64,
    forward: f64,
    backward: f64,
    all_reduce: f64,
}

impl Display {
    pub(crate) fn new(screen: Screen) -> Display {
        Display { screen, average: None, shown_at: None, last: None, saved_step: 0 }
    }

    /// Shows what happened at `now`.
    pub(crate) fn show(&mut self, progress: &Progress, now: Instant) {
        match progress {
            Progress::Step(metrics) => self.step(metrics, now),
            Progress::Noted { record: Record::Ended(outcome), .. } => {
                if let Some(last) = self.last.take() {
                    self.line(&last, now);
                }
                self.screen.finish();
                self.ended(outcome);
            }
            other => {
                self.note_saved(other);
                if let Some(line) = sentence(other) {
                    self.screen.line(&line);
                }
            }
        }
    }

    fn note_saved(&mut self, progress: &Progress) {
        let Progress::Noted { record, .. } = progress else { return };
        match record {
            Record::Checkpoint { step, .. }
            | Record::RolledBack { step, .. }
            | Record::Opened { checkpoint: Some(_), step, .. } => self.saved_step = *step,
            _ => {}
        }
    }

    fn step(&mut self, metrics: &StepMetrics, now: Instant) {
        self.average = Some(Average::after(self.average, metrics));
        if self.screen.is_terminal() {
            self.screen.position(metrics.step, metrics.total_steps, self.describe(metrics));
        } else if self.shown_at.is_none_or(|at| now.duration_since(at) >= PLAIN_INTERVAL) {
            self.line(metrics, now);
            return;
        }
        self.last = Some(metrics.clone());
    }

    /// A line of its own, that stays.
    fn line(&mut self, metrics: &StepMetrics, now: Instant) {
        let line = format!("step {}/{}  {}", metrics.step, metrics.total_steps, self.describe(metrics));
        self.screen.line(&line);
        self.shown_at = Some(now);
        self.last = None;
    }

    fn describe(&self, metrics: &StepMetrics) -> String {
        let average = self.average.unwrap_or_else(|| Average::after(None, metrics));
        let share = |seconds: f64| 100.0 * seconds / average.step;
        let images_per_second = metrics.images_per_second * metrics.seconds.step / average.step;
        let remaining_s = metrics.total_steps.saturating_sub(metrics.step) as f64 * average.step;
        format!(
            "epoch {}/{}  {} left  loss {:+.4}  collapse level {:.2}  lr {:.4}  \
             {images_per_second:.0} images/s  data {:.0}% forward {:.0}% backward {:.0}% all-reduce {:.0}%",
            metrics.epoch,
            metrics.total_epochs,
            duration(remaining_s),
            metrics.loss,
            metrics.collapse_level,
            metrics.learning_rate,
            share(average.data),
            share(average.forward),
            share(average.backward),
            share(average.all_reduce),
        )
    }

    fn ended(&self, outcome: &Outcome) {
        match outcome {
            Outcome::Completed { step, state_hash } => {
                self.screen.line(&format!("all {step} steps are done; state {state_hash}"));
            }
            Outcome::Stopped { step } if *step == self.saved_step => {
                self.screen.line(&format!("stopped after step {step}; go on with --resume"));
            }
            Outcome::Stopped { step } => {
                self.screen.line(&format!(
                    "stopped after step {step}, without saving; --resume goes on from what was saved before"
                ));
            }
            // The program ends with this as its error.
            Outcome::Failed { .. } => {}
        }
    }
}

impl Average {
    fn after(before: Option<Average>, metrics: &StepMetrics) -> Average {
        let seconds = &metrics.seconds;
        let now = Average {
            step: seconds.step.max(f64::MIN_POSITIVE),
            data: seconds.data,
            forward: seconds.forward,
            backward: seconds.backward,
            all_reduce: seconds.all_reduce,
        };
        let Some(before) = before else { return now };
        let mix = |before: f64, now: f64| before + (now - before) / SMOOTHED_STEPS;
        Average {
            step: mix(before.step, now.step),
            data: mix(before.data, now.data),
            forward: mix(before.forward, now.forward),
            backward: mix(before.backward, now.backward),
            all_reduce: mix(before.all_reduce, now.all_reduce),
        }
    }
}

/// What happened besides steps and the end.
fn sentence(progress: &Progress) -> Option<String> {
    match progress {
        Progress::Noted { record, workers, expected } => noted(record, *workers, *expected),
        Progress::Evaluated(Evaluated { evaluation, step, figures, .. }) => {
            let figures: Vec<String> =
                figures.iter().map(|(name, value)| format!("{name} {:.1} %", 100.0 * value)).collect();
            Some(format!("{evaluation} at step {step}: {}", figures.join(", ")))
        }
        Progress::EvaluationFailed(reason) => Some(reason.clone()),
        Progress::Step(_) | Progress::Spans(_) | Progress::EvaluationBegan | Progress::Seen(_) => None,
    }
}

/// A line of the journal, of a run that waits for `expected` workers and has so many.
fn noted(record: &Record, workers: u32, expected: u32) -> Option<String> {
    Some(match record {
        Record::Opened { awaited, .. } if awaited.len() == 1 => {
            "waits for the worker of the last generation to come back".to_string()
        }
        Record::Opened { awaited, .. } if !awaited.is_empty() => {
            format!("waits for the {} workers of the last generation to come back", awaited.len())
        }
        Record::Opened { checkpoint: Some(checkpoint), step, .. } => {
            format!("goes on from {checkpoint}, {step} steps are done")
        }
        Record::Returned { step, .. } => {
            let step = step.map_or_else(String::new, |step| format!(" after step {step}"));
            format!("worker {workers} of {expected} is back{step}")
        }
        Record::Adopted { generation, step } => {
            format!("generation {generation} goes on, {step} steps are done")
        }
        Record::Joined { description, .. } => {
            format!("worker {workers} of {expected} joined ({description})")
        }
        Record::Detached { worker, reason } => {
            format!("the connection of worker {worker} broke ({reason}); its place is kept for a while")
        }
        Record::Left { worker, .. } => {
            format!("worker {worker} has left in order, {workers} of {expected} are here")
        }
        Record::Lost { reason, .. } => {
            format!("a worker left, {workers} of {expected} are here: {reason}")
        }
        Record::Started { generation, step, .. } => {
            format!("generation {generation} trains from step {step} on")
        }
        Record::Checkpoint { checkpoint, .. } => format!("saved {checkpoint}"),
        Record::Skipped { step, shards } => {
            format!(
                "step {step} is skipped: something was not finite in shards {shards:?}; the log names the images"
            )
        }
        Record::Predicted { step, steps_left, seconds_left } => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let until = time_of_end(now.as_millis() as u64, *seconds_left);
            let left = duration(*seconds_left);
            format!(
                "after {step} steps: about {left} for the {steps_left} that are left, until about {until}, evaluations and \
                 checkpoints apart"
            )
        }
        Record::Straggler { worker, description, times_slower, .. } => format!(
            "the others wait for worker {worker} ({description}): it takes {times_slower:.1} times as long for a shard"
        ),
        Record::Unhealthy { finding, .. } => format!("warning: {finding}"),
        Record::RolledBack { step, .. } => {
            format!("goes back to step {step}, and on with half the learning rates; recipe.toml says so")
        }
        Record::Paused { step } => format!("paused after step {step}"),
        Record::Continued { step } => format!("goes on after step {step}"),
        Record::StopRequested { step } => {
            format!("stopping after step {step}; a second signal stops at once, without saving")
        }
        // Of a new run there is nothing to say; a generation starts a moment later, or a failure says why not.
        Record::Created(_)
        | Record::Dealt(_)
        | Record::Opened { .. }
        | Record::Generation { .. }
        | Record::Ended(_) => return None,
    })
}

/// Seconds as people say them: "48 s", "3 min 20 s", "2 h 5 min".
pub(crate) fn duration(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coordinator::StepSeconds;
    use std::sync::{Arc, Mutex};

    fn metrics(step: u64) -> StepMetrics {
        let seconds =
            StepSeconds { data: 0.1, forward: 0.2, backward: 0.5, all_reduce: 0.2, update: 0.0, step: 1.0 };
        StepMetrics {
            step,
            total_steps: 200,
            epoch: 2,
            total_epochs: 10,
            loss: -0.5,
            collapse_level: 0.951,
            learning_rate: 0.05,
            gradient_norm: 1.0,
            skipped: false,
            monitors: None,
            images_per_second: 128.0,
            seconds,
            generation: 1,
        }
    }

    #[test]
    fn plain_lines_come_now_and_then_and_at_the_end() {
        let lines: Arc<Mutex<Vec<String>>> = Arc::default();
        let kept = Arc::clone(&lines);
        let screen = Screen::plain(move |line| kept.lock().unwrap().push(line.to_string()));
        let mut display = Display::new(screen);
        let start = Instant::now();
        for (step, at_s) in [(1, 0), (2, 1), (3, 9), (4, 10), (5, 12)] {
            display.show(&Progress::Step(metrics(step)), start + Duration::from_secs(at_s));
        }
        let record = Record::Ended(Outcome::Stopped { step: 5 });
        display.show(&Progress::Noted { record, workers: 1, expected: 1 }, start);
        let lines = lines.lock().unwrap();
        let steps: Vec<&str> = lines.iter().filter_map(|line| line.strip_prefix("step ")).collect();
        assert_eq!(steps.len(), 3, "{lines:?}");
        assert_eq!(
            steps[0],
            "1/200  epoch 2/10  3 min 19 s left  loss -0.5000  collapse level 0.95  lr 0.0500  128 images/s  \
             data 10% forward 20% backward 50% all-reduce 20%"
        );
        assert!(steps[1].starts_with("4/200") && steps[2].starts_with("5/200"), "{lines:?}");
        assert!(lines[3].contains("--resume"));
    }

    #[test]
    fn who_stops_is_told_what_is_saved() {
        for (saved, expected) in [
            (5, "stopped after step 5; go on with --resume"),
            (3, "stopped after step 5, without saving; --resume goes on from what was saved before"),
        ] {
            let lines: Arc<Mutex<Vec<String>>> = Arc::default();
            let kept = Arc::clone(&lines);
            let mut display =
                Display::new(Screen::plain(move |line| kept.lock().unwrap().push(line.to_string())));
            let checkpoint = format!("step-{saved:06}");
            for record in [
                Record::Checkpoint { generation: 1, checkpoint, step: saved },
                Record::Ended(Outcome::Stopped { step: 5 }),
            ] {
                display.show(&Progress::Noted { record, workers: 1, expected: 1 }, Instant::now());
            }
            assert_eq!(lines.lock().unwrap().last().map(String::as_str), Some(expected));
        }
    }

    #[test]
    fn the_rest_is_predicted_in_a_line() {
        let record = Record::Predicted { step: 10, steps_left: 470, seconds_left: 7812.0 };
        let line = noted(&record, 1, 1).unwrap();
        let (before, after) = line.split_once(", until about ").unwrap();
        assert_eq!(before, "after 10 steps: about 2 h 10 min for the 470 that are left");
        assert!(after.ends_with(" UTC, evaluations and checkpoints apart"), "{line}");
    }

    #[test]
    fn durations_are_said_as_people_say_them() {
        for (seconds, expected) in
            [(0.4, "0 s"), (48.0, "48 s"), (200.0, "3 min 20 s"), (7500.0, "2 h 5 min")]
        {
            assert_eq!(duration(seconds), expected);
        }
    }
}
