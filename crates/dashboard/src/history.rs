//! All steps of a run in a bounded memory.
//!
//! Up to [`MOST_BUCKETS`] steps are kept as they are. Of longer runs, equally many steps that follow each other are
//! one [`Bucket`]: their means, and their extremes, so that no spike is lost however far one looks from. A bucket
//! also knows where its first line is in `metrics.jsonl`, so that who looks closer gets the steps themselves.

use std::collections::{BTreeMap, VecDeque};

use serde::Serialize;
use serde_json::Value;

use crate::metrics::Step;

/// The most buckets that are kept: 3.5 MB, and more than a screen has columns.
const MOST_BUCKETS: usize = 16_384;

/// The most steps that are read from the file for who looks closer: 26 MB of it, a tenth of a second.
const MOST_READ: u64 = 65_536;

/// The most steps that a page which is open is told one by one; after more it asks for the curves again.
const MOST_NEWS: usize = 256;

/// The values of a step that have a curve, in the order of [`Bucket::values`].
pub(crate) const CURVES: [&str; 5] =
    ["loss", "collapse_level", "learning_rate", "gradient_norm", "images_per_second"];

/// The parts of a step's time, in the order of [`Bucket::seconds`].
pub(crate) const PARTS: [&str; 6] = ["data", "forward", "backward", "all_reduce", "update", "rest"];

/// Steps that follow each other.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Bucket {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) count: u64,
    pub(crate) epoch: u64,
    /// Where the first one's line begins in the file.
    pub(crate) offset: u64,
    pub(crate) values: [Range; CURVES.len()],
    /// Sums.
    pub(crate) seconds: [f64; PARTS.len()],
}

/// The values of several steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Range {
    pub(crate) low: f64,
    pub(crate) high: f64,
    pub(crate) sum: f64,
    /// How many of them are numbers: those of a skipped step may be none.
    pub(crate) count: u32,
}

impl Range {
    fn of(value: f64) -> Range {
        match value.is_finite() {
            true => Range { low: value, high: value, sum: value, count: 1 },
            // What is compared with it stays.
            false => Range { low: f64::NAN, high: f64::NAN, sum: 0.0, count: 0 },
        }
    }

    fn merge(&mut self, next: &Range) {
        self.low = self.low.min(next.low);
        self.high = self.high.max(next.high);
        self.sum += next.sum;
        self.count += next.count;
    }

    /// Of one value it is the value itself; of none, not a number.
    fn mean(self) -> f64 {
        self.sum / f64::from(self.count)
    }
}

impl Bucket {
    fn of(step: &Step, offset: u64) -> Bucket {
        let values =
            [step.loss, step.collapse_level, step.learning_rate, step.gradient_norm, step.images_per_second];
        let seconds = &step.seconds;
        let known = [seconds.data, seconds.forward, seconds.backward, seconds.all_reduce, seconds.update];
        let rest = (seconds.step - known.iter().sum::<f64>()).max(0.0);
        Bucket {
            first: step.step,
            last: step.step,
            count: 1,
            epoch: step.epoch,
            offset,
            values: values.map(Range::of),
            seconds: [known[0], known[1], known[2], known[3], known[4], rest],
        }
    }

    /// Takes in the one that follows.
    fn merge(&mut self, next: &Bucket) {
        (self.last, self.epoch) = (next.last, next.epoch);
        self.count += next.count;
        self.values.iter_mut().zip(&next.values).for_each(|(range, next)| range.merge(next));
        self.seconds.iter_mut().zip(next.seconds).for_each(|(sum, next)| *sum += next);
    }
}

/// The steps of a run, from its first on.
#[derive(Debug, Default)]
pub(crate) struct History {
    buckets: Vec<Bucket>,
    /// Which power of two of steps is a bucket.
    width_log2: u32,
    /// The last steps, each by itself, for who has all but these.
    tail: VecDeque<Bucket>,
}

/// What answers a question.
#[derive(Debug, PartialEq)]
pub(crate) enum Found {
    /// This.
    Buckets(Vec<Bucket>),
    /// The lines from this offset on.
    InFile { offset: u64 },
}

