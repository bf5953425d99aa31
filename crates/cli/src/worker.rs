//! The program `worker`, and the worker's role of the program `coordinator`.

mod replay;

use std::ffi::OsString;
use std::future::pending;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::Instant;
use worker::{Settings, Transport, WorkerError};

use self::replay::ReplayArguments;
use crate::advertise::AdvertiseArguments;
use crate::arguments;
use crate::cache::CacheArguments;
use crate::device::DeviceArguments;
use crate::exit::{self, Ending};
use crate::medium::MediumArguments;
use crate::security::SecurityArguments;
use crate::stop_signals::StopSignals;
use crate::{PROGRAM_VERSION, logging, network, parent};

/// Takes part in a run: trains on the shards that the coordinator leases to it.
///
/// A worker needs no data and no recipe; both come from the coordinator.
#[derive(Debug, Parser)]
#[command(name = "worker", version, args_conflicts_with_subcommands = true)]
pub struct WorkerArguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// The coordinator's address [default: MASTER_ADDR:MASTER_PORT where a launcher other than torchrun has
    /// set these variables]
    #[arg(long, value_name = "HOST:PORT", env = "SIMSIAM_JOIN")]
    join: Option<String>,
    /// Address for the gradients of the other workers; port 0 takes a free one, and 0.0.0.0 or [::] all of this
    /// machine's addresses
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:0", env = "SIMSIAM_LISTEN")]
    listen: String,
    #[command(flatten)]
    advertise: AdvertiseArguments,
    #[command(flatten)]
    medium: MediumArguments,
    #[command(flatten)]
    security: SecurityArguments,
    /// How long to look for the coordinator, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, env = "SIMSIAM_CONNECT_TIMEOUT_S", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    connect_timeout_s: u64,
    /// How long to train on without the coordinator once it is lost, and to look for it, in seconds; then this worker
    /// ends
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(0..=86_400))]
    coordinator_timeout_s: u64,
    /// Fetch all images from the coordinator, even where this machine sees the same files
    #[arg(long)]
    no_local_files: bool,
    #[command(flatten)]
    device: DeviceArguments,
    #[command(flatten)]
    cache: CacheArguments,
    /// End when standard input closes: the coordinator that started this worker is gone then
    #[arg(long, hide = true)]
    end_with_stdin: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    Replay(ReplayArguments),
}

/// The program `worker`.
pub fn main() -> ExitCode {
    exit::code(run(&arguments::parse::<WorkerArguments>()))
}

/// The arguments with which a coordinator that listens on `address` starts a worker of its own. It listens where the
/// coordinator does, so that workers of other machines reach it as they reach the coordinator.
pub(crate) fn arguments_for_local(
    address: SocketAddr,
    security: &SecurityArguments,
    advertise: &AdvertiseArguments,
    medium: &MediumArguments,
    cache: &CacheArguments,
) -> Vec<OsString> {
    let mut own = vec!["worker".to_string(), "--end-with-stdin".to_string()];
    own.push(format!("--join={}", on_this_machine(address)));
    own.extend(network_flags(address.ip(), security.insecure_network));
    own.extend(advertise.advertise.iter().map(|advertise| format!("--advertise={advertise}")));
    own.push(medium.to_argument());
    let own = own.into_iter().map(OsString::from);
    own.chain(security.for_local_worker()).chain(cache.to_arguments()).collect()
}

