//! The gRPC handlers: each translates a call into inputs of the control loop, or streams bytes.

use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use protocol::v1::coordinator_server::Coordinator;
use protocol::{Generation, PART_BYTES, PROTOCOL_VERSION, WorkerId, v1};
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::checkpoint::{CheckpointDirectory, CheckpointError, Checkpoints, PartialCheckpoint};
use crate::flight_recorder::StepSpans;
use crate::incoming::Caller;
use crate::membership::{Candidate, Event};
use crate::rate::Rate;
use crate::tensorboard::Histogram;
use crate::{Blocks, reach, wire};

/// Parts that wait for the network or the disk: enough to keep either busy, and no more than 1 MiB a stream.
const PARTS_UNDER_WAY: usize = 8;

/// Orders that wait for one worker: those of three generations, more than are given while it says nothing.
const ORDERS_UNDER_WAY: usize = 16;

/// How long a new stream may stay silent. What opens one has its first message at hand.
const FIRST_MESSAGE_LIMIT: Duration = Duration::from_secs(10);

/// How long a checkpoint waits for the reports of its steps, which were sent before it.
const REPORTS_LIMIT: Duration = Duration::from_secs(5);

/// Workers that may join in a second, after as many at once as there are shards and [`MORE_JOINS`]: each costs the
/// journal a synced line and the others a generation, and one that ends at once is started again and again.
const JOINS_PER_S: f64 = 4.0;

/// See [`JOINS_PER_S`].
const MORE_JOINS: u32 = 64;

/// What is written down and decides nothing.
#[derive(Debug)]
pub(crate) enum Note {
    /// Where the time of a step went on a worker.
    Spans(StepSpans),
    /// How the weights of a checkpoint are spread, if they could be read.
    Weights { step: u64, histograms: Option<Vec<(String, Histogram)>> },
}

/// What the control loop hears.
#[derive(Debug)]
pub(crate) enum Input {
    /// May this worker take part, and as whom?
    Join { candidate: Candidate, reply: oneshot::Sender<Answer> },
    /// A worker listens; is it one of this run's, and the only one under this id?
    Attend { worker: WorkerId, orders: OrderSender, reply: oneshot::Sender<bool> },
    /// The stream of a worker that listened has ended.
    Detached { worker: WorkerId, reason: String },
    /// Does this worker take part?
    Knows { worker: WorkerId, reply: oneshot::Sender<bool> },
    /// May this worker publish?
    Publishes { worker: WorkerId, generation: Generation, reply: oneshot::Sender<bool> },
    /// Tell me once this step is committed and its metrics are written.
    Committed { step: u64, reply: oneshot::Sender<()> },
    /// Something that is only looked at.
    Note(Note),
    /// Something happened that membership is to know.
    Event(Event),
}

/// What a worker that wants to take part is told.
#[derive(Debug)]
pub(crate) enum Answer {
    Admitted {
        worker: WorkerId,
        committed_step: u64,
    },
    Refused(String),
    /// Refused for now.
    Postponed(String),
    /// There is nothing left to do.
    Complete,
}

pub(crate) type OrderSender = mpsc::Sender<Result<v1::Order, Status>>;

/// What never changes while the coordinator runs.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) program_version: String,
    pub(crate) run_id: Bytes,
    pub(crate) recipe_toml: String,
    pub(crate) manifest_json: String,
    pub(crate) shards: u32,
    pub(crate) checkpoints: Checkpoints,
}

impl Facts {
    /// Refuses what names another run: a worker of an earlier one, say, at an address that was used again.
    fn check_run(&self, theirs: &[u8]) -> Result<(), Status> {
        if theirs == self.run_id {
            return Ok(());
        }
        let hexadecimal =
            |bytes: &[u8]| bytes.iter().take(16).map(|byte| format!("{byte:02x}")).collect::<String>();
        Err(Status::failed_precondition(format!(
            "the request names run {:?}, but this is run {:?}: join this run first",
            hexadecimal(theirs),
            hexadecimal(&self.run_id)
        )))
    }
}

pub(crate) struct Service {
    pub(crate) facts: Facts,
    pub(crate) blocks: Arc<dyn Blocks>,
    pub(crate) inputs: mpsc::Sender<Input>,
    joins: Mutex<Rate>,
    begun_at: Instant,
}

impl Service {
    pub(crate) fn new(facts: Facts, blocks: Arc<dyn Blocks>, inputs: mpsc::Sender<Input>) -> Service {
        let joins = Mutex::new(Rate::new(facts.shards + MORE_JOINS, JOINS_PER_S));
        Service { facts, blocks, inputs, joins, begun_at: Instant::now() }
    }