impl History {
    /// A step whose line begins at `offset`. One that was told before is passed over.
    pub(crate) fn push(&mut self, step: &Step, offset: u64) {
        if step.step == 0 || step.step <= self.last_step() {
            return;
        }
        let one = Bucket::of(step, offset);
        if self.tail.len() == MOST_NEWS {
            self.tail.pop_front();
        }
        self.tail.push_back(one.clone());
        append(&mut self.buckets, one, self.width_log2);
        while self.buckets.len() > MOST_BUCKETS {
            self.width_log2 += 1;
            let mut wider = Vec::with_capacity(self.buckets.len());
            for bucket in self.buckets.drain(..) {
                append(&mut wider, bucket, self.width_log2);
            }
            self.buckets = wider;
        }
    }

    /// The last step; 0 if there is none.
    pub(crate) fn last_step(&self) -> u64 {
        self.buckets.last().map_or(0, |bucket| bucket.last)
    }

    /// The first step; 0 if there is none.
    pub(crate) fn first_step(&self) -> u64 {
        self.buckets.first().map_or(0, |bucket| bucket.first)
    }

    /// The steps after `step`, each by itself; `None` if they are too many.
    pub(crate) fn after(&self, step: u64) -> Option<Vec<Bucket>> {
        // A run that was read from a later step on has nothing before its first.
        let next = self.first_step().max(step + 1);
        let is_there = self.tail.front().is_none_or(|first| first.first <= next);
        let begin = self.tail.partition_point(|one| one.first <= step);
        is_there.then(|| self.tail.range(begin..).cloned().collect())
    }

    /// The steps `from..=to` in at most `points` buckets.
    pub(crate) fn find(&self, from: u64, to: u64, points: usize) -> Found {
        let begin = self.buckets.partition_point(|bucket| bucket.last < from);
        let end = self.buckets.partition_point(|bucket| bucket.first <= to).max(begin);
        let within = &self.buckets[begin..end];
        let (Some(first), Some(last)) = (within.first(), within.last()) else {
            return Found::Buckets(Vec::new());
        };
        // Within one bucket, the last step that is asked for may come before the first.
        let Some(more_steps) = to.min(last.last).checked_sub(from.max(first.first)) else {
            return Found::Buckets(Vec::new());
        };
        if self.width_log2 > 0 && within.len() < points && more_steps < MOST_READ {
            return Found::InFile { offset: first.offset };
        }
        Found::Buckets(thin(within, points))
    }
}

/// Puts a bucket behind the others, into the last one if both are of the same `1 << width_log2` steps.
fn append(buckets: &mut Vec<Bucket>, next: Bucket, width_log2: u32) {
    match buckets.last_mut() {
        Some(last) if (last.first - 1) >> width_log2 == (next.last - 1) >> width_log2 => last.merge(&next),
        _ => buckets.push(next),
    }
}

/// At most `points` buckets of the same steps, each of equally many.
pub(crate) fn thin(buckets: &[Bucket], points: usize) -> Vec<Bucket> {
    let together = buckets.len().div_ceil(points.max(1)).max(1);
    let merged = buckets.chunks(together).map(|chunk| {
        let mut first = chunk[0].clone();
        chunk[1..].iter().for_each(|next| first.merge(next));
        first
    });
    merged.collect()
}

/// The steps `from..=to` of `lines`, which begin at or before `from`.
pub(crate) fn of_lines(lines: impl Iterator<Item = Step>, from: u64, to: u64, points: usize) -> Vec<Bucket> {
    let mut buckets: Vec<Bucket> = Vec::new();
    for step in lines.take_while(|step| step.step <= to).filter(|step| step.step >= from) {
        if buckets.last().is_none_or(|last| last.last < step.step) {
            buckets.push(Bucket::of(&step, 0));
        }
    }
    thin(&buckets, points)
}

/// Buckets by column, as they are sent.
#[derive(Debug, Serialize)]
pub(crate) struct Columns {
    first: Vec<u64>,
    last: Vec<u64>,
    epoch: Vec<u64>,
    curves: BTreeMap<&'static str, Column>,
    /// Mean seconds of each part.
    seconds: BTreeMap<&'static str, Vec<f64>>,
}

