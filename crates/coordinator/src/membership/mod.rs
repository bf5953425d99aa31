//! Who takes part, with which shards, and how far they are: a state machine without input or output.
//!
//! [`Membership::step`] takes an event and the time and gives actions; it knows no clock, no socket and no
//! file, so that every course of events can be tested. A run goes
//! `Gathering -> Assembling -> Training -> (Stopping ->) Finished`, and from anywhere to `Failed`.
//! When a worker is lost, or one joins that may take over shards, it goes
//! `-> Regrouping (-> Gathering) -> Assembling` once more, with the next generation: `generations.rs` says how
//! the workers agree on the step that it starts from, `waits.rs` how every wait ends. After a restart of the
//! coordinator it begins with `Reuniting -> Training`, or whatever the workers were about: `reunion.rs`. What becomes of
//! a worker whose connection breaks is told in `absence.rs`, how one leaves in order in `departure.rs`, who is given up when
//! workers do not come together in `assembly.rs`.

mod absence;
#[cfg(test)]
mod absence_tests;
mod agreement;
mod assembly;
#[cfg(test)]
mod assembly_tests;
mod departure;
#[cfg(test)]
mod departure_tests;
mod events;
mod generations;
mod lease;
mod member;
mod past;
#[cfg(test)]
mod promises;
#[cfg(test)]
mod recovery_tests;
mod replicas;
mod requests;
mod reunion;
#[cfg(test)]
mod reunion_tests;
mod rollback;
#[cfg(test)]
mod rollback_tests;
mod settings;
mod sight;
mod stragglers;
#[cfg(test)]
mod tests;
mod waits;

use std::collections::BTreeMap;
use std::iter::once;
use std::time::Duration;

use protocol::{Generation, WorkerId};

pub use events::{
    Action, Candidate, Complaint, Digest, Event, Holding, Monitors, Order, Outcome, Part, Parts, Phase,
    Place, Position, Request, Rollback, StepReport, StepSeconds,
};
use lease::lease_by_pace;
pub use lease::{Lease, lease};
pub use past::Past;
pub use settings::{
    OnFailure, Settings, SettingsError, Timeouts, check_max_workers, check_min_workers, check_workers,
};
pub use sight::{Doing, Sight, WorkerSight};

use member::{Member, Stage};
use replicas::Replicas;
use stragglers::Stragglers;

use crate::journal::Record;

/// How long a second-hand verdict waits for the word of the one that knows: the worker that others suspect,
/// or the process behind a connection that ended. Longer than a process takes to print a panic and end.
const SECOND_HAND_WAIT: Duration = Duration::from_secs(1);

/// The workers of a run, and how far they are.
#[derive(Debug)]
pub struct Membership {
    settings: Settings,
    phase: Phase,
    generation: Generation,
    members: BTreeMap<WorkerId, Member>,
    /// The workers of the present generation; the index is the rank.
    ranks: Vec<WorkerId>,
    workers_admitted: u64,
    committed_step: u64,
    /// The newest checkpoint; before the first one, the beginning.
    saved: Saved,
    /// States that were made in this generation or before are not the run's any more, but for those on the disk.
    taken_back: Generation,
    /// When the present wait began.
    waiting_since: Duration,
    verdict: Option<Verdict>,
    stop_requested: bool,
    /// Whether a person did so; a run that is hopeless stops by itself.
    stop_requested_by_person: bool,
    /// Whether a person wants no more steps for now.
    is_paused: bool,
    /// The present generation's states, and whom its workers wait for.
    replicas: Replicas,
    stragglers: Stragglers,
    /// How the workers of this generation ended that have.
    ends: BTreeMap<WorkerId, (u64, Digest)>,
    /// Steps that others than the first rank reported; they count if its word does not come.
    unconfirmed: BTreeMap<u64, StepReport>,
    /// Whether there was a generation whose workers may be left: less is enough to go on then than to begin.
    has_begun: bool,
    /// Whether this generation is the first, so that nobody holds more than what is on the disk.
    is_first_generation: bool,
    /// Whether this generation was told to start.
    has_started: bool,
    /// Whether this generation has committed a step.
    has_stepped: bool,
    /// Generations since the last one that has.
    fruitless_generations: u32,
    /// Who missed whom when the assembly of this generation had taken all its time.
    missed: Vec<(WorkerId, WorkerId)>,
    /// Until then a generation that trains is left alone by those who come.
    takes_in_from: Duration,
    /// Why the last generation was over.
    regrouping_because: String,
    /// The worker that was told to save what others lack.
    saver: Option<WorkerId>,
    /// Workers of this machine that will not be started again.
    places_closed: u32,
}

