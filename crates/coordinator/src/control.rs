//! The control loop: one task that owns membership and the run directory, and does what membership decides.

use std::collections::BTreeMap;
use std::future::pending;
use std::time::Duration;

use protocol::WorkerId;
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::checkpoint::CheckpointDirectory;
use crate::clock::Clock;
use crate::diagnosis::{Diagnosis, Finding};
use crate::evaluations::Evaluations;
use crate::journal::Record;
use crate::membership::{
    Action, Event, Membership, Order, Outcome, Past, Request, Rollback, Settings, StepReport,
};
use crate::outlook::Outlook;
use crate::pace::Paces;
use crate::progress::{Progress, StepMetrics};
use crate::remedy::Remedy;
use crate::run::{CoordinatorError, Run, Server};
use crate::run_directory::{RunDirectory, Told, unix_time};
use crate::service::{Answer, Input, Note, OrderSender};
use crate::supervisor::LocalWorkers;
use crate::tensorboard::TensorBoard;
use crate::{reach, tensorboard, wire};

/// How often membership looks at its waits. Short beside every timeout, long beside the work of looking.
const TICK: Duration = Duration::from_millis(100);

/// How often those who watch are told how the run stands: as often as workers give a sign of life.
const SIGHT_INTERVAL: Duration = Duration::from_secs(1);

/// How long dismissed workers have to go. They have nothing left to do but to close their connections.
const FAREWELL: Duration = Duration::from_secs(5);

/// How long workers of other machines, which were started along with the coordinator, have to come and hear that the run was
/// complete before. Whatever starts them again would do so without end otherwise.
const LATE: Duration = Duration::from_secs(15);

/// The run as the control loop holds it.
pub(crate) struct Control<O> {
    membership: Membership,
    directory: RunDirectory,
    curves: TensorBoard,
    pub(crate) local_workers: Option<LocalWorkers>,
    evaluations: Option<Evaluations>,
    diagnosis: Diagnosis,
    /// What is to be done because nothing good can come of the run as it is.
    remedy: Option<Remedy>,
    observer: O,
    /// For what is found out beside the control loop.
    inputs: mpsc::Sender<Input>,
    /// Checkpoints whose weights are being looked at there.
    looks: usize,
    paces: Paces,
    outlook: Outlook,
    seen_at: Option<Instant>,
    /// The workers that listen.
    orders: BTreeMap<WorkerId, OrderSender>,
    /// Checkpoints that wait for the reports of their steps.
    awaited_steps: Vec<(u64, oneshot::Sender<()>)>,
    workers_expected: u32,
    remote_workers: u32,
    total_steps: u64,
    started_at: Instant,
    clock: Clock,
    outcome: Option<Outcome>,
}

/// What membership decides by, from a run that begins with the state after `first_step`.
fn settings(run: &Run, first_step: u64, checkpoint: Option<String>) -> Settings {
    let recipe = run.directory.recipe();
    Settings {
        workers: run.workers,
        max_workers: run.max_workers,
        mixes_arithmetic: run.mixes_arithmetic,
        workers_are_local: run.local_workers.is_some(),
        on_failure: run.on_failure,
        min_workers: run.min_workers,
        shards: recipe.training.shards,
        total_steps: run.total_steps,
        first_step,
        checkpoint,
        learning_rate_changes: recipe.optimizer.learning_rate_changes.clone(),
        timeouts: run.timeouts.clone(),
    }
}

