//! What membership hears, what it answers, and the words it uses for both.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use protocol::{Generation, Rank, WorkerId};
use recipe::LearningRateChange;
use serde::{Deserialize, Serialize};

use super::Lease;
use crate::journal::Record;

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Too few workers are here: at first not all of them yet, later fewer than are wanted to go on.
    Gathering,
    /// The coordinator was restarted, and the workers of the last generation come back to it. They may train on.
    Reuniting,
    /// A generation is formed: its workers fetch their shards and connect to each other.
    Assembling,
    /// Steps are being made.
    Training,
    /// The generation is over, and its workers say where they stand; then the next one is formed.
    Regrouping,
    /// A stop was ordered: the step in hand is finished and a checkpoint published.
    Stopping,
    /// A person wants no more steps for now. The workers keep what they hold.
    Paused,
    /// Ended as it should, after the last step or after a stop.
    Finished,
    /// Ended by a failure.
    Failed,
}

/// Everything that membership reacts to.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A worker wants to take part, or is back. Answered by [`Action::Admit`], [`Action::Refuse`] or
    /// [`Action::Postpone`].
    Joined(Candidate),
    /// A worker listens for orders.
    Attending {
        /// Who.
        worker: WorkerId,
        /// Where it stands.
        position: Position,
    },
    /// A sign of life.
    Heartbeat {
        /// Whose.
        worker: WorkerId,
        /// The generation that it was last ordered into.
        generation: Generation,
        /// For how long its fold has not moved; 0 outside of a fold.
        standstill: Duration,
    },
    /// A worker is ready to train.
    Assembled {
        /// Who.
        worker: WorkerId,
        /// For which generation.
        generation: Generation,
        /// What it holds; must be the same for all.
        holding: Holding,
    },
    /// A worker committed a step.
    StepDone {
        /// Who.
        worker: WorkerId,
        /// What the step was like.
        report: StepReport,
    },
    /// A worker did its last step.
    Finished {
        /// Who.
        worker: WorkerId,
        /// In which generation.
        generation: Generation,
        /// Steps committed.
        step: u64,
        /// Hash of its state; must be the same for all.
        state_hash: Digest,
    },
    /// A worker has left a generation and will apply nothing of it any more.
    Halted {
        /// Who.
        worker: WorkerId,
        /// Which generation.
        generation: Generation,
        /// Steps committed in the state that it holds, if it holds one.
        held_step: Option<u64>,
        /// Why, if it was not ordered to.
        complaint: Option<Complaint>,
    },
    /// A worker says that it cannot go on.
    WorkerFailed {
        /// Who.
        worker: WorkerId,
        /// In which generation.
        generation: Generation,
        /// Steps committed.
        step: u64,
        /// Why.
        complaint: Complaint,
    },
    /// A worker was told to save what it holds, and could not. It holds it still.
    Unsaved {
        /// Who.
        worker: WorkerId,
        /// Which generation it has left.
        generation: Generation,
        /// Why.
        reason: String,
    },
    /// A worker's stream of reports ended.
    Detached {
        /// Who.
        worker: WorkerId,
        /// What was seen of it.
        reason: String,
    },
    /// Nobody answers where the others reach a worker whose stream ended. Answers [`Action::LookFor`].
    Unreachable {
        /// Who.
        worker: WorkerId,
        /// What was seen of it.
        reason: String,
    },
    /// A worker is asked by its machine, or by a person, to leave the run.
    Leaving {
        /// Who.
        worker: WorkerId,
    },
    /// A local worker's process ended.
    ProcessEnded {
        /// A sentence with its name, status and last words.
        reason: String,
        /// By a signal or a panic: what it could not report itself.
        crashed: bool,
        /// Whether it is started again.
        restarts: bool,
    },
    /// A checkpoint lies whole in the run directory.
    Published {
        /// The generation of the worker that saved it.
        generation: Generation,
        /// Its name.
        checkpoint: String,
        /// Steps committed in it.
        step: u64,
    },
    /// The run directory tells of no step after this one any more; the steps are made again, with other learning rates. Not
    /// before [`Membership::is_to_go_on`](super::Membership::is_to_go_on).
    RolledBack(Rollback),
    /// Nothing good can come of the run as it is, so it is to stop, whether or not a person asks for it.
    Hopeless,
    /// A person asks for something.
    Requested(Request),
    /// Time has passed.
    Tick,
}

/// Where a run goes back to, and how it goes on from there.
#[derive(Debug, Clone, PartialEq)]
pub struct Rollback {
    /// The newest checkpoint that is left; `None` at the beginning.
    pub checkpoint: Option<String>,
    /// Steps committed in it.
    pub step: u64,
    /// All changes of the learning rates, the new one among them.
    pub learning_rate_changes: Vec<LearningRateChange>,
}

