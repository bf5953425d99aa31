//! The program `coordinator`: trains, and prepares for it.

mod ask;
mod certs;
mod check;
mod fetch;
mod forecast;
mod manual;
mod prepare;
mod resume;
mod status;
mod token;
mod top;
mod trace;
mod train;
mod views;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use protocol::TOKEN_FILE_VARIABLE;

use crate::advertise::AdvertiseArguments;
use crate::arguments;
use crate::cache::CacheArguments;
use crate::dashboard::DashboardArguments;
use crate::device::DeviceArguments;
use crate::evaluate::{self, EvaluateArguments};
use crate::exit::{self, Ending};
use crate::medium::MediumArguments;
use crate::network::launcher_variable;
use crate::recipe_source::RecipeArguments;
use crate::security::SecurityArguments;
use crate::worker::{self, WorkerArguments};

/// Trains SimSiam on unlabeled images with one or many workers.
///
/// Without a recipe it trains the built-in `quickstart`: drawn images, a narrow network, about a minute.
#[derive(Debug, Parser)]
#[command(name = "coordinator", version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    train: TrainArguments,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Validate a recipe and print it, its schedule, memory and communication, without starting anything
    Check(CheckArguments),
    /// Download a public data set; a download that was interrupted goes on where it was
    Fetch(FetchArguments),
    /// Draw a picture of the views that a recipe makes, to look at them
    Views(ViewsArguments),
    /// Draw a token, the secret that workers from elsewhere need, into a new file
    Token(TokenArguments),
    /// Make certificates for TLS between coordinator and workers, where nobody else makes them
    Certs(CertsArguments),
    /// Say where a run stands: as its coordinator answers, or as its files tell
    Status(StatusArguments),
    /// Watch a run on the whole terminal: its curves, workers and faults, until q is pressed
    Top(TopArguments),
    /// Write a trace of some steps of all workers for Perfetto or Chrome, and say who the others waited for
    Trace(TraceArguments),
    /// Ask a run that is under way to pause, continue, save or stop, by its dashboard
    Ask(AskArguments),
    /// Print what a shell needs to complete the arguments of coordinator, worker and evaluate
    Completions(CompletionsArguments),
    /// Write the manual pages of coordinator, worker and evaluate
    Man(ManArguments),
    /// Take part in a run, as the program `worker` does
    Worker(WorkerArguments),
    /// Judge an encoder, as the program `evaluate` does
    Evaluate(EvaluateArguments),
}

#[derive(Debug, clap::Args)]
struct TrainArguments {
    #[command(flatten)]
    recipe: RecipeArguments,
    /// Go on with a run: with the one in FOLDER, or with the one of this recipe's name. Its own recipe counts; where its images
    /// have moved, --set data.path says so
    #[arg(long, value_name = "FOLDER", num_args = 0..=1)]
    resume: Option<Option<PathBuf>>,
    /// Go on with the run of this recipe's name if it was begun, else begin it: for what starts a coordinator again
    #[arg(long, conflicts_with = "resume")]
    resume_or_begin: bool,
    /// Folder that holds the runs, each in a folder of its name
    #[arg(long, value_name = "FOLDER", default_value = "runs", env = "SIMSIAM_OUT")]
    out: PathBuf,
    /// Worker processes to start on this machine [default: 1, or those of the coordinator that --resume replaces]
    #[arg(long, value_name = "COUNT", env = "SIMSIAM_WORKERS")]
    workers: Option<u32>,
    /// Workers that join from elsewhere with `worker --join`; the run begins when all are here [default: 0, or those
    /// of the coordinator that --resume replaces; with --workers 0 the variable WORLD_SIZE, where a launcher has set it]
    #[arg(long, value_name = "COUNT", env = "SIMSIAM_REMOTE_WORKERS")]
    remote_workers: Option<u32>,
    #[command(flatten)]
    losses: LossArguments,
    /// Address for the workers; port 0 takes a free one, and 0.0.0.0 or [::] all of this machine's addresses [default:
    /// 127.0.0.1:0, or that of the coordinator that --resume replaces, where workers look for it]
    #[arg(long, value_name = "HOST:PORT", env = "SIMSIAM_LISTEN")]
    listen: Option<String>,
    #[command(flatten)]
    advertise: AdvertiseArguments,
    #[command(flatten)]
    dashboard: DashboardArguments,
    #[command(flatten)]
    medium: MediumArguments,
    #[command(flatten)]
    security: SecurityArguments,
    #[command(flatten)]
    device: DeviceArguments,
    #[command(flatten)]
    cache: CacheArguments,
}