/// What lies on the disk.
#[derive(Debug)]
struct Saved {
    checkpoint: Option<String>,
    step: u64,
}

/// A failure that is known at second hand only.
#[derive(Debug)]
struct Verdict {
    reason: String,
    until: Duration,
}

impl Membership {
    /// A run that waits for its workers since `now`: for new ones, and first of all for those that its past has left.
    ///
    /// # Errors
    /// [`Settings::check`].
    pub fn new(past: &Past, settings: Settings, now: Duration) -> Result<Membership, SettingsError> {
        settings.check()?;
        let members: BTreeMap<WorkerId, Member> = past
            .members
            .iter()
            .map(|(&worker, candidate)| {
                let generation = if past.ranks.contains(&worker) { past.generation } else { Generation(0) };
                let rank = past.ranks.iter().position(|rank| *rank == worker);
                let lease = rank.and_then(|rank| past.leases.get(rank)).copied().unwrap_or_default();
                let has_stepped = rank.is_some() && past.has_started;
                let member = Member::new(candidate.clone(), Stage::Away, generation, now);
                (worker, Member { lease, has_stepped, ..member })
            })
            .collect();
        let has_begun = !past.ranks.is_empty();
        let phase = match has_begun {
            false => Phase::Gathering,
            true if past.generation > past.taken_back
                && past.ranks.iter().all(|rank| members.contains_key(rank)) =>
            {
                Phase::Reuniting
            }
            // Whoever is left of it has to leave it.
            true => Phase::Regrouping,
        };
        Ok(Membership {
            phase,
            generation: past.generation,
            members,
            ranks: past.ranks.clone(),
            workers_admitted: past.workers_admitted,
            committed_step: settings.first_step.max(past.committed_step),
            saved: Saved { checkpoint: settings.checkpoint.clone(), step: settings.first_step },
            taken_back: past.taken_back,
            waiting_since: now,
            verdict: None,
            stop_requested: false,
            stop_requested_by_person: false,
            is_paused: false,
            replicas: Replicas::default(),
            stragglers: Stragglers::default(),
            ends: BTreeMap::new(),
            unconfirmed: BTreeMap::new(),
            has_begun,
            is_first_generation: !has_begun,
            has_started: past.has_started,
            has_stepped: false,
            fruitless_generations: 0,
            missed: Vec::new(),
            takes_in_from: Duration::ZERO,
            regrouping_because: "the coordinator was restarted without all of its workers".to_string(),
            saver: None,
            places_closed: 0,
            settings,
        })
    }

    /// Where the run stands.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The generation that was formed last; 0 before the first.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Steps that are known to be committed.
    pub fn committed_step(&self) -> u64 {
        self.committed_step
    }

    /// How many workers are admitted, and neither lost nor still away.
    pub fn workers(&self) -> usize {
        self.members.values().filter(|member| member.stage != Stage::Away).count()
    }

    /// Whether `worker` takes part.
    pub fn knows(&self, worker: WorkerId) -> bool {
        self.members.contains_key(&worker)
    }

