//! A coordinator at work in this process, and workers that only pretend: they say what a test wants them to say.

#![allow(dead_code, reason = "no test uses all of it")]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use coordinator::{
    Blocks, CoordinatorError, OnFailure, Outcome, Progress, Request, Run, RunDirectory, Timeouts, serve,
};
use protocol::v1::order::Order;
use protocol::v1::report::Event;
use protocol::{Access, Client, PART_BYTES, PROTOCOL_VERSION, Token, v1};
use recipe::{QUICKSTART, Recipe};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

pub(crate) const VERSION: &str = "1.2.3";
pub(crate) const MANIFEST: &str = r#"{"images":2048}"#;
pub(crate) const TOTAL_STEPS: u64 = 20;
pub(crate) const SHARDS: u32 = 4;

/// The token of all runs of these tests.
pub(crate) fn token() -> Token {
    Token::parse("0123456789abcdef0123456789abcdef").unwrap()
}

/// Two blocks in each shard, the first a little more than three parts long.
pub(crate) struct TwoBlocks;

impl TwoBlocks {
    pub(crate) fn content(shard: u32, block: u32) -> Vec<u8> {
        let length = if block == 0 { 3 * PART_BYTES + 5 } else { 7 };
        (0..length).map(|index| (index % 251) as u8 ^ shard as u8).collect()
    }
}

impl Blocks for TwoBlocks {
    fn block(&self, shard: u32, block: u32) -> Result<Vec<u8>, String> {
        if block < 2 {
            Ok(TwoBlocks::content(shard, block))
        } else {
            Err(format!("shard {shard} has no block {block}"))
        }
    }
}

pub(crate) fn recipe() -> Recipe {
    Recipe::from_toml(
        QUICKSTART,
        &[
            "training.epochs=2".to_string(),
            "optimizer.warmup_epochs=0.0".to_string(),
            format!("training.shards={SHARDS}"),
        ],
    )
    .unwrap()
}

/// A coordinator at work in this process.
pub(crate) struct Cluster {
    pub(crate) address: String,
    pub(crate) task: JoinHandle<Result<Outcome, CoordinatorError>>,
    pub(crate) requests: mpsc::Sender<Request>,
    pub(crate) progress: mpsc::UnboundedReceiver<Progress>,
    /// For how long the coordinator is held up, once, by the next thing that it tells.
    pub(crate) stall_ms: Arc<AtomicU64>,
}

impl Cluster {
    pub(crate) async fn start(directory: RunDirectory, workers: u32) -> Cluster {
        Cluster::start_with(directory, workers, |_| {}).await
    }

    pub(crate) async fn start_with(
        directory: RunDirectory,
        workers: u32,
        change: impl FnOnce(&mut Run),
    ) -> Cluster {
        Cluster::start_serving(directory, workers, Arc::new(TwoBlocks), change).await
    }

    pub(crate) async fn start_serving(
        directory: RunDirectory,
        workers: u32,
        blocks: Arc<dyn Blocks>,
        change: impl FnOnce(&mut Run),
    ) -> Cluster {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut run = Run {
            directory,
            manifest_json: MANIFEST.to_string(),
            total_steps: TOTAL_STEPS,
            workers,
            max_workers: workers,
            mixes_arithmetic: false,
            on_failure: OnFailure::Abort,
            min_workers: 1,
            timeouts: Timeouts::default(),
            program_version: VERSION.to_string(),
            token: token(),
            tls: None,
            remote_workers: 0,
            local_workers: None,
            evaluations: None,
            views_png: None,
        };
        change(&mut run);
        let (asking, requests) = mpsc::channel(2);
        let (sender, progress) = mpsc::unbounded_channel();
        let stall_ms = Arc::new(AtomicU64::new(0));
        let stalled_ms = Arc::clone(&stall_ms);
        let observer = move |progress: &Progress| {
            thread::sleep(Duration::from_millis(stalled_ms.swap(0, Ordering::Relaxed)));
            // What comes with the time and not with an event is no test's, and a test may have seen enough.
            if !matches!(progress, Progress::Seen(_)) {
                let _ = sender.send(progress.clone());
            }
        };
        let task = tokio::spawn(serve(listener, run, blocks, observer, requests));
        Cluster { address, task, requests: asking, progress, stall_ms }
    }

