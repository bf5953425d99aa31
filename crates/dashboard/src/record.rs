//! All that a run directory tells, read as it grows.
//!
//! The files are what survives a coordinator, so they and nothing else are what is shown: a page that is opened late,
//! or after a restart, shows what one that was open all the time does.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use coordinator::{Evaluated, StepSeconds};

use crate::cards::{Card, CardReader};
use crate::history::{self, Bucket, Found, History};
use crate::lines::{Follower, News};
use crate::metrics::{Metric, Step};
use crate::timeline::Timeline;

/// Steps that speed, shares and health are averaged over: long enough to be calm.
pub(crate) const LAST_STEPS: usize = 20;

/// The most evaluations that are kept: of more, every second one is left out.
const MOST_EVALUATIONS: usize = 2048;

/// Bounds of the histogram of steps' times, in seconds: from a small network on a GPU to a large one on a CPU.
pub(crate) const STEP_BOUNDS_S: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 120.0];

/// What was read so far.
#[derive(Debug, Default)]
pub(crate) struct RunRecord {
    pub(crate) history: History,
    pub(crate) timeline: Timeline,
    pub(crate) evaluations: Vec<Evaluated>,
    /// The last ones by their weights.
    pub(crate) cards: Vec<Card>,
    /// The last steps.
    pub(crate) recent: VecDeque<Step>,
    pub(crate) totals: Totals,
    /// How many steps are an epoch, once a second one has begun.
    pub(crate) steps_per_epoch: Option<u64>,
    /// Rises with each change of timeline, evaluations and cards.
    pub(crate) version: u64,
    /// Rises when the steps are not those of before.
    pub(crate) life: u64,
    /// Whether there is a report, and of when.
    pub(crate) report: Option<std::time::SystemTime>,
    /// Whether all that the files held when they were read at first, or again, is here: what comes from then on is new.
    pub(crate) is_complete: bool,
}

/// Sums over the steps that were made while this was read. So they never go back, also where a run does: what counts is
/// the work, and a step that is made again is work again.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Totals {
    pub(crate) steps: u64,
    /// Those that were left out.
    pub(crate) skipped: u64,
    /// Of each part, and of whole steps.
    pub(crate) seconds: StepSeconds,
    /// How many steps took at most so long as [`STEP_BOUNDS_S`].
    pub(crate) within: [u64; STEP_BOUNDS_S.len()],
}

impl RunRecord {
    fn metric(&mut self, line: &[u8], offset: u64) {
        match Metric::parse(line) {
            Some(Metric::Step(step)) if step.step > self.history.last_step() => self.step(step, offset),
            Some(Metric::Evaluated(evaluated)) => self.evaluated(evaluated),
            _ => {}
        }
    }

    fn step(&mut self, step: Step, offset: u64) {
        self.history.push(&step, offset);
        if self.is_complete {
            self.totals.add(&step);
        }
        if self.steps_per_epoch.is_none() && step.epoch > 1 {
            let before = step.step - 1;
            self.steps_per_epoch = Some(before / (step.epoch - 1)).filter(|steps| *steps > 0);
        }
        if self.recent.len() == LAST_STEPS {
            self.recent.pop_front();
        }
        self.recent.push_back(step);
    }

    fn evaluated(&mut self, evaluated: Evaluated) {
        if self.evaluations.len() == MOST_EVALUATIONS {
            let mut number = 0;
            self.evaluations.retain(|_| {
                number += 1;
                number % 2 == 1
            });
        }
        self.evaluations.push(evaluated);
        self.version += 1;
    }

    /// The steps are read again, which are not made again by that.
    fn forget_steps(&mut self) {
        let kept = RunRecord {
            timeline: std::mem::take(&mut self.timeline),
            cards: std::mem::take(&mut self.cards),
            version: self.version + 1,
            life: self.life + 1,
            report: self.report,
            totals: std::mem::take(&mut self.totals),
            ..RunRecord::default()
        };
        *self = kept;
    }

    /// The mean of a value over the last steps, as far as it is a number.
    pub(crate) fn recent_mean(&self, of: impl Fn(&Step) -> f64) -> Option<f64> {
        let values: Vec<f64> = self.recent.iter().map(of).filter(|value| value.is_finite()).collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    }

    /// The newest evaluation of each kind.
    pub(crate) fn last_evaluations(&self) -> Vec<&Evaluated> {
        let last: BTreeMap<&str, &Evaluated> =
            self.evaluations.iter().map(|evaluated| (evaluated.evaluation.as_str(), evaluated)).collect();
        last.into_values().collect()
    }
}

impl Totals {
    fn add(&mut self, step: &Step) {
        self.steps += 1;
        self.skipped += u64::from(step.skipped);
        let seconds = &step.seconds;
        let sum = &mut self.seconds;
        sum.data += seconds.data;
        sum.forward += seconds.forward;
        sum.backward += seconds.backward;
        sum.all_reduce += seconds.all_reduce;
        sum.update += seconds.update;
        sum.step += seconds.step;
        for (count, bound) in self.within.iter_mut().zip(STEP_BOUNDS_S) {
            *count += u64::from(seconds.step <= bound);
        }
    }
}

/// Reads a run directory as it grows.
#[derive(Debug)]
pub(crate) struct Reader {
    folder: PathBuf,
    metrics: Follower,
    journal: Follower,
    cards: CardReader,
}

impl Reader {
    pub(crate) fn new(folder: &Path) -> Reader {
        Reader {
            metrics: Follower::new(folder.join("metrics.jsonl")),
            journal: Follower::new(folder.join("journal.jsonl")),
            cards: CardReader::new(folder.join("evaluations")),
            folder: folder.to_path_buf(),
        }
    }

