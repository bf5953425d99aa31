//! What happened when: the story that `journal.jsonl` tells, in a bounded memory.

use std::collections::{BTreeMap, VecDeque};

use coordinator::Outcome;
use coordinator::journal::Record;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::words::{duration, time_of_end};

/// The most moments that are kept, the last ones: the journal itself has all.
const MOST_MOMENTS: usize = 400;

/// The most generations that are kept, the last ones.
const MOST_GENERATIONS: usize = 400;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// Milliseconds since 1970.
    pub unix_time_ms: u64,
    /// How it is to be taken.
    pub kind: Kind,
    /// In one or two words.
    pub event: String,
    /// What it was about.
    pub detail: String,
}

/// How something is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// As it goes.
    Plain,
    /// Something is done.
    Good,
    /// Something was lost or failed.
    Fault,
}

/// One fixed membership.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GenerationSpan {
    /// Its number.
    pub(crate) generation: u64,
    /// How many workers it has.
    pub(crate) workers: u32,
    /// When it was formed, in milliseconds since 1970.
    pub(crate) from_ms: u64,
    /// When it was over, if it is.
    pub(crate) to_ms: Option<u64>,
    /// The step from which it trains, once it does.
    pub(crate) step: Option<u64>,
}

/// The story so far.
#[derive(Debug, Default)]
pub(crate) struct Timeline {
    pub(crate) moments: VecDeque<Moment>,
    pub(crate) generations: VecDeque<GenerationSpan>,
    pub(crate) counts: Counts,
    pub(crate) run_id: Option<String>,
    pub(crate) begun_ms: Option<u64>,
    pub(crate) last_ms: u64,
    /// How the run ended, unless somebody took charge of it again.
    pub(crate) outcome: Option<Outcome>,
    /// How many workers it waits for.
    pub(crate) workers_expected: u32,
    /// For people: the host and process of each worker that takes part.
    workers: BTreeMap<u64, String>,
    /// How many checkpoints the last moment stands for, and the first of them.
    checkpoints: Option<(u64, String)>,
}

/// How often what happened.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) coordinators: u64,
    pub(crate) generations: u64,
    pub(crate) joined: u64,
    pub(crate) lost: u64,
    pub(crate) checkpoints: u64,
}

#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    unix_time_ms: u64,
    #[serde(flatten)]
    rest: Value,
}

impl Timeline {
    /// A line of the journal. One that is not JSON is passed over; an event that this version does not know is told
    /// by its fields.
    pub(crate) fn hear(&mut self, line: &[u8]) {
        let Ok(Line { unix_time_ms, rest }) = serde_json::from_slice(line) else { return };
        self.begun_ms.get_or_insert(unix_time_ms);
        match serde_json::from_value::<Record>(rest.clone()) {
            Ok(record) => self.note(unix_time_ms, record),
            Err(_) => {
                let event = rest["event"].as_str().unwrap_or("note").replace('_', " ");
                self.tell(unix_time_ms, Kind::Plain, &event, fields(&rest));
            }
        }
        self.last_ms = unix_time_ms;
    }