impl<O: FnMut(&Progress) + Send> Control<O> {
    pub(crate) fn new(
        run: Run,
        address: Option<String>,
        start: Option<&CheckpointDirectory>,
        observer: O,
        inputs: mpsc::Sender<Input>,
    ) -> Result<Self, CoordinatorError> {
        let first_step = start.map_or(0, CheckpointDirectory::step);
        let checkpoint = start.map(CheckpointDirectory::name);
        let told = run.directory.told()?;
        let mut past = run.directory.past().clone();
        // Workers that may come back hold what was made since the checkpoint, and it stays told.
        let awaited: Vec<u64> = past.members.keys().map(|worker| worker.0).collect();
        let has_left_workers = past.has_left_workers();
        past.committed_step = if has_left_workers { told.last_step.max(first_step) } else { first_step };
        let step = past.committed_step;
        let local_workers = run.local_workers.as_ref().map_or(0, LocalWorkers::count);
        let settings = settings(&run, first_step, checkpoint.clone());
        let diagnosis = Diagnosis::new(run.directory.recipe(), run.total_steps);
        let mut control = Control {
            membership: Membership::new(&past, settings, Duration::ZERO)?,
            curves: run.directory.begin_curves(step)?,
            directory: run.directory,
            local_workers: run.local_workers,
            evaluations: run.evaluations,
            diagnosis,
            remedy: None,
            observer,
            inputs,
            looks: 0,
            paces: Paces::default(),
            outlook: Outlook::new(run.total_steps),
            seen_at: None,
            orders: BTreeMap::new(),
            awaited_steps: Vec::new(),
            workers_expected: run.workers,
            remote_workers: run.remote_workers,
            total_steps: run.total_steps,
            started_at: Instant::now(),
            clock: Clock::default(),
            outcome: None,
        };
        if !has_left_workers {
            control.directory.forget_metrics_after(step)?;
        }
        control.record(&Record::Opened {
            program_version: run.program_version,
            checkpoint: if has_left_workers { None } else { checkpoint },
            step,
            address,
            workers: control.workers_expected,
            local_workers,
            awaited,
        })?;
        if let Some(png) = run.views_png.filter(|_| step == 0) {
            control.curves.views(png, step, unix_time());
        }
        let findings = control.diagnosis.before_training();
        control.tell_findings(step, findings)?;
        control.take_up_evaluations(&past, start, &told);
        if let Some(outcome) = control.directory.completed(control.total_steps)? {
            control.record(&Record::Ended(outcome.clone()))?;
            control.outcome = Some(outcome);
        }
        Ok(control)
    }

    /// Begins with the random weights, or with what the last coordinator did not live to evaluate.
    fn take_up_evaluations(&mut self, past: &Past, start: Option<&CheckpointDirectory>, told: &Told) {
        let Some(evaluations) = &mut self.evaluations else { return };
        if start.is_none_or(|start| start.step() == 0)
            && !(past.has_left_workers() && told.evaluated.contains(&0))
        {
            evaluations.begin();
        }
        let missed = start.filter(|start| start.step() > 0 && !told.evaluated.contains(&start.step()));
        let missed = missed.map(|start| (start.name(), start.step() == self.total_steps));
        evaluations.go_on(past.checkpoints, missed.as_ref().map(|(name, is_last)| (name.as_str(), *is_last)));
    }

    /// Hears and acts until the run is over and the workers have gone.
    pub(crate) async fn run(
        &mut self,
        mut inputs: mpsc::Receiver<Input>,
        requests: &mut mpsc::Receiver<Request>,
        server: &mut Server,
    ) -> Result<Outcome, CoordinatorError> {
        let mut late = if self.outcome.is_some() { self.remote_workers } else { 0 };
        let limit = if late > 0 { LATE } else { FAREWELL };
        let ended = self.until_the_end(&mut inputs, requests, server).await;
        if let Err(error) = &ended {
            self.dismiss_all(&error.to_string());
        }
        // No more steps will be committed: who waits for one is told no.
        self.awaited_steps.clear();
        // The last order is on its way; a stream ends when its sender is dropped and all was received.
        let mut listening: Vec<WorkerId> = std::mem::take(&mut self.orders).into_keys().collect();
        let farewell = async {
            while !listening.is_empty() || self.looks > 0 || late > 0 {
                match inputs.recv().await {
                    Some(Input::Detached { worker, .. }) => listening.retain(|other| *other != worker),
                    Some(Input::Join { reply, .. }) if matches!(ended, Ok(Outcome::Completed { .. })) => {
                        late = late.saturating_sub(1);
                        let _ = reply.send(Answer::Complete);
                    }
                    Some(input) => self.refuse(input),
                    None => return,
                }
            }
        };
        if timeout(limit, farewell).await.is_err() && !listening.is_empty() {
            tracing::warn!(?listening, "dismissed workers did not go");
        }
        ended
    }