    /// Whether `worker` was told to publish the checkpoints of `generation`, or to save what it holds since. Every
    /// state that a worker holds is one that was committed, so it may do so while the next generation is formed.
    pub fn publishes(&self, worker: WorkerId, generation: Generation) -> bool {
        let is_open = self.is_under_way() || matches!(self.phase, Phase::Gathering | Phase::Paused);
        let is_asked = self.ranks.first() == Some(&worker) || self.saver == Some(worker);
        is_open
            && is_asked
            && self.counts(generation)
            && self.members.get(&worker).is_some_and(|member| member.generation == generation)
    }

    /// The answer to `event` at `now`, which never goes back.
    pub fn step(&mut self, event: Event, now: Duration) -> Vec<Action> {
        if self.is_ended() {
            return match event {
                Event::Joined(_) => vec![refuse("the run has ended: start the coordinator again")],
                _ => Vec::new(),
            };
        }
        if let Some((worker, generation)) = event.reporter() {
            // Late words of a worker that is no longer one are nobody's, and words of an older generation are
            // those of a worker that does not hear what it is ordered.
            let Some(member) = self.members.get_mut(&worker) else { return Vec::new() };
            if generation.is_some_and(|generation| generation != member.generation) {
                return Vec::new();
            }
            // Who comes back says first where it stands.
            if member.stage == Stage::Away && !matches!(event, Event::Attending { .. }) {
                return Vec::new();
            }
            member.heard_at = now;
        }
        match event {
            Event::Joined(candidate) => self.join(candidate, now),
            Event::Attending { worker, position } => self.attend(worker, position, now),
            Event::Assembled { worker, holding, .. } => self.assembled(worker, holding, now),
            Event::StepDone { worker, report } => self.step_done(worker, report, now),
            Event::Finished { worker, step, state_hash, .. } => self.finished(worker, step, state_hash, now),
            Event::Halted { worker, held_step, complaint, .. } => {
                self.halted(worker, held_step, complaint, now)
            }
            Event::WorkerFailed { worker, step, complaint, .. } => {
                self.worker_failed(worker, step, complaint, now)
            }
            Event::Unsaved { worker, reason, .. } => self.unsaved(worker, &reason, now),
            Event::Detached { worker, reason } => self.detached(worker, &reason, now),
            Event::Unreachable { worker, reason } => self.unreachable(worker, &reason, now),
            Event::Leaving { worker } => self.leaving(worker, now),
            Event::ProcessEnded { reason, crashed, restarts } => {
                self.process_ended(reason, crashed, restarts, now)
            }
            Event::Published { generation, checkpoint, step } => match self.counts(generation) {
                true => self.published(checkpoint, step, now),
                false => Vec::new(),
            },
            Event::RolledBack(rollback) => self.roll_back(rollback, now),
            Event::Hopeless if self.stop_requested => Vec::new(),
            Event::Hopeless => self.begin_to_stop(now),
            Event::Requested(request) => self.requested(request, now),
            Event::Tick => self.tick(now),
            Event::Heartbeat { worker, standstill, .. } => self.note_standstill(worker, standstill, now),
        }
    }

    fn is_ended(&self) -> bool {
        matches!(self.phase, Phase::Finished | Phase::Failed)
    }

