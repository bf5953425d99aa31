//! The asynchronous half of a worker: joins, passes orders on to the training thread, sends its reports.

use std::error::Error;
use std::hash::{BuildHasher, RandomState};
use std::panic::resume_unwind;
use std::pin::pin;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use collective::{Interrupt, Key};
use dataset::{BlockCache, Manifest};
use protocol::v1::order::Order;
use protocol::{Access, Client, PROTOCOL_VERSION, WorkerId, v1};
use recipe::Recipe;
use simsiam::Device;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::WorkerError;
use crate::link::Link;
use crate::reports::Reports;
use crate::training_thread::{Command, TrainingThread};
use crate::transport::Transport;

/// Often beside the coordinator's limit of fifteen seconds, rarely beside a step.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);

/// Reports that may wait to be sent: minutes of the shortest steps.
const REPORTS_UNDER_WAY: usize = 1024;

/// How long the training thread has to end once it is dismissed. One that is in the middle of a large shard
/// does not hear it in time, and ends with the process.
const GRACE: Duration = Duration::from_secs(2);

/// How long a worker that failed waits for the coordinator's last word, so that its report has arrived.
const LAST_WORD_LIMIT: Duration = Duration::from_secs(5);

/// What one worker is told at its start. The rest comes from the coordinator.
pub struct Settings {
    /// Where the coordinator is, `HOST:PORT`.
    pub coordinator: String,
    /// With what it gets in there.
    pub access: Access,
    /// How long to look for it.
    pub connect_limit: Duration,
    /// What it computes on.
    pub device: Device,
    /// How its gradients reach the others.
    pub transport: Transport,
    /// Where fetched blocks are kept; without one they are kept in memory, a few for each shard.
    pub cache: Option<BlockCache>,
    /// Whether to use the coordinator's files directly where this machine sees the same ones.
    pub maps_local_files: bool,
    /// Must equal the coordinator's.
    pub program_version: String,
    /// For people: host and process.
    pub description: String,
}

/// Takes part in a run from the join to the dismissal. Once `drain` resolves, this worker wants to leave: while
/// it trains, all workers then finish the step in hand together, and save.
///
/// # Errors
/// Whatever keeps this worker from going on, or [`WorkerError::Dismissed`] if the run failed elsewhere.
///
/// # Panics
/// If the training thread panics, with its panic.
pub async fn run(settings: Settings, drain: impl Future<Output = ()>) -> Result<(), WorkerError> {
    let deadline = Instant::now() + settings.connect_limit;
    let mut client = protocol::connect(&settings.coordinator, &settings.access, deadline).await?;
    let joined =
        timeout_at(deadline, join(&mut client, &settings)).await.unwrap_or_else(|_| Err(no_answer()))?;
    let worker = WorkerId(joined.worker_id);
    tracing::info!(worker = worker.0, coordinator = settings.coordinator, "joined");

    let (sender, receiver) = tokio::sync::mpsc::channel(REPORTS_UNDER_WAY);
    let run_id = joined.run_id.clone();
    let reports = Reports::new(worker, run_id.clone(), sender);
    let link = Link { client: client.clone(), worker, run_id, runtime: Handle::current() };
    let training = describe(&joined, settings, link, reports.clone())?;
    reports.attending();
    let attended = timeout_at(deadline, client.attend(ReceiverStream::new(receiver))).await;
    let orders = attended.map_err(|_| no_answer())?.map_err(|status| refused(&status))?.into_inner();

    let (commands, commanded) = mpsc::channel();
    let (ended, end) = oneshot::channel();
    thread::Builder::new()
        .name("training".to_string())
        .spawn(move || {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| training.run(&commanded)));
            // Nobody listens any more once the grace is over.
            let _ = ended.send(outcome);
        })
        .expect("the system has room for one more thread");
    attend(orders, commands, end, drain, &reports).await
}

async fn join(client: &mut Client, settings: &Settings) -> Result<v1::JoinReply, WorkerError> {
    let request = v1::JoinRequest {
        protocol_version: PROTOCOL_VERSION,
        program_version: settings.program_version.clone(),
        collective_address: settings.transport.address(),
        description: settings.description.clone(),
        // The system seeds `RandomState`.
        incarnation: RandomState::new().hash_one(std::process::id()),
    };
    Ok(client.join(request).await.map_err(|status| refused(&status))?.into_inner())
}

/// Parses what the coordinator answered, once and completely.
fn describe(
    joined: &v1::JoinReply,
    settings: Settings,
    link: Link,
    reports: Reports,
) -> Result<TrainingThread, WorkerError> {
    let unusable = |what, problem: String| WorkerError::Unusable { what, problem };
    let recipe = Recipe::from_toml(&joined.recipe_toml, &[])
        .map_err(|error| unusable("a recipe", error.to_string()))?;
    let manifest = Manifest::from_json(&joined.manifest_json)?;
    if manifest.shards != recipe.training.shards {
        let (data, training) = (manifest.shards, recipe.training.shards);
        return Err(unusable("a manifest", format!("it has {data} shards and the recipe {training}")));
    }
    let run_id = <[u8; 16]>::try_from(joined.run_id.as_ref())
        .map_err(|_| unusable("a run id", format!("expected 16 bytes, found {}", joined.run_id.len())))?;
    Ok(TrainingThread {
        run_id,
        key: Key::new(settings.access.token.collective_key(run_id)),
        recipe,
        manifest: Arc::new(manifest),
        device: settings.device,
        transport: settings.transport,
        cache: settings.cache,
        maps_local_files: settings.maps_local_files,
        link,
        reports,
    })
}

