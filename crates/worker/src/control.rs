//! The asynchronous half of a worker: joins, passes orders on to the training thread, sends its reports.

use std::error::Error;
use std::hash::{BuildHasher, RandomState};
use std::panic::resume_unwind;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use collective::{Interrupt, Key, Standstill};
use dataset::{BlockCache, Manifest};
use protocol::v1::order::Order;
use protocol::{Access, PROTOCOL_VERSION, Pauses, WorkerId, v1};
use recipe::Recipe;
use simsiam::Device;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::WorkerError;
use crate::line::Line;
use crate::link::{Attendance, Link, was_garbled};
use crate::reports::Reports;
use crate::training_thread::{Command, TrainingThread};
use crate::transport::Transport;

/// Often beside the coordinator's limit of fifteen seconds, rarely beside a step.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);

/// Between two attempts to find the coordinator again: one that was restarted has its workers back within seconds.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How long a coordinator that takes a call may think about the answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

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
    /// How long to go on without it, and to look for it again, once it is lost.
    pub absence_limit: Duration,
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

/// Takes part in a run from the join to the dismissal. Once `drain` resolves, or if that is ordered, this worker leaves:
/// before it has joined at once; while it trains, all workers finish the step in hand together and save, and the others go
/// on. While the coordinator is lost, training
/// goes on, and this worker comes back to it as soon as it is there again.
///
/// # Errors
/// Whatever keeps this worker from going on, or [`WorkerError::Dismissed`] if the run failed elsewhere.
///
/// # Panics
/// If the training thread panics, with its panic.
pub async fn run(settings: Settings, drain: impl Future<Output = ()>) -> Result<(), WorkerError> {
    let mut drain = pin!(drain);
    let deadline = Instant::now() + settings.connect_limit;
    let request = request(&settings);
    let joining = async {
        let line = Line::connect(&settings.coordinator, &settings.access, deadline).await?;
        let joined = join(&line, &request, deadline).await?;
        Ok::<_, WorkerError>((line, joined))
    };
    let (line, joined) = tokio::select! {
        joined = joining => joined?,
        // Nobody counts on it yet.
        () = drain.as_mut() => return Err(WorkerError::NotJoined),
    };
    let worker = WorkerId(joined.worker_id);
    tracing::info!(worker = worker.0, coordinator = settings.coordinator, "joined");

    let (run_id, absence_limit) = (joined.run_id.clone(), settings.absence_limit);
    let request = v1::JoinRequest { worker_id: worker.0, run_id: run_id.clone(), ..request }.with_checksum();
    let reports = Reports::new(worker, run_id.clone());
    let attendance = watch::Sender::new(None);
    let link = Link {
        line: line.clone(),
        worker,
        run_id,
        runtime: Handle::current(),
        attendance: attendance.subscribe(),
        absence_limit,
    };
    let standstill = Standstill::default();
    let training = describe(&joined, settings, link, reports.clone(), standstill.clone())?;
    let transport = Arc::clone(&training.transport);
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
    let present = Present::default();
    let control = Control {
        line,
        request,
        reports,
        attendance,
        times_found: 0,
        absence_limit,
        commands,
        end,
        present,
        transport,
        standstill,
        is_leaving: false,
        leaves_by_order: false,
        failure: None,
    };
    control.run(joined.committed_step, drain).await
}

/// What a new worker says of itself.
fn request(settings: &Settings) -> v1::JoinRequest {
    v1::JoinRequest {
        protocol_version: PROTOCOL_VERSION,
        program_version: settings.program_version.clone(),
        collective_address: settings.transport.address(),
        description: settings.description.clone(),
        // The system seeds `RandomState`.
        incarnation: RandomState::new().hash_one(std::process::id()),
        outlives_coordinator: !settings.absence_limit.is_zero(),
        arithmetic: simsiam::arithmetic(&settings.device),
        ..v1::JoinRequest::default()
    }
    .with_checksum()
}

