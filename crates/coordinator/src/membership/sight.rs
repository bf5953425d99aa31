//! The run at one moment, for people who watch it. Nothing is decided by it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Lease, Membership, Phase, Stage};
use crate::pace::Pace;

/// The run at one moment: what neither the journal nor the metrics tell.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sight {
    /// Where it stands.
    pub phase: Phase,
    /// The generation that was formed last; 0 before the first.
    pub generation: u64,
    /// Steps that are known to be committed.
    pub step: u64,
    /// Its workers, by their ids.
    pub workers: Vec<WorkerSight>,
}

/// One worker at that moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerSight {
    /// Its id.
    pub worker: u64,
    /// Its place in the present generation, from 0; `None` if it has none.
    pub rank: Option<u32>,
    /// Its host and process.
    pub description: String,
    /// The first of its shards; 0 if it has none.
    pub first_shard: u32,
    /// How many follow each other from there; 0 if it has none.
    pub shard_count: u32,
    /// What it does.
    pub doing: Doing,
    /// Since its last sign of life, of which it sends one each second.
    pub silent_ms: u64,
    /// How its last steps went, once it has made one.
    pub pace: Option<Pace>,
}

/// What a worker does, as far as the coordinator knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Doing {
    /// Its connection broke, or it was admitted by the coordinator before this one, and it is not back yet.
    Away,
    /// It waits for a place.
    Waiting,
    /// It fetches its shards and connects to the others.
    Assembling,
    /// It makes steps.
    Training,
    /// It leaves its generation.
    Halting,
    /// It has done its last step.
    Finished,
    /// It cannot go on.
    Failed,
}

impl Membership {
    /// The run at `now`, without the workers' pace.
    pub(crate) fn sight(&self, now: Duration) -> Sight {
        let workers = self.members.iter().map(|(&worker, member)| {
            let rank = self.ranks.iter().position(|other| *other == worker);
            let Lease { first_shard, shard_count } = rank.map_or_else(Lease::default, |_| member.lease);
            WorkerSight {
                worker: worker.0,
                rank: rank.map(|rank| rank as u32),
                description: member.candidate.description.clone(),
                first_shard,
                shard_count,
                doing: self.doing(&member.stage),
                silent_ms: now.saturating_sub(member.heard_at).as_millis() as u64,
                pace: None,
            }
        });
        Sight {
            phase: self.phase,
            generation: self.generation.0,
            step: self.committed_step,
            workers: workers.collect(),
        }
    }

    fn doing(&self, stage: &Stage) -> Doing {
        match stage {
            Stage::Away => Doing::Away,
            Stage::Joined | Stage::Idle(_) => Doing::Waiting,
            // Ready, but the others are not.
            Stage::Assembled(_) if self.phase == Phase::Assembling => Doing::Assembling,
            Stage::Assembling => Doing::Assembling,
            Stage::Assembled(_) | Stage::Trains => Doing::Training,
            Stage::Halting => Doing::Halting,
            Stage::Finished(_) => Doing::Finished,
            Stage::Failed => Doing::Failed,
        }
    }
}