/// What a terminal shows of a run: points of step and mean.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Curves {
    /// The loss.
    pub loss: Vec<(f64, f64)>,
    /// The collapse level.
    pub collapse_level: Vec<(f64, f64)>,
}

impl Curves {
    pub(crate) fn of(buckets: &[Bucket]) -> Curves {
        let points = |place: usize| {
            let point = |bucket: &Bucket| (bucket.last as f64, bucket.values[place].mean());
            buckets.iter().map(point).filter(|(_, mean)| mean.is_finite()).collect()
        };
        Curves { loss: points(0), collapse_level: points(1) }
    }

    /// Of what `/api/history` answers. What it lacks, or what is no number, is left out.
    pub(crate) fn of_answer(answer: &Value) -> Curves {
        let columns = &answer["columns"];
        let numbers = |column: &Value| -> Vec<Option<f64>> {
            column.as_array().into_iter().flatten().map(Value::as_f64).collect()
        };
        let points = |name: &str| {
            let means = numbers(&columns["curves"][name]["mean"]);
            numbers(&columns["last"])
                .into_iter()
                .zip(means)
                .filter_map(|(step, mean)| Some((step?, mean?)))
                .collect()
        };
        Curves { loss: points(CURVES[0]), collapse_level: points(CURVES[1]) }
    }
}

/// A curve.
#[derive(Debug, Serialize)]
struct Column {
    mean: Vec<f64>,
    low: Vec<f64>,
    high: Vec<f64>,
}