/// Joins a run, and asks again until `deadline` while there is no place, or nobody to answer.
async fn join(
    line: &Line,
    request: &v1::JoinRequest,
    deadline: Instant,
) -> Result<v1::JoinReply, WorkerError> {
    let mut pauses = Pauses::up_to(LONGEST_PAUSE);
    let mut last_answer = None;
    loop {
        let status = match timeout_at(deadline, join_once(line, request)).await {
            Ok(Ok(reply)) => return Ok(reply),
            Ok(Err(status)) => status,
            // What was answered before says more than that the last attempt was cut short.
            Err(_) => return Err(last_answer.as_ref().map_or_else(no_answer, refused)),
        };
        let next = Instant::now() + pauses.next_pause();
        if is_final(&status) || next >= deadline {
            return Err(refused(&status));
        }
        last_answer = Some(status);
        sleep_until(next).await;
    }
}

/// Joins, or says why not. Where the answer makes no sense, the next attempt has a connection of its own.
async fn join_once(line: &Line, request: &v1::JoinRequest) -> Result<v1::JoinReply, Status> {
    let attempt = async {
        let mut reply = line.client().join(request.clone()).await?.into_inner();
        reply.check()?;
        Ok(reply)
    };
    attempt.await.inspect_err(|status| {
        if was_garbled(status) {
            line.redial();
        }
    })
}

/// Whether asking again would get the same answer.
fn is_final(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::FailedPrecondition
            | Code::InvalidArgument
            | Code::Unauthenticated
            | Code::PermissionDenied
            | Code::Unimplemented
            | Code::OutOfRange
    )
}

/// Listens for the orders of a coordinator that knows of `committed_step` steps.
async fn attend(line: &Line, reports: &Reports, committed_step: u64) -> Result<Streaming<v1::Order>, Status> {
    let stream = ReceiverStream::new(reports.attend(committed_step));
    Ok(line.client().attend(stream).await?.into_inner())
}

/// Parses what the coordinator answered, once and completely.
fn describe(
    joined: &v1::JoinReply,
    settings: Settings,
    link: Link,
    reports: Reports,
    standstill: Standstill,
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
        transport: Arc::new(settings.transport),
        cache: settings.cache,
        maps_local_files: settings.maps_local_files,
        link,
        reports,
        standstill,
    })
}

type ThreadEnd = oneshot::Receiver<thread::Result<Result<(), WorkerError>>>;

/// The asynchronous half, once it has joined.
struct Control {
    line: Line,
    /// How it joins again.
    request: v1::JoinRequest,
    reports: Reports,
    attendance: watch::Sender<Attendance>,
    times_found: u64,
    absence_limit: Duration,
    commands: mpsc::Sender<Command>,
    end: ThreadEnd,
    present: Present,
    transport: Arc<Transport>,
    standstill: Standstill,
    /// Whether this worker wants to leave the run, and whether the coordinator told it to.
    is_leaving: bool,
    leaves_by_order: bool,
    /// Why the training thread has ended, and until when the coordinator's last word is waited for.
    failure: Option<(WorkerError, Instant)>,
}

/// How a stream of orders ended.
enum Parting {
    /// With this worker's part in the run.
    Ended(Result<(), WorkerError>),
    /// With the connection.
    Lost(String),
}

