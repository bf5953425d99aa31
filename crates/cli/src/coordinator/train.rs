//! A run from the recipe to its outcome.

use std::ffi::OsString;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use coordinator::journal::{Dealt, Record};
use coordinator::{
    EvaluationSettings, Evaluations, LocalWorkerSettings, LocalWorkers, OnFailure, Outcome, Past, Progress,
    Request, Run, RunDirectory, Timeouts, check_certificates, check_max_workers, check_min_workers,
    check_workers, serve,
};
use dashboard::{Action, Dashboard, OpenTelemetry, Settings, collector};
use dataset::{Deal, Manifest};
use protocol::{ServerTls, Token};
use simsiam::DeviceName;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use super::resume::{is_begun, resume};
use super::{TrainArguments, views};
use crate::dashboard::{DashboardListener, DashboardPlace};
use crate::deal::{deal, warn_of_pictures};
use crate::display::{Display, Screen};
use crate::exit::Ending;
use crate::logging::LogFile;
use crate::needs::Needs;
use crate::security::SecurityArguments;
use crate::stop_signals::StopSignals;
use crate::{PROGRAM_VERSION, logging, needs, network, start, worker};

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

/// All that can be known, and refused, before a worker is started. The listeners are not served yet.
struct Prepared {
    directory: RunDirectory,
    listener: TcpListener,
    deal: Deal,
    total_steps: u64,
    needs: Needs,
    /// What each worker of this machine computes on.
    worker_devices: Vec<DeviceName>,
    cluster: Cluster,
    dashboard: Option<DashboardListener>,
    token: Token,
    tls: Option<ServerTls>,
}

/// Where the workers find the coordinator, and how many they are.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Cluster {
    listen: String,
    local_workers: u32,
    remote_workers: u32,
}

impl Cluster {
    /// What the arguments leave open is as under the coordinator before: its own workers in any case, those of other machines
    /// and the address if workers may be looking for it.
    fn new(arguments: &TrainArguments, past: Option<&Past>) -> Cluster {
        let own_before = past.map_or(0, |past| past.local_workers);
        let past = past.filter(|past| past.has_left_workers());
        let none_given = arguments.workers.is_none() && arguments.remote_workers.is_none();
        let (local_workers, remote_workers) = match past.filter(|_| none_given) {
            Some(past) => (own_before, past.workers.saturating_sub(own_before)),
            None if none_given => (own_before.max(1), 0),
            None => (arguments.workers.unwrap_or(1), arguments.remote_workers.unwrap_or(0)),
        };
        let listen = arguments.listen.clone().or_else(|| past?.address.clone());
        let listen = listen.unwrap_or_else(|| "127.0.0.1:0".to_string());
        Cluster { listen, local_workers, remote_workers }
    }

    /// Too many are refused later, with a sentence.
    fn workers(&self) -> u32 {
        self.local_workers.saturating_add(self.remote_workers)
    }
}

fn prepare(arguments: &TrainArguments, screen: &Screen, log: &LogFile) -> Result<Prepared> {
    let security = arguments.security.read()?;
    if let Some(listen) = &arguments.listen {
        network::listen_addresses("--listen", listen, &security)?;
    }
    let resumed = match &arguments.resume {
        Some(folder) => Some(resume(arguments, folder.as_deref())?),
        None if arguments.resume_or_begin && is_begun(arguments)? => Some(resume(arguments, None)?),
        None => None,
    };
    let (resumed, resumed_recipe) = resumed.unzip();
    let cluster = Cluster::new(arguments, resumed.as_ref().map(RunDirectory::past));
    let addresses = network::listen_addresses("--listen", &cluster.listen, &security)?;
    let advertise = arguments.advertise.advertise.as_deref();
    network::check_advertised(&cluster.listen, &addresses, cluster.local_workers, advertise)?;
    let dashboard = arguments.dashboard.place(&security)?;
    let (token, tls) = security.of_coordinator(cluster.local_workers, cluster.remote_workers)?;
    check_certificates(tls.as_ref())?;
    let mut recipe = match resumed_recipe {
        Some(recipe) => recipe,
        None => arguments.recipe.load()?,
    };
    check_workers(cluster.workers(), recipe.training.shards)?;
    check_min_workers(arguments.losses.min_workers, cluster.workers())?;
    check_max_workers(max_workers(arguments, &cluster), cluster.workers(), recipe.training.shards)?;
    let worker_devices = arguments.device.of_workers(cluster.local_workers)?;
    let path = arguments.out.join(&recipe.name);
    if resumed.is_none() {
        RunDirectory::refuse_unless_free(&path)?;
    }
    let first_state = match &resumed {
        Some(directory) => start::read_again(directory)?,
        None => start::read(&mut recipe)?,
    };
    let deal = deal(&recipe, &arguments.cache, screen)?;
    let total_steps = recipe.total_steps(deal.manifest().images);
    ensure!(
        total_steps > 0,
        "{} has {} images, which do not fill one batch of {}; lower training.batch, or give more images",
        deal.manifest().name,
        deal.manifest().images,
        recipe.training.batch
    );
    // Before the directory, so that the same command with another address is not refused for what this one left.
    let listener = network::bind(&cluster.listen)
        .with_context(|| format!("listen on {}; choose another --listen", cluster.listen))?;
    let dashboard = dashboard.map(DashboardPlace::listen).transpose()?.flatten();
    let mut directory = match resumed {
        Some(directory) => directory,
        None => RunDirectory::create(&path, &recipe, PROGRAM_VERSION)?,
    };
    directory.hold_to(dealt(deal.manifest()))?;
    if *directory.recipe() != recipe {
        directory.keep_recipe(recipe)?;
    }
    log.open(&directory.logs().join("coordinator.log"))?;
    if let Some(first_state) = &first_state {
        start::publish(&directory, first_state, screen)?;
    }
    warn_of_pictures(&deal);
    let recipe = directory.recipe();
    let on_cpu = worker_devices.iter().filter(|name| **name == DeviceName::Cpu).count() as u32;
    for shortage in needs::shortages(recipe, total_steps, on_cpu, directory.path()) {
        screen.line(&format!("warning: {shortage}"));
        tracing::warn!("{shortage}");
    }
    let needs = Needs::of(recipe, cluster.workers());
    Ok(Prepared {
        directory,
        listener,
        deal,
        total_steps,
        needs,
        worker_devices,
        cluster,
        dashboard,
        token,
        tls,
    })
}

