//! A run directory that tests fill, its dashboard, and a cluster of workers that only pretend.

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use coordinator::{OnFailure, Outcome, Request, Run, RunDirectory, StepSeconds, Timeouts, serve};
use dashboard::{Action, Dashboard, Observer, Settings, Status, Step, Views, Yardsticks};
use protocol::v1::order::Order;
use protocol::v1::report::Event;
use protocol::{Access, Client, PROTOCOL_VERSION, Token, v1};
use recipe::{QUICKSTART, Recipe};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::wire::{Reply, get};

pub(crate) const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const VERSION: &str = "1.2.3";
const TOTAL_STEPS: u64 = 480;

/// Of a network with 2 million numbers in a bucket, on devices of a TFLOP/s.
const YARDSTICKS: Yardsticks = Yardsticks { all_reduce_bytes: Some(8e6), peak_flops_per_second: Some(1e12) };

/// Waits until it is so.
pub(crate) async fn eventually<F: Future<Output = bool>>(is_so: impl Fn() -> F) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so().await {
        assert!(Instant::now() < deadline, "it never was");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Numbers with many digits, some of them large.
pub(crate) fn step(step: u64) -> Step {
    let x = step as f64;
    let seconds = StepSeconds {
        data: 0.001 / x,
        forward: 0.1 + 1e-9 * x,
        backward: 0.2 / 3.0,
        all_reduce: 0.01 * x.sin().abs(),
        update: 0.0031,
        step: 0.3,
    };
    Step {
        step,
        epoch: (step - 1) / 16 + 1,
        loss: -x.sqrt().sin() / 1.1,
        collapse_level: 1.0 - 1.0 / (x + 20.0),
        learning_rate: 0.1 / x,
        skipped: false,
        gradient_norm: if step == 17 { 1e17 } else { 0.1 + x.cos().abs() },
        images_per_second: 128.0 / 0.3,
        seconds,
        generation: 1,
    }
}

/// A run directory.
pub(crate) struct TestRun {
    path: PathBuf,
    _folder: tempfile::TempDir,
    directory: Mutex<Option<RunDirectory>>,
    recipe: Recipe,
    run_id: [u8; 16],
}

impl TestRun {
    pub(crate) fn new() -> TestRun {
        let folder = tempfile::tempdir().unwrap();
        let recipe = Recipe::from_toml(QUICKSTART, &[]).unwrap();
        let path = folder.path().join("run");
        let directory = RunDirectory::create(&path, &recipe, VERSION).unwrap();
        let run_id = directory.run_id();
        TestRun { path, _folder: folder, directory: Mutex::new(Some(directory)), recipe, run_id }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn metrics(&self) -> String {
        fs::read_to_string(self.path().join("metrics.jsonl")).unwrap()
    }

    pub(crate) fn write_steps(&self, steps: impl Iterator<Item = u64>) {
        self.append("metrics.jsonl", &text(steps));
    }

    /// As a resume does: aside, and renamed.
    pub(crate) fn rewrite_steps(&self, steps: impl Iterator<Item = u64>) {
        fs::write(self.path().join("aside"), text(steps)).unwrap();
        fs::rename(self.path().join("aside"), self.path().join("metrics.jsonl")).unwrap();
    }

    /// A line of the metrics.
    pub(crate) fn write(&self, line: &str) {
        self.append("metrics.jsonl", &format!("{line}\n"));
    }

    /// A line of the journal.
    pub(crate) fn record(&self, line: &str) {
        let line = line.replacen('{', "{\"unix_time_ms\":1795540402753,", 1);
        self.append("journal.jsonl", &format!("{line}\n"));
    }

    fn append(&self, file: &str, text: &str) {
        let mut file = fs::File::options().create(true).append(true).open(self.path().join(file)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    pub(crate) async fn serve(&self, listen: &str) -> Served {
        let (sender, actions) = mpsc::channel(4);
        let dashboard = self.dashboard(listen, sender).await;
        Served { address: dashboard.address(), observer: dashboard.observer(), dashboard, actions }
    }

    async fn dashboard(&self, listen: &str, actions: mpsc::Sender<Action>) -> Dashboard {
        let settings = Settings {
            folder: self.path().to_path_buf(),
            recipe: self.recipe.clone(),
            run_id: self.run_id,
            total_steps: TOTAL_STEPS,
            program_version: VERSION.to_string(),
            token: Token::parse(TOKEN).unwrap(),
            yardsticks: YARDSTICKS,
            // No picture, but no browser looks here.
            views: Some(Views::new(|epoch| (epoch < 30).then(|| format!("views of {epoch}").into_bytes()))),
        };
        Dashboard::start(TcpListener::bind(listen).await.unwrap(), settings, actions).unwrap()
    }

    /// Leads the run with its dashboard, as the program does.
    pub(crate) async fn lead(&self, workers: u32) -> Cluster {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let run = Run {
            directory: self.directory.lock().unwrap().take().unwrap(),
            manifest_json: "{}".to_string(),
            total_steps: TOTAL_STEPS,
            workers,
            max_workers: workers,
            mixes_arithmetic: false,
            on_failure: OnFailure::Shrink,
            min_workers: 1,
            timeouts: Timeouts::default(),
            program_version: VERSION.to_string(),
            token: Token::parse(TOKEN).unwrap(),
            tls: None,
            remote_workers: 0,
            local_workers: None,
            evaluations: None,
            views_png: None,
        };
        let (asks, mut asked) = mpsc::channel(4);
        let dashboard = self.dashboard("127.0.0.1:0", asks).await;
        let observer = dashboard.observer();
        let (ask, requests) = mpsc::channel(2);
        tokio::spawn(async move {
            while let Some(action) = asked.recv().await {
                ask.send(Request::from(action)).await.unwrap();
            }
        });
        let hear = observer.clone();
        let blocks = Arc::new(|_, _| Err("there are no blocks".to_string()));
        let outcome = tokio::spawn(async move {
            serve(listener, run, blocks, move |progress| hear.hear(progress), requests).await.unwrap()
        });
        let (_, actions) = mpsc::channel(1);
        let served = Served { address: dashboard.address(), observer, dashboard, actions };
        Cluster { address, outcome, served }
    }
}

fn text(steps: impl Iterator<Item = u64>) -> String {
    steps.map(|number| serde_json::to_string(&step(number)).unwrap() + "\n").collect()
}

/// A dashboard at work.
pub(crate) struct Served {
    pub(crate) address: SocketAddr,
    pub(crate) observer: Observer,
    pub(crate) actions: mpsc::Receiver<Action>,
    dashboard: Dashboard,
}

impl Served {
    /// Where this machine reaches it.
    pub(crate) fn near(&self) -> SocketAddr {
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), self.address.port())
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        get(self.near(), path).await
    }

    pub(crate) async fn status(&self) -> Status {
        serde_json::from_value(self.get("/api/status").await.json()).unwrap()
    }

    pub(crate) async fn end(self) {
        self.dashboard.end().await;
    }
}

/// A coordinator at work, with its dashboard.
pub(crate) struct Cluster {
    address: String,
    pub(crate) outcome: JoinHandle<Outcome>,
    pub(crate) served: Served,
}

impl Cluster {
    /// Workers that were told to start.
    pub(crate) async fn train(&self, count: u64) -> Vec<FakeWorker> {
        let mut workers = Vec::new();
        for incarnation in 1..=count {
            workers.push(FakeWorker::join(&self.address, incarnation).await);
        }
        for worker in &mut workers {
            let Order::Assemble(_) = worker.order().await else { panic!("expected Assemble") };
            let hash = Bytes::from_static(&[7; 32]);
            let assembled =
                v1::Assembled { generation: 1, step: 0, state_hash: hash.clone(), layout_hash: hash };
            worker.report(Event::Assembled(assembled)).await;
        }
        for worker in &mut workers {
            let Order::Start(_) = worker.order().await else { panic!("expected Start") };
        }
        workers
    }
}

/// A worker without a device: it says what a test wants it to say.
pub(crate) struct FakeWorker {
    joined: v1::JoinReply,
    reports: mpsc::Sender<v1::Report>,
    orders: Streaming<v1::Order>,
    _client: Client,
}

impl FakeWorker {
    async fn join(address: &str, incarnation: u64) -> FakeWorker {
        let access = Access { token: Token::parse(TOKEN).unwrap(), tls: None };
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        let mut client = protocol::connect(address, &access, deadline).await.unwrap();
        // The coordinator connects to it once.
        let others = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let request = v1::JoinRequest {
            protocol_version: PROTOCOL_VERSION,
            program_version: VERSION.to_string(),
            incarnation,
            collective_address: others.local_addr().unwrap().to_string(),
            description: format!("host-{incarnation}"),
            ..v1::JoinRequest::default()
        };
        let joined = client.join(request).await.unwrap().into_inner();
        let (reports, stream) = mpsc::channel(16);
        let attending = Event::Attending(v1::Attending::default());
        reports.send(report_of(&joined, attending)).await.unwrap();
        let orders = client.attend(ReceiverStream::new(stream)).await.unwrap().into_inner();
        FakeWorker { joined, reports, orders, _client: client }
    }

    async fn report(&self, event: Event) {
        self.reports.send(report_of(&self.joined, event)).await.unwrap();
    }

    async fn order(&mut self) -> Order {
        let message = timeout(Duration::from_secs(60), self.orders.message()).await.unwrap().unwrap();
        message.expect("an order").order.unwrap()
    }

    pub(crate) async fn step_done(&mut self, generation: u64, step: u64, step_seconds: f64) {
        let done = v1::StepDone {
            generation,
            step,
            loss: -0.5,
            collapse_level: 0.9,
            learning_rate: 0.1,
            gradient_norm: 1.0,
            forward_seconds: step_seconds / 2.0,
            step_seconds,
            ..v1::StepDone::default()
        };
        self.report(Event::StepDone(done)).await;
    }

    /// It is ordered to stop, and does.
    pub(crate) async fn is_stopped_after(&mut self, step: u64) {
        let Order::Stop(v1::Stop { generation, .. }) = self.order().await else { panic!("expected Stop") };
        let state_hash = Bytes::from_static(&[9; 32]);
        self.report(Event::Finished(v1::Finished { step, state_hash, generation })).await;
    }
}

fn report_of(joined: &v1::JoinReply, event: Event) -> v1::Report {
    let (worker_id, run_id) = (joined.worker_id, joined.run_id.clone());
    v1::Report { worker_id, run_id, event: Some(event), crc32c: 0 }.with_checksum()
}
