//! The single-process loopback: a coordinator and workers that share nothing but gRPC and their collective.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use collective::Medium;
use collective::loopback::Hub;
use coordinator::{OnFailure, Outcome, Progress, Request, Run, RunDirectory, StepMetrics, Timeouts, serve};
use dataset::{BlockCache, BlockStore, Deal, Images};
use protocol::{Access, Token};
use recipe::{QUICKSTART, Recipe};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use worker::{Device, Settings, Transport, WorkerError};

const VERSION: &str = "end-to-end";

/// The quickstart with changes.
pub(crate) fn quickstart(changes: &[&str]) -> Recipe {
    let changes: Vec<String> = changes.iter().map(|change| (*change).to_string()).collect();
    Recipe::from_toml(QUICKSTART, &changes).unwrap()
}

/// Where images are drawn once for all tests: in the build folder.
pub(crate) fn cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache")
}

/// How the workers of a test reach each other and their images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wiring {
    /// Gradients through memory of this process, images from the coordinator's own files.
    Loopback,
    /// Gradients as between processes, images over gRPC into a cache.
    Processes(Medium),
}

/// What a test does to a run that is under way, told of each committed step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disturbance {
    None,
    /// Asks for a stop once this step is committed.
    StopAfter(u64),
    /// Drops the last worker once this step is committed: its connections break as if it had been killed. The run
    /// is not to go on without it.
    LoseWorkerAfter(u64),
    /// The same, but the run goes on with the others.
    ShrinkAfter(u64),
}

/// A run directory in a folder of its own.
pub(crate) struct TestRun {
    folder: tempfile::TempDir,
    recipe: Recipe,
}

/// How a run ended, and what was seen of it.
pub(crate) struct Trained {
    pub(crate) outcome: Outcome,
    pub(crate) steps: Vec<StepMetrics>,
}

impl TestRun {
    pub(crate) fn new(recipe: Recipe) -> TestRun {
        TestRun { folder: tempfile::tempdir().unwrap(), recipe }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    /// Runs it with this many workers, from its last checkpoint if it has one.
    pub(crate) async fn train(&self, workers: u32, wiring: Wiring, disturbance: Disturbance) -> Trained {
        let directory = match self.path().exists() {
            true => RunDirectory::open(&self.path()).unwrap(),
            false => RunDirectory::create(&self.path(), &self.recipe, VERSION).unwrap(),
        };
        let cache = cache();
        let images = Images::open(&self.recipe.data, &cache).unwrap();
        let deal = Deal::new(Arc::new(images), self.recipe.training.shards, &cache).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let token = Token::random().unwrap();
        let run = Run {
            manifest_json: deal.manifest().to_json(),
            total_steps: self.recipe.total_steps(deal.manifest().images),
            directory,
            workers,
            max_workers: workers,
            mixes_arithmetic: false,
            on_failure: match disturbance {
                Disturbance::ShrinkAfter(_) => OnFailure::Shrink,
                _ => OnFailure::Abort,
            },
            min_workers: 1,
            timeouts: Timeouts::default(),
            program_version: VERSION.to_string(),
            token: token.clone(),
            tls: None,
            remote_workers: 0,
            local_workers: None,
            evaluations: None,
            views_png: None,
        };

        let mut started = JoinSet::new();
        let hub = Hub::default();
        let mut last = None;
        for index in 0..workers {
            let settings = self.settings(&address, &token, index, wiring, &hub);
            last = Some(started.spawn(worker::run(settings, std::future::pending())));
        }
        let (asking, requests) = mpsc::channel(2);
        let (sender, mut steps) = mpsc::unbounded_channel();
        let observer = move |progress: &Progress| {
            let Progress::Step(metrics) = progress else { return };
            match disturbance {
                Disturbance::StopAfter(step) if step == metrics.step => {
                    asking.try_send(Request::Stop).unwrap();
                }
                Disturbance::LoseWorkerAfter(step) | Disturbance::ShrinkAfter(step)
                    if step == metrics.step =>
                {
                    last.as_ref().unwrap().abort();
                }
                _ => {}
            }
            sender.send(metrics.clone()).unwrap();
        };
        let blocks =
            Arc::new(move |shard, block| deal.block(shard, block).map_err(|error| error.to_string()));
        let outcome = serve(listener, run, blocks, observer, requests).await.unwrap();
        while let Some(ended) = started.join_next().await {
            check_end(ended, &outcome);
        }
        let mut seen = Vec::new();
        while let Ok(metrics) = steps.try_recv() {
            seen.push(metrics);
        }
        Trained { outcome, steps: seen }
    }

    fn settings(&self, coordinator: &str, token: &Token, index: u32, wiring: Wiring, hub: &Hub) -> Settings {
        let blocks = self.folder.path().join(format!("blocks-{index}"));
        let (transport, cache) = match wiring {
            Wiring::Loopback => (Transport::Loopback(hub.clone()), None),
            Wiring::Processes(medium) => {
                let transport = Transport::listen("127.0.0.1:0", medium).unwrap();
                (transport, Some(BlockCache::open(&blocks, 1 << 30).unwrap()))
            }
        };
        Settings {
            coordinator: coordinator.to_string(),
            access: Access { token: token.clone(), tls: None },
            connect_limit: Duration::from_secs(30),
            absence_limit: Duration::ZERO,
            device: Device::flex(),
            transport,
            cache,
            maps_local_files: wiring == Wiring::Loopback,
            program_version: VERSION.to_string(),
            description: format!("thread {index}"),
        }
    }

    /// All its images, without a coordinator.
    pub(crate) fn images(&self) -> Arc<BlockStore> {
        let images = Arc::new(Images::open(&self.recipe.data, &cache()).unwrap());
        let deal = Deal::new(Arc::clone(&images), self.recipe.training.shards, &cache()).unwrap();
        let nowhere = |_, _| Err("there is no coordinator".into());
        Arc::new(BlockStore::new(Arc::clone(deal.manifest()), None, Some(images), Box::new(nowhere)))
    }

    /// The names of the checkpoints, oldest first.
    pub(crate) fn checkpoints(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.path().join("checkpoints"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Every file of a checkpoint but the manifest, which names the run: model, optimizer and position.
    pub(crate) fn files(&self, checkpoint: &str) -> Vec<(String, Vec<u8>)> {
        let folder = self.path().join("checkpoints").join(checkpoint);
        ["model.safetensors", "optimizer.safetensors", "progress.json"]
            .map(|name| (name.to_string(), fs::read(folder.join(name)).unwrap()))
            .to_vec()
    }

    /// The lines of a file of the run directory.
    pub(crate) fn lines(&self, name: &str) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(self.path().join(name)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// A worker ends as the run does, unless it was taken away.
fn check_end(ended: Result<Result<(), WorkerError>, JoinError>, outcome: &Outcome) {
    let failed = matches!(outcome, Outcome::Failed { .. });
    match ended {
        Ok(Ok(())) => assert!(!failed, "a worker did not hear of {outcome:?}"),
        Ok(Err(WorkerError::Stopped { .. })) if matches!(outcome, Outcome::Stopped { .. }) => {}
        Ok(Err(error)) => assert!(failed, "{outcome:?}, but a worker failed: {error}"),
        Err(error) => assert!(error.is_cancelled(), "a worker panicked: {error}"),
    }
}
