//! How workers come back: to the coordinator that was started in the place of one that died, or to the same one when only
//! their connection broke (`absence.rs`).
//!
//! A healthy step does not wait for the coordinator, so a generation goes on without one. The next coordinator knows
//! from the journal who takes part in it, and each worker that comes back says where it stands:
//!
//! 1. Once all of the generation are back and none of them has left it, it is adopted as it is: nobody halts, nobody
//!    is told anything but what the last coordinator did not live to tell.
//! 2. If one has left it, because it lost a peer meanwhile, or is not back before it counts as silent, the generation
//!    is over as after any other loss: the others halt, and the next is formed of those who are there.
//!
//! Whoever is away is treated as one that may still train: no generation is formed before it is back and has halted,
//! or is lost. So nobody can commit a step behind the others' backs, under two coordinators as under one.

use std::iter::once;
use std::time::Duration;

use protocol::{Generation, WorkerId};

use super::{Action, Candidate, Membership, Order, Part, Phase, Position, Stage, refuse};
use crate::journal::Record;

impl Membership {
    /// Answers a worker that says that it takes part already.
    pub(super) fn take_back(
        &mut self,
        worker: WorkerId,
        candidate: &Candidate,
        now: Duration,
    ) -> Vec<Action> {
        let member = self
            .members
            .get_mut(&worker)
            .filter(|member| member.candidate.incarnation == candidate.incarnation);
        match member {
            Some(member) if member.stage == Stage::Away => {
                member.heard_at = now;
                vec![Action::Admit { worker }]
            }
            // Its end of the connection has broken, and this one not yet.
            Some(_) => {
                let reason = format!("worker {worker} is still connected");
                vec![Action::Postpone { reason }]
            }
            None => {
                vec![refuse(&format!("worker {worker} was lost, and its place given away: start it again"))]
            }
        }
    }

    /// A worker of the last coordinator's listens again, and says where it stands.
    pub(super) fn returned(&mut self, worker: WorkerId, position: Position, now: Duration) -> Vec<Action> {
        let Position { generation, part, held_step, steps, is_leaving } = position;
        let record = Action::Record(Record::Returned { worker: worker.0, step: held_step });
        if generation > self.generation {
            let (theirs, ours) = (generation, self.generation);
            let reason = format!(
                "it takes part in generation {theirs}, but the journal ends with generation {ours}: it is not the \
                 newest of this run"
            );
            return once(record).chain(self.give_up(&[worker], &reason, now)).collect();
        }
        let held_step = held_step.filter(|_| self.counts(generation));
        let mut actions = vec![record];
        for report in steps {
            actions.extend(self.step_done(worker, report, now));
        }
        let is_present = generation == self.generation && self.ranks.contains(&worker);
        let (stage, missed) = self.take_up(generation, is_present, part, held_step);
        actions.extend(missed.into_iter().map(|order| Action::Send { worker, order }));
        let has_left = matches!(stage, Stage::Idle(_)) && self.ranks.contains(&worker);
        if let Some(member) = self.members.get_mut(&worker) {
            (member.stage, member.generation, member.is_leaving) = (stage, generation, is_leaving);
        }
        // It may not have heard the order, so it is told again if that is still wanted.
        self.saver.take_if(|saver| *saver == worker);
        actions.extend(match self.phase {
            Phase::Reuniting => self.reunite(now),
            Phase::Regrouping => self.regroup(now),
            Phase::Assembling | Phase::Training | Phase::Stopping if has_left => {
                let reason = format!("{} left while its connection was broken", self.describe(worker));
                self.break_off(reason, now)
            }
            _ => self.take_in(now),
        });
        actions
    }

    /// How far a worker is that says that it has this `part` in `generation`, which `is_present` if that is the last one and
    /// it has a place there; and what it was to be told meanwhile.
    fn take_up(
        &self,
        generation: Generation,
        is_present: bool,
        part: Part,
        held_step: Option<u64>,
    ) -> (Stage, Vec<Order>) {
        let start = Order::Start { generation };
        match (part, self.phase) {
            (Part::None, _) => (Stage::Idle(held_step), Vec::new()),
            (Part::Assembles, Phase::Reuniting | Phase::Assembling) if is_present => {
                (Stage::Assembling, Vec::new())
            }
            (Part::Assembles, Phase::Training) if is_present => (Stage::Trains, vec![start]),
            (Part::Assembles, Phase::Stopping) if is_present => {
                (Stage::Trains, vec![start, self.stop_order()])
            }
            (Part::Trains, Phase::Reuniting | Phase::Training) if is_present && self.has_started => {
                (Stage::Trains, Vec::new())
            }
            (Part::Trains, Phase::Stopping) if is_present => (Stage::Trains, vec![self.stop_order()]),
            // What it takes part in is over.
            (Part::Assembles | Part::Trains, _) => {
                let reason = "it broke off while this worker had no coordinator".to_string();
                (Stage::Halting, vec![Order::Halt { generation, reason }])
            }
        }
    }

    /// Once all of the last generation are back it goes on, or is over if one of them has left it.
    pub(super) fn reunite(&mut self, now: Duration) -> Vec<Action> {
        let is_back = |stage: Option<&Stage>| stage.is_some_and(|stage| *stage != Stage::Away);
        let takes_part = |stage: Option<&Stage>| {
            matches!(
                stage,
                Some(Stage::Assembling | Stage::Assembled(_) | Stage::Trains | Stage::Finished(_))
            )
        };
        let stages = || self.ranks.iter().map(|rank| self.members.get(rank).map(|member| &member.stage));
        if !stages().all(is_back) {
            return Vec::new();
        }
        if !stages().all(takes_part) {
            return self.break_off("it broke off while there was no coordinator".to_string(), now);
        }
        if self.is_paused {
            return self.break_off("the run is paused".to_string(), now);
        }
        let record = Record::Adopted { generation: self.generation.0, step: self.committed_step };
        let consequences = if self.has_started { self.go_on(now) } else { self.assemble_on(now) };
        once(Action::Record(record)).chain(consequences).collect()
    }

    /// They train. Those that the order to start did not reach get it now; the others wait for them in their fold.
    fn go_on(&mut self, now: Duration) -> Vec<Action> {
        (self.phase, self.waiting_since) = (Phase::Training, now);
        let mut actions = Vec::new();
        for &worker in &self.ranks {
            let Some(member) = self.members.get_mut(&worker) else { continue };
            if matches!(member.stage, Stage::Assembling | Stage::Assembled(_)) {
                member.stage = Stage::Trains;
                actions.push(Action::Send { worker, order: Order::Start { generation: self.generation } });
            }
        }
        if self.stop_requested {
            actions.extend(self.order_stop(now));
        }
        actions
    }

    /// They were told their places, and connect to each other.
    fn assemble_on(&mut self, now: Duration) -> Vec<Action> {
        (self.phase, self.waiting_since) = (Phase::Assembling, now);
        self.start_if_all_are_assembled(now)
    }
}
