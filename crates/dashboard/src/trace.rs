//! The steps that the flight recorder holds, as a trace for Perfetto or Chrome, and who the others waited for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use coordinator::flight_recorder::{FILES, Span, StepPhase, StepSpans};
use coordinator::journal::Record;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::clocks::{Clocks, interval_us, last_all_reduce};

/// Steps of all workers that took part in them, on one clock.
#[derive(Debug, Default)]
pub struct Trace {
    /// In the order of their steps.
    steps: Vec<StepSpans>,
    /// What to add to a worker's clock, in microseconds.
    corrections_us: BTreeMap<u64, i64>,
    /// What workers are called.
    names: BTreeMap<u64, String>,
    /// What happened to the run meanwhile, by the coordinator's clock.
    moments: Vec<(i64, String)>,
}

/// How often the others waited for a worker.
#[derive(Debug, Clone, PartialEq)]
pub struct Lateness {
    /// Its id.
    pub worker: u64,
    /// Host and process.
    pub name: String,
    /// Steps that it made together with others.
    pub steps: usize,
    /// In how many of them it came to the all-reduce last.
    pub last: usize,
    /// How much later it came than the one before it, over those, in milliseconds.
    pub late_ms: f64,
    /// Its own work in a step, without waiting for the others, in milliseconds: the median.
    pub work_ms: f64,
}

impl Trace {
    /// The last `count` steps that the run in `folder` has told of, or the `count` steps from `first` on.
    ///
    /// # Errors
    /// Files that are there and cannot be read.
    pub fn read(folder: &Path, first: Option<u64>, count: u64) -> io::Result<Trace> {
        let mut steps: Vec<StepSpans> = Vec::new();
        for name in FILES {
            steps.extend(lines(&folder.join(name))?);
        }
        let corrections_us = Clocks::of(&steps).corrections_us();
        // Where the newest generation is, the run is. What others made beyond that is to be made again.
        let newest_step = steps.iter().max_by_key(|step| (step.generation, step.step));
        let last = newest_step.map_or(0, |step| step.step);
        let first = first.unwrap_or((last + 1).saturating_sub(count));
        // A step that was made again counts as it was made last.
        let mut newest: BTreeMap<u64, u64> = BTreeMap::new();
        for step in &steps {
            let generation = newest.entry(step.step).or_default();
            *generation = step.generation.max(*generation);
        }
        steps.retain(|step| {
            (first..first.saturating_add(count)).contains(&step.step)
                && step.step <= last
                && newest[&step.step] == step.generation
        });
        steps.sort_by_key(|step| (step.step, step.worker));
        let mut trace = Trace { steps, corrections_us, ..Trace::default() };
        trace.read_journal(&lines(&folder.join("journal.jsonl"))?);
        Ok(trace)
    }

    fn read_journal(&mut self, journal: &[JournalLine]) {
        let times = self.steps.iter().flat_map(|step| [self.begin_us(step), self.end_us(step)]);
        let (begin, end) = times.fold((i64::MAX, 0), |(low, high), time| (low.min(time), high.max(time)));
        for JournalLine { unix_time_ms, record } in journal {
            if let Record::Joined { worker, description, .. } = record {
                self.names.insert(*worker, description.clone());
            }
            let at = *unix_time_ms as i64 * 1000;
            if (begin..=end).contains(&at) {
                let text = serde_json::to_value(record).unwrap_or_default();
                let event = text["event"].as_str().unwrap_or_default().replace('_', " ");
                self.moments.push((at, event));
            }
        }
    }

    /// Which steps these are; `None` if there are none.
    pub fn steps(&self) -> Option<(u64, u64)> {
        Some((self.steps.first()?.step, self.steps.last()?.step))
    }

