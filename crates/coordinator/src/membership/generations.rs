//! How one generation follows another, and how the workers agree on the step that it starts from.
//!
//! A step is committed by a worker when its fold succeeds, and then every other worker of the generation has
//! entered that fold: it has committed the step before. So when a generation breaks, its workers are at most one
//! step apart: some have committed step n, the others step n - 1, and nobody knows which he is. They find out like
//! this:
//!
//! 1. Everyone is told to halt. A worker that reports `Halted` has closed its connections, will apply nothing of
//!    that generation any more, and says how many steps its state has. One that does not report is lost: its
//!    connections are closed, and whatever it still says names an old generation and is dropped.
//! 2. Only when all have halted or are lost is the next generation formed. It starts from the newest state that
//!    anyone holds, the disk included, so a step that a survivor has committed is never taken back.
//! 3. Whoever lacks that state (one step behind, or just joined) takes it from a checkpoint. If there is none of
//!    that step, one of those who hold it is told to save it first. Otherwise nothing is sent or written.
//! 4. All report the hash of what they hold, and start only if it is the same.
//!
//! The step in hand is computed again by the new generation, with the same bits, because neither the order of the
//! sum nor any random number depends on who computes it. It is told once, whoever reported it first.

use std::iter::once;
use std::sync::Arc;
use std::time::Duration;

use protocol::{Generation, Rank, WorkerId};

use super::{
    Action, Complaint, Holding, Member, Membership, OnFailure, Order, Outcome, Phase, Place, Replicas, Stage,
    agreement, lease_by_pace, told,
};
use crate::journal::Record;

/// Generations in a row that may break before one of them has committed a step. More means that the workers do
/// not reach each other, or that the step itself kills them.
const FRUITLESS_GENERATIONS: u32 = 5;

impl Membership {
    /// How many workers a generation is formed of at least: at first all of them.
    pub(super) fn workers_wanted(&self) -> u32 {
        match self.settings.on_failure {
            // Anyone who is left can save what is to be kept.
            _ if self.stop_requested && self.has_begun => 1,
            OnFailure::Shrink if self.has_begun => self.settings.min_workers,
            OnFailure::Shrink | OnFailure::Wait | OnFailure::Abort => self.settings.workers,
        }
    }

    /// Forms a generation with those who wait for one: if enough are gathered, or in place of the one that
    /// trains. That one is left a step at least, so that workers which come and go cannot keep it from making any; and
    /// where others came in vain, as long as they were waited for.
    pub(super) fn take_in(&mut self, now: Duration) -> Vec<Action> {
        let waiting = self.idle().count();
        match self.phase {
            Phase::Gathering if waiting >= self.workers_wanted() as usize && self.is_left_by_all() => {
                self.form(now)
            }
            Phase::Training if waiting > 0 && self.has_stepped && now >= self.takes_in_from => {
                self.break_off("a worker has joined".to_string(), now)
            }
            _ => Vec::new(),
        }
    }

    /// Those who wait for a generation, with the step that they hold.
    fn idle(&self) -> impl Iterator<Item = (WorkerId, Option<u64>)> {
        self.members.iter().filter_map(|(&worker, member)| match member.stage {
            Stage::Idle(held_step) => Some((worker, held_step)),
            _ => None,
        })
    }

    /// A worker has left its generation: by order, or because it saw another one fail, which ends it for all.
    pub(super) fn halted(
        &mut self,
        worker: WorkerId,
        held_step: Option<u64>,
        complaint: Option<Complaint>,
        now: Duration,
    ) -> Vec<Action> {
        // A person who restarts a coordinator wants to go on with whoever has come back.
        if !self.recovers() && self.phase != Phase::Regrouping {
            let Some(complaint) = complaint else { return Vec::new() };
            return self.worker_failed(worker, held_step.unwrap_or(0), complaint, now);
        }
        let name = self.describe(worker);
        let counts = self.members.get(&worker).is_some_and(|member| self.counts(member.generation));
        let held_step = held_step.filter(|_| counts);
        let (reason, suspect) =
            complaint.map_or_else(Default::default, |complaint| (complaint.reason, complaint.suspect));
        let Some(member) = self.members.get_mut(&worker) else { return Vec::new() };
        let was_told = member.stage == Stage::Halting;
        match member.stage {
            Stage::Assembling | Stage::Assembled(_) | Stage::Trains | Stage::Halting => {
                member.stage = Stage::Idle(held_step);
            }
            Stage::Away | Stage::Joined | Stage::Idle(_) | Stage::Finished(_) | Stage::Failed => {
                return Vec::new();
            }
        }
        self.note_missed(worker, suspect, now);
        match self.phase {
            Phase::Regrouping => return self.regroup(now),
            // It came back from a generation that was over.
            Phase::Reuniting if was_told => return self.reunite(now),
            _ if was_told => return self.take_in(now),
            _ => {}
        }
        let mut actions = self.break_off(format!("{name} left: {reason}"), now);
        actions.extend(self.lose_suspect(suspect, now));
        actions
    }

