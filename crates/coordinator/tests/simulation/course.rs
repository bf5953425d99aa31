//! What goes wrong in a simulation, and when: all of it follows from the seed.

use std::time::Duration;

use coordinator::{OnFailure, Request, Timeouts};
use protocol::WorkerId;
use turmoil::Sim;

use crate::dice::Dice;
use crate::network::COORDINATOR;

/// Short beside those of real runs, in the same order.
pub(crate) const TIMEOUTS: Timeouts = Timeouts {
    join: Duration::from_secs(150),
    assemble: Duration::from_secs(12),
    halt: Duration::from_secs(12),
    heartbeat: Duration::from_secs(3),
    step: Duration::from_secs(15),
    stop: Duration::from_secs(40),
};

/// Faults begin within this time; a run takes six seconds if nothing happens.
const FAULTY_MS: u64 = 8000;

/// One cluster, and what happens to it.
#[derive(Debug)]
pub(crate) struct Course {
    pub(crate) workers: u64,
    pub(crate) on_failure: OnFailure,
    /// In each tick of time, one after the other in this order.
    pub(crate) hosts: Vec<String>,
    /// What a person asks for, and when.
    pub(crate) requests: Vec<(Duration, Request)>,
    /// The latencies of all links, and what changes.
    pub(crate) changes: Vec<(Duration, Change)>,
}

/// Hosts are named.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    Crash(String),
    Start(String),
    /// Nothing arrives any more, in one direction or both; what is under way is lost.
    Cut {
        from: String,
        to: String,
        both: bool,
    },
    Mend(String, String),
    /// Nothing arrives until the release, and then all of it.
    Hold(String, String),
    Release(String, String),
    /// Everything between them takes this long. It is drawn for a link and not for a message: draws would depend on the
    /// order of messages, and that on the order in which a crash drops tasks, which no seed decides.
    Slow(String, String, Duration),
}

pub(crate) fn worker(index: u64) -> String {
    format!("worker-{index}")
}

impl Course {
    pub(crate) fn drawn(dice: &mut Dice) -> Course {
        let workers = dice.number(1..5);
        let on_failure = match dice.number(0..16) {
            0 => OnFailure::Abort,
            1..4 => OnFailure::Wait,
            _ => OnFailure::Shrink,
        };
        let mut changes = latencies(workers, dice);
        for _ in 0..dice.number(0..7) {
            fault(workers, dice, &mut changes);
        }
        changes.sort_by_key(|(at, _)| *at);
        let mut hosts = hosts(workers);
        dice.shuffle(&mut hosts);
        Course { workers, hosts, on_failure, requests: requests(dice), changes }
    }
}

/// Whoever asks for a pause ends it, too.
fn requests(dice: &mut Dice) -> Vec<(Duration, Request)> {
    let at = dice.millis(0..FAULTY_MS);
    match dice.number(0..20) {
        0..3 => vec![(at, Request::Stop)],
        3 => vec![(at, Request::Save)],
        4..6 => vec![(at, Request::Pause), (at + dice.millis(10..10_000), Request::Continue)],
        // Workers that come back have other numbers.
        6..9 => vec![(at, Request::Drain(WorkerId(dice.number(1..7))))],
        _ => Vec::new(),
    }
}

/// Each link has its own, from that within a room to that between continents.
fn latencies(workers: u64, dice: &mut Dice) -> Vec<(Duration, Change)> {
    let hosts = hosts(workers);
    let most_ms = dice.number(2..60);
    let links = hosts.iter().enumerate().flat_map(|(index, a)| hosts[..index].iter().map(move |b| (a, b)));
    links
        .map(|(a, b)| (Duration::ZERO, Change::Slow(a.clone(), b.clone(), dice.millis(1..most_ms + 1))))
        .collect()
}

/// One fault and its end.
fn fault(workers: u64, dice: &mut Dice, changes: &mut Vec<(Duration, Change)>) {
    let begin = dice.millis(0..FAULTY_MS);
    // Too short to be noticed, noticed by some, or by all.
    let length = match dice.number(0..3) {
        0 => dice.millis(10..400),
        1 => dice.millis(400..4000),
        _ => dice.millis(4000..20_000),
    };
    let victim = worker(dice.number(0..workers));
    let (a, b) = pair(workers, dice);
    let (first, last) = match dice.number(0..9) {
        0..2 => (Change::Crash(victim.clone()), Change::Start(victim)),
        2 => (Change::Crash(COORDINATOR.to_string()), Change::Start(COORDINATOR.to_string())),
        3..5 => {
            let both = dice.happens(2);
            (Change::Cut { from: a.clone(), to: b.clone(), both }, Change::Mend(a, b))
        }
        5 => {
            // From everyone: as of a cable that is pulled.
            for other in hosts(workers).into_iter().filter(|other| *other != victim) {
                let cut = Change::Cut { from: victim.clone(), to: other.clone(), both: true };
                changes.push((begin, cut));
                changes.push((begin + length, Change::Mend(victim.clone(), other)));
            }
            return;
        }
        6 => {
            let (slow, fast) = (dice.millis(100..1500), dice.millis(1..60));
            (Change::Slow(a.clone(), b.clone(), slow), Change::Slow(a, b, fast))
        }
        _ => (Change::Hold(a.clone(), b.clone()), Change::Release(a, b)),
    };
    changes.push((begin, first));
    changes.push((begin + length, last));
}

pub(crate) fn hosts(workers: u64) -> Vec<String> {
    std::iter::once(COORDINATOR.to_string()).chain((0..workers).map(worker)).collect()
}

/// Two different hosts.
fn pair(workers: u64, dice: &mut Dice) -> (String, String) {
    let mut hosts = hosts(workers);
    let a = hosts.swap_remove(dice.number(0..hosts.len() as u64) as usize);
    let b = hosts.swap_remove(dice.number(0..hosts.len() as u64) as usize);
    (a, b)
}

impl Change {
    /// Whether it crashes or starts the coordinator.
    pub(crate) fn is_of_the_coordinator(&self) -> bool {
        matches!(self, Change::Crash(host) | Change::Start(host) if host == COORDINATOR)
    }

    pub(crate) fn apply(&self, sim: &mut Sim) {
        match self {
            Change::Crash(host) => sim.crash(host.as_str()),
            // Faults overlap: one that runs, or has done its work, is not started again.
            Change::Start(host) => sim.bounce(host.as_str()),
            Change::Cut { from, to, both: true } => sim.partition(from.as_str(), to.as_str()),
            Change::Cut { from, to, both: false } => sim.partition_oneway(from.as_str(), to.as_str()),
            Change::Mend(a, b) => sim.repair(a.as_str(), b.as_str()),
            Change::Hold(a, b) => sim.hold(a.as_str(), b.as_str()),
            Change::Release(a, b) => sim.release(a.as_str(), b.as_str()),
            Change::Slow(a, b, latency) => sim.set_link_latency(a.as_str(), b.as_str(), *latency),
        }
    }
}