    /// Admits a worker while there is a place. One that asks again (because it missed the answer) is the same.
    fn join(&mut self, candidate: Candidate, now: Duration) -> Vec<Action> {
        if let Some(worker) = candidate.returning {
            return self.take_back(worker, &candidate, now);
        }
        let again = self.members.iter_mut().find(|(_, member)| {
            member.candidate.incarnation == candidate.incarnation
                && matches!(member.stage, Stage::Joined | Stage::Away)
        });
        if let Some((&worker, member)) = again {
            member.heard_at = now;
            return vec![Action::Admit { worker }];
        }
        if self.members.len() >= self.settings.max_workers as usize {
            if self.members.values().any(|member| member.stage == Stage::Away) {
                let reason = "the workers of the last generation may still come back to their places";
                return vec![Action::Postpone { reason: reason.to_string() }];
            }
            return vec![refuse(&format!(
                "this run has its {} workers already: start the coordinator for one more with --workers, \
                 --remote-workers or --max-workers",
                self.settings.max_workers
            ))];
        }
        if let Some(reason) = self.foreign_arithmetic(&candidate) {
            return vec![refuse(&reason)];
        }
        self.workers_admitted += 1;
        let worker = WorkerId(self.workers_admitted);
        let record = Record::Joined {
            worker: worker.0,
            incarnation: candidate.incarnation,
            collective_address: candidate.collective_address.clone(),
            description: candidate.description.clone(),
            outlives_coordinator: candidate.outlives_coordinator,
            arithmetic: candidate.arithmetic.clone(),
        };
        self.members.insert(worker, Member::new(candidate, Stage::Joined, Generation(0), now));
        vec![Action::Admit { worker }, Action::Record(record)]
    }

    /// Why this worker would compute other bits than those who are here, if it would.
    fn foreign_arithmetic(&self, candidate: &Candidate) -> Option<String> {
        let theirs = &candidate.arithmetic;
        let differs = |ours: &&String| !ours.is_empty() && !theirs.is_empty() && *ours != theirs;
        let ours = self.members.values().map(|member| &member.candidate.arithmetic).find(differs)?;
        let is_cpu = |arithmetic: &str| arithmetic.starts_with("cpu ");
        let consequence = if is_cpu(ours) != is_cpu(theirs) {
            // Every worker makes the update itself, and only a GPU makes a multiplication and an addition of it in one.
            "after the first step a GPU's weights would not be a CPU's, and the run would end where they are compared. \
             Start all workers with --device cuda, or all with --device cpu"
        } else if self.settings.mixes_arithmetic {
            return None;
        } else {
            "the result would depend on who computes what. Use the same kind of processor for all, or start the \
             coordinator with --mixed-devices"
        };
        Some(format!(
            "this run's workers compute on {ours}, and this one on {theirs}, which rounds otherwise: {consequence}"
        ))
    }

    /// One more listens: if that makes enough, or it can take over shards, a generation is formed.
    fn attend(&mut self, worker: WorkerId, position: Position, now: Duration) -> Vec<Action> {
        if self.members.get(&worker).is_some_and(|member| member.stage == Stage::Away) {
            return self.returned(worker, position, now);
        }
        self.advance(worker, &Stage::Joined, Stage::Idle(None));
        if let Some(member) = self.members.get_mut(&worker) {
            member.is_leaving = position.is_leaving;
        }
        self.take_in(now)
    }

    /// All workers report the same values, so the first rank's word stands for all. A step that is made a second
    /// time, because the generation before was lost with it, has been told.
    fn step_done(&mut self, worker: WorkerId, report: StepReport, now: Duration) -> Vec<Action> {
        let is_possible = self.is_under_way() && report.step <= self.settings.total_steps;
        // A worker that comes back from an older generation still speaks of that one.
        let is_present = report.generation == self.generation && self.ranks.contains(&worker);
        if !is_possible || !is_present || !self.counts(report.generation) {
            return Vec::new();
        }
        if let Some(hash) = report.state_hash
            && let Some(reason) = self.replicas.compare(worker, report.step, hash, &self.ranks)
        {
            return self.fail_for(&reason);
        }
        let mut actions: Vec<Action> = self.straggles(worker, &report).into_iter().collect();
        if self.ranks.first() != Some(&worker) || self.phase == Phase::Regrouping {
            if report.step > self.committed_step {
                self.unconfirmed.entry(report.step).or_insert(report);
            }
            return actions;
        }
        self.note_progress(now);
        self.fruitless_generations = 0;
        if !std::mem::replace(&mut self.has_stepped, true) {
            let ranks = self.members.iter_mut().filter(|(worker, _)| self.ranks.contains(worker));
            ranks.for_each(|(_, member)| member.has_stepped = true);
        }
        if report.step > self.committed_step {
            self.committed_step = report.step;
            self.unconfirmed = self.unconfirmed.split_off(&(report.step + 1));
            actions.extend(told(report));
        }
        actions.extend(self.take_in(now));
        actions
    }