impl Columns {
    pub(crate) fn of(buckets: &[Bucket]) -> Columns {
        let numbers = |of: fn(&Bucket) -> u64| buckets.iter().map(of).collect();
        let curve = |place: usize| {
            let values =
                |of: fn(Range) -> f64| buckets.iter().map(|bucket| of(bucket.values[place])).collect();
            Column {
                mean: values(Range::mean),
                low: values(|range| range.low),
                high: values(|range| range.high),
            }
        };
        let seconds = |part: usize| {
            buckets.iter().map(|bucket| bucket.seconds[part] / bucket.count as f64).collect::<Vec<f64>>()
        };
        Columns {
            first: numbers(|bucket| bucket.first),
            last: numbers(|bucket| bucket.last),
            epoch: numbers(|bucket| bucket.epoch),
            curves: CURVES.iter().enumerate().map(|(place, name)| (*name, curve(place))).collect(),
            seconds: PARTS.iter().enumerate().map(|(place, name)| (*name, seconds(place))).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::step;
    use proptest::prelude::*;

    fn history(steps: impl Iterator<Item = u64>) -> History {
        let mut history = History::default();
        steps.for_each(|number| history.push(&step(number), 10 * number));
        history
    }

    fn buckets(found: Found) -> Vec<Bucket> {
        match found {
            Found::Buckets(buckets) => buckets,
            Found::InFile { .. } => panic!("expected buckets"),
        }
    }

    #[test]
    fn a_short_run_is_kept_as_it_is() {
        let found = buckets(history(1..=1000).find(1, 1000, 1000));
        assert_eq!(found.len(), 1000);
        for bucket in found {
            let expected = step(bucket.first);
            assert_eq!((bucket.count, bucket.last), (1, expected.step));
            assert_eq!(bucket.values[0], Range::of(expected.loss));
        }
    }

    #[test]
    fn curves_are_the_same_from_the_files_and_from_a_coordinator() {
        let mut history = history(1..=8);
        history.push(&Step { loss: f64::NAN, ..step(9) }, 90);
        let found = buckets(history.find(1, 9, 100));
        let curves = Curves::of(&found);
        assert_eq!((curves.loss.len(), curves.collapse_level.len()), (8, 9));
        let answer = serde_json::json!({ "columns": Columns::of(&found) });
        assert_eq!(Curves::of_answer(&answer), curves);
        assert_eq!(Curves::of_answer(&Value::Null), Curves::default());
    }

    #[test]
    fn a_long_run_is_bounded_and_keeps_its_extremes_and_means() {
        let mut history = History::default();
        let total = 300_001;
        for number in 1..=total {
            let loss = if number == 123_456 { 9.0 } else { -0.5 };
            history.push(&Step { loss, ..step(number) }, number);
        }
        assert!(history.buckets.len() <= MOST_BUCKETS && history.buckets.len() > MOST_BUCKETS / 2);
        let found = buckets(history.find(1, total, 500));
        assert!(found.len() <= 500 && found.len() > 250);
        assert_eq!(found.iter().map(|bucket| bucket.count).sum::<u64>(), total);
        let spike = found.iter().find(|bucket| bucket.values[0].high == 9.0).unwrap();
        assert!((spike.first..=spike.last).contains(&123_456) && spike.values[0].low == -0.5);
        let sum: f64 = found.iter().map(|bucket| bucket.values[0].sum).sum();
        assert!((sum - (9.0 - 0.5 * (total - 1) as f64)).abs() < 1e-6);
        // Near by, the file has more than the memory.
        let Found::InFile { offset } = history.find(123_400, 123_500, 500) else { panic!() };
        assert!(offset <= 123_400 && offset > 123_400 - 64);
        assert_eq!(buckets(history.find(total + 1, total + 9, 500)), []);
        assert_eq!(buckets(history.find(5, 3, 500)), [], "the last comes before the first");
    }

    proptest! {
        /// Wherever one looks, and whatever was told twice or left out: at most so many points, in order, none
        /// outside but for the ends of a bucket.
        #[test]
        fn answers_are_ordered_and_bounded(
            total in 1u64..40_000,
            gap in 1u64..5,
            from in 0u64..50_000,
            length in 0u64..50_000,
            points in 1usize..700,
        ) {
            let mut history = history((1..=total).step_by(gap as usize));
            history.push(&step(1), 0);
            prop_assert!(history.buckets.len() <= MOST_BUCKETS);
            if let Found::Buckets(found) = history.find(from, from + length, points) {
                prop_assert!(found.len() <= points);
                prop_assert!(found.is_sorted_by(|a, b| a.last < b.first));
                prop_assert!(found.iter().all(|bucket| bucket.last >= from && bucket.first <= from + length));
            }
        }
    }

    #[test]
    fn a_skipped_step_leaves_its_neighbours_values() {
        let mut history = History::default();
        for number in 1..=6 {
            let loss = if number == 3 { f64::NAN } else { number as f64 };
            history.push(&Step { loss, ..step(number) }, 0);
        }
        let found = buckets(history.find(1, 6, 2));
        assert_eq!(found[0].values[0], Range { low: 1.0, high: 2.0, sum: 3.0, count: 2 });
        assert_eq!(found[0].values[0].mean(), 1.5);
        let alone = Columns::of(&buckets(history.find(3, 3, 9)));
        assert!(serde_json::to_string(&alone).unwrap().contains(r#""loss":{"mean":[null]"#));
    }

    #[test]
    fn the_last_steps_are_told_one_by_one() {
        let history = history(1..=20_000);
        let news = |after| history.after(after).map(|news| (news.len(), news.first().map(|one| one.first)));
        assert_eq!(news(19_990), Some((10, Some(19_991))));
        assert_eq!(news(20_000), Some((0, None)));
        assert_eq!(news(30_000), Some((0, None)));
        assert_eq!(news(20_000 - MOST_NEWS as u64), Some((MOST_NEWS, Some(20_001 - MOST_NEWS as u64))));
        assert_eq!(news(20_000 - MOST_NEWS as u64 - 1), None);
        assert_eq!(news(0), None);
        assert_eq!(History::default().after(0).map(|news| news.len()), Some(0));
    }

    #[test]
    fn lines_answer_a_close_look() {
        let lines = || (90..=400).map(step);
        let found = of_lines(lines(), 100, 299, 200);
        assert_eq!((found.len(), found[0].first, found[199].last), (200, 100, 299));
        assert_eq!(of_lines(lines(), 100, 299, 50).len(), 50);
    }
}
