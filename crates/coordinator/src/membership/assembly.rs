//! Who is given up when the workers of a generation do not come together.
//!
//! Each waits for the others, so that one which cannot be reached keeps all of them, and the coordinator sees only that
//! nobody is ready. The workers know whom they miss. So they have less time than the coordinator waits, and say so before
//! its wait is over. What is broken is a way between two of them:
//!
//! 1. If one of the two has made a step in this run and the other none, the other one is given up at once: the first has
//!    been reached before.
//! 2. Otherwise all say whom they miss, and the one that most of them miss is given up.
//!
//! An assembly that broke off sooner lost a worker or some bytes, and says nothing of who can be reached: the next one is
//! formed of those who are left.

use std::time::Duration;

use protocol::WorkerId;

use super::{Action, Membership, Phase, Stage};

impl Membership {
    /// How long the workers of a generation have to come together.
    pub(super) fn assembly_limit(&self) -> Duration {
        self.settings.timeouts.assemble * 4 / 5
    }

    /// Whether a generation is being assembled, and its workers have had all the time for it.
    pub(super) fn assembly_has_run_out(&self, now: Duration) -> bool {
        self.phase == Phase::Assembling && now.saturating_sub(self.waiting_since) >= self.assembly_limit()
    }

    /// A worker has left its generation, and says whom it missed. That counts only where the assembly had all its time; and
    /// whoever has left by now is missed by those who stayed, and may not be the cause.
    pub(super) fn note_missed(&mut self, worker: WorkerId, suspect: Option<WorkerId>, now: Duration) {
        let has_run_out = self.assembly_has_run_out(now);
        let is_in_it = |suspect: &WorkerId| {
            let stage = self.members.get(suspect).map(|member| &member.stage);
            self.ranks.contains(suspect)
                && matches!(stage, Some(Stage::Assembling | Stage::Assembled(_) | Stage::Halting))
        };
        if let Some(suspect) = suspect.filter(is_in_it)
            && (has_run_out || !self.missed.is_empty())
        {
            self.missed.push((worker, suspect));
        }
    }

    /// Gives up whoever kept the others from coming together, as soon as it is clear who that is.
    pub(super) fn give_up_missed(&mut self, now: Duration) -> Vec<Action> {
        let Some((missed, other)) = self.who_is_missed() else { return Vec::new() };
        self.missed.clear();
        let limit_s = self.assembly_limit().as_secs_f64();
        let reason = format!(
            "it and {} did not come together within {limit_s:.1} s (see whether each reaches the other's address, and how \
             long a checkpoint takes to arrive)",
            self.describe(other)
        );
        self.give_up(&[missed], &reason, now)
    }

    /// The worker to give up, and the one that it did not come together with.
    fn who_is_missed(&self) -> Option<(WorkerId, WorkerId)> {
        let ways = || {
            let are_known = |(one, other): &(WorkerId, WorkerId)| self.knows(*one) && self.knows(*other);
            self.missed.iter().copied().filter(are_known)
        };
        let newcomer = ways().find_map(|(worker, suspect)| {
            match (self.has_made_a_step(worker), self.has_made_a_step(suspect)) {
                (true, false) => Some((suspect, worker)),
                (false, true) => Some((worker, suspect)),
                (true, true) | (false, false) => None,
            }
        });
        let missed_by_most = || {
            // Of two that are missed by as many, the one that came later.
            let count = |suspect| (ways().filter(|(_, other)| *other == suspect).count(), suspect);
            ways().max_by_key(|(_, suspect)| count(*suspect)).map(|(worker, suspect)| (suspect, worker))
        };
        newcomer.or_else(|| missed_by_most().filter(|_| self.is_left_by_all()))
    }

    /// Of those who are `late` for an assembly whose time is over, the ones to give up. Where nobody is there, each may wait
    /// for one of the others: those who made steps together before are not to pay for who has not.
    pub(super) fn late_for_assembly(&self, late: Vec<WorkerId>) -> Vec<WorkerId> {
        let is_there = |rank: &WorkerId| {
            self.members.get(rank).is_some_and(|member| matches!(member.stage, Stage::Assembled(_)))
        };
        if self.ranks.iter().any(is_there) {
            return late;
        }
        match self.ranks.iter().any(|rank| self.has_made_a_step(*rank)) {
            true => late.into_iter().filter(|worker| !self.has_made_a_step(*worker)).collect(),
            false => Vec::new(),
        }
    }

    fn has_made_a_step(&self, worker: WorkerId) -> bool {
        self.members.get(&worker).is_some_and(|member| member.has_stepped)
    }
}
