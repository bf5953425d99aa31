//! How a worker leaves a run that goes on: its machine is taken away, or a person asks it to.
//!
//! One that makes steps finishes the one in hand. It says so to the others with its bucket, so that all stop after the
//! same step and save; then it is let go, and the next generation is formed of those who stay. Nothing is computed twice.
//! One that waits goes at once, unless it alone holds what was trained: that is saved first.

use std::time::Duration;

use protocol::WorkerId;

use super::{Action, Membership, Order, Phase, Stage};
use crate::journal::Record;

impl Membership {
    /// A person asks a worker to leave.
    pub(super) fn drain(&self, worker: WorkerId) -> Vec<Action> {
        match self.knows(worker) {
            true => vec![Action::Send { worker, order: Order::Leave }],
            false => Vec::new(),
        }
    }

    /// A worker says that it wants to leave.
    pub(super) fn leaving(&mut self, worker: WorkerId, now: Duration) -> Vec<Action> {
        if let Some(member) = self.members.get_mut(&worker) {
            member.is_leaving = true;
        }
        self.see_off(now)
    }

    /// Lets those go who wait and want to leave.
    pub(super) fn see_off(&mut self, now: Duration) -> Vec<Action> {
        if self.waiting_to_leave().next().is_none() {
            return Vec::new();
        }
        match self.phase {
            Phase::Gathering | Phase::Paused => self.regroup_from_rest(now),
            // The others hold what is newest.
            Phase::Assembling | Phase::Training | Phase::Stopping => self.let_go(),
            // What comes of these lets them go.
            Phase::Reuniting | Phase::Regrouping | Phase::Finished | Phase::Failed => Vec::new(),
        }
    }

    /// Why a generation stops in which some want to leave. Whoever has finished and is gone by now did not wait until it
    /// was let go.
    pub(super) fn who_leaves(&self) -> Option<String> {
        let is_leaving = |worker: &&WorkerId| self.members.get(worker).is_none_or(|member| member.is_leaving);
        let names: Vec<String> =
            self.ranks.iter().filter(is_leaving).map(|&worker| self.describe(worker)).collect();
        (!names.is_empty()).then(|| format!("{} leaves", names.join(", ")))
    }

    /// Steps committed in the newest state, if only those hold it who leave, and it is not on the disk.
    pub(super) fn step_only_leavers_hold(&self) -> Option<u64> {
        let newest = self.newest_held().filter(|step| *step > self.saved.step)?;
        let stays = self
            .members
            .values()
            .any(|member| member.stage == Stage::Idle(Some(newest)) && !member.is_leaving);
        (!stays).then_some(newest)
    }

    /// Those who wait and want to leave take part no longer.
    pub(super) fn let_go(&mut self) -> Vec<Action> {
        let leavers: Vec<(WorkerId, Option<u64>)> = self.waiting_to_leave().collect();
        let mut actions = Vec::new();
        for (worker, step) in leavers {
            actions.push(Action::Send { worker, order: Order::Dismiss { failure: None } });
            actions.push(Action::Record(Record::Left { worker: worker.0, step }));
            self.members.remove(&worker);
            self.saver.take_if(|saver| *saver == worker);
        }
        actions
    }

    fn waiting_to_leave(&self) -> impl Iterator<Item = (WorkerId, Option<u64>)> {
        self.members.iter().filter(|(_, member)| member.is_leaving).filter_map(|(&worker, member)| {
            match member.stage {
                Stage::Idle(held_step) => Some((worker, held_step)),
                _ => None,
            }
        })
    }
}