    fn note(&mut self, at_ms: u64, record: Record) {
        match record {
            Record::Created(created) => {
                self.run_id = Some(created.run_id);
                self.tell(at_ms, Kind::Plain, "created", format!("by version {}", created.program_version));
            }
            Record::Dealt(images) => self.tell(at_ms, Kind::Plain, "data", images.to_string()),
            Record::Opened { checkpoint, step, workers, awaited, .. } => {
                self.open(workers, &awaited);
                let from = checkpoint.unwrap_or_else(|| format!("step {step}"));
                self.tell(at_ms, Kind::Plain, "coordinator", format!("takes charge, from {from}"));
            }
            Record::Joined { worker, description, .. } => {
                self.counts.joined += 1;
                self.tell(at_ms, Kind::Plain, "joined", format!("worker {worker} ({description})"));
                self.workers.insert(worker, description);
            }
            Record::Returned { worker, step } => {
                self.tell(at_ms, Kind::Plain, "returned", format!("{}{}", self.name(worker), after(step)));
            }
            Record::Detached { worker, reason } => {
                self.tell(at_ms, Kind::Fault, "detached", format!("{}: {reason}", self.name(worker)));
            }
            Record::Left { worker, step } => {
                self.tell(at_ms, Kind::Plain, "left", format!("{}{}", self.name(worker), after(step)));
                self.workers.remove(&worker);
            }
            Record::Lost { worker, reason } => {
                self.counts.lost += 1;
                self.tell(at_ms, Kind::Fault, "lost", format!("{}: {reason}", self.name(worker)));
                self.workers.remove(&worker);
            }
            Record::Generation { generation, places } => self.form(at_ms, generation, places.len() as u32),
            Record::Started { generation, step, .. } => self.begin(at_ms, generation, step),
            Record::Adopted { generation, step } => {
                let detail = format!("generation {generation} goes on, {step} steps are done");
                self.tell(at_ms, Kind::Good, "adopted", detail);
            }
            Record::Checkpoint { checkpoint, .. } => self.saved(at_ms, checkpoint),
            Record::Skipped { step, shards } => {
                let detail = format!("step {step}: something was not finite in shards {shards:?}");
                self.tell(at_ms, Kind::Fault, "skipped", detail);
            }
            Record::Predicted { steps_left, seconds_left, .. } => {
                self.tell(at_ms, Kind::Plain, "predicted", rest(at_ms, steps_left, seconds_left));
            }
            Record::Straggler { worker, times_slower, .. } => {
                let name = self.name(worker);
                let detail =
                    format!("{name} takes {times_slower:.1} times as long for a shard as the others");
                self.tell(at_ms, Kind::Fault, "straggler", detail);
            }
            Record::Unhealthy { finding, .. } => self.tell(at_ms, Kind::Fault, "unhealthy", finding),
            Record::RolledBack { step, .. } => {
                let detail = format!("to step {step}, and on with half the learning rates");
                self.tell(at_ms, Kind::Fault, "rolled back", detail);
            }
            Record::Paused { step } => self.tell(at_ms, Kind::Plain, "paused", format!("after step {step}")),
            Record::Continued { step } => {
                self.tell(at_ms, Kind::Plain, "continued", format!("after step {step}"));
            }
            Record::StopRequested { step } => {
                self.tell(at_ms, Kind::Plain, "stop", format!("asked for after step {step}"));
            }
            Record::Ended(outcome) => self.end(at_ms, outcome),
        }
    }

    /// A coordinator takes charge, which waits for so many workers; those that are `awaited` may come back.
    fn open(&mut self, workers: u32, awaited: &[u64]) {
        self.counts.coordinators += 1;
        (self.outcome, self.workers_expected) = (None, workers);
        self.workers.retain(|worker, _| awaited.contains(worker));
        // Those that may come back have trained on. Of others nothing was heard after the last line.
        if awaited.is_empty() {
            self.close(self.last_ms);
        }
    }

    fn form(&mut self, at_ms: u64, generation: u64, workers: u32) {
        self.counts.generations += 1;
        self.close(at_ms);
        let span = GenerationSpan { generation, workers, from_ms: at_ms, to_ms: None, step: None };
        push(&mut self.generations, span, MOST_GENERATIONS);
        let plural = if workers == 1 { "" } else { "s" };
        self.tell(at_ms, Kind::Plain, "generation", format!("{generation}, of {workers} worker{plural}"));
    }

    fn begin(&mut self, at_ms: u64, generation: u64, step: u64) {
        if let Some(last) = self.generations.back_mut().filter(|last| last.generation == generation) {
            last.step = Some(step);
        }
        let detail = format!("generation {generation} trains from step {step} on");
        self.tell(at_ms, Kind::Plain, "started", detail);
    }

    fn close(&mut self, at_ms: u64) {
        if let Some(last) = self.generations.back_mut() {
            last.to_ms.get_or_insert(at_ms);
        }
    }

    /// Checkpoints that follow each other are one moment.
    fn saved(&mut self, at_ms: u64, checkpoint: String) {
        self.counts.checkpoints += 1;
        let together = self.checkpoints.take();
        let (count, first) = together.unwrap_or((0, checkpoint.clone()));
        if count > 0 {
            self.moments.pop_back();
        }
        let detail = match count {
            0 => checkpoint,
            _ => format!("{} checkpoints, {first} to {checkpoint}", count + 1),
        };
        self.tell(at_ms, Kind::Good, "saved", detail);
        self.checkpoints = Some((count + 1, first));
    }