    /// In the format that `ui.perfetto.dev` and `chrome://tracing` open (Trace Event Format, Google 2016): a process for each
    /// worker, whose steps are its main thread, and one for the coordinator.
    pub fn to_chrome(&self) -> Value {
        let workers: BTreeSet<u64> = self.steps.iter().map(|step| step.worker).collect();
        let name = |what: &str, pid: u64, name: String| json!({ "ph": "M", "name": what, "pid": pid, "tid": pid, "args": { "name": name } });
        let mut events = vec![name("process_name", 0, "coordinator".to_string())];
        for worker in workers {
            events.push(name("process_name", worker, format!("worker {worker} ({})", self.name(worker))));
            events.push(name("thread_name", worker, "steps".to_string()));
        }
        let origin = self.steps.iter().map(|step| self.begin_us(step)).min().unwrap_or(0);
        for step in &self.steps {
            let begin = self.begin_us(step) - origin;
            // The parts of a step lie within it, and are shown below it.
            events.push(json!({
                "ph": "X", "cat": "step", "name": format!("step {}", step.step),
                "pid": step.worker, "tid": step.worker,
                "ts": begin, "dur": self.end_us(step) - origin - begin, "args": { "generation": step.generation },
            }));
            events.extend(step.spans.iter().map(|span| {
                json!({
                    "ph": "X", "cat": "step", "name": phase(span.phase), "pid": step.worker, "tid": step.worker,
                    "ts": begin + i64::from(span.start_us), "dur": span.duration_us,
                    "args": { "step": step.step, "shard": span.shard },
                })
            }));
        }
        events.extend(self.moments.iter().map(|(at, event)| {
            json!({ "ph": "i", "s": "g", "cat": "run", "name": event, "pid": 0, "tid": 0, "ts": at - origin })
        }));
        json!({ "displayTimeUnit": "ms", "traceEvents": events })
    }

    /// Who came last, most often first.
    pub fn lateness(&self) -> Vec<Lateness> {
        let mut found: BTreeMap<u64, (Vec<f64>, usize, f64)> = BTreeMap::new();
        for together in self.steps.chunk_by(|one, other| one.step == other.step) {
            // When each came to the all-reduce, on one clock.
            let mut arrivals: Vec<(i64, u64)> = Vec::new();
            for step in together {
                let Some(fold) = last_all_reduce(step) else { continue };
                arrivals.push((self.begin_us(step) + i64::from(fold.start_us), step.worker));
                let work = work_us(step) as f64 / 1e3;
                found.entry(step.worker).or_default().0.push(work);
            }
            arrivals.sort_unstable();
            if let [.., (before, _), (at, worker)] = arrivals[..]
                && let Some((_, last, late_ms)) = found.get_mut(&worker)
            {
                *last += 1;
                *late_ms += (at - before) as f64 / 1e3;
            }
        }
        let mut lateness: Vec<Lateness> = found
            .into_iter()
            .map(|(worker, (mut works, last, late_ms))| {
                works.sort_by(f64::total_cmp);
                Lateness {
                    worker,
                    name: self.name(worker).to_string(),
                    steps: works.len(),
                    last,
                    late_ms: if last == 0 { 0.0 } else { late_ms / last as f64 },
                    work_ms: works[works.len() / 2],
                }
            })
            .collect();
        lateness.sort_by(|one, other| other.last.cmp(&one.last).then(one.worker.cmp(&other.worker)));
        lateness
    }

    fn name(&self, worker: u64) -> &str {
        self.names.get(&worker).map_or("of unknown place", String::as_str)
    }

    fn begin_us(&self, step: &StepSpans) -> i64 {
        self.interval_us(step).0
    }

    fn end_us(&self, step: &StepSpans) -> i64 {
        self.interval_us(step).1
    }

    fn interval_us(&self, step: &StepSpans) -> (i64, i64) {
        interval_us(step, self.corrections_us.get(&step.worker).copied().unwrap_or(0))
    }
}

#[derive(Deserialize)]
struct JournalLine {
    unix_time_ms: u64,
    #[serde(flatten)]
    record: Record,
}

/// The lines of a file that can be read; none if it is not there.
fn lines<T: for<'de> Deserialize<'de>>(path: &Path) -> io::Result<Vec<T>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file?,
    };
    let mut found = Vec::new();
    for line in BufReader::new(file).split(b'\n') {
        found.extend(serde_json::from_slice(&line?).ok());
    }
    Ok(found)
}

/// All but waiting: for views, or for the others.
fn work_us(step: &StepSpans) -> u64 {
    let works = |span: &&Span| !matches!(span.phase, StepPhase::AllReduce | StepPhase::Data);
    step.spans.iter().filter(works).map(|span| u64::from(span.duration_us)).sum()
}