    /// Ends the present generation: all who take part in it are told to leave it.
    pub(super) fn break_off(&mut self, reason: String, now: Duration) -> Vec<Action> {
        if self.assembly_has_run_out(now) {
            self.takes_in_from = now + self.assembly_limit();
        }
        self.phase = Phase::Regrouping;
        self.waiting_since = now;
        let mut actions = Vec::new();
        for &worker in &self.ranks {
            let Some(member) = self.members.get_mut(&worker) else { continue };
            match member.stage {
                Stage::Finished(step) => member.stage = Stage::Idle(Some(step)),
                Stage::Assembling | Stage::Assembled(_) | Stage::Trains => {
                    member.stage = Stage::Halting;
                    let order = Order::Halt { generation: self.generation, reason: reason.clone() };
                    actions.push(Action::Send { worker, order });
                }
                // Who is away is told when it comes back.
                Stage::Away | Stage::Joined | Stage::Idle(_) | Stage::Halting | Stage::Failed => {}
            }
        }
        self.regrouping_because = reason;
        actions.extend(self.regroup(now));
        actions
    }

    /// Once nobody is in the old generation any more, the next one is formed if enough are left.
    pub(super) fn regroup(&mut self, now: Duration) -> Vec<Action> {
        let given_up = self.give_up_missed(now);
        if !given_up.is_empty() {
            // Without it the others have regrouped, as far as they have left.
            return given_up;
        }
        if !self.is_left_by_all() {
            return Vec::new();
        }
        let mut actions = self.confirm_steps();
        if let Some(step) = self.step_only_leavers_hold() {
            actions.extend(self.save_first(step, now));
            return actions;
        }
        actions.extend(self.let_go());
        if self.is_paused {
            self.phase = Phase::Paused;
            if self.newest_held() <= Some(self.saved.step) {
                self.saver = None;
            }
        } else if self.idle().count() >= self.workers_wanted() as usize {
            actions.extend(self.form(now));
        } else if self.stop_requested {
            actions.extend(self.end(Outcome::Stopped { step: self.committed_step }));
        } else {
            self.phase = Phase::Gathering;
            self.waiting_since = now;
        }
        actions
    }

    /// Whether nobody is in the old generation any more, or away with what it holds of it.
    pub(super) fn is_left_by_all(&self) -> bool {
        let is_in_it = |(worker, member): (&WorkerId, &Member)| match member.stage {
            Stage::Halting => true,
            Stage::Away => self.ranks.contains(worker),
            _ => false,
        };
        !self.members.iter().any(is_in_it)
    }

    /// Steps that the first rank did not live to report, or that were reported too late.
    fn confirm_steps(&mut self) -> Vec<Action> {
        let steps = std::mem::take(&mut self.unconfirmed);
        if let Some((&last, _)) = steps.last_key_value() {
            self.committed_step = last;
            self.fruitless_generations = 0;
        }
        steps.into_values().flat_map(told).collect()
    }

    /// Forms the next generation of all who wait for it, or first has the state saved that some of them lack.
    fn form(&mut self, now: Duration) -> Vec<Action> {
        if self.fruitless_generations >= FRUITLESS_GENERATIONS {
            return self.fail(format!(
                "{FRUITLESS_GENERATIONS} generations in a row broke off before a step was committed, the last \
                 because {}: see whether the workers reach each other's addresses, and their logs; {}",
                self.regrouping_because,
                self.how_to_go_on()
            ));
        }
        let step = self.newest_held().map_or(self.saved.step, |held| held.max(self.saved.step));
        let is_lacked = self.idle().any(|(_, held_step)| held_step != Some(step));
        if is_lacked && self.saved.step < step {
            return self.save_first(step, now);
        }
        self.saver = None;
        self.assemble(step, now)
    }

    /// Steps committed in the newest state that anyone holds who waits for a generation.
    pub(super) fn newest_held(&self) -> Option<u64> {
        self.idle().filter_map(|(_, held_step)| held_step).max()
    }

    /// One of those who hold the state of `step` is told to save it, once.
    pub(super) fn save_first(&mut self, step: u64, now: Duration) -> Vec<Action> {
        let holder = self.idle().find(|(_, held_step)| *held_step == Some(step));
        let (worker, _) = holder.expect("the newest step is held by someone if it is not on the disk");
        if self.saver.is_some() {
            return Vec::new();
        }
        self.phase = Phase::Regrouping;
        self.waiting_since = now;
        self.saver = Some(worker);
        let generation = self.members.get(&worker).map_or(Generation(0), |member| member.generation);
        vec![Action::Send { worker, order: Order::Save { generation } }]
    }

