//! A run from the recipe to its outcome.

use std::ffi::OsString;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use coordinator::journal::Record;
use coordinator::{
    EvaluationSettings, Evaluations, LocalWorkerSettings, LocalWorkers, OnFailure, Outcome, Progress,
    Request, Run, RunDirectory, Timeouts, serve,
};
use dashboard::{Action, Dashboard, OpenTelemetry, Settings, collector};
use dataset::Deal;
use protocol::Token;
use simsiam::DeviceName;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use super::prepare::{Prepared, prepare};
use super::{TrainArguments, views};
use crate::display::{Display, Screen};
use crate::exit::Ending;
use crate::needs::Needs;
use crate::security::SecurityArguments;
use crate::stop_signals::StopSignals;
use crate::{PROGRAM_VERSION, logging, network, worker};

/// What is asked by the dashboard and not yet heard: a person has no more hands.
const ACTIONS_UNDER_WAY: usize = 4;

/// Trains, with the workers that the arguments ask for.
pub(super) fn run(arguments: &TrainArguments) -> Result<Ending> {
    let screen = Screen::stderr();
    let log = logging::start(&screen);
    let run = prepare(arguments, &screen, &log)?;
    let runtime = tokio::runtime::Runtime::new().context("start the control plane")?;
    runtime.block_on(lead(run, arguments, &screen))
}

/// Leads the run to its outcome.
async fn lead(prepared: Prepared, arguments: &TrainArguments, screen: &Screen) -> Result<Ending> {
    prepared.announce(screen);
    let Prepared { directory, deal, total_steps, cluster, token, .. } = prepared;
    let deal = Arc::new(deal);
    let listener = tokio::net::TcpListener::from_std(prepared.listener).context("serve the workers")?;
    let address = listener.local_addr().context("ask for the address listened on")?;
    let path = directory.path().to_path_buf();
    let (requests, mut stopped_by, asked) = requests()?;
    let shown = settings(&directory, &deal, total_steps, &prepared.needs, &token);
    let dashboard = prepared.dashboard.map(|listener| listener.serve(shown, asked, screen)).transpose()?;
    let traces = traces(&directory, screen);
    let is_complete = directory.completed(total_steps)?.is_some();
    // Then there is nothing for workers to do.
    let worker_devices = if is_complete { &[] } else { prepared.worker_devices.as_slice() };
    match cluster.remote_workers {
        0 => {}
        _ if is_complete => screen.line("the run is complete, which workers that come now are told"),
        _ if directory.past().has_left_workers() => {}
        count => screen.line(&invitation(address, count, &arguments.security)),
    }
    let run = Run {
        manifest_json: deal.manifest().to_json(),
        total_steps,
        workers: cluster.workers(),
        remote_workers: cluster.remote_workers,
        max_workers: cluster.max_workers,
        mixes_arithmetic: arguments.losses.mixed_devices,
        on_failure: on_failure(arguments),
        min_workers: arguments.losses.min_workers,
        timeouts: timeouts(arguments),
        program_version: PROGRAM_VERSION.to_string(),
        local_workers: start_workers(address, &directory, worker_devices, &token, arguments)?,
        evaluations: evaluations(&directory, arguments)?,
        views_png: views::png(directory.recipe(), &deal, 8, 0..2),
        directory,
        token,
        tls: prepared.tls,
    };
    let hopeless = Arc::new(OnceLock::new());
    let observer = observer(screen, dashboard.as_ref(), traces.as_ref(), Arc::clone(&hopeless));
    let served = serve(
        listener,
        run,
        Arc::new(move |shard, block| {
            let block = deal.block(shard, block).map_err(|error| error.to_string());
            block.inspect_err(|error| tracing::warn!("a worker asked: {error}"))
        }),
        observer,
        requests,
    )
    .await;
    if let Some(traces) = traces {
        traces.end().await;
    }
    if let Some(dashboard) = dashboard {
        dashboard.end().await;
    }
    let outcome = served?;
    if let Outcome::Completed { .. } = outcome {
        screen.line(&format!("weights, metrics and logs are in {}", path.display()));
    }
    ending(outcome, hopeless.get(), *stopped_by.borrow_and_update())
}

