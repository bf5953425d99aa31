//! The program `coordinator`: trains, and prepares for it.

mod check;
mod fetch;
mod train;
mod views;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};

use crate::cache::CacheArguments;
use crate::device::DeviceArguments;
use crate::evaluate::{self, EvaluateArguments};
use crate::exit::{self, Ending};
use crate::recipe_source::RecipeArguments;
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
    /// Take part in a run, as the program `worker` does
    Worker(WorkerArguments),
    /// Judge an encoder, as the program `evaluate` does
    Evaluate(EvaluateArguments),
}

#[derive(Debug, clap::Args)]
struct TrainArguments {
    #[command(flatten)]
    recipe: RecipeArguments,
    /// Go on with a run: with the one in FOLDER, or with the one of this recipe's name
    #[arg(long, value_name = "FOLDER", num_args = 0..=1)]
    resume: Option<Option<PathBuf>>,
    /// Folder that holds the runs, each in a folder of its name
    #[arg(long, value_name = "FOLDER", default_value = "runs")]
    out: PathBuf,
    /// Worker processes to start on this machine [default: 1, or those of the coordinator that --resume replaces]
    #[arg(long, value_name = "COUNT")]
    workers: Option<u32>,
    /// Workers that join from elsewhere with `worker --join`; the run begins when all are here [default: 0, or those
    /// of the coordinator that --resume replaces]
    #[arg(long, value_name = "COUNT")]
    remote_workers: Option<u32>,
    #[command(flatten)]
    losses: LossArguments,
    /// Address for the workers; port 0 takes a free one [default: 127.0.0.1:0, or that of the coordinator that
    /// --resume replaces, where workers look for it]
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// Allow --listen on an address that other machines reach, without authentication
    #[arg(long)]
    insecure_network: bool,
    #[command(flatten)]
    device: DeviceArguments,
    #[command(flatten)]
    cache: CacheArguments,
}

#[derive(Debug, clap::Args)]
struct LossArguments {
    /// What the loss of a worker means once the run has begun
    #[arg(long, value_enum, default_value_t = OnFailure::Shrink)]
    on_failure: OnFailure,
    /// With how few workers `--on-failure shrink` goes on; with fewer the run waits for more
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    min_workers: u32,
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
struct CheckArguments {
    #[command(flatten)]
    recipe: RecipeArguments,
    /// Worker processes that the run would have
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    workers: u32,
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
struct ViewsArguments {
    #[command(flatten)]
    recipe: RecipeArguments,
    /// The picture to write
    #[arg(long, value_name = "FILE", default_value = "views.png")]
    picture: PathBuf,
    /// Images to show
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
    exit::code(run(Arguments::parse()))
}

fn run(arguments: Arguments) -> Result<Ending> {
    match arguments.command {
        None => train::run(&arguments.train),
        Some(Command::Check(arguments)) => check::run(&arguments),
        Some(Command::Fetch(arguments)) => fetch::run(&arguments),
        Some(Command::Views(arguments)) => views::run(&arguments),
        Some(Command::Worker(arguments)) => worker::run(&arguments),
        Some(Command::Evaluate(arguments)) => evaluate::run(arguments),
    }
}
