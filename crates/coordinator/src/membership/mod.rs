//! Who takes part, with which shards, and how far they are: a state machine without input or output.
//!
//! [`Membership::step`] takes an event and the time and gives actions; it knows no clock, no socket and no
//! file, so that every course of events can be tested. A run goes
//! `Gathering -> Assembling -> Training -> (Stopping ->) Finished`, and from anywhere to `Failed`.
//!
//! A worker that is lost once a generation is formed ends the run, in `Membership::lose`: the one place to
//! change when generations learn to follow each other. Everything else is already counted by generation.

mod agreement;
mod events;
mod lease;
mod settings;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::iter::once;
use std::sync::Arc;
use std::time::Duration;

use protocol::{Generation, Rank, WorkerId};

pub use events::{
    Action, Candidate, Digest, Event, Holding, Order, Outcome, Phase, Place, StepReport, StepSeconds,
};
pub use lease::{Lease, lease};
pub use settings::{Settings, SettingsError, Timeouts, check_workers};

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
    checkpoint: Option<String>,
    /// When the present wait began.
    waiting_since: Duration,
    verdict: Option<Verdict>,
}

#[derive(Debug)]
struct Member {
    candidate: Candidate,
    stage: Stage,
    heard_at: Duration,
}

/// How far one worker is.
#[derive(Debug, PartialEq)]
enum Stage {
    Joined,
    Attending,
    Assembled(Holding),
    Finished { step: u64, state_hash: Digest },
    Failed,
}

/// A failure that is known at second hand only.
#[derive(Debug)]
struct Verdict {
    reason: String,
    until: Duration,
}