    /// Says so if the others wait for this worker.
    fn straggles(&mut self, worker: WorkerId, report: &StepReport) -> Option<Action> {
        let member = self.members.get(&worker)?;
        let times_slower = self.stragglers.judge(worker, &report.seconds, member.lease.shard_count)?;
        let description = member.candidate.description.clone();
        let (worker, step) = (worker.0, report.step);
        Some(Action::Record(Record::Straggler { worker, description, times_slower, step }))
    }

    /// Once all have finished, with the same state, the run is over.
    fn finished(&mut self, worker: WorkerId, step: u64, state_hash: Digest, now: Duration) -> Vec<Action> {
        // Who was never told to start has finished nothing: only its `Halted` says that it is out.
        if !self.has_started || !self.is_under_way() || !self.ranks.contains(&worker) {
            return Vec::new();
        }
        if self.phase == Phase::Regrouping {
            return self.halted(worker, Some(step), None, now);
        }
        self.note_progress(now);
        if let Some(member) = self.members.get_mut(&worker) {
            member.stage = Stage::Finished(step);
        }
        self.ends.insert(worker, (step, state_hash));
        if self.ends.len() < self.ranks.len() {
            return Vec::new();
        }
        let ends: Vec<(WorkerId, u64, Digest)> =
            self.ends.iter().map(|(&worker, &(step, state_hash))| (worker, step, state_hash)).collect();
        if let Some(reason) = agreement::differing_ends(&ends) {
            return self.fail_for(&reason);
        }
        self.committed_step = self.committed_step.max(step);
        // Before the last step, they were asked to: all of them by a stop, or one that leaves, which passed it on to the
        // others with its bucket.
        if step == self.settings.total_steps {
            self.end(Outcome::Completed { step, state_hash })
        } else if let Some(reason) = self.who_leaves().filter(|_| !self.stop_requested) {
            self.break_off(reason, now)
        } else {
            self.end(Outcome::Stopped { step })
        }
    }

    /// What a worker can say in words ends the run, whatever the loss of a worker means: another worker would
    /// most often say the same. One that blames another waits for that one's word, which says more than
    /// "connection closed".
    fn worker_failed(
        &mut self,
        worker: WorkerId,
        step: u64,
        complaint: Complaint,
        now: Duration,
    ) -> Vec<Action> {
        if let Some(member) = self.members.get_mut(&worker) {
            member.stage = Stage::Failed;
        }
        let Complaint { reason, suspect } = complaint;
        let reason = format!("{} failed after step {step}: {reason}", self.describe(worker));
        match suspect.filter(|suspect| *suspect != worker && self.knows(*suspect)) {
            Some(suspect) => self.suspect(format!("{reason} (it suspects {})", self.describe(suspect)), now),
            None => self.fail_for(&reason),
        }
    }

    /// The process of a local worker ended. Before the first generation that ends the run, for its last words say
    /// what is wrong with all of them; later it is started again, unless that was done too often.
    fn process_ended(&mut self, reason: String, crashed: bool, restarts: bool, now: Duration) -> Vec<Action> {
        if !self.has_begun || (crashed && !self.recovers()) {
            return self.fail_for(&reason);
        }
        if !self.recovers() {
            return self.suspect(reason, now);
        }
        self.places_closed += u32::from(!restarts);
        if self.workers_wanted() <= self.settings.workers.saturating_sub(self.places_closed) {
            return Vec::new();
        }
        self.fail_for(&format!("{reason}; it ended too often to be started again"))
    }