    /// Reads what has come since the last time. `change` gets the record for a moment each time, under a lock where
    /// others read it.
    pub(crate) fn read(&mut self, change: impl Fn(&mut dyn FnMut(&mut RunRecord))) -> std::io::Result<()> {
        self.journal.read(|news| {
            change(&mut |record| match &news {
                News::Anew => record.timeline = Timeline::default(),
                News::Lines(lines) => {
                    lines.iter().for_each(|line| record.timeline.hear(&line.text));
                    record.version += 1;
                }
            });
        })?;
        self.metrics.read(|news| {
            change(&mut |record| match &news {
                News::Anew => record.forget_steps(),
                News::Lines(lines) => lines.iter().for_each(|line| record.metric(&line.text, line.offset)),
            });
        })?;
        let report = std::fs::metadata(self.folder.join("report.html")).and_then(|report| report.modified());
        let (report, mut cards) = (report.ok(), self.cards.read());
        change(&mut |record| {
            if let Some(others) = cards.take().filter(|cards| *cards != record.cards) {
                record.cards = others;
                record.version += 1;
            }
            if record.report != report {
                record.report = report;
                record.version += 1;
            }
            record.is_complete = true;
        });
        Ok(())
    }
}

/// The steps `from..=to` of a run in `folder`, in at most `points` buckets. Reads the file where that tells more.
pub(crate) fn find(
    folder: &Path,
    found: Found,
    from: u64,
    to: u64,
    points: usize,
) -> std::io::Result<Vec<Bucket>> {
    let offset = match found {
        Found::Buckets(buckets) => return Ok(buckets),
        Found::InFile { offset } => offset,
    };
    let mut file = File::open(folder.join("metrics.jsonl"))?;
    file.seek(SeekFrom::Start(offset))?;
    let lines = BufReader::with_capacity(1 << 20, file).split(b'\n').map_while(Result::ok);
    let steps = lines.filter_map(|line| match Metric::parse(&line) {
        Some(Metric::Step(step)) => Some(step),
        _ => None,
    });
    Ok(history::of_lines(steps, from, to, points))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::step;
    use std::cell::RefCell;
    use std::fs;

    fn text(steps: impl Iterator<Item = u64>) -> String {
        steps.map(|number| serde_json::to_string(&step(number)).unwrap() + "\n").collect()
    }

    struct Directory {
        folder: tempfile::TempDir,
        reader: Reader,
        record: RefCell<RunRecord>,
    }

    impl Directory {
        fn new() -> Directory {
            let folder = tempfile::tempdir().unwrap();
            Directory { reader: Reader::new(folder.path()), folder, record: RefCell::default() }
        }

        fn read(&mut self) {
            self.reader.read(|change| change(&mut self.record.borrow_mut())).unwrap();
        }

        fn metrics(&self) -> PathBuf {
            self.folder.path().join("metrics.jsonl")
        }
    }

    #[test]
    fn steps_are_read_as_they_come_and_again_after_a_resume() {
        let mut directory = Directory::new();
        fs::write(directory.metrics(), text(1..=45)).unwrap();
        directory.read();
        assert!(directory.record.borrow().is_complete);
        fs::write(directory.metrics(), text(1..=50)).unwrap();
        directory.read();
        {
            let record = directory.record.borrow();
            // They were there when this was read at first, but for the last five.
            assert_eq!((record.history.last_step(), record.totals.steps), (50, 5));
            assert_eq!(record.steps_per_epoch, Some(10));
            assert_eq!(record.recent.len(), LAST_STEPS);
            assert_eq!(record.recent_mean(|step| step.step as f64), Some(40.5));
            assert_eq!((record.totals.within[3], record.totals.within[4]), (0, 5));
            assert!((record.totals.seconds.step - 0.5).abs() < 1e-9);
        }
        // What was made after the checkpoint is made again: the coordinator writes the file anew.
        fs::write(directory.folder.path().join("aside"), text(1..=30)).unwrap();
        fs::rename(directory.folder.path().join("aside"), directory.metrics()).unwrap();
        directory.read();
        // Those that are read again were made once, and those that are made again twice.
        for (written, counted) in [(30, 5), (35, 10)] {
            fs::write(directory.metrics(), text(1..=written)).unwrap();
            directory.read();
            let record = directory.record.borrow();
            assert_eq!((record.history.last_step(), record.totals.steps, record.life), (written, counted, 1));
        }
    }

    #[test]
    fn evaluations_are_bounded_and_the_first_and_last_stay() {
        let mut record = RunRecord::default();
        for step in 0..10_000 {
            record.evaluated(Evaluated {
                evaluation: "knn".to_string(),
                step,
                figures: BTreeMap::default(),
                card: PathBuf::new(),
                picture: None,
            });
        }
        assert!(record.evaluations.len() <= MOST_EVALUATIONS);
        assert_eq!((record.evaluations[0].step, record.last_evaluations()[0].step), (0, 9_999));
    }

    #[test]
    fn a_close_look_at_a_long_run_shows_its_steps() {
        let mut directory = Directory::new();
        fs::write(directory.metrics(), text(1..=40_000)).unwrap();
        directory.read();
        let find = |from, to| {
            let found = directory.record.borrow().history.find(from, to, 600);
            super::find(directory.folder.path(), found, from, to, 600).unwrap()
        };
        let near = find(20_001, 20_300);
        assert_eq!((near.len(), near[0].first, near[299].last), (300, 20_001, 20_300));
        assert_eq!(near[7].values[0].sum, step(20_008).loss);
        assert!(find(1, 40_000).len() <= 600);
    }
}
