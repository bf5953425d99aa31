//! What becomes of a worker whose connection to the coordinator breaks.
//!
//! Gradients travel between the workers, so one that goes on without its coordinator may have lost only this one
//! connection, and be back in a moment. So may one that waits, with what it holds. Until then it keeps its place, and nobody is
//! told anything. It loses it once nobody answers any more where the others reach it, as when its process is gone; or one of
//! them has lost it, too; or it is not back before it counts as silent. Who has finished has said all that is wanted of it.

use std::iter::once;
use std::time::Duration;

use protocol::WorkerId;

use super::{Action, Membership, Phase, Stage};
use crate::journal::Record;

impl Membership {
    /// The stream of a worker's reports has ended.
    pub(super) fn detached(&mut self, worker: WorkerId, reason: &str, now: Duration) -> Vec<Action> {
        let Some(member) = self.members.get_mut(&worker) else { return Vec::new() };
        let has_more_to_say = !matches!(member.stage, Stage::Joined | Stage::Finished(_) | Stage::Failed);
        if !(has_more_to_say && member.candidate.outlives_coordinator) {
            return self.lose(worker, reason, now);
        }
        (member.stage, member.standstill) = (Stage::Away, Duration::ZERO);
        let collective_address = member.candidate.collective_address.clone();
        let record = Record::Detached { worker: worker.0, reason: reason.to_string() };
        vec![Action::Record(record), Action::LookFor { worker, collective_address }]
    }

    /// Nobody answers at the address of a worker whose stream has ended. One that is back by now is there.
    pub(super) fn unreachable(&mut self, worker: WorkerId, reason: &str, now: Duration) -> Vec<Action> {
        match self.is_away(worker) {
            true => self.lose(worker, reason, now),
            false => Vec::new(),
        }
    }

    /// One of the others has lost a worker that is away: so it is gone, and nobody waits for it.
    pub(super) fn lose_suspect(&mut self, suspect: Option<WorkerId>, now: Duration) -> Vec<Action> {
        match suspect.filter(|suspect| self.is_away(*suspect)) {
            Some(suspect) => self.lose(suspect, "its connections broke, to the others too", now),
            None => Vec::new(),
        }
    }

    fn is_away(&self, worker: WorkerId) -> bool {
        self.members.get(&worker).is_some_and(|member| member.stage == Stage::Away)
    }

    /// A worker is gone, and its place is free again. If it had a part in the present generation, that is over.
    pub(super) fn lose(&mut self, worker: WorkerId, reason: &str, now: Duration) -> Vec<Action> {
        let name = self.describe(worker);
        let Some(member) = self.members.get(&worker) else { return Vec::new() };
        let had_a_part = match member.stage {
            // It said all it had to say.
            Stage::Failed => return Vec::new(),
            Stage::Finished(_) if !self.recovers() => return Vec::new(),
            Stage::Assembling | Stage::Assembled(_) | Stage::Trains => true,
            Stage::Away => self.ranks.contains(&worker),
            Stage::Joined | Stage::Idle(_) | Stage::Halting | Stage::Finished(_) => false,
        };
        let failure = format!("{name} was lost: {reason}");
        if !self.recovers() && self.phase != Phase::Gathering {
            return match self.settings.workers_are_local {
                true => self.suspect(failure, now),
                false => self.fail_for(&failure),
            };
        }
        self.members.remove(&worker);
        self.saver.take_if(|saver| *saver == worker);
        let record = Action::Record(Record::Lost { worker: worker.0, reason: reason.to_string() });
        let consequences = match self.phase {
            Phase::Regrouping => self.regroup(now),
            _ if had_a_part => self.break_off(failure, now),
            _ => Vec::new(),
        };
        once(record).chain(consequences).collect()
    }
}