    /// A checkpoint lies on the disk; if it was waited for, the next generation can start from it.
    fn published(&mut self, checkpoint: String, step: u64, now: Duration) -> Vec<Action> {
        let generation = self.generation.0;
        let record = Record::Checkpoint { generation, checkpoint: checkpoint.clone(), step };
        // One that was long under way may be older than the newest.
        if step >= self.saved.step {
            self.saved = Saved { checkpoint: Some(checkpoint), step };
        }
        let consequences = if self.saver.is_some() { self.regroup(now) } else { Vec::new() };
        once(Action::Record(record)).chain(consequences).collect()
    }

    /// Keeps a failure that is known at second hand until [`SECOND_HAND_WAIT`] has passed. The first stays.
    fn suspect(&mut self, reason: String, now: Duration) -> Vec<Action> {
        self.verdict.get_or_insert(Verdict { reason, until: now + SECOND_HAND_WAIT });
        Vec::new()
    }

    /// Ends the run for a reason, and says how to go on.
    fn fail_for(&mut self, reason: &str) -> Vec<Action> {
        self.fail(format!("{reason}; {}", self.how_to_go_on()))
    }

    fn fail(&mut self, reason: String) -> Vec<Action> {
        self.end(Outcome::Failed { reason })
    }

    fn end(&mut self, outcome: Outcome) -> Vec<Action> {
        let (phase, failure) = match &outcome {
            Outcome::Failed { reason } => (Phase::Failed, Some(reason.clone())),
            Outcome::Completed { .. } | Outcome::Stopped { .. } => (Phase::Finished, None),
        };
        self.phase = phase;
        let order = Order::Dismiss { failure };
        let dismissals = self
            .members
            .iter()
            .filter(|(_, member)| !matches!(member.stage, Stage::Joined | Stage::Away))
            .map(|(&worker, _)| Action::Send { worker, order: order.clone() });
        once(Action::Record(Record::Ended(outcome.clone())))
            .chain(dismissals)
            .chain(once(Action::End(outcome)))
            .collect()
    }

    /// Moves a worker from one stage to the next; a report that comes twice changes nothing.
    fn advance(&mut self, worker: WorkerId, from: &Stage, to: Stage) {
        if let Some(member) = self.members.get_mut(&worker).filter(|member| member.stage == *from) {
            member.stage = to;
        }
    }

    fn is_under_way(&self) -> bool {
        matches!(self.phase, Phase::Reuniting | Phase::Training | Phase::Stopping | Phase::Regrouping)
    }

    /// Whether the run goes on when a worker is lost.
    fn recovers(&self) -> bool {
        self.settings.on_failure != OnFailure::Abort
    }

    /// While training, the wait is for the next sign of progress; a stop has one limit for all of it.
    fn note_progress(&mut self, now: Duration) {
        if self.phase == Phase::Training {
            self.waiting_since = now;
        }
    }

    /// For people: "worker 2 (host, process 17)".
    fn describe(&self, worker: WorkerId) -> String {
        match self.members.get(&worker) {
            Some(member) => format!("worker {worker} ({})", member.candidate.description),
            None => format!("worker {worker}"),
        }
    }

    fn how_to_go_on(&self) -> String {
        let step = self.committed_step;
        match &self.saved.checkpoint {
            Some(checkpoint) => format!(
                "{step} steps are committed and the last checkpoint is {checkpoint}: start again with --resume \
                 to go on from there"
            ),
            None => format!(
                "{step} steps are committed and no checkpoint was saved yet: start again with --resume to begin anew"
            ),
        }
    }
}

/// A step is committed, and if it was left out, the journal says so.
fn told(report: StepReport) -> impl Iterator<Item = Action> {
    let step = report.step;
    let skipped = report.skipped.clone().map(|shards| Action::Record(Record::Skipped { step, shards }));
    skipped.into_iter().chain(once(Action::Committed(report)))
}

fn refuse(reason: &str) -> Action {
    Action::Refuse { reason: reason.to_string() }
}