type ThreadEnd = oneshot::Receiver<thread::Result<Result<(), WorkerError>>>;

/// Passes orders on until the coordinator dismisses this worker, the training thread fails, or the
/// connection is lost.
async fn attend(
    mut orders: Streaming<v1::Order>,
    commands: mpsc::Sender<Command>,
    mut end: ThreadEnd,
    drain: impl Future<Output = ()>,
    reports: &Reports,
) -> Result<(), WorkerError> {
    let mut drain = pin!(drain);
    let mut is_draining = false;
    let mut present = Present::default();
    let mut heartbeat = interval(HEARTBEAT_INTERVAL);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failure: Option<(WorkerError, Instant)> = None;
    loop {
        let last_word = failure.as_ref().map_or_else(far_away, |(_, until)| *until);
        tokio::select! {
            order = orders.message() => match order {
                Ok(Some(v1::Order { order: Some(Order::Dismiss(dismissal)) })) => {
                    present.interrupt.raise();
                    return dismissed(dismissal.failure, failure, &commands, end).await;
                }
                // The thread that is gone has reported why.
                Ok(Some(order)) => drop(present.command(order).map(|command| commands.send(command))),
                Ok(None) => return Err(lost(failure, "it closed the stream of orders")),
                Err(status) => return Err(lost(failure, status.message())),
            },
            _ = heartbeat.tick() => reports.heartbeat(present.generation),
            () = &mut drain, if !is_draining => {
                is_draining = true;
                // The thread that is gone has no step in hand.
                let _ = commands.send(Command::Stop);
            }
            ended = &mut end, if failure.is_none() => match ended.expect("the thread sends how it ended") {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => failure = Some((error, Instant::now() + LAST_WORD_LIMIT)),
                Err(panic) => resume_unwind(panic),
            },
            () = sleep_until(last_word) => return Err(lost(failure, "no last word came")),
        }
    }
}

/// Ends the training thread. Its own failure says more than the coordinator's word for it.
async fn dismissed(
    reason: String,
    failure: Option<(WorkerError, Instant)>,
    commands: &mpsc::Sender<Command>,
    end: ThreadEnd,
) -> Result<(), WorkerError> {
    if let Some((error, _)) = failure {
        return Err(error);
    }
    // A thread that has ended needs no word.
    let _ = commands.send(Command::Dismiss);
    match timeout(GRACE, end).await {
        Ok(Ok(Err(panic))) => resume_unwind(panic),
        Ok(Ok(Ok(Err(error)))) if !matches!(error, WorkerError::Dismissed(_)) => return Err(error),
        Ok(_) => {}
        Err(_) => tracing::warn!("the training thread is still at work, and is left behind"),
    }
    if reason.is_empty() { Ok(()) } else { Err(WorkerError::Dismissed(reason)) }
}

/// The generation that this worker was last ordered into, and the word that ends its waiting there.
#[derive(Default)]
struct Present {
    generation: u64,
    interrupt: Interrupt,
}

impl Present {
    /// The order as the training thread hears it; `None` if it is of another generation than the present one.
    fn command(&mut self, order: v1::Order) -> Option<Command> {
        // An order that this version does not know is additive, and so may be passed over.
        Some(match order.order? {
            Order::Assemble(assemble) => {
                *self = Present { generation: assemble.generation, interrupt: Interrupt::default() };
                Command::Assemble(assemble, self.interrupt.clone())
            }
            Order::Start(v1::Start { generation }) => Command::Start { generation },
            Order::Stop(v1::Stop { reason, generation }) if generation == self.generation => {
                tracing::info!(reason, "stop");
                Command::Stop
            }
            Order::Halt(v1::Halt { reason, generation }) if generation == self.generation => {
                tracing::info!(generation, reason, "halt");
                self.interrupt.raise();
                Command::Halt { generation }
            }
            Order::Save(v1::Save { generation }) if generation == self.generation => Command::Save,
            Order::Stop(_) | Order::Halt(_) | Order::Save(_) => {
                tracing::warn!("an order of another generation is dropped");
                return None;
            }
            Order::Dismiss(_) => Command::Dismiss,
        })
    }
}

fn lost(failure: Option<(WorkerError, Instant)>, reason: &str) -> WorkerError {
    failure.map_or_else(|| WorkerError::CoordinatorLost(reason.to_string()), |(error, _)| error)
}

fn refused(status: &tonic::Status) -> WorkerError {
    // A status that is no answer has a cause: the connection broke.
    match status.source() {
        Some(cause) => WorkerError::Unheard(protocol::innermost(cause)),
        None => WorkerError::Refused(status.message().to_string()),
    }
}

fn no_answer() -> WorkerError {
    WorkerError::CoordinatorLost("it took the connection, but did not answer in time".to_string())
}

/// A day is longer than any wait here.
fn far_away() -> Instant {
    Instant::now() + Duration::from_secs(24 * 60 * 60)
}
