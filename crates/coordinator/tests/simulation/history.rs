//! What happened in a simulation, seen from outside of everyone in it, and what must be true of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use coordinator::journal::Record;
use coordinator::{Outcome, RunDirectory};

use crate::state::{State, TOTAL_STEPS};

/// A step that a worker has committed.
#[derive(Debug, Clone, Copy)]
struct Commit {
    worker: u64,
    generation: u64,
    state: State,
}

#[derive(Debug, Default)]
struct Seen {
    commits: Vec<Commit>,
    outcome: Option<Outcome>,
    /// All of it for people, with the simulated time.
    lines: Vec<String>,
}

/// Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct History(Arc<Mutex<Seen>>);

impl History {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap()
    }

    /// Of what happens on a host.
    pub(crate) fn note(&self, line: &str) {
        self.note_at(turmoil::sim_elapsed().expect("a host's task"), line);
    }

    pub(crate) fn note_at(&self, now: Duration, line: &str) {
        let now_s = now.as_secs_f64();
        self.seen().lines.push(format!("{now_s:9.3} s  {line}"));
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.seen().lines.clone()
    }

    pub(crate) fn commit(&self, worker: u64, generation: u64, state: State) {
        self.note(&format!("worker {worker} commits step {} in generation {generation}", state.step));
        self.seen().commits.push(Commit { worker, generation, state });
    }

    pub(crate) fn end(&self, outcome: Outcome) {
        self.note(&format!("{outcome:?}"));
        self.seen().outcome = Some(outcome);
    }

    pub(crate) fn outcome(&self) -> Option<Outcome> {
        self.seen().outcome.clone()
    }

    /// What the run has left behind, and what its workers have done, is one chain of commits to the state of a run that
    /// nothing happened to. Only one that is not to recover may end before that.
    pub(crate) fn check(&self, run: &Path, may_fail: bool) {
        let journal = journal(run);
        self.check_chain(&journal);
        check_metrics(run, &journal);
        match self.outcome().expect("the run has ended") {
            Outcome::Completed { step, state_hash } => {
                assert_eq!((step, state_hash.0), (TOTAL_STEPS, State::expected(TOTAL_STEPS).hash));
                check_checkpoint(run);
            }
            Outcome::Failed { reason } => assert!(may_fail && reason.len() > 40, "{reason}"),
            Outcome::Stopped { .. } => panic!("a run that was stopped goes on"),
        }
    }

    fn check_chain(&self, journal: &[Record]) {
        let mut members: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
        let mut starts: BTreeMap<u64, u64> = BTreeMap::new();
        for record in journal {
            match record {
                Record::Generation { generation, places } => {
                    assert!(members.keys().all(|earlier| earlier < generation), "generations only rise");
                    members.insert(*generation, places.iter().map(|place| place.worker.0).collect());
                }
                Record::Started { generation, step, state_hash } => {
                    let expected = blake3::Hash::from_bytes(State::expected(*step).hash).to_string();
                    assert_eq!(*state_hash, expected, "generation {generation} starts from step {step}");
                    starts.insert(*generation, *step);
                }
                _ => {}
            }
        }
        let mut last: BTreeMap<u64, u64> = BTreeMap::new();
        for commit in &self.seen().commits {
            let Commit { worker, generation, state } = commit;
            assert_eq!(*state, State::expected(state.step), "{commit:?}");
            assert!(members[generation].contains(worker), "{commit:?} by one that takes no part");
            let before = last.insert(*worker, state.step);
            assert!(before < Some(state.step), "{commit:?}, which it had committed before");
            for (later, start) in starts.range(generation + 1..) {
                // Where someone is left that knows of a step, it is not made again: but for one that only those have
                // committed who are lost. If nobody is left, the run goes on from the disk.
                if !members[later].is_disjoint(&members[generation]) {
                    let by_survivor = members[later].contains(worker);
                    let newest = start + u64::from(!by_survivor);
                    assert!(
                        state.step <= newest,
                        "{commit:?}, but generation {later} starts from step {start}"
                    );
                }
            }
        }
    }
}

fn lines<T: serde::de::DeserializeOwned>(path: &Path) -> Vec<T> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")))
        .collect()
}

fn journal(run: &Path) -> Vec<Record> {
    lines(&run.join("journal.jsonl"))
}

/// Each step is told once, in order, with what it was. Some may be missing, but only before a checkpoint: it counts even
/// if the reports of its steps are lost together with the worker.
fn check_metrics(run: &Path, journal: &[Record]) {
    let saved: BTreeSet<u64> = journal
        .iter()
        .filter_map(|record| match record {
            Record::Checkpoint { step, .. } => Some(*step),
            _ => None,
        })
        .collect();
    let mut last = 0;
    for line in lines::<serde_json::Value>(&run.join("metrics.jsonl")) {
        let step = line["step"].as_u64().unwrap();
        assert!(step > last, "step {step} is told after step {last}");
        assert!(step == last + 1 || saved.contains(&(step - 1)), "step {step} is told after step {last}");
        let (loss, expected) = (line["loss"].as_f64().unwrap(), State::expected(step).loss());
        // As close as decimal digits are read.
        assert!((loss - expected).abs() < 1e-12, "step {step}: {loss} instead of {expected}");
        last = step;
    }
}

fn check_checkpoint(run: &Path) {
    let directory = RunDirectory::open(run).unwrap();
    let newest = directory.checkpoints().latest_valid().unwrap().expect("the last checkpoint");
    let model = std::fs::read(newest.path().join("model.safetensors")).unwrap();
    assert_eq!(State::read(&model), Some(State::expected(TOTAL_STEPS)));
}