impl Control {
    async fn run(
        mut self,
        committed_step: u64,
        mut drain: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(), WorkerError> {
        let attending = attend(&self.line, &self.reports, committed_step);
        let mut parting = match timeout(ANSWER_LIMIT, attending).await {
            Ok(Ok(orders)) => self.follow(orders, drain.as_mut()).await,
            Ok(Err(status)) if is_final(&status) => Parting::Ended(Err(refused(&status))),
            Ok(Err(status)) => Parting::Lost(status.message().to_string()),
            Err(_) => Parting::Lost("it did not answer in time".to_string()),
        };
        loop {
            let reason = match parting {
                Parting::Ended(outcome) => return outcome,
                Parting::Lost(reason) => reason,
            };
            let orders = self.find_again(&reason, drain.as_mut()).await?;
            parting = self.follow(orders, drain.as_mut()).await;
        }
    }

    /// Passes orders on until the coordinator dismisses this worker, the training thread fails, or the connection
    /// is lost.
    async fn follow(
        &mut self,
        mut orders: Streaming<v1::Order>,
        mut drain: Pin<&mut impl Future<Output = ()>>,
    ) -> Parting {
        self.times_found += 1;
        self.attendance.send_replace(Some(self.times_found));
        if let Err(error) = self.transport.hang_up() {
            tracing::debug!(%error, "the coordinator's looks at this worker are left in the queue");
        }
        let mut heartbeat = interval(HEARTBEAT_INTERVAL);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let last_word = self.failure.as_ref().map_or_else(far_away, |(_, until)| *until);
            tokio::select! {
                order = next_order(&mut orders) => match order {
                    Ok(Some(Order::Dismiss(dismissal))) => {
                        return Parting::Ended(self.dismissed(dismissal.failure).await);
                    }
                    Ok(Some(order)) => self.pass_on(order),
                    Ok(None) => return Parting::Lost("it closed the stream of orders".to_string()),
                    Err(status) => return Parting::Lost(status.message().to_string()),
                },
                _ = heartbeat.tick() => {
                    self.reports.heartbeat(self.present.generation, self.standstill.lasts());
                }
                () = drain.as_mut(), if !self.is_leaving => self.leave(),
                ended = &mut self.end, if self.failure.is_none() => match thread_end(ended) {
                    Ok(()) => return Parting::Ended(Ok(())),
                    Err(error) => self.failure = Some((error, Instant::now() + LAST_WORD_LIMIT)),
                },
                () = sleep_until(last_word) => return Parting::Lost("no last word came".to_string()),
            }
        }
    }