/// How the program ends after such a run, which was found to be hopeless or not, and asked to stop by a signal or not.
fn ending(outcome: Outcome, hopeless: Option<&String>, stopped_by: Ending) -> Result<Ending> {
    match outcome {
        Outcome::Completed { .. } => Ok(Ending::Done),
        Outcome::Stopped { step } => match (hopeless, stopped_by) {
            (Some(finding), _) => bail!("stopped after step {step}, and saved: {finding}"),
            // No signal stopped the coordinator: a worker was drained, or a person has asked by the dashboard.
            (None, Ending::Done) => Ok(Ending::Terminated),
            (None, ending) => Ok(ending),
        },
        Outcome::Failed { reason } => bail!(reason),
    }
}

/// Sends spans of the run to the collector that OpenTelemetry's environment variables name, and says so. Without one,
/// nothing is sent to anyone. Variables that are wrong are no reason not to train: they may be meant for other programs.
fn traces(directory: &RunDirectory, screen: &Screen) -> Option<OpenTelemetry> {
    let started = collector(|name| std::env::var(name).ok()).and_then(|endpoint| {
        let Some(endpoint) = endpoint else { return Ok(None) };
        let traces = OpenTelemetry::start(&endpoint, directory, PROGRAM_VERSION)?;
        screen.line(&format!("traces go to {endpoint}; the run's is {}", directory.run_id_digits()));
        Ok(Some(traces))
    });
    started.unwrap_or_else(|error| {
        tracing::warn!("no traces are sent: {error}");
        None
    })
}

/// Tells the person, the dashboard and the collector what happens, and keeps what was found to be hopeless, if anything was.
fn observer(
    screen: &Screen,
    dashboard: Option<&Dashboard>,
    traces: Option<&OpenTelemetry>,
    hopeless: Arc<OnceLock<String>>,
) -> impl FnMut(&Progress) + Send + use<> {
    let mut display = Display::new(screen.clone());
    let page = dashboard.map(Dashboard::observer);
    let spans = traces.map(OpenTelemetry::observer);
    move |progress| {
        if let Progress::Noted { record: Record::Unhealthy { finding, stops: true, .. }, .. } = progress {
            // The first one stops it.
            let _ = hopeless.set(finding.clone());
        }
        display.show(progress, Instant::now());
        if let Some(page) = &page {
            page.hear(progress);
        }
        if let Some(spans) = &spans {
            spans.hear(progress);
        }
    }
}

