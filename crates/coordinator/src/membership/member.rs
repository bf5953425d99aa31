//! One worker of a run, and how far it is.

use std::time::Duration;

use protocol::Generation;

use super::events::{Candidate, Holding};
use super::lease::Lease;

/// A worker, and what membership knows of it.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) candidate: Candidate,
    pub(super) stage: Stage,
    pub(super) heard_at: Duration,
    /// The last one that it was ordered into.
    pub(super) generation: Generation,
    /// For how long its fold had not moved when it was last heard.
    pub(super) standstill: Duration,
    /// Whether a generation that it was in has committed a step.
    pub(super) has_stepped: bool,
    /// Whether it wants to leave the run.
    pub(super) is_leaving: bool,
    /// Its shards in the generation that it was last ordered into.
    pub(super) lease: Lease,
    /// What it takes for a shard, as far as that is known.
    pub(super) seconds_per_shard: Option<f64>,
}

impl Member {
    pub(super) fn new(candidate: Candidate, stage: Stage, generation: Generation, now: Duration) -> Member {
        Member {
            candidate,
            stage,
            heard_at: now,
            generation,
            standstill: Duration::ZERO,
            has_stepped: false,
            is_leaving: false,
            lease: Lease::default(),
            seconds_per_shard: None,
        }
    }
}

/// How far one worker is.
#[derive(Debug, PartialEq)]
pub(super) enum Stage {
    /// Its connection broke, or it was admitted by the coordinator before this one, and it is not back yet. It may train
    /// on.
    Away,
    /// Admitted, but it does not listen yet.
    Joined,
    /// Waits for a generation, and holds the state after this many steps, if any.
    Idle(Option<u64>),
    /// Was told its place.
    Assembling,
    /// Is ready, or trains.
    Assembled(Holding),
    /// Came back from training, where it had been told to start.
    Trains,
    /// Was told to leave its generation.
    Halting,
    /// Has committed its last step.
    Finished(u64),
    Failed,
}