    /// Looks for the coordinator while the training thread goes on with its generation. One that has failed has
    /// nothing to come back for.
    async fn find_again(
        &mut self,
        reason: &str,
        mut drain: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Streaming<v1::Order>, WorkerError> {
        self.reports.detach();
        if let Some((error, _)) = self.failure.take() {
            return Err(error);
        }
        let limit_s = self.absence_limit.as_secs();
        tracing::warn!(
            "the coordinator is lost ({reason}); this worker goes on, and looks for it for {limit_s} s"
        );
        self.attendance.send_replace(None);
        let (line, request, reports) = (self.line.clone(), self.request.clone(), self.reports.clone());
        let mut search = pin!(search(line, request, reports, reason, self.absence_limit));
        loop {
            tokio::select! {
                orders = &mut search => return match orders {
                    Ok(orders) => {
                        tracing::info!("the coordinator is found again");
                        Ok(orders)
                    }
                    Err(error) => {
                        self.abandon().await;
                        Err(error)
                    }
                },
                () = drain.as_mut(), if !self.is_leaving => self.leave(),
                ended = &mut self.end => return Err(match thread_end(ended) {
                    Ok(()) => WorkerError::CoordinatorLost(reason.to_string()),
                    Err(error) => error,
                }),
            }
        }
    }

    fn pass_on(&mut self, order: Order) {
        if let Order::Leave(_) = order {
            self.leaves_by_order = true;
            self.leave();
            return;
        }
        if let Some(command) = self.present.command(order) {
            if let Command::Assemble(assemble, _) = &command {
                self.reports.ordered_into(assemble.generation);
            }
            // The thread that is gone has reported why.
            let _ = self.commands.send(command);
        }
    }

    /// Lets the step in hand be the last one of this worker.
    fn leave(&mut self) {
        self.is_leaving = true;
        self.reports.leaving();
        // The thread that is gone has no step in hand.
        let _ = self.commands.send(Command::Stop);
    }

    /// Ends the training thread, after its step if that is short.
    async fn abandon(&mut self) {
        // One that waits for others hears only the interrupt.
        self.present.interrupt.raise();
        let _ = self.commands.send(Command::Dismiss);
        let _ = timeout(GRACE, &mut self.end).await;
    }

    /// Ends the training thread. Its own failure says more than the coordinator's word for it.
    async fn dismissed(&mut self, reason: String) -> Result<(), WorkerError> {
        self.present.interrupt.raise();
        if let Some((error, _)) = self.failure.take() {
            return Err(error);
        }
        // A thread that has ended needs no word.
        let _ = self.commands.send(Command::Dismiss);
        match timeout(GRACE, &mut self.end).await {
            Ok(Ok(Err(panic))) => resume_unwind(panic),
            Ok(Ok(Ok(Err(WorkerError::Stopped { .. })))) if self.leaves_by_order => return Ok(()),
            Ok(Ok(Ok(Err(error)))) if !matches!(error, WorkerError::Dismissed(_)) => return Err(error),
            Ok(_) => {}
            Err(_) => tracing::warn!("the training thread is still at work, and is left behind"),
        }
        if reason.is_empty() { Ok(()) } else { Err(WorkerError::Dismissed(reason)) }
    }
}

/// The next order, as it was sent; `None` at the end of the stream.
async fn next_order(orders: &mut Streaming<v1::Order>) -> Result<Option<Order>, Status> {
    while let Some(mut order) = orders.message().await? {
        order.check()?;
        // One that this version does not know is additive, and so may be passed over.
        if order.order.is_some() {
            return Ok(order.order);
        }
    }
    Ok(None)
}

/// How the training thread ended.
fn thread_end(
    ended: Result<thread::Result<Result<(), WorkerError>>, oneshot::error::RecvError>,
) -> Result<(), WorkerError> {
    ended.expect("the thread sends how it ended").unwrap_or_else(|panic| resume_unwind(panic))
}

/// Asks for the coordinator until it answers, at most for `limit`. The name that it has is looked up each time.
async fn search(
    line: Line,
    request: v1::JoinRequest,
    reports: Reports,
    reason: &str,
    limit: Duration,
) -> Result<Streaming<v1::Order>, WorkerError> {
    let deadline = Instant::now() + limit;
    let mut pauses = Pauses::up_to(LONGEST_PAUSE);
    let mut problem = reason.to_string();
    loop {
        let next = Instant::now() + pauses.next_pause();
        if next >= deadline {
            let waited_s = limit.as_secs();
            return Err(WorkerError::CoordinatorLost(match waited_s {
                0 => problem,
                _ => format!("it did not come back within {waited_s} s: {problem}"),
            }));
        }
        sleep_until(next).await;
        let attempt = async {
            let joined = join_once(&line, &request).await?;
            attend(&line, &reports, joined.committed_step).await
        };
        problem = match timeout(ANSWER_LIMIT, attempt).await {
            Ok(Ok(orders)) => return Ok(orders),
            Ok(Err(status)) if is_final(&status) => return Err(refused(&status)),
            Ok(Err(status)) => status.message().to_string(),
            Err(_) => "it did not answer in time".to_string(),
        };
    }
}

/// The generation that this worker was last ordered into, and the word that ends its waiting there.
#[derive(Default)]
struct Present {
    generation: u64,
    interrupt: Interrupt,
}

impl Present {
    /// The order as the training thread hears it; `None` if it is of another generation than the present one.
    fn command(&mut self, order: Order) -> Option<Command> {
        Some(match order {
            Order::Assemble(assemble) => {
                // Whatever it was ordered before is over.
                self.interrupt.raise();
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
            // Of this worker, and not of its part in a generation.
            Order::Leave(_) => return None,
        })
    }
}

fn refused(status: &Status) -> WorkerError {
    // A status that is no answer has a cause: the connection broke.
    match status.source() {
        None if status.code() == Code::OutOfRange => WorkerError::Complete,
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
