//! The synchronous half of a worker: does what it is ordered, on one thread, from assembly to dismissal.

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use dataset::{BlockCache, BlockStore, Images, Manifest};
use protocol::v1;
use recipe::Recipe;
use simsiam::{Device, State, Trainer};

use crate::WorkerError;
use crate::blocks::RemoteBlocks;
use crate::link::Link;
use crate::publish::Publisher;
use crate::reports::Reports;
use crate::session::{RunParts, Session};
use crate::start::first_state;
use crate::train::train;
use crate::transport::Transport;

/// How long the slowest worker may take for one step. Minutes are seen on a laptop with a large network; a
/// worker that hangs is found sooner, by its missing heartbeats.
const STEP_LIMIT: Duration = Duration::from_secs(600);

/// What the coordinator orders, as this thread hears it.
#[derive(Debug)]
pub(crate) enum Command {
    Assemble(v1::Assemble),
    Start { generation: u64 },
    Stop,
    Dismiss,
}

/// The run as the coordinator described it at the join, and what this worker brings.
pub(crate) struct TrainingThread {
    pub(crate) run_id: [u8; 16],
    pub(crate) recipe: Recipe,
    pub(crate) manifest: Arc<Manifest>,
    /// The checkpoint to start from; empty for a fresh start.
    pub(crate) checkpoint: String,
    pub(crate) device: Device,
    pub(crate) transport: Transport,
    pub(crate) cache: Option<BlockCache>,
    pub(crate) maps_local_files: bool,
    pub(crate) link: Link,
    pub(crate) reports: Reports,
}

impl TrainingThread {
    /// Works until it is dismissed. What keeps it from going on is reported before it is returned.
    pub(crate) fn run(self, commands: &Receiver<Command>) -> Result<(), WorkerError> {
        let mut step = 0;
        let reports = self.reports.clone();
        self.work(commands, &mut step).inspect_err(|error| reports.failed(step, error))
    }

    fn work(mut self, commands: &Receiver<Command>, step: &mut u64) -> Result<(), WorkerError> {
        let trainer = Trainer::new(&self.recipe, self.manifest.images, self.device.clone());
        let store = Arc::new(self.open_store());
        let mut state: Option<State> = None;
        let mut assembled: Option<(Session, Option<Publisher>)> = None;
        // No more commands mean that the connection is lost, which the asynchronous half reports.
        while let Ok(command) = commands.recv() {
            match command {
                Command::Assemble(order) => {
                    let state = match &mut state {
                        Some(state) => state,
                        None => state.insert(self.first_state(&trainer, &order)?),
                    };
                    *step = state.step;
                    let session = self.assemble(&order, &trainer, &store, state.step)?;
                    self.reports.assembled(order.generation, state, trainer.layout());
                    tracing::info!(
                        generation = order.generation,
                        rank = order.rank,
                        shards = ?session.lease(),
                        step = state.step,
                        "assembled"
                    );
                    assembled = Some((session, self.publisher(&order, &trainer, state.step)));
                }
                Command::Start { generation } => {
                    let ready = assembled.take().filter(|(session, _)| session.generation() == generation);
                    let (Some((mut session, mut publisher)), Some(state)) = (ready, &mut state) else {
                        return Err(unexpected(format!(
                            "a start of generation {generation}, which is not assembled"
                        )));
                    };
                    let trained =
                        train(&trainer, state, &mut session, commands, publisher.as_mut(), &self.reports);
                    *step = state.step;
                    trained?;
                    self.reports.finished(state);
                    tracing::info!(generation, step = state.step, "finished");
                }
                // Steps are over, or have not begun: the coordinator ends the run.
                Command::Stop => {}
                Command::Dismiss => break,
            }
        }
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

    fn first_state(&self, trainer: &Trainer, order: &v1::Assemble) -> Result<State, WorkerError> {
        let limit = Duration::from_millis(order.deadline_ms);
        first_state(&self.link, trainer.layout(), self.recipe.seed, &self.checkpoint, limit)
    }

    fn assemble(
        &self,
        order: &v1::Assemble,
        trainer: &Trainer,
        store: &Arc<BlockStore>,
        step: u64,
    ) -> Result<Session, WorkerError> {
        let run = RunParts {
            run_id: self.run_id,
            recipe: &self.recipe,
            store,
            transport: &self.transport,
            bucket_len: trainer.bucket().values(),
            step_limit: STEP_LIMIT,
        };
        Session::assemble(order, &run, step..trainer.schedule().total_steps())
    }

    fn publisher(&self, order: &v1::Assemble, trainer: &Trainer, step: u64) -> Option<Publisher> {
        let recipe = &self.recipe.checkpoint;
        order.publishes.then(|| {
            Publisher::new(
                self.link.clone(),
                order.generation,
                trainer.layout(),
                recipe,
                step,
                Instant::now(),
            )
        })
    }
}

pub(crate) fn unexpected(problem: String) -> WorkerError {
    WorkerError::Unusable { what: "an order", problem }
}
