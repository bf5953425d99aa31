//! A run from the recipe to its outcome.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use coordinator::{
    EvaluationSettings, Evaluations, LocalWorkerSettings, LocalWorkers, OnFailure, Outcome, Run,
    RunDirectory, Timeouts, check_min_workers, check_workers, serve,
};
use dataset::{Deal, Images};
use protocol::{ServerTls, Token};
use recipe::Recipe;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use super::TrainArguments;
use crate::cache::CacheArguments;
use crate::display::{Display, Screen};
use crate::exit::Ending;
use crate::logging::LogFile;
use crate::recipe_source::difference;
use crate::{PROGRAM_VERSION, logging, network, start, worker};

/// Trains, with the workers that the arguments ask for.
pub(super) fn run(arguments: &TrainArguments) -> Result<Ending> {
    let screen = Screen::stderr();
    let log = logging::start(&screen);
    let run = prepare(arguments, &screen, &log)?;
    let runtime = tokio::runtime::Runtime::new().context("start the control plane")?;
    runtime.block_on(lead(run, arguments, &screen))
}

/// All that can be known, and refused, before a worker is started.
struct Prepared {
    directory: RunDirectory,
    deal: Deal,
    total_steps: u64,
    token: Token,
    tls: Option<ServerTls>,
}

fn prepare(arguments: &TrainArguments, screen: &Screen, log: &LogFile) -> Result<Prepared> {
    let security = arguments.security.read()?;
    let addresses = network::listen_addresses(&arguments.listen, &security)?;
    let (token, tls) = security.of_coordinator(arguments.workers, arguments.remote_workers)?;
    if arguments.remote_workers > 0 {
        network::refuse_unspecified(&arguments.listen, &addresses)?;
    }
    let resumed = arguments.resume.as_ref().map(|folder| resume(arguments, folder.as_deref())).transpose()?;
    let mut recipe = match &resumed {
        Some(directory) => directory.recipe().clone(),
        None => arguments.recipe.load()?,
    };
    check_workers(arguments.all_workers(), recipe.training.shards)?;
    check_min_workers(arguments.losses.min_workers, arguments.all_workers())?;
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
    let directory = match resumed {
        Some(directory) => directory,
        None => RunDirectory::create(&path, &recipe, PROGRAM_VERSION)?,
    };
    log.open(&directory.logs().join("coordinator.log"))?;
    if let Some(first_state) = &first_state {
        start::publish(&directory, first_state, screen)?;
    }
    warn_of_pictures(&deal);
    Ok(Prepared { directory, deal, total_steps, token, tls })
}

/// Opens the run to go on with, whose own recipe counts.
fn resume(arguments: &TrainArguments, folder: Option<&Path>) -> Result<RunDirectory> {
    let mut asked = arguments.recipe.load()?;
    ensure!(
        folder.is_none() || !arguments.recipe.name_is_given(),
        "--resume FOLDER says which run, and --name too: leave one of them out"
    );
    let path = folder.map_or_else(|| arguments.out.join(&asked.name), PathBuf::from);
    let directory = RunDirectory::open(&path)?;
    if arguments.recipe.are_given() {
        // The same file may hold other weights by now.
        start::read(&mut asked)?;
        if let Some(difference) = difference(directory.recipe(), &asked) {
            bail!(
                "the run in {} was begun with another recipe: {difference}; leave out --config and --set, or start \
                 a new run with another --name",
                path.display()
            );
        }
    }
    Ok(directory)
}

/// Pictures that were left out, for the person and the log.
pub(super) fn warn_of_pictures(deal: &Deal) {
    for warning in deal.images().warnings() {
        tracing::warn!("{warning}");
    }
}

/// The images, dealt to shards.
pub(super) fn deal(recipe: &Recipe, cache: &CacheArguments, screen: &Screen) -> Result<Deal> {
    let folder = cache.folder();
    let mut progress = |done, total| {
        screen.position(done, total, "preparing images, once".to_string());
    };
    let images = Images::open_with_progress(&recipe.data, &folder, &mut progress);
    screen.finish();
    let images = images?;
    Ok(Deal::new(Arc::new(images), recipe.training.shards, &folder)?)
}