    /// Workers that have joined and attend, in order of rank.
    pub(crate) async fn workers(&self, count: u64) -> Vec<FakeWorker> {
        let mut workers = Vec::new();
        for incarnation in 1..=count {
            let mut worker = FakeWorker::join(&self.address, incarnation).await.unwrap();
            worker.attend().await.unwrap();
            workers.push(worker);
        }
        workers
    }

    /// Workers that were told to start.
    pub(crate) async fn training(&self, count: u64) -> Vec<FakeWorker> {
        let mut workers = self.workers(count).await;
        for worker in &mut workers {
            let Order::Assemble(_) = worker.order().await else { panic!("expected Assemble") };
            worker.assembled(1).await;
        }
        for worker in &mut workers {
            let Order::Start(v1::Start { generation: 1 }) = worker.order().await else {
                panic!("expected Start")
            };
        }
        workers
    }

    pub(crate) async fn end(self) -> Outcome {
        timeout(Duration::from_secs(30), self.task).await.unwrap().unwrap().unwrap()
    }

    /// The run fails with a sentence that holds all of `phrases`.
    pub(crate) async fn fails_with(self, phrases: &[&str]) {
        let Outcome::Failed { reason } = self.end().await else { panic!("expected a failure") };
        for phrase in phrases {
            assert!(reason.contains(phrase), "{reason:?} lacks {phrase:?}");
        }
    }
}

/// A worker without a device: it says what a test wants it to say.
pub(crate) struct FakeWorker {
    pub(crate) client: Client,
    pub(crate) joined: v1::JoinReply,
    pub(crate) reports: Option<mpsc::Sender<v1::Report>>,
    pub(crate) orders: Option<Streaming<v1::Order>>,
}

impl FakeWorker {
    pub(crate) async fn join(address: &str, incarnation: u64) -> Result<FakeWorker, Status> {
        FakeWorker::join_as(address, join_request(incarnation)).await
    }

    pub(crate) async fn join_as(address: &str, request: v1::JoinRequest) -> Result<FakeWorker, Status> {
        FakeWorker::join_with(address, token(), request).await
    }

    pub(crate) async fn join_with(
        address: &str,
        token: Token,
        request: v1::JoinRequest,
    ) -> Result<FakeWorker, Status> {
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut client = protocol::connect(address, &Access { token, tls: None }, deadline).await.unwrap();
        let joined = client.join(request).await?.into_inner();
        Ok(FakeWorker { client, joined, reports: None, orders: None })
    }

    /// Someone else on the same connection who claims to be worker `worker_id`.
    pub(crate) fn with_id(&self, worker_id: u64) -> FakeWorker {
        let joined = v1::JoinReply { worker_id, ..self.joined.clone() };
        FakeWorker { client: self.client.clone(), joined, reports: None, orders: None }
    }

    pub(crate) async fn attend(&mut self) -> Result<(), Status> {
        let (reports, stream) = mpsc::channel(16);
        self.reports = Some(reports);
        self.report(Event::Attending(v1::Attending::default())).await;
        self.orders = Some(self.client.attend(ReceiverStream::new(stream)).await?.into_inner());
        Ok(())
    }

    pub(crate) async fn report(&self, event: Event) {
        let (worker_id, run_id) = (self.joined.worker_id, self.joined.run_id.clone());
        let report = v1::Report { worker_id, run_id, event: Some(event), crc32c: 0 }.with_checksum();
        self.reports.as_ref().unwrap().send(report).await.unwrap();
    }

    pub(crate) async fn order(&mut self) -> Order {
        let orders = self.orders.as_mut().unwrap();
        let message = timeout(Duration::from_secs(20), orders.message()).await.unwrap().unwrap();
        message.expect("an order").order.unwrap()
    }

    pub(crate) async fn dismissed(&mut self) -> String {
        let Order::Dismiss(v1::Dismiss { failure }) = self.order().await else { panic!("expected Dismiss") };
        failure
    }

    pub(crate) async fn assembled(&self, state: u8) {
        self.assembled_in(1, 0, state).await;
    }

    pub(crate) async fn assembled_in(&self, generation: u64, step: u64, state: u8) {
        let (state_hash, layout_hash) = (hash(state), hash(0));
        self.report(Event::Assembled(v1::Assembled { generation, step, state_hash, layout_hash })).await;
    }