impl TrainArguments {
    /// Where nobody says how many workers there are, a launcher's `world_size` does. Beside workers of this machine it
    /// would mean something else, so a variable that is left over from elsewhere changes nothing there.
    fn completed_by(mut self, world_size: Option<String>) -> Result<TrainArguments> {
        if self.workers == Some(0)
            && self.remote_workers.is_none()
            && let Some(count) = world_size
        {
            let count =
                count.parse().with_context(|| format!("WORLD_SIZE={count}: expected a number of workers"))?;
            self.remote_workers = Some(count);
        }
        Ok(self)
    }
}

#[derive(Debug, clap::Args)]
struct LossArguments {
    /// What the loss of a worker means once the run has begun
    #[arg(long, value_enum, default_value_t = OnFailure::Shrink)]
    on_failure: OnFailure,
    /// With how few workers `--on-failure shrink` goes on; with fewer the run waits for more
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    min_workers: u32,
    /// With how many workers at most: beyond those that the run waits for, others may join while it trains, and get
    /// shards [default: as many as it waits for]
    #[arg(long, value_name = "COUNT")]
    max_workers: Option<u32>,
    /// Let workers compute on different kinds of CPUs, or of GPUs, which round differently: then the result depends on
    /// who computes what. A CPU beside a GPU is refused all the same
    #[arg(long)]
    mixed_devices: bool,
    /// Silence after which a worker counts as lost, in seconds; each sends a sign of life every second
    #[arg(long, value_name = "SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u64).range(2..=3600))]
    heartbeat_timeout_s: u64,
    /// How long to wait for missing workers, at the beginning and after a loss, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    join_timeout_s: u64,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum OnFailure {
    /// The others take over its shards at once; a worker that comes in its place gets some back
    Shrink,
    /// The others wait for a worker in its place
    Wait,
    /// The run ends, and goes on with --resume
    Abort,
}

#[derive(Debug, clap::Args)]
struct StatusArguments {
    #[command(flatten)]
    whom: WhomArguments,
    /// Say it again and again, until the run has ended
    #[arg(long)]
    watch: bool,
    /// Seconds from one time to the next, with --watch
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    interval_s: u64,
    /// Print it as a line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct TopArguments {
    #[command(flatten)]
    whom: WhomArguments,
    /// Seconds from one look to the next
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval_s: u64,
}

#[derive(Debug, clap::Args)]
struct TraceArguments {
    /// The folder of a run, under way or over [default: the run in the folder of --out that was written to last]
    #[arg(value_name = "RUN")]
    run: Option<PathBuf>,
    /// How many steps
    #[arg(long, value_name = "COUNT", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    steps: u64,
    /// From which step on [default: the last ones]
    #[arg(long, value_name = "STEP")]
    from: Option<u64>,
    /// The file to write [default: trace.json in the run's folder]
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
    /// Folder that holds the runs
    #[arg(long, value_name = "FOLDER", default_value = "runs", env = "SIMSIAM_OUT")]
    out: PathBuf,
}