    fn check_rate(&self) -> Result<(), Status> {
        // A rate is whole even if someone panicked beside it.
        let mut joins = self.joins.lock().unwrap_or_else(PoisonError::into_inner);
        joins.take(self.begun_at.elapsed()).map_err(|wait| {
            let wait_s = wait.as_secs_f64();
            Status::resource_exhausted(format!(
                "more workers join than take part: look why they end so soon, and try again in {wait_s:.1} s"
            ))
        })
    }

    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Input) -> Result<T, Status> {
        let (reply, answer) = oneshot::channel();
        self.inputs.send(question(reply)).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())
    }

    async fn check_worker(&self, worker: WorkerId, run_id: &Bytes) -> Result<(), Status> {
        self.facts.check_run(run_id)?;
        match self.ask(|reply| Input::Knows { worker, reply }).await? {
            true => Ok(()),
            false => Err(unknown(worker)),
        }
    }

    fn check_versions(&self, request: &v1::JoinRequest) -> Result<(), Status> {
        let refused = |what: &str, theirs: &str, ours: &str| {
            Err(Status::failed_precondition(format!(
                "the worker has {what} {theirs}, the coordinator {ours}: start both from the same version"
            )))
        };
        if request.protocol_version != PROTOCOL_VERSION {
            let (theirs, ours) = (request.protocol_version.to_string(), PROTOCOL_VERSION.to_string());
            return refused("protocol version", &theirs, &ours);
        }
        if request.program_version != self.facts.program_version {
            return refused("program version", &request.program_version, &self.facts.program_version);
        }
        Ok(())
    }

    /// Takes the parts of a checkpoint from the network to the disk. The next ones arrive meanwhile, as far as the
    /// window of the stream lets them.
    async fn receive_checkpoint(
        &self,
        first: v1::CheckpointPart,
        parts: &mut Streaming<v1::CheckpointPart>,
    ) -> Result<PartialCheckpoint, Status> {
        let origin =
            |part: &v1::CheckpointPart| (part.worker_id, part.generation, part.step, part.run_id.clone());
        let expected = origin(&first);
        let (checkpoints, step) = (self.facts.checkpoints.clone(), first.step);
        let mut partial = on_disk(move || checkpoints.begin(step)).await?;
        let mut next = Some(first);
        while let Some(part) = next {
            if origin(&part) != expected {
                return Err(Status::invalid_argument("the parts of a checkpoint differ in worker or step"));
            }
            let part = part.part.ok_or_else(|| Status::invalid_argument("a part without a file"))?;
            part.check()?;
            partial = on_disk(move || partial.write(&part.file, &part.data).map(|()| partial)).await?;
            next = parts.message().await?;
        }
        Ok(partial)
    }
}

#[tonic::async_trait]
impl Coordinator for Service {
    type AttendStream = ReceiverStream<Result<v1::Order, Status>>;
    type FetchBlocksStream = ReceiverStream<Result<v1::BlockPart, Status>>;
    type FetchCheckpointStream = ReceiverStream<Result<v1::FilePart, Status>>;

    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinReply>, Status> {
        let comes_from = request.extensions().get::<Caller>().map(|caller| caller.from);
        let mut request = request.into_inner();
        // A worker of a version that has no checksums is told so, and not that its request arrived changed.
        if request.crc32c != 0 {
            request.check()?;
        }
        self.check_versions(&request)?;
        self.check_rate()?;
        match request.worker_id {
            0 => reach::check(&request.collective_address, comes_from)
                .await
                .map_err(Status::failed_precondition)?,
            // One that comes back was looked at, and the others have reached it. It is asked for again and again, and
            // while it trains, nobody takes its calls.
            _ => self.facts.check_run(&request.run_id)?,
        }
        let candidate = wire::candidate(request);
        match self.ask(|reply| Input::Join { candidate, reply }).await? {
            Answer::Admitted { worker, committed_step } => {
                let reply = v1::JoinReply {
                    worker_id: worker.0,
                    run_id: self.facts.run_id.clone(),
                    recipe_toml: self.facts.recipe_toml.clone(),
                    manifest_json: self.facts.manifest_json.clone(),
                    committed_step,
                    ..v1::JoinReply::default()
                };
                Ok(Response::new(reply.with_checksum()))
            }
            Answer::Refused(reason) => Err(Status::failed_precondition(reason)),
            Answer::Postponed(reason) => Err(Status::unavailable(reason)),
            Answer::Complete => Err(Status::out_of_range("the run is complete")),
        }
    }

