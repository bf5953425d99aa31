//! The synchronous half of a worker: does what it is ordered, on one thread, from assembly to dismissal.

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use collective::{Interrupt, Key, Standstill};
use dataset::{BlockCache, BlockStore, Images, Manifest};
use protocol::v1;
use recipe::{LearningRateChange, Recipe, same_learning_rates_until};
use simsiam::{Device, Replica, Trainer};

use crate::WorkerError;
use crate::blocks::RemoteBlocks;
use crate::link::Link;
use crate::publish::Publisher;
use crate::reports::Reports;
use crate::session::{RunParts, Session};
use crate::start::fetch_state;
use crate::train::train;
use crate::transport::Transport;

/// How long the slowest worker may take for one step. Minutes are seen on a laptop with a large network; a
/// worker that hangs is found sooner, by its missing heartbeats.
const STEP_LIMIT: Duration = Duration::from_secs(600);

/// What the coordinator orders, as this thread hears it.
#[derive(Debug)]
pub(crate) enum Command {
    /// Take a place in a generation, until the interrupt.
    Assemble(v1::Assemble, Interrupt),
    Start {
        generation: u64,
    },
    /// Leave the generation; its interrupt was raised.
    Halt {
        generation: u64,
    },
    Save,
    Stop,
    Dismiss,
}

/// The run as the coordinator described it at the join, and what this worker brings.
pub(crate) struct TrainingThread {
    pub(crate) run_id: [u8; 16],
    /// By which the workers of this run know each other.
    pub(crate) key: Key,
    pub(crate) recipe: Recipe,
    pub(crate) manifest: Arc<Manifest>,
    pub(crate) device: Device,
    pub(crate) transport: Arc<Transport>,
    pub(crate) cache: Option<BlockCache>,
    pub(crate) maps_local_files: bool,
    pub(crate) link: Link,
    pub(crate) reports: Reports,
    /// For the asynchronous half, which tells the coordinator.
    pub(crate) standstill: Standstill,
}

/// How far this worker has come.
#[derive(Default)]
struct Position {
    generation: u64,
    /// What it holds; none until its first generation.
    replica: Option<Replica>,
    /// With what changes of the learning rates that was made.
    learning_rate_changes: Vec<LearningRateChange>,
}

impl Position {
    /// Steps that what it holds has behind it.
    fn step(&self) -> Option<u64> {
        self.replica.as_ref().map(Replica::step)
    }
}

impl TrainingThread {
    /// Works until it is dismissed. What keeps it from going on is reported before it is returned, unless it is
    /// the coordinator itself that is gone or has said so, the run was stopped in order, or it is this worker's
    /// device, which only this worker loses: its process ends and the others go on.
    pub(crate) fn run(self, commands: &Receiver<Command>) -> Result<(), WorkerError> {
        let mut position = Position::default();
        let reports = self.reports.clone();
        self.work(commands, &mut position).inspect_err(|error| {
            if matches!(
                error,
                WorkerError::CoordinatorLost(_)
                    | WorkerError::Dismissed(_)
                    | WorkerError::Stopped { .. }
                    | WorkerError::Device(_)
            ) {
                return;
            }
            let step = position.step().unwrap_or(0);
            reports.failed(position.generation, step, error);
        })
    }

    fn work(mut self, commands: &Receiver<Command>, position: &mut Position) -> Result<(), WorkerError> {
        let mut trainer = Trainer::new(&self.recipe, self.manifest.images, self.device.clone());
        let store = Arc::new(self.open_store());
        let mut publisher =
            Publisher::new(self.link.clone(), trainer.layout(), &self.recipe.checkpoint, Instant::now());
        let mut assembled: Option<(Session, bool)> = None;
        let mut stopping = false;
        // No more commands mean that the connection is lost, which the asynchronous half reports.
        while let Ok(command) = commands.recv() {
            match command {
                Command::Assemble(order, interrupt) => {
                    // The connections of the generation before, if there are any left, are closed first.
                    assembled = None;
                    position.generation = order.generation;
                    // Also if the assembly fails: whoever holds the state may be told to save it.
                    publisher.enter(&order, Instant::now());
                    match self.assemble(&order, interrupt, &mut trainer, &store, position) {
                        Ok(session) => assembled = Some((session, order.publishes)),
                        Err(error) => self.leave(position, error)?,
                    }
                }
                Command::Start { generation } => {
                    let ready = assembled.take().filter(|(session, _)| session.generation() == generation);
                    let (Some((mut session, publishes)), Some(replica)) = (ready, &mut position.replica)
                    else {
                        return Err(unexpected(format!(
                            "a start of generation {generation}, which is not assembled"
                        )));
                    };
                    self.reports.starting(generation);
                    let publisher = publishes.then_some(&mut publisher);
                    match train(
                        &trainer,
                        replica,
                        &mut session,
                        commands,
                        publisher,
                        &self.reports,
                        &mut stopping,
                    ) {
                        Ok(()) => {
                            self.reports.finished(generation, replica.state()?);
                            tracing::info!(generation, step = replica.step(), "finished");
                        }
                        // The worker that saves says so when it has, and the run ends; if it does not live to,
                        // others compute the step again.
                        Err(error @ WorkerError::NonFinite { .. }) if !publishes => {
                            tracing::error!(generation, "{error}");
                        }
                        Err(error) => self.leave(position, error)?,
                    }
                }
                Command::Halt { generation } => {
                    assembled = None;
                    self.reports.halted(generation, position.step(), None);
                }
                Command::Save => self.save(position, &mut publisher)?,
                Command::Stop => stopping = true,
                Command::Dismiss => {
                    let step = position.step().unwrap_or(0);
                    let has_ended = step >= trainer.schedule().total_steps();
                    return if stopping && !has_ended { Err(WorkerError::Stopped { step }) } else { Ok(()) };
                }
            }
        }
        Ok(())
    }

