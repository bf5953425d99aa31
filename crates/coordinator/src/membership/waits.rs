//! How every wait ends.

use std::time::Duration;

use protocol::WorkerId;

use super::{Action, Membership, Order, Phase, Stage};

impl Membership {
    /// Ends the waits that are over.
    pub(super) fn tick(&mut self, now: Duration) -> Vec<Action> {
        if let Some(verdict) = self.verdict.take_if(|verdict| verdict.until <= now) {
            return self.fail_for(&verdict.reason);
        }
        let limit = self.settings.timeouts.heartbeat;
        let silent = self.members.iter().filter(|(_, member)| {
            // Who has finished has said all that is wanted of it.
            !matches!(member.stage, Stage::Finished(_)) && now.saturating_sub(member.heard_at) > limit
        });
        let silent: Vec<WorkerId> = silent.map(|(&worker, _)| worker).collect();
        if !silent.is_empty() {
            let reason = format!("nothing was heard of it for {:.1} s", limit.as_secs_f64());
            return self.give_up(&silent, &reason, now);
        }
        if now.saturating_sub(self.waiting_since) > self.wait_limit() {
            return self.end_wait(now);
        }
        self.see_off(now)
    }

    /// A worker says for how long its fold has not moved. Once none of a generation's has for as long as a silent worker
    /// is waited for, nobody computes and nothing arrives: the network swallows what they send, in both directions, so
    /// that none of them sees a connection end.
    pub(super) fn note_standstill(
        &mut self,
        worker: WorkerId,
        standstill: Duration,
        now: Duration,
    ) -> Vec<Action> {
        if let Some(member) = self.members.get_mut(&worker) {
            member.standstill = standstill;
        }
        let limit = self.settings.timeouts.heartbeat;
        let stands_still = |rank: &WorkerId| {
            self.members.get(rank).is_some_and(|member| {
                matches!(member.stage, Stage::Assembled(_) | Stage::Trains) && member.standstill >= limit
            })
        };
        let trains = matches!(self.phase, Phase::Training | Phase::Stopping);
        if !trains || !self.ranks.iter().all(stands_still) {
            return Vec::new();
        }
        let limit_s = limit.as_secs_f64();
        let reason = format!(
            "no gradient has moved between the workers for {limit_s:.1} s, and none of them computes"
        );
        match self.recovers() {
            true => self.break_off(reason, now),
            false => self.fail_for(&reason),
        }
    }

    /// Takes their places away from workers that may still run. Each is told, in case it only slept, and its
    /// words count no longer. Nothing better will be heard of it, so there is nothing to wait for.
    pub(super) fn give_up(&mut self, workers: &[WorkerId], reason: &str, now: Duration) -> Vec<Action> {
        let mut actions = Vec::new();
        for &worker in workers {
            if self.is_ended() {
                break;
            }
            // The loss of one of them may have let another go, who wanted to leave.
            if !self.knows(worker) {
                continue;
            }
            if !self.recovers() && self.phase != Phase::Gathering {
                let failure = format!("{} was lost: {reason}", self.describe(worker));
                actions.extend(self.fail_for(&failure));
                break;
            }
            let failure = Some(format!("{reason}, and its place was given away: start it again"));
            actions.push(Action::Send { worker, order: Order::Dismiss { failure } });
            actions.extend(self.lose(worker, reason, now));
        }
        actions
    }

    /// What was waited for did not come: who kept the others waiting loses its place, or the run ends.
    fn end_wait(&mut self, now: Duration) -> Vec<Action> {
        let late = |stage: &Stage| match self.phase {
            Phase::Assembling => matches!(stage, Stage::Assembling | Stage::Away),
            Phase::Reuniting => *stage == Stage::Away,
            Phase::Regrouping => matches!(stage, Stage::Halting | Stage::Away),
            _ => false,
        };
        let mut late: Vec<WorkerId> = self
            .members
            .iter()
            .filter(|(_, member)| late(&member.stage))
            .map(|(&worker, _)| worker)
            .collect();
        if self.phase == Phase::Assembling {
            late = self.late_for_assembly(late);
        }
        late.extend(self.saver);
        let limit_s = self.wait_limit().as_secs_f64();
        match self.phase {
            Phase::Training if self.recovers() => {
                self.break_off(format!("no step was committed for {limit_s:.1} s"), now)
            }
            Phase::Assembling if self.recovers() && late.is_empty() => {
                self.break_off(format!("its workers did not come together within {limit_s:.1} s"), now)
            }
            Phase::Assembling | Phase::Reuniting | Phase::Regrouping
                if self.recovers() && !late.is_empty() =>
            {
                let what = if self.phase == Phase::Assembling { "assembled" } else { "ready to regroup" };
                self.give_up(&late, &format!("it was not {what} within {limit_s:.1} s"), now)
            }
            _ => self.fail(self.overdue()),
        }
    }

    fn wait_limit(&self) -> Duration {
        let timeouts = &self.settings.timeouts;
        match self.phase {
            Phase::Gathering => timeouts.join,
            Phase::Assembling => timeouts.assemble,
            Phase::Training => timeouts.step,
            Phase::Reuniting | Phase::Regrouping => timeouts.halt,
            Phase::Stopping => timeouts.stop,
            Phase::Paused | Phase::Finished | Phase::Failed => Duration::MAX,
        }
    }

    /// What took too long, and who was not there.
    fn overdue(&self) -> String {
        let limit_s = self.wait_limit().as_secs_f64();
        let missing = |is_there: fn(&Stage) -> bool| {
            let late: Vec<String> = self
                .members
                .iter()
                .filter(|(_, member)| !is_there(&member.stage))
                .map(|(&worker, _)| self.describe(worker))
                .collect();
            late.join(", ")
        };
        match self.phase {
            Phase::Gathering => format!(
                "{} of {} workers joined within {limit_s:.1} s: start the missing ones with `worker --join`, or \
                 start again with fewer --workers{}",
                self.members.len(),
                self.workers_wanted(),
                self.if_begun()
            ),
            Phase::Assembling => format!(
                "not all workers were assembled within {limit_s:.1} s; waited for {}: look into its log and \
                 whether the workers reach each other's addresses",
                missing(|stage| matches!(stage, Stage::Assembled(_)))
            ),
            Phase::Stopping => format!(
                "a stop was requested, but within {limit_s:.1} s these did not finish: {}; {}",
                missing(|stage| matches!(stage, Stage::Finished(_))),
                self.how_to_go_on()
            ),
            Phase::Reuniting
            | Phase::Training
            | Phase::Regrouping
            | Phase::Paused
            | Phase::Finished
            | Phase::Failed => {
                format!(
                    "no step was committed for {limit_s:.1} s; still at work: {}; {}",
                    missing(|stage| matches!(stage, Stage::Finished(_))),
                    self.how_to_go_on()
                )
            }
        }
    }

    /// A run that never began has nothing to go on with.
    fn if_begun(&self) -> String {
        match self.has_begun {
            false => String::new(),
            true => format!("; {}", self.how_to_go_on()),
        }
    }
}