/// Leads the run to its outcome.
async fn lead(prepared: Prepared, arguments: &TrainArguments, screen: &Screen) -> Result<Ending> {
    let Prepared { directory, deal, total_steps, token, tls } = prepared;
    let listener = TcpListener::bind(&arguments.listen)
        .await
        .with_context(|| format!("listen on {}; choose another --listen", arguments.listen))?;
    let address = listener.local_addr().context("ask for the address listened on")?.to_string();
    let path = directory.path().to_path_buf();
    let manifest = deal.manifest();
    screen.line(&format!(
        "run {} in {}: {} images of {}, {} steps of {} images, {} shards",
        directory.recipe().name,
        path.display(),
        manifest.images,
        manifest.name,
        total_steps,
        directory.recipe().training.batch,
        manifest.shards
    ));
    if arguments.remote_workers > 0 {
        let flags = worker::network_flags(&address, arguments.security.insecure_network).join(" ");
        let security = arguments.security.for_remote_worker();
        screen.line(&format!(
            "waiting for {} workers; start each, with its own address after --listen: `worker --join {address} {flags}{security}`",
            arguments.remote_workers
        ));
    }
    let run = Run {
        manifest_json: manifest.to_json(),
        total_steps,
        workers: arguments.all_workers(),
        on_failure: on_failure(arguments),
        min_workers: arguments.losses.min_workers,
        timeouts: Timeouts {
            heartbeat: Duration::from_secs(arguments.losses.heartbeat_timeout_s),
            join: Duration::from_secs(arguments.losses.join_timeout_s),
            ..Timeouts::default()
        },
        program_version: PROGRAM_VERSION.to_string(),
        local_workers: start_workers(&address, &directory, &token, arguments)?,
        evaluations: evaluations(&directory, &arguments.cache)?,
        directory,
        token,
        tls,
    };
    let (stops, mut stopped_by) = stops()?;
    let mut display = Display::new(screen.clone());
    let observer = move |progress: &coordinator::Progress| display.show(progress, Instant::now());
    let outcome = serve(
        listener,
        run,
        Arc::new(move |shard, block| {
            deal.block(shard, block).inspect_err(|error| tracing::warn!("a worker asked: {error}")).ok()
        }),
        observer,
        stops,
    )
    .await?;
    match outcome {
        Outcome::Completed { .. } => {
            screen.line(&format!("weights, metrics and logs are in {}", path.display()));
            Ok(Ending::Done)
        }
        Outcome::Stopped { .. } => match *stopped_by.borrow_and_update() {
            // Nobody stopped the coordinator: a worker was drained.
            Ending::Done => Ok(Ending::Terminated),
            ending => Ok(ending),
        },
        Outcome::Failed { reason } => bail!(reason),
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
    address: &str,
    directory: &RunDirectory,
    token: &Token,
    arguments: &TrainArguments,
) -> Result<Option<LocalWorkers>> {
    if arguments.workers == 0 {
        return Ok(None);
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let settings = LocalWorkerSettings {
        executable: own_executable()?,
        arguments: worker::arguments_for_local(address, &arguments.security, &arguments.cache),
        count: arguments.workers,
        threads_per_worker: (cores / arguments.workers as usize).max(1),
        token: token.clone(),
        logs: directory.logs(),
        restart: on_failure(arguments) != OnFailure::Abort,
    };
    Ok(Some(LocalWorkers::spawn(&settings)?))
}

/// This program again, in the role of `evaluate`, whenever the recipe asks for it.
fn evaluations(directory: &RunDirectory, cache: &CacheArguments) -> Result<Option<Evaluations>> {
    let every_checkpoints = directory.recipe().evaluation.every_checkpoints;
    if every_checkpoints == 0 {
        return Ok(None);
    }
    let own = ["evaluate", "knn", "--json", "--beside-training"].map(OsString::from);
    let run = directory.path().as_os_str().to_owned();
    Ok(Some(Evaluations::new(EvaluationSettings {
        executable: own_executable()?,
        arguments: own.into_iter().chain(cache.to_arguments()).chain([run]).collect(),
        every_checkpoints,
        log: directory.logs().join("evaluation.log"),
    })))
}

/// Ctrl-C and SIGTERM as requests to stop, and which of them came first.
fn stops() -> Result<(mpsc::Receiver<()>, watch::Receiver<Ending>)> {
    let mut interrupts = signal(SignalKind::interrupt()).context("listen for Ctrl-C")?;
    let mut terminations = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let (sender, receiver) = mpsc::channel(2);
    let (first, ending) = watch::channel(Ending::Done);
    tokio::spawn(async move {
        loop {
            let signal = tokio::select! {
                _ = interrupts.recv() => Ending::Interrupted,
                _ = terminations.recv() => Ending::Terminated,
            };
            first.send_if_modified(|ending| {
                let is_first = *ending == Ending::Done;
                if is_first {
                    *ending = signal;
                }
                is_first
            });
            // More than two requests say nothing new.
            let _ = sender.try_send(());
        }
    });
    Ok((receiver, ending))
}