    pub(crate) async fn halted(&self, generation: u64, step: u64) {
        let halted = v1::Halted { generation, holds_state: true, step, ..v1::Halted::default() };
        self.report(Event::Halted(halted)).await;
    }

    pub(crate) async fn step_done(&self, step: u64) {
        self.step_done_in(1, step).await;
    }

    pub(crate) async fn step_done_in(&self, generation: u64, step: u64) {
        let done = v1::StepDone {
            generation,
            step,
            loss: -0.25,
            learning_rate: 0.05,
            step_seconds: 0.5,
            ..v1::StepDone::default()
        };
        self.report(Event::StepDone(done)).await;
    }

    pub(crate) async fn finished(&self, step: u64) {
        self.finished_in(1, step).await;
    }

    pub(crate) async fn finished_in(&self, generation: u64, step: u64) {
        self.report(Event::Finished(v1::Finished { step, state_hash: hash(9), generation })).await;
    }

    pub(crate) fn checkpoint(&self, step: u64) -> Vec<v1::CheckpointPart> {
        checkpoint_files(step)
            .into_iter()
            .flat_map(|(file, data)| {
                data.chunks(PART_BYTES)
                    .map(|part| (file.clone(), Bytes::copy_from_slice(part)))
                    .collect::<Vec<_>>()
            })
            .map(|(file, data)| v1::CheckpointPart {
                worker_id: self.joined.worker_id,
                run_id: self.joined.run_id.clone(),
                generation: 1,
                step,
                part: Some(v1::FilePart::new(file, data)),
            })
            .collect()
    }

    pub(crate) async fn publish(&mut self, parts: Vec<v1::CheckpointPart>) -> Result<String, Status> {
        let reply = self.client.publish_checkpoint(tokio_stream::iter(parts)).await?;
        Ok(reply.into_inner().checkpoint)
    }

    pub(crate) async fn fetch_blocks(
        &mut self,
        shard: u32,
        blocks: Vec<u32>,
    ) -> Result<Vec<v1::BlockPart>, Status> {
        collect(self.stream_blocks(shard, blocks).await?).await
    }

    pub(crate) async fn stream_blocks(
        &mut self,
        shard: u32,
        blocks: Vec<u32>,
    ) -> Result<Streaming<v1::BlockPart>, Status> {
        let worker_id = self.joined.worker_id;
        let run_id = self.joined.run_id.clone();
        let request = v1::FetchBlocksRequest { worker_id, run_id, shard, blocks };
        Ok(self.client.fetch_blocks(request).await?.into_inner())
    }

    pub(crate) async fn fetch_checkpoint(&mut self, name: &str) -> Result<Vec<v1::FilePart>, Status> {
        let worker_id = self.joined.worker_id;
        let (run_id, checkpoint) = (self.joined.run_id.clone(), name.to_string());
        let request = v1::FetchCheckpointRequest { worker_id, run_id, checkpoint };
        collect(self.client.fetch_checkpoint(request).await?.into_inner()).await
    }
}

pub(crate) fn join_request(incarnation: u64) -> v1::JoinRequest {
    v1::JoinRequest {
        protocol_version: PROTOCOL_VERSION,
        program_version: VERSION.to_string(),
        collective_address: format!("127.0.0.1:{incarnation}"),
        description: format!("fake {incarnation}"),
        incarnation,
        ..v1::JoinRequest::default()
    }
}

pub(crate) fn hash(state: u8) -> Bytes {
    Bytes::copy_from_slice(&[state; 32])
}

pub(crate) fn checkpoint_files(step: u64) -> Vec<(String, Vec<u8>)> {
    vec![
        ("model.safetensors".to_string(), vec![step as u8; 2 * PART_BYTES + 1]),
        ("optimizer.safetensors".to_string(), b"momentum".to_vec()),
        ("progress.json".to_string(), format!("{{\"step\":{step}}}").into_bytes()),
    ]
}

pub(crate) async fn collect<T>(mut stream: Streaming<T>) -> Result<Vec<T>, Status> {
    let mut messages = Vec::new();
    while let Some(message) = stream.message().await? {
        messages.push(message);
    }
    Ok(messages)
}

pub(crate) fn create(folder: &Path) -> RunDirectory {
    RunDirectory::create(&folder.join("run"), &recipe(), VERSION).unwrap()
}

pub(crate) fn json_lines(path: &Path) -> Vec<serde_json::Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
