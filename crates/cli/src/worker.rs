//! The program `worker`, and the worker's role of the program `coordinator`.

use std::ffi::OsString;
use std::future::pending;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use worker::{Device, Settings, Transport};

use crate::cache::CacheArguments;
use crate::exit::{self, Ending};
use crate::security::SecurityArguments;
use crate::{PROGRAM_VERSION, logging, network, parent};

/// Takes part in a run: trains on the shards that the coordinator leases to it.
///
/// A worker needs no data and no recipe; both come from the coordinator.
#[derive(Debug, Parser)]
#[command(name = "worker", version)]
pub struct WorkerArguments {
    /// The coordinator's address
    #[arg(long, value_name = "HOST:PORT", env = "SIMSIAM_COORDINATOR")]
    join: String,
    /// Address for the gradients of the other workers, as they reach it; port 0 takes a free one
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:0")]
    listen: String,
    #[command(flatten)]
    security: SecurityArguments,
    /// How long to look for the coordinator, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    connect_timeout_s: u64,
    /// Fetch all images from the coordinator, even where this machine sees the same files
    #[arg(long)]
    no_local_files: bool,
    #[command(flatten)]
    cache: CacheArguments,
    /// End when standard input closes: the coordinator that started this worker is gone then
    #[arg(long, hide = true)]
    end_with_stdin: bool,
}

/// The program `worker`.
pub fn main() -> ExitCode {
    exit::code(run(&WorkerArguments::parse()))
}

/// The arguments with which a coordinator at `address` starts a worker of its own. It listens where the
/// coordinator does, so that workers of other machines reach it as they reach the coordinator.
pub(crate) fn arguments_for_local(
    address: &str,
    security: &SecurityArguments,
    cache: &CacheArguments,
) -> Vec<OsString> {
    let own = ["worker", "--join", address, "--end-with-stdin"].map(OsString::from);
    let network = network_flags(address, security.insecure_network).into_iter().map(OsString::from);
    own.into_iter().chain(network).chain(security.for_local_worker()).chain(cache.to_arguments()).collect()
}

/// The flags of a worker in the network of `address`.
pub(crate) fn network_flags(address: &str, insecure_network: bool) -> Vec<String> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let flag = insecure_network.then(|| "--insecure-network".to_string());
    [format!("--listen={host}:0")].into_iter().chain(flag).collect()
}

/// Works until the coordinator dismisses this worker.
pub(crate) fn run(arguments: &WorkerArguments) -> Result<Ending> {
    logging::start_plain();
    if arguments.end_with_stdin {
        parent::end_with_stdin()?;
    }
    // Two threads: one may be held up by a checkpoint while the other keeps up the heartbeat.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the asynchronous half")?;
    let settings = settings(arguments)?;
    let result =
        runtime.block_on(async { worker::run(settings, drain()?).await.map_err(anyhow::Error::from) });
    // A training thread that waits for a lost peer must not hold up the end of the process.
    runtime.shutdown_background();
    result?;
    Ok(Ending::Done)
}

fn settings(arguments: &WorkerArguments) -> Result<Settings> {
    let security = arguments.security.read()?;
    let addresses = network::listen_addresses(&arguments.listen, &security)?;
    network::refuse_unspecified(&arguments.listen, &addresses)?;
    Ok(Settings {
        coordinator: arguments.join.clone(),
        access: security.of_worker(&arguments.join)?,
        connect_limit: Duration::from_secs(arguments.connect_timeout_s),
        device: Device::flex(),
        transport: Transport::listen(&arguments.listen)?,
        cache: Some(arguments.cache.blocks()?),
        maps_local_files: !arguments.no_local_files,
        program_version: PROGRAM_VERSION.to_string(),
        description: description(),
    })
}

/// Resolves at the first Ctrl-C or SIGTERM, which lets the workers finish their step. The second ends this
/// process at once.
fn drain() -> Result<impl Future<Output = ()>> {
    let mut interrupts = signal(SignalKind::interrupt()).context("listen for Ctrl-C")?;
    let mut terminations = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let (asked, first) = oneshot::channel();
    tokio::spawn(async move {
        let mut asked = Some(asked);
        loop {
            tokio::select! {
                _ = interrupts.recv() => {}
                _ = terminations.recv() => {}
            }
            match asked.take() {
                // A worker that has ended needs no drain.
                Some(asked) => drop(asked.send(())),
                None => std::process::exit(1),
            }
        }
    });
    Ok(async {
        if first.await.is_err() {
            pending::<()>().await;
        }
    })
}

/// Host and process, for people.
fn description() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{host}, process {}", std::process::id())
}