impl Membership {
    /// A run that waits for its workers since `now`.
    ///
    /// # Errors
    /// [`Settings::check`].
    pub fn new(settings: Settings, now: Duration) -> Result<Membership, SettingsError> {
        settings.check()?;
        Ok(Membership {
            phase: Phase::Gathering,
            generation: Generation(0),
            members: BTreeMap::new(),
            ranks: Vec::new(),
            workers_admitted: 0,
            committed_step: settings.first_step,
            checkpoint: settings.checkpoint.clone(),
            waiting_since: now,
            verdict: None,
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

    /// How many workers are admitted and not lost.
    pub fn workers(&self) -> usize {
        self.members.len()
    }

    /// Whether `worker` takes part.
    pub fn knows(&self, worker: WorkerId) -> bool {
        self.members.contains_key(&worker)
    }

    /// Whether `worker` was told to publish the checkpoints of `generation`, and the run is under way.
    pub fn publishes(&self, worker: WorkerId, generation: Generation) -> bool {
        matches!(self.phase, Phase::Training | Phase::Stopping)
            && generation == self.generation
            && self.ranks.first() == Some(&worker)
    }

    /// The answer to `event` at `now`, which never goes back.
    pub fn step(&mut self, event: Event, now: Duration) -> Vec<Action> {
        if self.is_ended() {
            return match event {
                Event::Joined(_) => vec![refuse("the run has ended: start the coordinator again")],
                _ => Vec::new(),
            };
        }
        if let Some(worker) = event.reporter() {
            // Late words of a worker that is no longer one are nobody's.
            let Some(member) = self.members.get_mut(&worker) else { return Vec::new() };
            member.heard_at = now;
        }
        match event {
            Event::Joined(candidate) => self.join(candidate, now),
            Event::Attending { worker } => self.attend(worker, now),
            Event::Assembled { worker, generation, holding } => {
                self.assembled(worker, generation, holding, now)
            }
            Event::StepDone { worker, report } => self.step_done(worker, report, now),
            Event::Finished { worker, step, state_hash } => self.finished(worker, step, state_hash, now),
            Event::WorkerFailed { worker, step, reason, suspect } => {
                self.worker_failed(worker, step, &reason, suspect, now)
            }
            Event::WorkerLost { worker, reason } => self.lose(worker, &reason, now),
            Event::ProcessEnded { reason, crashed } => self.process_ended(reason, crashed, now),
            Event::Published { checkpoint, step } => {
                let generation = self.generation.0;
                self.checkpoint = Some(checkpoint.clone());
                vec![Action::Record(Record::Checkpoint { generation, checkpoint, step })]
            }
            Event::StopRequested => self.stop(now),
            Event::Tick => self.tick(now),
            Event::Heartbeat { .. } => Vec::new(),
        }
    }

    fn is_ended(&self) -> bool {
        matches!(self.phase, Phase::Finished | Phase::Failed)
    }

    /// Admits a worker while there is a place. One that asks again (because it missed the answer) is the same.
    fn join(&mut self, candidate: Candidate, now: Duration) -> Vec<Action> {
        let again = self.members.iter_mut().find(|(_, member)| {
            member.candidate.incarnation == candidate.incarnation && member.stage == Stage::Joined
        });
        if let Some((&worker, member)) = again {
            member.heard_at = now;
            return vec![Action::Admit { worker }];
        }
        if self.members.len() >= self.settings.workers as usize || self.phase != Phase::Gathering {
            return vec![refuse(&format!(
                "this run has its {} workers already: start the coordinator for one more with --workers or \
                 --remote-workers",
                self.settings.workers
            ))];
        }
        self.workers_admitted += 1;
        let worker = WorkerId(self.workers_admitted);
        let record = Record::Joined {
            worker: worker.0,
            incarnation: candidate.incarnation,
            collective_address: candidate.collective_address.clone(),
            description: candidate.description.clone(),
        };
        self.members.insert(worker, Member { candidate, stage: Stage::Joined, heard_at: now });
        vec![Action::Admit { worker }, Action::Record(record)]
    }

    /// Once all workers are here and listen, a generation is formed.
    fn attend(&mut self, worker: WorkerId, now: Duration) -> Vec<Action> {
        self.advance(worker, &Stage::Joined, Stage::Attending);
        let all_here = self.members.len() == self.settings.workers as usize;
        let all_attend = self.members.values().all(|member| member.stage == Stage::Attending);
        if self.phase == Phase::Gathering && all_here && all_attend { self.assemble(now) } else { Vec::new() }
    }

    /// Forms the next generation of all members: ranks in the order in which they joined.
    fn assemble(&mut self, now: Duration) -> Vec<Action> {
        self.phase = Phase::Assembling;
        self.waiting_since = now;
        self.generation.0 += 1;
        self.ranks = self.members.keys().copied().collect();
        let places: Arc<[Place]> = lease(self.settings.shards, self.settings.workers)
            .into_iter()
            .zip(&self.members)
            .map(|(lease, (&worker, member))| Place {
                worker,
                collective_address: member.candidate.collective_address.clone(),
                first_shard: lease.first_shard,
                shard_count: lease.shard_count,
            })
            .collect();
        let record = Record::Generation { generation: self.generation.0, places: places.to_vec() };
        let order = |rank: u32| Order::Assemble {
            generation: self.generation,
            places: Arc::clone(&places),
            rank: Rank(rank),
            publishes: rank == 0,
            limit: self.settings.timeouts.assemble,
        };
        let orders =
            (0..).zip(&self.ranks).map(|(rank, &worker)| Action::Send { worker, order: order(rank) });
        once(Action::Record(record)).chain(orders).collect()
    }

    /// Once all are assembled and hold the same, they start.
    fn assembled(
        &mut self,
        worker: WorkerId,
        generation: Generation,
        holding: Holding,
        now: Duration,
    ) -> Vec<Action> {
        if self.phase != Phase::Assembling || generation != self.generation {
            return Vec::new();
        }
        self.advance(worker, &Stage::Attending, Stage::Assembled(holding));
        let holdings: Vec<(WorkerId, Holding)> = self
            .members
            .iter()
            .filter_map(|(&worker, member)| match &member.stage {
                Stage::Assembled(holding) => Some((worker, holding.clone())),
                _ => None,
            })
            .collect();
        if holdings.len() < self.members.len() {
            return Vec::new();
        }
        if let Some(reason) = agreement::differing_holdings(&holdings) {
            return self.fail(reason);
        }
        self.phase = Phase::Training;
        self.waiting_since = now;
        let (_, holding) = &holdings[0];
        let record = Record::Started {
            generation: generation.0,
            step: holding.step,
            state_hash: holding.state_hash.to_string(),
        };
        let orders =
            self.ranks.iter().map(|&worker| Action::Send { worker, order: Order::Start { generation } });
        once(Action::Record(record)).chain(orders).collect()
    }

    /// All workers report the same values, so the first rank's word stands for all.
    fn step_done(&mut self, worker: WorkerId, report: StepReport, now: Duration) -> Vec<Action> {
        let known = report.step <= self.committed_step || report.step > self.settings.total_steps;
        if known || !self.is_under_way() || report.generation != self.generation {
            return Vec::new();
        }
        if self.ranks.first() != Some(&worker) {
            return Vec::new();
        }
        self.committed_step = report.step;
        self.note_progress(now);
        vec![Action::Committed(report)]
    }

    /// Once all have finished, with the same state, the run is over.
    fn finished(&mut self, worker: WorkerId, step: u64, state_hash: Digest, now: Duration) -> Vec<Action> {
        if !self.is_under_way() {
            return Vec::new();
        }
        self.note_progress(now);
        if let Some(member) = self.members.get_mut(&worker) {
            member.stage = Stage::Finished { step, state_hash };
        }
        let ends: Vec<(WorkerId, u64, Digest)> = self
            .members
            .iter()
            .filter_map(|(&worker, member)| match &member.stage {
                Stage::Finished { step, state_hash } => Some((worker, *step, *state_hash)),
                _ => None,
            })
            .collect();
        if ends.len() < self.members.len() {
            return Vec::new();
        }
        if let Some(reason) = agreement::differing_ends(&ends) {
            return self.fail(format!("{reason}; {}", self.how_to_go_on()));
        }
        self.committed_step = step;
        let (_, step, state_hash) = ends.into_iter().next().expect("a run has at least one worker");
        // Before the last step, they were asked to: all of them by a stop, or one by a drain, which it passed on
        // to the others with its bucket.
        match step == self.settings.total_steps {
            true => self.end(Outcome::Completed { step, state_hash }),
            false => self.end(Outcome::Stopped { step }),
        }
    }

    /// A worker's own failure ends the run. One that it blames on another waits for that one's word, which
    /// says more than "connection closed".
    fn worker_failed(
        &mut self,
        worker: WorkerId,
        step: u64,
        reason: &str,
        suspect: Option<WorkerId>,
        now: Duration,
    ) -> Vec<Action> {
        if let Some(member) = self.members.get_mut(&worker) {
            member.stage = Stage::Failed;
        }
        let reason = format!("{} failed after step {step}: {reason}", self.describe(worker));
        match suspect.filter(|suspect| *suspect != worker && self.knows(*suspect)) {
            Some(suspect) => self.suspect(format!("{reason} (it suspects {})", self.describe(suspect)), now),
            None => self.fail(format!("{reason}; {}", self.how_to_go_on())),
        }
    }

    /// A worker is gone. Before the first generation its place is free again. Later the run ends, in this
    /// version: a next generation of the others, which compute the same bits, would be formed here.
    fn lose(&mut self, worker: WorkerId, reason: &str, now: Duration) -> Vec<Action> {
        let name = self.describe(worker);
        let Some(member) = self.members.get(&worker) else { return Vec::new() };
        match member.stage {
            // It said all it had to say.
            Stage::Failed | Stage::Finished { .. } => return Vec::new(),
            Stage::Joined | Stage::Attending | Stage::Assembled(_) => {}
        }
        if self.phase == Phase::Gathering {
            self.members.remove(&worker);
            return vec![Action::Record(Record::Lost { worker: worker.0, reason: reason.to_string() })];
        }
        let reason = format!("{name} was lost: {reason}");
        if self.settings.workers_are_local {
            self.suspect(reason, now)
        } else {
            self.fail(format!("{reason}; {}", self.how_to_go_on()))
        }
    }

    /// A process that crashed, or ended before its worker took part, cannot say more than this.
    fn process_ended(&mut self, reason: String, crashed: bool, now: Duration) -> Vec<Action> {
        if crashed || self.phase == Phase::Gathering {
            self.fail(format!("{reason}; {}", self.how_to_go_on()))
        } else {
            self.suspect(reason, now)
        }
    }

    /// The first request is passed on to the workers, which stop together after a step. The second ends the
    /// run at once, as does the first where no step was made yet.
    fn stop(&mut self, now: Duration) -> Vec<Action> {
        let step = self.committed_step;
        let mut actions = vec![Action::Record(Record::StopRequested { step })];
        if self.phase == Phase::Training {
            self.phase = Phase::Stopping;
            self.waiting_since = now;
            let reason = "a stop was requested".to_string();
            let order = Order::Stop { reason };
            actions.extend(self.ranks.iter().map(|&worker| Action::Send { worker, order: order.clone() }));
        } else {
            actions.extend(self.end(Outcome::Stopped { step }));
        }
        actions
    }

    /// Ends the waits that are over.
    fn tick(&mut self, now: Duration) -> Vec<Action> {
        if let Some(verdict) = self.verdict.take_if(|verdict| verdict.until <= now) {
            return self.fail(format!("{}; {}", verdict.reason, self.how_to_go_on()));
        }
        let limit = self.settings.timeouts.heartbeat;
        let silent: Vec<WorkerId> = self
            .members
            .iter()
            // Who has finished has said all that is wanted of it.
            .filter(|(_, member)| !matches!(member.stage, Stage::Finished { .. }))
            .filter(|(_, member)| now.saturating_sub(member.heard_at) > limit)
            .map(|(&worker, _)| worker)
            .collect();
        if let Some(&worker) = silent.first() {
            return self.lose_silent(worker, limit);
        }
        if now.saturating_sub(self.waiting_since) > self.wait_limit() {
            return self.fail(self.overdue());
        }
        Vec::new()
    }

    /// Silence is first-hand: nothing better will be heard, so there is nothing to wait for.
    fn lose_silent(&mut self, worker: WorkerId, limit: Duration) -> Vec<Action> {
        let reason = format!("nothing was heard of it for {:.1} s", limit.as_secs_f64());
        if self.phase == Phase::Gathering {
            self.members.remove(&worker);
            // It may only have been suspended: then it must learn that its place is gone.
            let failure = Some(format!("{reason}, and its place was given away: start it again"));
            let order = Order::Dismiss { failure };
            return vec![
                Action::Send { worker, order },
                Action::Record(Record::Lost { worker: worker.0, reason }),
            ];
        }
        let how_to_go_on = self.how_to_go_on();
        self.fail(format!("{} was lost: {reason}; {how_to_go_on}", self.describe(worker)))
    }

    fn wait_limit(&self) -> Duration {
        let timeouts = &self.settings.timeouts;
        match self.phase {
            Phase::Gathering => timeouts.join,
            Phase::Assembling => timeouts.assemble,
            Phase::Training => timeouts.step,
            Phase::Stopping => timeouts.stop,
            Phase::Finished | Phase::Failed => Duration::MAX,
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
                 start again with fewer --workers",
                self.members.len(),
                self.settings.workers
            ),
            Phase::Assembling => format!(
                "not all workers were assembled within {limit_s:.1} s; waited for {}: look into its log and \
                 whether the workers reach each other's addresses",
                missing(|stage| matches!(stage, Stage::Assembled(_)))
            ),
            Phase::Stopping => format!(
                "a stop was requested, but within {limit_s:.1} s these did not finish: {}; {}",
                missing(|stage| matches!(stage, Stage::Finished { .. })),
                self.how_to_go_on()
            ),
            Phase::Training | Phase::Finished | Phase::Failed => format!(
                "no step was committed for {limit_s:.1} s; still at work: {}; {}",
                missing(|stage| matches!(stage, Stage::Finished { .. })),
                self.how_to_go_on()
            ),
        }
    }

    /// Keeps a failure that is known at second hand until [`SECOND_HAND_WAIT`] has passed. The first stays.
    fn suspect(&mut self, reason: String, now: Duration) -> Vec<Action> {
        self.verdict.get_or_insert(Verdict { reason, until: now + SECOND_HAND_WAIT });
        Vec::new()
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
            .filter(|(_, member)| member.stage != Stage::Joined)
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
        matches!(self.phase, Phase::Training | Phase::Stopping)
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
        match &self.checkpoint {
            Some(checkpoint) => format!(
                "{step} steps are committed and the last checkpoint is {checkpoint}: start again with --resume \
                 to go on from there"
            ),
            None => format!("{step} steps are committed and no checkpoint was saved yet: start again"),
        }
    }
}

fn refuse(reason: &str) -> Action {
    Action::Refuse { reason: reason.to_string() }
}