    async fn until_the_end(
        &mut self,
        inputs: &mut mpsc::Receiver<Input>,
        requests: &mut mpsc::Receiver<Request>,
        server: &mut Server,
    ) -> Result<Outcome, CoordinatorError> {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if let Some(outcome) = self.outcome.take() {
                return Ok(outcome);
            }
            match self.remedy.take() {
                Some(Remedy::Stop) => drop(self.act(Event::Hopeless)?),
                Some(Remedy::Rollback(rollback)) => self.roll_back(rollback)?,
                None => {}
            }
            tokio::select! {
                // What comes seldom first, and the same each time, so that a simulated course can be repeated.
                biased;
                reason = server.ended() => return Err(CoordinatorError::Server(reason)),
                request = next(requests) => self.act(Event::Requested(request)).map(drop)?,
                _ = ticks.tick() => {
                    self.watch_processes()?;
                    self.watch_evaluations();
                    self.directory.catch_up();
                    self.curves.catch_up();
                    self.act(Event::Tick)?;
                    self.tell_sight(Instant::now());
                }
                Some(input) = inputs.recv() => self.hear(input)?,
            }
        }
    }

    /// Who asks is answered; whoever asked and went away meanwhile needs no answer.
    fn hear(&mut self, input: Input) -> Result<(), CoordinatorError> {
        match input {
            Input::Join { candidate, reply } => {
                let answer = self.act(Event::Joined(candidate))?;
                let _ = reply.send(answer.expect("membership answers everyone who joins"));
            }
            Input::Attend { worker, orders, reply } => {
                let is_welcome = self.membership.knows(worker) && !self.orders.contains_key(&worker);
                if is_welcome {
                    self.orders.insert(worker, orders);
                }
                let _ = reply.send(is_welcome);
            }
            Input::Detached { worker, reason } => {
                self.orders.remove(&worker);
                self.act(Event::Detached { worker, reason })?;
            }
            Input::Knows { worker, reply } => {
                let _ = reply.send(self.membership.knows(worker));
            }
            Input::Publishes { worker, generation, reply } => {
                let _ = reply.send(self.membership.publishes(worker, generation));
            }
            Input::Committed { step, reply } => {
                self.awaited_steps.push((step, reply));
                self.answer_awaited_steps();
            }
            Input::Note(note) => self.note(note),
            Input::Event(event) => {
                match &event {
                    Event::StepDone { worker, report } => self.paces.note(*worker, report),
                    // Of a course that was taken back meanwhile. The run has not come so far again.
                    Event::Published { generation, .. } if !self.membership.counts(*generation) => {
                        self.directory.checkpoints().forget_after(self.membership.committed_step())?;
                    }
                    _ => {}
                }
                self.act(event)?;
            }
        }
        Ok(())
    }

    /// Writes down what is only looked at.
    fn note(&mut self, note: Note) {
        match note {
            Note::Weights { step, histograms } => {
                self.looks -= 1;
                if let Some(histograms) = histograms {
                    self.curves.weights(histograms, step, unix_time());
                }
            }
            Note::Spans(spans) => {
                self.directory.flight_recorder().note(&spans);
                (self.observer)(&Progress::Spans(spans));
            }
        }
    }

    /// Tells those who watch how the run stands, now and then.
    fn tell_sight(&mut self, now: Instant) {
        if self.seen_at.is_some_and(|at| now.duration_since(at) < SIGHT_INTERVAL) {
            return;
        }
        self.seen_at = Some(now);
        let time = self.time();
        let mut sight = self.membership.sight(time);
        self.paces.complete(&mut sight);
        (self.observer)(&Progress::Seen(sight));
    }

    /// The run is over: who asks something now is told no.
    fn refuse(&mut self, input: Input) {
        match input {
            Input::Join { reply, .. } => {
                let _ =
                    reply.send(Answer::Refused("the run has ended: start the coordinator again".to_string()));
            }
            Input::Attend { reply, .. } | Input::Knows { reply, .. } | Input::Publishes { reply, .. } => {
                let _ = reply.send(false);
            }
            Input::Note(note) => self.note(note),
            Input::Committed { .. } | Input::Detached { .. } | Input::Event(_) => {}
        }
    }

    /// What membership goes by.
    fn time(&mut self) -> Duration {
        self.clock.at(self.started_at.elapsed())
    }

    /// Tells membership what happened and does what it decides. The answer is for a worker that joins.
    fn act(&mut self, event: Event) -> Result<Option<Answer>, CoordinatorError> {
        let mut answer = None;
        let time = self.time();
        for action in self.membership.step(event, time) {
            match action {
                Action::Admit { worker } => {
                    let committed_step = self.membership.committed_step();
                    answer = Some(Answer::Admitted { worker, committed_step });
                }
                Action::Refuse { reason } => answer = Some(Answer::Refused(reason)),
                Action::Postpone { reason } => answer = Some(Answer::Postponed(reason)),
                Action::LookFor { worker, collective_address } => self.look_for(worker, collective_address),
                Action::Send { worker, order } => self.send(worker, order),
                Action::Record(record) => self.record(&record)?,
                Action::Committed(report) => {
                    self.committed(&report);
                    if let Some(predicted) = self.outlook.note(&report) {
                        self.record(&predicted)?;
                    }
                    let findings = self.diagnosis.look(&report);
                    self.tell_findings(report.step, findings)?;
                }
                Action::End(outcome) => self.outcome = Some(outcome),
            }
        }
        // Who takes part no longer was told so last; without its sender its stream ends.
        let membership = &self.membership;
        self.orders.retain(|worker, _| membership.knows(*worker));
        Ok(answer)
    }

    fn send(&mut self, worker: WorkerId, order: Order) {
        let Some(orders) = self.orders.get(&worker) else { return };
        if let Order::Halt { generation, reason } = &order {
            tracing::info!(worker = worker.0, generation = generation.0, reason, "halt");
        }
        if orders.try_send(Ok(wire::order(order))).is_err() {
            // Its stream is ending, or it does not read: either way it will be lost, and said to be.
            tracing::warn!(worker = worker.0, "an order could not be given");
        }
    }

    /// Whether anyone answers where the others reach a worker, which tells one whose process is gone from one that only
    /// lost its connection.
    fn look_for(&self, worker: WorkerId, collective_address: String) {
        let inputs = self.inputs.clone();
        tokio::spawn(async move {
            if let Err(reason) = reach::answers(&collective_address).await {
                let reason =
                    format!("its connection broke, and nobody answers at {collective_address} ({reason})");
                // The run may have ended.
                let _ = inputs.send(Input::Event(Event::Unreachable { worker, reason })).await;
            }
        });
    }

    fn dismiss_all(&mut self, failure: &str) {
        let workers: Vec<WorkerId> = self.orders.keys().copied().collect();
        for worker in workers {
            self.send(worker, Order::Dismiss { failure: Some(failure.to_string()) });
        }
    }

    fn record(&mut self, record: &Record) -> Result<(), CoordinatorError> {
        tracing::info!(generation = self.membership.generation().0, ?record, "run");
        self.directory.record(record)?;
        if let (Record::Checkpoint { checkpoint, step, .. }, Some(evaluations)) =
            (record, &mut self.evaluations)
        {
            evaluations.published(checkpoint, *step == self.total_steps);
        }
        match record {
            Record::Checkpoint { checkpoint, step, .. } => {
                // Not beside the control loop, which may look for one to go back to.
                let keep = self.directory.recipe().checkpoint.keep;
                let is_needed = |name: &str| self.evaluations.as_ref().is_some_and(|all| all.need(name));
                self.directory.checkpoints().keep_last(keep, *step, is_needed);
                self.look_at_weights(checkpoint, *step);
            }
            Record::Ended(outcome) => {
                let succeeded = !matches!(outcome, Outcome::Failed { .. });
                self.curves.end(succeeded, self.membership.committed_step(), unix_time());
            }
            _ => {}
        }
        (self.observer)(&Progress::Noted {
            record: record.clone(),
            workers: self.membership.workers() as u32,
            expected: self.workers_expected,
        });
        Ok(())
    }

    /// Finds out how the weights of a checkpoint are spread, beside the control loop.
    fn look_at_weights(&mut self, checkpoint: &str, step: u64) {
        let path = self.directory.checkpoints().model_of(checkpoint);
        let inputs = self.inputs.clone();
        self.looks += 1;
        spawn_blocking(move || {
            let histograms = tensorboard::of_weights(&path)
                .inspect_err(|error| tracing::debug!("{}: {error}", path.display()))
                .ok();
            // Nobody may be left who wants to know.
            drop(inputs.blocking_send(Input::Note(Note::Weights { step, histograms })));
        });
    }

    /// Writes down what ails the network. What is fatal stops the run, or takes it back, if its recipe says so.
    fn tell_findings(&mut self, step: u64, findings: Vec<Finding>) -> Result<(), CoordinatorError> {
        for finding in findings {
            // A run that stops already needs no other remedy.
            let remedy = match self.membership.is_to_go_on() {
                true => Remedy::of(&finding, &self.directory)?,
                false => None,
            };
            let stops = remedy == Some(Remedy::Stop);
            // A stop helps against everything.
            self.remedy = if stops { remedy } else { self.remedy.take().or(remedy) };
            self.record(&Record::Unhealthy { step, finding: finding.sentence, stops })?;
        }
        Ok(())
    }

    /// Goes back to an earlier state, and on from there with smaller steps.
    fn roll_back(&mut self, rollback: Rollback) -> Result<(), CoordinatorError> {
        let step = rollback.step;
        // First of all the journal has it, and the workers hear it: should this coordinator not live to do the rest, the
        // next one finds a run that collapses again.
        let change = *rollback.learning_rate_changes.last().expect("a rollback comes with a change");
        self.act(Event::RolledBack(rollback))?;
        // Nobody who saved a step of the old course gets it in.
        self.awaited_steps.clear();
        if let Some(evaluations) = &mut self.evaluations {
            evaluations.forget_after(step);
        }
        self.directory.roll_back(step, change)?;
        self.curves = self.directory.begin_curves(step)?;
        self.diagnosis = Diagnosis::new(self.directory.recipe(), self.total_steps);
        Ok(())
    }

    fn committed(&mut self, report: &StepReport) {
        let metrics = StepMetrics::new(report, self.directory.recipe(), self.total_steps);
        self.directory.metric(&metrics);
        self.curves.step(&metrics, unix_time());
        (self.observer)(&Progress::Step(metrics));
        self.answer_awaited_steps();
    }

    /// Tells those who wait for a step that it is committed and its metrics are written, for good: nobody makes the steps of
    /// a checkpoint again.
    fn answer_awaited_steps(&mut self) {
        let committed_step = self.membership.committed_step();
        if self.awaited_steps.iter().any(|(step, _)| *step <= committed_step) {
            self.directory.sync_metrics();
        }
        for (_, reply) in self.awaited_steps.extract_if(.., |(step, _)| *step <= committed_step) {
            // Who asked and went away needs no answer.
            let _ = reply.send(());
        }
    }

    fn watch_evaluations(&mut self) {
        let Some(evaluations) = &mut self.evaluations else { return };
        let before = evaluations.under_way();
        let ended = evaluations.look();
        let another = evaluations.under_way().filter(|process| before != Some(*process));
        for result in ended {
            let progress = match result {
                Ok(evaluated) => {
                    self.directory.metric(&evaluated);
                    self.curves.evaluated(&evaluated, unix_time());
                    Progress::Evaluated(evaluated)
                }
                Err(reason) => Progress::EvaluationFailed(reason),
            };
            tracing::info!(?progress, "evaluation");
            (self.observer)(&progress);
        }
        if another.is_some() {
            (self.observer)(&Progress::EvaluationBegan);
        }
    }

    /// Waits for the evaluations that are left, unless a stop is asked for.
    pub(crate) async fn finish_evaluations(&mut self, requests: &mut mpsc::Receiver<Request>) {
        let mut ticks = interval(TICK);
        while self.evaluations.as_ref().is_some_and(Evaluations::are_left) {
            tokio::select! {
                request = next(requests) => if request == Request::Stop { return },
                _ = ticks.tick() => self.watch_evaluations(),
            }
        }
    }

    fn watch_processes(&mut self) -> Result<(), CoordinatorError> {
        let Some(local_workers) = &mut self.local_workers else { return Ok(()) };
        for ended in local_workers.look_after(Instant::now().into_std()) {
            // Where it ends the run, membership says so, and nobody is to be told twice.
            if let Some(pause) = ended.restarts_in {
                tracing::warn!("{} is started again in {:.1} s: {ended}", ended.name, pause.as_secs_f64());
            }
            let (crashed, restarts) = (ended.crashed(), ended.restarts_in.is_some());
            self.act(Event::ProcessEnded { reason: ended.to_string(), crashed, restarts })?;
        }
        Ok(())
    }
}

/// What is asked for next; never, once nobody can ask any more.
async fn next(requests: &mut mpsc::Receiver<Request>) -> Request {
    match requests.recv().await {
        Some(request) => request,
        None => pending().await,
    }
}