/// Where this machine's own processes reach who listens on `address`.
fn on_this_machine(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// The flags of a worker in the network of `ip`.
pub(crate) fn network_flags(ip: IpAddr, insecure_network: bool) -> Vec<String> {
    let flag = insecure_network.then(|| "--insecure-network".to_string());
    [format!("--listen={}", SocketAddr::new(ip, 0))].into_iter().chain(flag).collect()
}

/// Works until the coordinator dismisses this worker.
pub(crate) fn run(arguments: &WorkerArguments) -> Result<Ending> {
    if let Some(Command::Replay(arguments)) = &arguments.command {
        return replay::run(arguments);
    }
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
    let result = runtime.block_on(async {
        let settings = settings(arguments).await?;
        Ok(match worker::run(settings, drain()?).await {
            // Not the end of the run: whatever starts workers again is to do it.
            Err(error @ (WorkerError::Stopped { .. } | WorkerError::NotJoined)) => {
                tracing::info!("{error}");
                Ending::Terminated
            }
            Err(error @ WorkerError::Complete) => {
                tracing::info!("{error}");
                Ending::Done
            }
            ended => ended.map(|()| Ending::Done)?,
        })
    });
    // A training thread that waits for a lost peer must not hold up the end of the process.
    runtime.shutdown_background();
    result
}

async fn settings(arguments: &WorkerArguments) -> Result<Settings> {
    let security = arguments.security.read()?;
    let addresses = network::listen_addresses("--listen", &arguments.listen, &security)?;
    let coordinator = coordinator(arguments.join.as_deref(), network::launcher_variable)?;
    let access = security.of_worker(&coordinator)?;
    let connect_limit = Duration::from_secs(arguments.connect_timeout_s);
    let transport = Transport::listen(&arguments.listen, arguments.medium.medium())?;
    let place = arguments.advertise.place(&addresses, &coordinator, Instant::now() + connect_limit).await?;
    let transport = match &place {
        Some(place) => transport.advertised_as(&place.host, place.port),
        None => transport,
    };
    Ok(Settings {
        coordinator,
        access,
        connect_limit,
        // One that was started by its coordinator ends with it in any case.
        absence_limit: Duration::from_secs(match arguments.end_with_stdin {
            true => 0,
            false => arguments.coordinator_timeout_s,
        }),
        device: arguments.device.open(&arguments.cache.folder())?,
        transport,
        cache: Some(arguments.cache.blocks()?),
        maps_local_files: !arguments.no_local_files,
        program_version: PROGRAM_VERSION.to_string(),
        description: description(),
    })
}

/// Where the coordinator is: as given, or as a launcher's variables say. torchrun's own store listens at the address in
/// these variables, so no coordinator can be there.
fn coordinator(join: Option<&str>, variable: impl Fn(&str) -> Option<String>) -> Result<String> {
    match (join, variable("MASTER_ADDR"), variable("MASTER_PORT")) {
        (Some(join), ..) => Ok(join.to_string()),
        _ if variable("TORCHELASTIC_RUN_ID").is_some() => bail!(
            "where is the coordinator? torchrun keeps MASTER_PORT for itself, so give the coordinator another port, and name \
             it: SIMSIAM_JOIN=HOST:PORT torchrun --nproc-per-node 2 --no-python worker ..."
        ),
        (None, Some(host), Some(port)) if host.contains(':') && !host.starts_with('[') => {
            Ok(format!("[{host}]:{port}"))
        }
        (None, Some(host), Some(port)) => Ok(format!("{host}:{port}")),
        _ => bail!(
            "where is the coordinator? give --join HOST:PORT, or set SIMSIAM_JOIN, or MASTER_ADDR and MASTER_PORT"
        ),
    }
}

/// Resolves at the first Ctrl-C or SIGTERM, which lets the workers finish their step. The second ends this
/// process at once.
fn drain() -> Result<impl Future<Output = ()>> {
    let mut interrupts = signal(SignalKind::interrupt()).context("listen for Ctrl-C")?;
    let mut terminations = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let (asked, first) = oneshot::channel();
    tokio::spawn(async move {
        let (mut asked, mut signals) = (Some(asked), StopSignals::default());
        loop {
            tokio::select! {
                _ = interrupts.recv() => {}
                _ = terminations.recv() => {}
            }
            if !signals.counts(Instant::now().into_std()) {
                continue;
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
    format!("{}, process {}", network::host_name(), std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_coordinator_is_where_the_flag_or_the_launcher_says() {
        for (join, host, port, expected) in [
            (Some("a:7070"), Some("b"), Some("29500"), Some("a:7070")),
            (None, Some("b"), Some("29500"), Some("b:29500")),
            (None, Some("2001:db8::7"), Some("29500"), Some("[2001:db8::7]:29500")),
            (None, Some("b"), None, None),
            (None, None, Some("29500"), None),
        ] {
            let variable = |name: &str| match name {
                "MASTER_ADDR" => host.map(str::to_string),
                "MASTER_PORT" => port.map(str::to_string),
                _ => None,
            };
            assert_eq!(coordinator(join, variable).ok().as_deref(), expected, "{join:?} {host:?} {port:?}");
        }
    }

    #[test]
    fn torchruns_address_is_not_the_coordinators() {
        let variable = |name: &str| Some(format!("of-{name}"));
        let error = coordinator(None, variable).unwrap_err().to_string();
        assert!(error.contains("torchrun keeps MASTER_PORT") && error.contains("SIMSIAM_JOIN="), "{error}");
        assert_eq!(coordinator(Some("a:7070"), variable).unwrap(), "a:7070");
    }

    #[test]
    fn a_coordinator_on_all_addresses_is_near_for_its_own_workers() {
        for (address, near) in
            [("0.0.0.0:7070", "127.0.0.1:7070"), ("[::]:7070", "[::1]:7070"), ("192.0.2.7:1", "192.0.2.7:1")]
        {
            assert_eq!(on_this_machine(address.parse().unwrap()).to_string(), near);
        }
    }
}