#[derive(Debug, clap::Args)]
struct AskArguments {
    /// What to do
    #[arg(value_enum)]
    what: Wish,
    /// Which worker is meant: its number, as `coordinator status` shows it
    #[arg(long, value_name = "NUMBER", required_if_eq("what", "drain"))]
    worker: Option<u64>,
    #[command(flatten)]
    whom: WhomArguments,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Wish {
    /// Make no more steps for now; the workers stay
    Pause,
    /// Go on after a pause
    Continue,
    /// Save after the step in hand, in a pause at once, and change nothing else
    Save,
    /// Finish the step in hand, save, and end
    Stop,
    /// Let one worker leave after the step in hand; the others go on
    Drain,
}

/// Which run is meant, and what its dashboard is shown.
#[derive(Debug, clap::Args)]
struct WhomArguments {
    /// The folder of a run, or the address of its dashboard, such as http://127.0.0.1:7080 [default: the run in the
    /// folder of --out that was written to last]
    #[arg(value_name = "RUN|URL")]
    run: Option<String>,
    /// Folder that holds the runs
    #[arg(long, value_name = "FOLDER", default_value = "runs", env = "SIMSIAM_OUT")]
    out: PathBuf,
    /// File with the token of the run, for a dashboard that others reach; without this it is taken from SIMSIAM_TOKEN
    #[arg(long, value_name = "FILE", env = TOKEN_FILE_VARIABLE)]
    token_file: Option<PathBuf>,
    /// Show the token without TLS to another machine: whoever sees the traffic can then read it
    #[arg(long, env = "SIMSIAM_INSECURE_NETWORK", value_parser = clap::builder::FalseyValueParser::new())]
    insecure_network: bool,
}

#[derive(Debug, clap::Args)]
struct CompletionsArguments {
    /// For which shell
    shell: manual::Shell,
}

#[derive(Debug, clap::Args)]
struct ManArguments {
    /// Folder for the pages
    #[arg(default_value = "man")]
    folder: PathBuf,
}

#[derive(Debug, clap::Args)]
struct CheckArguments {
    #[command(flatten)]
    recipe: RecipeArguments,
    /// Worker processes that the run would have
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    workers: u32,
    /// Folder that would hold the run
    #[arg(long, value_name = "FOLDER", default_value = "runs", env = "SIMSIAM_OUT")]
    out: PathBuf,
    /// Make some steps on the device, and say how long the run takes here and with 8, 64 and 512 workers over several
    /// kinds of network
    #[arg(long)]
    forecast: bool,
    #[command(flatten)]
    device: DeviceArguments,
    #[command(flatten)]
    cache: CacheArguments,
}

#[derive(Debug, clap::Args)]
struct FetchArguments {
    /// Which one
    data_set: DataSet,
    /// Folder in which the data set's own folder is made
    #[arg(long, value_name = "FOLDER", default_value = "data")]
    folder: PathBuf,
    /// A mirror of the archive; what it serves must have the published checksum
    #[arg(long)]
    url: Option<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DataSet {
    /// 100,000 unlabeled images of 96x96 pixels, and 13,000 labelled ones: 2.6 GB
    Stl10,
    /// 60,000 labelled images of 32x32 pixels: 170 MB
    Cifar10,
}

#[derive(Debug, clap::Args)]
struct TokenArguments {
    /// The file to make, which only you can read
    file: PathBuf,
}

#[derive(Debug, clap::Args)]
struct CertsArguments {
    /// Folder for the certificates and their keys, which only you can read
    folder: PathBuf,
    /// Name or address by which workers reach the coordinator, beside this machine's own ones; may be given often
    #[arg(long = "host", value_name = "NAME", num_args = 1..)]
    hosts: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct ViewsArguments {
    #[command(flatten)]
    recipe: RecipeArguments,
    /// The picture to write
    #[arg(long, value_name = "FILE", default_value = "views.png")]
    picture: PathBuf,
    /// Images of shard 0 to show
    #[arg(long, value_name = "COUNT", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=64))]
    images: u32,
    /// Pairs of views of each image
    #[arg(long, value_name = "COUNT", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=16))]
    pairs: u32,
    #[command(flatten)]
    cache: CacheArguments,
}

/// The program `coordinator`.
pub fn main() -> ExitCode {
    exit::code(run(arguments::parse::<Arguments>()))
}

fn run(arguments: Arguments) -> Result<Ending> {
    match arguments.command {
        None => train::run(&arguments.train.completed_by(launcher_variable("WORLD_SIZE"))?),
        Some(Command::Check(arguments)) => check::run(&arguments),
        Some(Command::Fetch(arguments)) => fetch::run(&arguments),
        Some(Command::Views(arguments)) => views::run(&arguments),
        Some(Command::Token(arguments)) => token::run(&arguments),
        Some(Command::Certs(arguments)) => certs::run(&arguments),
        Some(Command::Status(arguments)) => status::run(&arguments),
        Some(Command::Top(arguments)) => top::run(&arguments),
        Some(Command::Trace(arguments)) => trace::run(&arguments),
        Some(Command::Ask(arguments)) => ask::run(&arguments),
        Some(Command::Completions(arguments)) => manual::completions(&arguments),
        Some(Command::Man(arguments)) => manual::pages(&arguments),
        Some(Command::Worker(arguments)) => worker::run(&arguments),
        Some(Command::Evaluate(arguments)) => evaluate::run(arguments),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_launchers_count_is_taken_where_nothing_else_says_it() {
        for (flags, world_size, expected) in [
            (&["--workers=0"][..], Some("4"), Some(4)),
            (&["--workers=0", "--remote-workers=2"], Some("4"), Some(2)),
            (&["--workers=2"], Some("4"), Some(0)),
            (&[], None, Some(0)),
            (&["--workers=0"], Some("four"), None),
        ] {
            let arguments = Arguments::parse_from(["coordinator"].iter().chain(flags)).train;
            let completed = arguments.completed_by(world_size.map(str::to_string));
            assert_eq!(
                completed.ok().map(|train| train.remote_workers.unwrap_or(0)),
                expected,
                "{flags:?} {world_size:?}"
            );
        }
    }
}