fn dealt(manifest: &Manifest) -> Dealt {
    Dealt { name: manifest.name.clone(), images: manifest.images, digest: manifest.digest().to_string() }
}

/// Leads the run to its outcome.
async fn lead(prepared: Prepared, arguments: &TrainArguments, screen: &Screen) -> Result<Ending> {
    let Prepared {
        directory,
        listener,
        deal,
        total_steps,
        needs,
        worker_devices,
        cluster,
        dashboard,
        token,
        tls,
    } = prepared;
    let deal = Arc::new(deal);
    let listener = tokio::net::TcpListener::from_std(listener).context("serve the workers")?;
    let address = listener.local_addr().context("ask for the address listened on")?;
    let path = directory.path().to_path_buf();
    screen.line(&announcement(&directory, deal.manifest(), total_steps));
    let size = needs.size(total_steps);
    tracing::info!("the run takes {size}");
    screen.line(&format!("it takes {size}"));
    let (requests, mut stopped_by, asked) = requests()?;
    let dashboard = match dashboard {
        Some(listener) => {
            let settings = settings(&directory, &deal, total_steps, &needs, &token);
            Some(listener.serve(settings, asked, screen)?)
        }
        None => None,
    };
    let traces = traces(&directory, screen);
    let is_complete = directory.completed(total_steps)?.is_some();
    // Then there is nothing for workers to do.
    let worker_devices = if is_complete { &[] } else { worker_devices.as_slice() };
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
        max_workers: max_workers(arguments, &cluster),
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
        tls,
    };
    let hopeless = Arc::new(OnceLock::new());
    let observer = observer(screen, dashboard.as_ref(), traces.as_ref(), Arc::clone(&hopeless));
    let served = serve(
        listener,
        run,
        Arc::new(move |shard, block| {
            deal.block(shard, block).inspect_err(|error| tracing::warn!("a worker asked: {error}")).ok()
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

/// Which run this is, in a line.
fn announcement(directory: &RunDirectory, manifest: &Manifest, total_steps: u64) -> String {
    let recipe = directory.recipe();
    format!(
        "run {} in {}: {} images of {}, {total_steps} steps of {} images, {} shards",
        recipe.name,
        directory.path().display(),
        manifest.images,
        manifest.name,
        recipe.training.batch,
        manifest.shards
    )
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

/// Places for workers: without more of them, one for each that is waited for.
fn max_workers(arguments: &TrainArguments, cluster: &Cluster) -> u32 {
    arguments.losses.max_workers.unwrap_or_else(|| cluster.workers())
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::Arguments;
    use super::*;

    #[test]
    fn what_is_not_said_is_as_under_the_coordinator_before() {
        let (new, old) = ("127.0.0.1:0", "10.0.0.1:7070");
        let past = |local_workers, workers, left_workers: u64| {
            let opened = Record::Opened {
                program_version: PROGRAM_VERSION.to_string(),
                checkpoint: None,
                step: 0,
                address: Some(old.to_string()),
                workers,
                local_workers,
                awaited: Vec::new(),
            };
            let joined = (1..=left_workers).map(|worker| Record::Joined {
                worker,
                incarnation: worker,
                collective_address: "10.0.0.2:1".to_string(),
                description: "elsewhere".to_string(),
                outlives_coordinator: true,
                arithmetic: String::new(),
            });
            Past::replay(&[opened].into_iter().chain(joined).collect::<Vec<_>>())
        };
        for (flags, past, expected) in [
            (&[][..], None, (new, 1, 0)),
            (&["--workers=3"], None, (new, 3, 0)),
            // Its own workers ended with it, wherever it stopped.
            (&[], Some(past(3, 3, 0)), (new, 3, 0)),
            (&["--workers=2"], Some(past(3, 3, 0)), (new, 2, 0)),
            (&["--remote-workers=2"], Some(past(3, 3, 0)), (new, 1, 2)),
            (&[], Some(past(0, 4, 0)), (new, 1, 0)),
            // Those of other machines look for it.
            (&[], Some(past(0, 4, 4)), (old, 0, 4)),
            (&[], Some(past(1, 4, 3)), (old, 1, 3)),
            (&["--workers=2", "--listen=127.0.0.1:9"], Some(past(1, 4, 3)), ("127.0.0.1:9", 2, 0)),
        ] {
            let arguments = Arguments::parse_from(["coordinator"].iter().chain(flags)).train;
            let Cluster { listen, local_workers, remote_workers } = Cluster::new(&arguments, past.as_ref());
            assert_eq!((listen.as_str(), local_workers, remote_workers), expected, "{flags:?} {past:?}");
        }
    }
}