    /// The worker that was told to save could not, and nor could another one: the disk is the run's. That ends the run if
    /// others wait for the state. If only a person does, everything is as before.
    pub(super) fn unsaved(&mut self, worker: WorkerId, reason: &str, now: Duration) -> Vec<Action> {
        if self.saver.take_if(|saver| *saver == worker).is_none() {
            return Vec::new();
        }
        let mut actions = self.regroup(now);
        if self.saver.is_some() {
            // The last of them would have it saved once more.
            actions.pop();
            let reason = format!("{} cannot save what others need: {reason}", self.describe(worker));
            actions.extend(self.fail_for(&reason));
        }
        actions
    }

    /// Tells everyone who waits his place: ranks in the order in which they joined.
    fn assemble(&mut self, step: u64, now: Duration) -> Vec<Action> {
        self.phase = Phase::Assembling;
        self.waiting_since = now;
        self.generation.0 += 1;
        self.fruitless_generations += 1;
        self.is_first_generation = !std::mem::replace(&mut self.has_begun, true);
        (self.has_started, self.has_stepped) = (false, false);
        self.ends.clear();
        self.unconfirmed.clear();
        self.missed.clear();
        for (worker, pace) in std::mem::take(&mut self.stragglers).paces() {
            if let Some(member) = self.members.get_mut(&worker) {
                member.seconds_per_shard = Some(pace);
            }
        }
        self.replicas = Replicas::default();
        self.ranks = self.idle().map(|(worker, _)| worker).collect();
        let pace = |worker| self.members.get(worker).and_then(|member: &Member| member.seconds_per_shard);
        let paces: Vec<Option<f64>> = self.ranks.iter().map(pace).collect();
        let leases = lease_by_pace(self.settings.shards, &paces);
        let mut places = Vec::new();
        for (&worker, lease) in self.ranks.iter().zip(leases) {
            let Some(member) = self.members.get_mut(&worker) else { continue };
            (member.stage, member.generation) = (Stage::Assembling, self.generation);
            (member.standstill, member.lease) = (Duration::ZERO, lease);
            places.push(Place {
                worker,
                collective_address: member.candidate.collective_address.clone(),
                first_shard: lease.first_shard,
                shard_count: lease.shard_count,
            });
        }
        let places: Arc<[Place]> = places.into();
        let order = |rank: u32| Order::Assemble {
            generation: self.generation,
            places: Arc::clone(&places),
            rank: Rank(rank),
            publishes: rank == 0,
            limit: self.assembly_limit(),
            step,
            checkpoint: self.saved.checkpoint.clone(),
            checkpoint_step: self.saved.step,
            learning_rate_changes: self.settings.learning_rate_changes.clone(),
        };
        let orders =
            (0..).zip(&self.ranks).map(|(rank, &worker)| Action::Send { worker, order: order(rank) });
        let record = Record::Generation { generation: self.generation.0, places: places.to_vec() };
        once(Action::Record(record)).chain(orders).collect()
    }

    /// Once all are assembled and hold the same, they start.
    pub(super) fn assembled(&mut self, worker: WorkerId, holding: Holding, now: Duration) -> Vec<Action> {
        self.advance(worker, &Stage::Assembling, Stage::Assembled(holding));
        match self.phase {
            Phase::Assembling => self.start_if_all_are_assembled(now),
            _ => Vec::new(),
        }
    }

    pub(super) fn start_if_all_are_assembled(&mut self, now: Duration) -> Vec<Action> {
        let holdings: Vec<(WorkerId, Holding)> = self
            .members
            .iter()
            .filter_map(|(&worker, member)| match &member.stage {
                Stage::Assembled(holding) => Some((worker, holding.clone())),
                _ => None,
            })
            .collect();
        if holdings.len() < self.ranks.len() {
            return Vec::new();
        }
        if let Some(reason) = agreement::differing_holdings(&holdings) {
            return self.fail(reason);
        }
        self.phase = Phase::Training;
        self.has_started = true;
        self.waiting_since = now;
        let (_, holding) = &holdings[0];
        let generation = self.generation;
        let record = Record::Started {
            generation: generation.0,
            step: holding.step,
            state_hash: holding.state_hash.to_string(),
        };
        let start = Order::Start { generation };
        let starts = self.ranks.iter().map(|&worker| Action::Send { worker, order: start.clone() });
        let mut actions: Vec<Action> = once(Action::Record(record)).chain(starts).collect();
        if self.stop_requested {
            actions.extend(self.order_stop(now));
        }
        actions
    }
}