/// How workers elsewhere are started. They choose their own address, on all of which they listen.
fn invitation(address: SocketAddr, count: u32, security: &SecurityArguments) -> String {
    let host = network::host_name();
    let join = match address.ip().is_unspecified() {
        true => format!("{host}:{}", address.port()),
        false => address.to_string(),
    };
    let listen = match address {
        _ if address.ip().is_loopback() => address.ip(),
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let flags = worker::network_flags(listen, security.insecure_network).join(" ");
    let security = security.for_remote_worker();
    format!("waiting for {count} workers; start each: `worker --join {join} {flags}{security}`")
}

fn timeouts(arguments: &TrainArguments) -> Timeouts {
    Timeouts {
        heartbeat: Duration::from_secs(arguments.losses.heartbeat_timeout_s),
        join: Duration::from_secs(arguments.losses.join_timeout_s),
        ..Timeouts::default()
    }
}

fn on_failure(arguments: &TrainArguments) -> OnFailure {
    match arguments.losses.on_failure {
        super::OnFailure::Shrink => OnFailure::Shrink,
        super::OnFailure::Wait => OnFailure::Wait,
        super::OnFailure::Abort => OnFailure::Abort,
    }
}

/// This program, to be started again in another role.
fn own_executable() -> Result<PathBuf> {
    std::env::current_exe().context("find this program's own file")
}

/// This program again, in the worker's role.
fn start_workers(
    address: SocketAddr,
    directory: &RunDirectory,
    worker_devices: &[DeviceName],
    token: &Token,
    arguments: &TrainArguments,
) -> Result<Option<LocalWorkers>> {
    if worker_devices.is_empty() {
        return Ok(None);
    }
    let settings = LocalWorkerSettings {
        executable: own_executable()?,
        arguments: worker::arguments_for_local(
            address,
            &arguments.security,
            &arguments.advertise,
            &arguments.medium,
            &arguments.cache,
        ),
        threads_per_worker: threads_per_worker(worker_devices.len()),
        own_arguments: worker_devices.iter().map(|name| format!("--device={name}").into()).collect(),
        token: token.clone(),
        logs: directory.logs(),
        restart: on_failure(arguments) != OnFailure::Abort,
    };
    Ok(Some(LocalWorkers::spawn(&settings)?))
}

/// As many as the variable says that a worker elsewhere goes by, or its share of the cores.
fn threads_per_worker(workers: usize) -> usize {
    let given = std::env::var("RAYON_NUM_THREADS").ok().and_then(|text| text.parse().ok());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    given.filter(|threads| *threads > 0).unwrap_or((cores / workers).max(1))
}

/// What the dashboard shows of the run.
fn settings(
    directory: &RunDirectory,
    deal: &Arc<Deal>,
    total_steps: u64,
    needs: &Needs,
    token: &Token,
) -> Settings {
    let mut settings = Settings::new(directory, total_steps, PROGRAM_VERSION, token);
    settings.yardsticks.all_reduce_bytes = Some(1e6 * needs.summed_mb);
    settings.views = Some(views::by_epoch(directory.recipe(), deal));
    settings
}

/// This program again, in the role of `evaluate`, whenever the recipe asks for it.
fn evaluations(directory: &RunDirectory, arguments: &TrainArguments) -> Result<Option<Evaluations>> {
    let every_checkpoints = directory.recipe().evaluation.every_checkpoints;
    if every_checkpoints == 0 {
        return Ok(None);
    }
    let own = ["evaluate", "knn", "--json", "--beside-training"].map(OsString::from);
    let place = arguments.cache.to_arguments().into_iter().chain([arguments.device.to_argument()]);
    let run = directory.path().as_os_str().to_owned();
    Ok(Some(Evaluations::new(EvaluationSettings {
        executable: own_executable()?,
        arguments: own.into_iter().chain(place).chain([run]).collect(),
        every_checkpoints,
        log: directory.logs().join("evaluation.log"),
    })))
}

/// What the system's signals and the dashboard ask for, and which of the signals that stop a run came first.
fn requests() -> Result<(mpsc::Receiver<Request>, watch::Receiver<Ending>, mpsc::Sender<Action>)> {
    let mut interrupts = signal(SignalKind::interrupt()).context("listen for Ctrl-C")?;
    let mut terminations = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut saves = signal(SignalKind::user_defined1()).context("listen for SIGUSR1")?;
    let (sender, receiver) = mpsc::channel(2);
    let (first, ending) = watch::channel(Ending::Done);
    let (asks, mut asked) = mpsc::channel(ACTIONS_UNDER_WAY);
    tokio::spawn(async move {
        let mut signals = StopSignals::default();
        loop {
            let mut stop = |signal| signals.counts(Instant::now()).then(|| stop(&first, signal));
            let request = tokio::select! {
                _ = interrupts.recv() => stop(Ending::Interrupted),
                _ = terminations.recv() => stop(Ending::Terminated),
                _ = saves.recv() => Some(Request::Save),
                Some(action) = asked.recv() => Some(Request::from(action)),
            };
            if let Some(request) = request {
                // More than two requests say nothing new.
                let _ = sender.try_send(request);
            }
        }
    });
    Ok((receiver, ending, asks))
}

/// Notes the first signal that stops the run: with it the program ends.
fn stop(first: &watch::Sender<Ending>, signal: Ending) -> Request {
    first.send_if_modified(|ending| {
        let is_first = *ending == Ending::Done;
        if is_first {
            *ending = signal;
        }
        is_first
    });
    Request::Stop
}