    fn end(&mut self, at_ms: u64, outcome: Outcome) {
        self.close(at_ms);
        let (kind, detail) = match &outcome {
            Outcome::Completed { step, .. } => (Kind::Good, format!("all {step} steps are done")),
            Outcome::Stopped { step } => (Kind::Plain, format!("stopped after step {step}")),
            Outcome::Failed { reason } => (Kind::Fault, format!("failed: {reason}")),
        };
        self.tell(at_ms, kind, "ended", detail);
        self.outcome = Some(outcome);
    }

    fn tell(&mut self, unix_time_ms: u64, kind: Kind, event: &str, detail: String) {
        self.checkpoints = None;
        push(
            &mut self.moments,
            Moment { unix_time_ms, kind, event: event.to_string(), detail },
            MOST_MOMENTS,
        );
    }

    /// Whether a worker takes part, as far as the journal has been read.
    pub(crate) fn has_worker(&self, worker: u64) -> bool {
        self.workers.contains_key(&worker)
    }

    fn name(&self, worker: u64) -> String {
        match self.workers.get(&worker) {
            Some(description) => format!("worker {worker} ({description})"),
            None => format!("worker {worker}"),
        }
    }
}

/// When in the run a worker said something, if it had made a step.
fn after(step: Option<u64>) -> String {
    step.map_or_else(String::new, |step| format!(", after step {step}"))
}

/// How long the steps take that are left.
fn rest(at_ms: u64, steps_left: u64, seconds_left: f64) -> String {
    let (left, until) = (duration(seconds_left), time_of_end(at_ms, seconds_left));
    format!("{left} for the {steps_left} steps that are left, until about {until}")
}

fn push<T>(kept: &mut VecDeque<T>, new: T, most: usize) {
    if kept.len() == most {
        kept.pop_front();
    }
    kept.push_back(new);
}