/// What a person may ask of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Finish the step in hand, save, and end. The second time: end at once.
    Stop,
    /// Make no more steps until [`Request::Continue`]. The workers stay.
    Pause,
    /// Go on after a pause.
    Continue,
    /// Save what is there now, whatever the recipe says about when to save.
    Save,
    /// Let this worker finish the step in hand and leave; the others go on.
    Drain(WorkerId),
}

impl Event {
    /// The worker that this event is a sign of life of, and the generation that it speaks of.
    pub(super) fn reporter(&self) -> Option<(WorkerId, Option<Generation>)> {
        match self {
            Event::Attending { worker, .. } | Event::Leaving { worker } => Some((*worker, None)),
            Event::StepDone { worker, report } => Some((*worker, Some(report.generation))),
            Event::Heartbeat { worker, generation, .. }
            | Event::Assembled { worker, generation, .. }
            | Event::Finished { worker, generation, .. }
            | Event::Halted { worker, generation, .. }
            | Event::Unsaved { worker, generation, .. }
            | Event::WorkerFailed { worker, generation, .. } => Some((*worker, Some(*generation))),
            Event::Joined(_)
            | Event::Detached { .. }
            | Event::Unreachable { .. }
            | Event::ProcessEnded { .. }
            | Event::Published { .. }
            | Event::RolledBack(_)
            | Event::Hopeless
            | Event::Requested(_)
            | Event::Tick => None,
        }
    }
}

/// Everything that membership decides. The control loop carries it out, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// The worker that asked may join, under this id.
    Admit {
        /// Its id.
        worker: WorkerId,
    },
    /// The worker that asked may not join.
    Refuse {
        /// A sentence for a person.
        reason: String,
    },
    /// The worker that asked may not join now, but perhaps when it asks again.
    Postpone {
        /// A sentence for a person.
        reason: String,
    },
    /// See whether a worker's process is still where the others reach it, and say [`Event::Unreachable`] if not.
    LookFor {
        /// Whom.
        worker: WorkerId,
        /// Where.
        collective_address: String,
    },
    /// Tell a worker something.
    Send {
        /// Whom.
        worker: WorkerId,
        /// What.
        order: Order,
    },
    /// Write a line into the journal.
    Record(Record),
    /// A step is committed; told once per step.
    Committed(StepReport),
    /// The run is over. Told once; nothing follows but refusals.
    End(Outcome),
}

/// What a worker is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Order {
    /// Take these places, then report `Assembled`.
    Assemble {
        /// The generation that is formed.
        generation: Generation,
        /// All its workers, in order of rank.
        places: Arc<[Place]>,
        /// The place of the worker that is told.
        rank: Rank,
        /// Whether it publishes the checkpoints.
        publishes: bool,
        /// How long the workers may take to come together.
        limit: Duration,
        /// Steps committed in the state that all start from.
        step: u64,
        /// The newest checkpoint, which has that state if anyone lacks it; `None` if there is none yet.
        checkpoint: Option<String>,
        /// Steps committed in that checkpoint.
        checkpoint_step: u64,
        /// By what the learning rates are multiplied from which step on; a state that was made with others is of no use.
        learning_rate_changes: Vec<LearningRateChange>,
    },
    /// Everyone is assembled: train.
    Start {
        /// The generation that starts.
        generation: Generation,
    },
    /// Leave the generation at once, discard the step in hand, report `Halted`.
    Halt {
        /// Which generation.
        generation: Generation,
        /// Why.
        reason: String,
    },
    /// Publish the state that is held: at once if that generation has ended, else after the step in hand.
    Save {
        /// Which generation.
        generation: Generation,
    },
    /// Finish the step in hand, publish a checkpoint, report `Finished`.
    Stop {
        /// In which generation.
        generation: Generation,
        /// Why.
        reason: String,
    },
    /// Finish the step in hand with the others, and leave the run.
    Leave,
    /// End the process.
    Dismiss {
        /// A sentence if the run failed.
        failure: Option<String>,
    },
}

/// A worker that wants to take part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Who it is, if it comes back.
    pub returning: Option<WorkerId>,
    /// The number that it drew when it started.
    pub incarnation: u64,
    /// Whether it goes on without a coordinator, and comes back to the next one.
    pub outlives_coordinator: bool,
    /// Where other workers reach it.
    pub collective_address: String,
    /// For people: host and process.
    pub description: String,
    /// What it computes with; empty if that is not known.
    pub arithmetic: String,
}

/// Where a worker stands that listens for orders. A new one stands nowhere.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Position {
    /// The generation that it was last ordered into; 0 before its first.
    pub generation: Generation,
    /// What it does there.
    pub part: Part,
    /// Steps committed in the state that it holds, if it holds one.
    pub held_step: Option<u64>,
    /// Steps of that generation that the coordinator may not have heard of, in order.
    pub steps: Vec<StepReport>,
    /// Whether it wants to leave the run.
    pub is_leaving: bool,
}