    /// Publishes the state, for those who lack it or a person who asks for it. If that fails, this worker holds it all the
    /// same, and whoever ordered it decides what follows.
    fn save(&self, position: &mut Position, publisher: &mut Publisher) -> Result<(), WorkerError> {
        let Some(replica) = &mut position.replica else {
            return Err(unexpected("a save of a state that this worker lacks".to_string()));
        };
        let state = replica.state()?;
        let attendance = self.link.attendance();
        if let Err(error) = publisher.publish_last(state, Instant::now()) {
            tracing::warn!("{error}");
            // A coordinator that was found anew asks again, if it is still wanted.
            if self.link.attendance() == attendance {
                self.reports.unsaved(position.generation, &error);
            }
        }
        Ok(())
    }

    /// After an error that ends only the generation, this worker waits for the next one.
    fn leave(&self, position: &Position, error: WorkerError) -> Result<(), WorkerError> {
        if !error.ends_only_the_generation() {
            return Err(error);
        }
        let (generation, step) = (position.generation, position.step());
        tracing::warn!(generation, step, "left: {error}");
        self.reports.halted(generation, step, Some(&error));
        Ok(())
    }

    /// Images come from the same files on this machine, from the cache, or from the coordinator.
    fn open_store(&mut self) -> BlockStore {
        let local = if self.maps_local_files && !self.manifest.files.is_empty() {
            Images::open_local(&self.manifest)
                .inspect_err(|error| tracing::info!("local files are not used: {error}"))
                .ok()
        } else {
            None
        };
        let remote = RemoteBlocks { link: self.link.clone(), manifest: Arc::clone(&self.manifest) };
        BlockStore::new(Arc::clone(&self.manifest), self.cache.take(), local.map(Arc::new), Box::new(remote))
    }

    /// Takes the place that `order` gives, with the state that it names.
    fn assemble(
        &self,
        order: &v1::Assemble,
        interrupt: Interrupt,
        trainer: &mut Trainer,
        store: &Arc<BlockStore>,
        position: &mut Position,
    ) -> Result<Session, WorkerError> {
        let changes: Vec<_> = order.learning_rate_changes.iter().map(change).collect();
        let is_same = same_learning_rates_until(order.step, &position.learning_rate_changes, &changes);
        let held = position.replica.take().filter(|replica| is_same && replica.step() == order.step);
        trainer.change_learning_rates(changes.clone());
        position.learning_rate_changes = changes;
        let replica = position.replica.insert(match held {
            Some(replica) => replica,
            None => trainer.place(fetch_state(&self.link, trainer.layout(), self.recipe.seed, order)?),
        });
        let run = RunParts {
            run_id: self.run_id,
            key: &self.key,
            recipe: &self.recipe,
            store,
            transport: &self.transport,
            trainer,
            device: &self.device,
            standstill: &self.standstill,
            step_limit: STEP_LIMIT,
        };
        let session =
            Session::assemble(order, interrupt, &run, replica.step()..trainer.schedule().total_steps())?;
        self.reports.assembled(order.generation, replica.state()?, trainer.layout());
        tracing::info!(
            generation = order.generation,
            rank = order.rank,
            shards = ?session.lease(),
            step = replica.step(),
            "assembled"
        );
        Ok(session)
    }
}

fn change(change: &v1::LearningRateChange) -> LearningRateChange {
    LearningRateChange { after_step: change.after_step, factor: change.factor }
}

pub(crate) fn unexpected(problem: String) -> WorkerError {
    WorkerError::Unusable { what: "an order", problem }
}