/// The plain fields of an event.
fn fields(value: &Value) -> String {
    let all = value.as_object().into_iter().flatten();
    let told = all.filter_map(|(name, value)| match value {
        _ if name == "event" => None,
        Value::String(text) => Some(format!("{} {text}", name.replace('_', " "))),
        Value::Number(_) | Value::Bool(_) => Some(format!("{} {value}", name.replace('_', " "))),
        _ => None,
    });
    told.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn timeline(lines: &[&str]) -> Timeline {
        let mut timeline = Timeline::default();
        lines.iter().for_each(|line| timeline.hear(line.as_bytes()));
        timeline
    }

    const STORY: [&str; 15] = [
        r#"{"unix_time_ms":1000,"event":"created","run_id":"ab","program_version":"0.1.0"}"#,
        r#"{"unix_time_ms":1010,"event":"opened","program_version":"0.1.0","checkpoint":null,"step":0,"workers":2}"#,
        r#"{"unix_time_ms":1020,"event":"joined","worker":1,"incarnation":6,"collective_address":"a:1","description":"vm, process 7"}"#,
        r#"{"unix_time_ms":1030,"event":"joined","worker":2,"incarnation":7,"collective_address":"a:2","description":"vm, process 8"}"#,
        r#"{"unix_time_ms":1040,"event":"generation","generation":1,"places":[{"worker":1,"collective_address":"a:1","first_shard":0,"shard_count":2},{"worker":2,"collective_address":"a:2","first_shard":2,"shard_count":2}]}"#,
        r#"{"unix_time_ms":1050,"event":"started","generation":1,"step":0,"state_hash":"5b"}"#,
        r#"{"unix_time_ms":1060,"event":"predicted","step":10,"steps_left":470,"seconds_left":235.25}"#,
        r#"{"unix_time_ms":2000,"event":"checkpoint","generation":1,"checkpoint":"step-000040","step":40}"#,
        r#"{"unix_time_ms":3000,"event":"checkpoint","generation":1,"checkpoint":"step-000080","step":80}"#,
        r#"{"unix_time_ms":4000,"event":"checkpoint","generation":1,"checkpoint":"step-000120","step":120}"#,
        r#"{"unix_time_ms":5000,"event":"lost","worker":2,"reason":"its connection broke"}"#,
        r#"{"unix_time_ms":5010,"event":"generation","generation":2,"places":[{"worker":1,"collective_address":"a:1","first_shard":0,"shard_count":4}]}"#,
        r#"{"unix_time_ms":5020,"event":"started","generation":2,"step":131,"state_hash":"6b"}"#,
        r#"{"unix_time_ms":5030,"event":"moved_on","by":"a person","step":131}"#,
        r#"{"unix_time_ms":9000,"event":"ended","outcome":"stopped","step":140}"#,
    ];

    #[test]
    fn a_journal_tells_a_story() {
        let timeline = timeline(&STORY);
        let told: Vec<(Kind, &str, &str)> = timeline
            .moments
            .iter()
            .map(|moment| (moment.kind, moment.event.as_str(), moment.detail.as_str()))
            .collect();
        assert_eq!(
            told,
            [
                (Kind::Plain, "created", "by version 0.1.0"),
                (Kind::Plain, "coordinator", "takes charge, from step 0"),
                (Kind::Plain, "joined", "worker 1 (vm, process 7)"),
                (Kind::Plain, "joined", "worker 2 (vm, process 8)"),
                (Kind::Plain, "generation", "1, of 2 workers"),
                (Kind::Plain, "started", "generation 1 trains from step 0 on"),
                (
                    Kind::Plain,
                    "predicted",
                    "3 min 55 s for the 470 steps that are left, until about 00:03 UTC"
                ),
                (Kind::Good, "saved", "3 checkpoints, step-000040 to step-000120"),
                (Kind::Fault, "lost", "worker 2 (vm, process 8): its connection broke"),
                (Kind::Plain, "generation", "2, of 1 worker"),
                (Kind::Plain, "started", "generation 2 trains from step 131 on"),
                (Kind::Plain, "moved on", "by a person, step 131"),
                (Kind::Plain, "ended", "stopped after step 140"),
            ]
        );
        let spans: Vec<_> =
            timeline.generations.iter().map(|span| (span.workers, span.to_ms, span.step)).collect();
        assert_eq!(spans, [(2, Some(5010), Some(0)), (1, Some(9000), Some(131))]);
        assert_eq!(timeline.outcome, Some(Outcome::Stopped { step: 140 }));
        let counts = Counts { coordinators: 1, generations: 2, joined: 2, lost: 1, checkpoints: 3 };
        assert_eq!((timeline.counts, timeline.begun_ms, timeline.workers_expected), (counts, Some(1000), 2));
    }

    #[test]
    fn what_is_left_when_a_coordinator_takes_charge_are_the_workers_that_may_come_back() {
        for (awaited, workers, ended_ms) in [("[]", [false, false], Some(4000)), ("[2]", [false, true], None)]
        {
            let opened = format!(
                r#"{{"unix_time_ms":90000,"event":"opened","program_version":"1","checkpoint":null,"step":120,"workers":2,"awaited":{awaited}}}"#
            );
            let lines = [&STORY[..10], &[opened.as_str()]].concat();
            let timeline = timeline(&lines);
            assert_eq!([1, 2].map(|worker| timeline.has_worker(worker)), workers, "{awaited}");
            assert_eq!(timeline.generations[0].to_ms, ended_ms, "{awaited}");
        }
    }

    #[test]
    fn the_memory_of_a_story_is_bounded() {
        let mut timeline = Timeline::default();
        for number in 0..5000 {
            let line = format!(
                r#"{{"unix_time_ms":{number},"event":"generation","generation":{number},"places":[]}}"#
            );
            timeline.hear(line.as_bytes());
        }
        assert_eq!((timeline.moments.len(), timeline.generations.len()), (MOST_MOMENTS, MOST_GENERATIONS));
        assert_eq!(timeline.counts.generations, 5000);
    }

    proptest! {
        #[test]
        fn a_damaged_journal_never_panics(
            line in proptest::sample::select(STORY.to_vec()),
            changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..6),
        ) {
            let mut bytes = line.as_bytes().to_vec();
            for (place, byte) in changes {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
            Timeline::default().hear(&bytes);
        }
    }
}