/// A worker's part in the generation that it was last ordered into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Part {
    /// It has left it, or was never in one.
    #[default]
    None,
    /// It was told its place, but not yet to start.
    Assembles,
    /// It was told to start, and trains or has done its last step.
    Trains,
}

/// Why a worker left its generation, or cannot go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    /// Its sentence.
    pub reason: String,
    /// Whose loss caused it, if anyone's.
    pub suspect: Option<WorkerId>,
}

/// A worker's place in a generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Who.
    #[serde(serialize_with = "as_number", deserialize_with = "from_number")]
    pub worker: WorkerId,
    /// Where other workers reach it.
    pub collective_address: String,
    /// The first of its shards.
    pub first_shard: u32,
    /// How many follow each other from there.
    pub shard_count: u32,
}

impl Place {
    /// Its shards.
    pub(super) fn lease(&self) -> Lease {
        Lease { first_shard: self.first_shard, shard_count: self.shard_count }
    }
}

fn as_number<S: serde::Serializer>(worker: &WorkerId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(worker.0)
}

fn from_number<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<WorkerId, D::Error> {
    u64::deserialize(deserializer).map(WorkerId)
}

/// What an assembled worker holds. Workers train together only if they hold the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    /// The step that it would run next.
    pub step: u64,
    /// Hash of weights, statistics and momentum.
    pub state_hash: Digest,
    /// Hash of every parameter's name and shape.
    pub layout_hash: Digest,
}

/// A committed step, as a worker reports it.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// The generation that made it.
    pub generation: Generation,
    /// Steps committed, this one included.
    pub step: u64,
    /// Mean over all shards of -cos(p, z), between -1 and 1.
    pub loss: f64,
    /// Std of the normalised z over 1/sqrt(d): near 1 healthy, 0 collapsed.
    pub collapse_level: f64,
    /// Learning rate of the backbone.
    pub learning_rate: f64,
    /// Euclidean norm of the folded gradient.
    pub gradient_norm: f64,
    /// Where the time went.
    pub seconds: StepSeconds,
    /// If the step was left out because something was not finite: the shards where.
    pub skipped: Option<Vec<u32>>,
    /// Hash of the state that it led to, if it is one after which these are compared.
    pub state_hash: Option<Digest>,
    /// What it says of the network's health, if it is one after which that is looked at.
    pub monitors: Option<Monitors>,
}

#[cfg(test)]
impl StepReport {
    /// A step of which nothing is to be said.
    pub(crate) fn usual(generation: u64, step: u64) -> StepReport {
        StepReport {
            generation: Generation(generation),
            step,
            loss: -0.5,
            collapse_level: 0.9,
            learning_rate: 0.05,
            gradient_norm: 1.0,
            seconds: StepSeconds::default(),
            skipped: None,
            state_hash: None,
            monitors: None,
        }
    }
}

/// What a step says of the network's health.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Monitors {
    /// In how many directions the normalised z spread, between 1 and their length.
    pub effective_dimensions: f64,
    /// Euclidean norm of the folded gradient.
    pub gradient_norms: Parts,
    /// Length of the step over that of the weights.
    pub update_ratios: Parts,
    /// Length of the change of BatchNorm's running statistics over their own length.
    pub statistics_change: f64,
    /// Parameters whose gradient is zero in every place.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub without_gradient: Vec<String>,
}

/// One number for each part of the network.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Parts {
    /// The ResNet.
    pub backbone: f64,
    /// From its features to z.
    pub projector: f64,
    /// From z to p.
    pub predictor: f64,
}

/// Where the time of a step went on the worker that reports it, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct StepSeconds {
    /// Waiting for images and views.
    pub data: f64,
    /// Forward passes.
    pub forward: f64,
    /// Backward passes.
    pub backward: f64,
    /// The fold over all workers, waiting for the slowest included.
    pub all_reduce: f64,
    /// The optimizer.
    pub update: f64,
    /// The whole step.
    pub step: f64,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// Every step of the recipe is done.
    Completed {
        /// Steps committed.
        step: u64,
        /// Hash of the final state, the same on every worker.
        state_hash: Digest,
    },
    /// A person stopped it before the last step.
    Stopped {
        /// Steps committed.
        step: u64,
    },
    /// It failed.
    Failed {
        /// What happened and what to do.
        reason: String,
    },
}

/// A BLAKE3 hash that a worker reported, shown in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let hash = blake3::Hash::from_hex(&text).map_err(serde::de::Error::custom)?;
        Ok(Digest(*hash.as_bytes()))
    }
}