    async fn attend(
        &self,
        request: Request<Streaming<v1::Report>>,
    ) -> Result<Response<Self::AttendStream>, Status> {
        let mut reports = request.into_inner();
        let mut first = first_message(&mut reports).await?;
        first.check()?;
        let worker = WorkerId(first.worker_id);
        self.facts.check_run(&first.run_id)?;
        let (orders, ordered) = mpsc::channel(ORDERS_UNDER_WAY);
        if !self.ask(|reply| Input::Attend { worker, orders, reply }).await? {
            return Err(unknown(worker));
        }
        let inputs = self.inputs.clone();
        tokio::spawn(async move {
            let reason = pass_reports_on(worker, first, reports, &inputs).await;
            // Nobody listens once the run has ended.
            let _ = inputs.send(Input::Detached { worker, reason }).await;
        });
        Ok(Response::new(ReceiverStream::new(ordered)))
    }

    async fn fetch_blocks(
        &self,
        request: Request<v1::FetchBlocksRequest>,
    ) -> Result<Response<Self::FetchBlocksStream>, Status> {
        let request = request.into_inner();
        self.check_worker(WorkerId(request.worker_id), &request.run_id).await?;
        if request.shard >= self.facts.shards {
            let shards = self.facts.shards;
            return Err(Status::not_found(format!("shard {} of {shards} shards from 0", request.shard)));
        }
        let (parts, stream) = mpsc::channel(PARTS_UNDER_WAY);
        let blocks = Arc::clone(&self.blocks);
        tokio::spawn(async move {
            for block in request.blocks {
                if send_block(&blocks, request.shard, block, &parts).await.is_err() {
                    return; // the worker went away, or knows that there is no such block
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn fetch_checkpoint(
        &self,
        request: Request<v1::FetchCheckpointRequest>,
    ) -> Result<Response<Self::FetchCheckpointStream>, Status> {
        let request = request.into_inner();
        self.check_worker(WorkerId(request.worker_id), &request.run_id).await?;
        let (checkpoints, name) = (self.facts.checkpoints.clone(), request.checkpoint.clone());
        let checkpoint = on_disk(move || checkpoints.find(&name))
            .await?
            .ok_or_else(|| Status::not_found(format!("there is no checkpoint {:?}", request.checkpoint)))?;
        let (parts, stream) = mpsc::channel(PARTS_UNDER_WAY);
        spawn_blocking(move || {
            if let Err(error) = send_files(&checkpoint, &parts) {
                // If the worker went away, nobody is left to be told.
                let _ = parts.blocking_send(Err(Status::data_loss(error.to_string())));
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn publish_checkpoint(
        &self,
        request: Request<Streaming<v1::CheckpointPart>>,
    ) -> Result<Response<v1::PublishCheckpointReply>, Status> {
        let mut parts = request.into_inner();
        let first = first_message(&mut parts).await?;
        let (worker, generation) = (WorkerId(first.worker_id), Generation(first.generation));
        self.facts.check_run(&first.run_id)?;
        if !self.ask(|reply| Input::Publishes { worker, generation, reply }).await? {
            return Err(Status::failed_precondition(format!(
                "worker {worker} was not told to publish the checkpoints of generation {generation}"
            )));
        }
        let step = first.step;
        let partial = self.receive_checkpoint(first, &mut parts).await?;
        // The steps of a checkpoint are not made again, so their metrics must be written before it counts. They
        // were reported before it, on another stream. Where a report was dropped, the checkpoint is worth more.
        if let Ok(answer) = timeout(REPORTS_LIMIT, self.ask(|reply| Input::Committed { step, reply })).await {
            answer?;
        }
        let checkpoints = self.facts.checkpoints.clone();
        let published = on_disk(move || checkpoints.publish(partial)).await?;
        let checkpoint = published.name();
        let event = Event::Published { generation, checkpoint: checkpoint.clone(), step };
        self.inputs.send(Input::Event(event)).await.map_err(|_| ended())?;
        Ok(Response::new(v1::PublishCheckpointReply { checkpoint }))
    }
}

async fn first_message<T>(stream: &mut Streaming<T>) -> Result<T, Status> {
    timeout(FIRST_MESSAGE_LIMIT, stream.message())
        .await
        .map_err(|_| Status::deadline_exceeded("the stream was opened, but nothing was sent"))??
        .ok_or_else(|| Status::invalid_argument("the stream ended before its first message"))
}

/// Passes on what a worker reports until its stream ends, and says why it did.
async fn pass_reports_on(
    worker: WorkerId,
    first: v1::Report,
    mut reports: Streaming<v1::Report>,
    inputs: &mpsc::Sender<Input>,
) -> String {
    let run_id = first.run_id.clone();
    let mut next: Result<_, Status> = Ok(Some(first));
    loop {
        let report = match next {
            Ok(Some(report)) => report,
            Ok(None) => return "it closed its stream of reports".to_string(),
            Err(status) => return format!("its connection broke ({})", status.message()),
        };
        if report.worker_id != worker.0 {
            return format!("it reported in the name of worker {}", report.worker_id);
        }
        if report.run_id != run_id {
            return "it reported in the name of another run".to_string();
        }
        // A kind of report that this version does not know is additive, and so may be passed over.
        if let Some(event) = report.event {
            let input = match wire::input(worker, event) {
                Ok(input) => input,
                Err(status) => return format!("it sent what cannot be read: {}", status.message()),
            };
            if inputs.send(input).await.is_err() {
                return "the run has ended".to_string();
            }
        }
        next = reports.message().await;
        if let Ok(Some(report)) = &mut next
            && let Err(status) = report.check()
        {
            return status.message().to_string();
        }
    }
}

/// Sends one block as parts that are views of it, not copies. `Err` when there is no use in going on.
async fn send_block(
    blocks: &Arc<dyn Blocks>,
    shard: u32,
    block: u32,
    parts: &mpsc::Sender<Result<v1::BlockPart, Status>>,
) -> Result<(), ()> {
    let gatherer = Arc::clone(blocks);
    let answer = match spawn_blocking(move || gatherer.block(shard, block)).await {
        Ok(Ok(data)) => Ok(Bytes::from(data)),
        Ok(Err(reason)) => Err(Status::not_found(reason)),
        Err(error) => Err(internal(&error)),
    };
    let mut rest = match answer {
        Ok(data) => data,
        Err(status) => {
            // If the worker went away, nobody is left to be told.
            let _ = parts.send(Err(status)).await;
            return Err(());
        }
    };
    loop {
        let data = rest.split_to(rest.len().min(PART_BYTES));
        let last = rest.is_empty();
        parts.send(Ok(v1::BlockPart { block, data, last })).await.map_err(|_| ())?;
        if last {
            return Ok(());
        }
    }
}

/// Sends the files of a checkpoint one after the other. Ends early if the worker goes away.
fn send_files(
    checkpoint: &CheckpointDirectory,
    parts: &mpsc::Sender<Result<v1::FilePart, Status>>,
) -> std::io::Result<()> {
    for (name, entry) in &checkpoint.manifest().files {
        let mut file = std::fs::File::open(checkpoint.path().join(name))?;
        let mut remaining = entry.bytes;
        loop {
            let length = remaining.min(PART_BYTES as u64);
            let mut data = BytesMut::zeroed(length as usize);
            file.read_exact(&mut data)?;
            remaining -= length;
            let part = v1::FilePart::new(name.clone(), data.freeze());
            if parts.blocking_send(Ok(part)).is_err() {
                return Ok(());
            }
            if remaining == 0 {
                break;
            }
        }
    }
    Ok(())
}

/// Does what may wait for the disk where nobody else has to.
async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CheckpointError> + Send + 'static,
) -> Result<T, Status> {
    let done = spawn_blocking(work).await.map_err(|error| internal(&error))?;
    done.map_err(|error| checkpoint_status(&error))
}

fn unknown(worker: WorkerId) -> Status {
    Status::failed_precondition(format!("worker {worker} does not take part in this run: join first"))
}

fn ended() -> Status {
    Status::unavailable("the run has ended")
}

fn internal(error: &tokio::task::JoinError) -> Status {
    Status::internal(format!("a task of the coordinator failed: {error}"))
}

/// The answer to a worker whose checkpoint cannot be kept or read; the person is told too.
fn checkpoint_status(error: &CheckpointError) -> Status {
    tracing::warn!("{error}");
    // None of these but the first is a code of the transport's, for which a worker sends everything again at once.
    let code = match error {
        CheckpointError::Damaged { .. } => tonic::Code::DataLoss,
        CheckpointError::Refused { .. } => tonic::Code::InvalidArgument,
        CheckpointError::Io { .. } => tonic::Code::FailedPrecondition,
    };
    Status::new(code, error.to_string())
}