/// What a person calls it.
pub(crate) fn phase(phase: StepPhase) -> &'static str {
    match phase {
        StepPhase::Unknown => "unknown",
        StepPhase::Data => "wait for views",
        StepPhase::Forward => "forward",
        StepPhase::Backward => "backward",
        StepPhase::AllReduce => "all-reduce",
        StepPhase::Update => "update",
        StepPhase::Monitor => "monitor",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKERS: u64 = 3;

    /// Worker 2 is late by 30 ms in every step, and worker 3's clock is an hour ahead.
    fn step(worker: u64, step: u64, generation: u64) -> StepSpans {
        let work_us = if worker == 2 { 50_000 } else { 20_000 };
        let clock_us = if worker == 3 { 3_600_000_000 } else { 0 };
        let span = |phase, start_us, duration_us| Span { phase, shard: None, start_us, duration_us };
        StepSpans {
            worker,
            generation,
            step,
            began_unix_us: 1_000_000_000 + clock_us + step * 60_000,
            spans: vec![
                span(StepPhase::Forward, 0, work_us),
                span(StepPhase::AllReduce, work_us, 55_000 - work_us),
                span(StepPhase::Update, 55_000, 1000),
            ],
        }
    }

    fn written(steps: impl Iterator<Item = StepSpans>) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let text: String = steps.map(|step| serde_json::to_string(&step).unwrap() + "\n").collect();
        let cut = text.len() / 2;
        let cut = cut + text[cut..].find('\n').map_or(0, |place| place + 1);
        std::fs::write(folder.path().join(FILES[0]), &text[..cut]).unwrap();
        std::fs::write(folder.path().join(FILES[1]), &text[cut..]).unwrap();
        let joined = json!({
            "unix_time_ms": 1_000_100, "event": "joined", "worker": 2, "incarnation": 1,
            "collective_address": "a:1", "description": "host-2, process 9",
        });
        let lost = json!({ "unix_time_ms": 1_001_100, "event": "lost", "worker": 9, "reason": "gone" });
        std::fs::write(folder.path().join("journal.jsonl"), format!("{joined}\n{lost}\n")).unwrap();
        folder
    }

    fn whole() -> tempfile::TempDir {
        written((1..=20).flat_map(|number| (1..=WORKERS).map(move |worker| step(worker, number, 1))))
    }

    #[test]
    fn clocks_are_brought_together_and_the_late_one_is_named() {
        let folder = whole();
        let trace = Trace::read(folder.path(), None, 10).unwrap();
        assert_eq!(trace.steps(), Some((11, 20)));
        assert_eq!(trace.corrections_us, [(1, 0), (2, 0), (3, -3_600_000_000)].into());
        let lateness = trace.lateness();
        let late = Lateness {
            worker: 2,
            name: "host-2, process 9".to_string(),
            steps: 10,
            last: 10,
            late_ms: 30.0,
            work_ms: 51.0,
        };
        assert_eq!(lateness[0], late);
        assert!(lateness[1..].iter().all(|other| (other.last, other.work_ms) == (0, 21.0)), "{lateness:?}");
    }

    #[test]
    fn a_trace_has_every_span_on_one_clock() {
        let folder = whole();
        let trace = Trace::read(folder.path(), Some(1), 2).unwrap().to_chrome();
        let events = trace["traceEvents"].as_array().unwrap();
        let of = |ph: &str| events.iter().filter(|event| event["ph"] == ph).collect::<Vec<_>>();
        assert_eq!(of("M").len(), 1 + 2 * 3);
        assert_eq!(of("M")[3]["args"]["name"], "worker 2 (host-2, process 9)");
        assert_eq!(of("X").len(), 2 * 3 * 4, "two steps of three workers, each whole and in three parts");
        let begins: BTreeSet<i64> = of("X").iter().map(|event| event["ts"].as_i64().unwrap()).collect();
        assert!(begins.first() == Some(&0) && begins.last().unwrap() < &200_000, "{begins:?}");
        assert_eq!(
            of("i").iter().map(|event| event["name"].as_str().unwrap()).collect::<Vec<_>>(),
            ["joined"]
        );
    }

    #[test]
    fn a_step_that_was_made_again_counts_once() {
        let folder = written([step(1, 1, 1), step(2, 1, 1), step(1, 1, 2)].into_iter());
        let trace = Trace::read(folder.path(), None, 10).unwrap();
        assert_eq!(trace.steps.len(), 1);
        assert_eq!(trace.lateness()[0].last, 0, "it was alone");
        // The last worker of a step may tell of it when the next one is made already.
        let resumed = (1..=50)
            .map(|number| step(1, number, 1))
            .chain([26, 27, 28, 27].map(|number| step(1, number, 2)));
        let folder = written(resumed);
        for (from, expected) in [(None, Some((19, 28))), (Some(20), Some((20, 28))), (Some(40), None)] {
            assert_eq!(Trace::read(folder.path(), from, 10).unwrap().steps(), expected, "{from:?}");
        }
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(Trace::read(empty.path(), None, 10).unwrap().steps(), None);
    }
}
