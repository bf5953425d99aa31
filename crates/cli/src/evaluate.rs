//! The program `evaluate`: figures of a checkpoint, as result cards.

mod beside_training;
mod embed;
mod finetune;
mod import;
mod linear;
mod report;
mod table;
mod watch;

use std::mem::discriminant;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::sleep;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use evaluation::{
    Card, DataSource, Encoder, Findings, Input, Job, Names, Phase, QualitySettings, before_loading, export,
    present_place,
};
use recipe::{Data, Recipe, Votes};

use crate::arguments;
use crate::cache::CacheArguments;
use crate::device::DeviceArguments;
use crate::display::Screen;
use crate::exit::{self, Ending};
use crate::logging;

/// Evaluates the encoder of a run, frozen or fine-tuned.
///
/// Each result is printed, and written into the run's folder `evaluations` with its whole protocol and the
/// hashes of weights and data.
#[derive(Debug, Parser)]
#[command(name = "evaluate", version)]
pub struct EvaluateArguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Classify the test images by their nearest neighbours among the labelled training images
    Knn(KnnArguments),
    /// Classify the test images by a linear probe of the frozen features
    Linear(linear::Arguments),
    /// Train the whole network on with labels, then classify the test images: not a measure of frozen features
    Finetune(finetune::Arguments),
    /// Judge the features without labels: effective rank, alignment, uniformity, spread
    Quality(SubjectArguments),
    /// Write the features of pictures into a table: Parquet, CSV or safetensors
    Embed(embed::EmbedArguments),
    /// Make a run of the weights of another program, to evaluate or to train on
    Import(import::ImportArguments),
    /// Write the weights as safetensors under the names of another program
    Export(ExportArguments),
    /// Compute a result card again, and say whether it is equal
    Verify(VerifyArguments),
    /// Write a page about a run, or about how several compare: curves, figures, maps, neighbours, commands
    Report(report::ReportArguments),
}

/// What is evaluated, on what.
#[derive(Debug, clap::Args)]
struct SubjectArguments {
    /// The run's folder, or that of one of its checkpoints
    run: PathBuf,
    #[command(flatten)]
    weights: WeightsArguments,
    /// Other labelled images than the recipe's, such as cifar10:data/cifar-10-batches-bin
    #[arg(long, value_name = "SOURCE:FOLDER", value_parser = parse_data)]
    data: Option<DataSource>,
    /// Leave images at their own size, instead of the training crop's
    #[arg(long)]
    native: bool,
    /// Wait for the run to begin, and evaluate each checkpoint as it is published, until the run is complete
    #[arg(long, conflicts_with_all = ["checkpoint", "random"])]
    watch: bool,
    /// Print the figures as a line of JSON
    #[arg(long)]
    json: bool,
    /// Give way to the workers of this machine, and end with the coordinator that started this process
    #[arg(long, hide = true)]
    beside_training: bool,
    #[command(flatten)]
    device: DeviceArguments,
    #[command(flatten)]
    cache: CacheArguments,
}

#[derive(Debug, clap::Args)]
struct WeightsArguments {
    /// The checkpoint, such as step-000160 [default: the newest whole one]
    #[arg(long, value_name = "NAME", conflicts_with = "random")]
    checkpoint: Option<String>,
    /// The weights of step 0 instead: the baseline that training must beat
    #[arg(long)]
    random: bool,
}

#[derive(Debug, clap::Args)]
struct KnnArguments {
    #[command(flatten)]
    subject: SubjectArguments,
    /// Neighbours that vote, given with --temperature [default: the recipe's settings, usually 200 with 0.1 and 20 with 0.07]
    #[arg(long, requires = "temperature")]
    k: Option<usize>,
    /// How fast a vote's weight falls with distance, given with --k
    #[arg(long, requires = "k")]
    temperature: Option<f64>,
}

#[derive(Debug, clap::Args)]
struct ExportArguments {
    /// The run's folder, or that of one of its checkpoints
    run: PathBuf,
    /// The file to write
    file: PathBuf,
    #[command(flatten)]
    weights: WeightsArguments,
    /// Whose names the tensors get
    #[arg(long, value_enum, default_value_t = NamesArgument::Torchvision)]
    names: NamesArgument,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum NamesArgument {
    /// The backbone alone, as torchvision's ResNet
    Torchvision,
    /// Backbone, projector and predictor, as the official SimSiam code
    Simsiam,
}

#[derive(Debug, clap::Args)]
struct VerifyArguments {
    /// The card, a file of a run's folder `evaluations`
    card: PathBuf,
    /// Where the card's images are now [default: where they were, or else where the run's recipe has them]
    #[arg(long, value_name = "SOURCE:FOLDER", value_parser = parse_data)]
    data: Option<DataSource>,
    #[command(flatten)]
    device: DeviceArguments,
    #[command(flatten)]
    cache: CacheArguments,
}

/// Images that were asked for by name, in a folder that is there.
fn parse_data(text: &str) -> Result<DataSource, String> {
    let source: DataSource = text.parse()?;
    if source.folder().is_dir() {
        return Ok(source);
    }
    Err(format!("expected a folder at {}, found none; correct the path", source.folder().display()))
}

/// The program `evaluate`.
pub fn main() -> ExitCode {
    exit::code(run(arguments::parse::<EvaluateArguments>()))
}

/// Does what the arguments ask for.
pub(crate) fn run(arguments: EvaluateArguments) -> Result<Ending> {
    let screen = Screen::stderr();
    logging::start(&screen);
    let progress = &mut |phase, done, total| screen.action(done, total, describe(phase).to_string());
    let tell = |answer: String| {
        screen.finish();
        exit::answer(&answer);
    };
    let outcome = match arguments.command {
        Command::Knn(arguments) => {
            let own =
                arguments.k.zip(arguments.temperature).map(|(k, temperature)| vec![Votes { k, temperature }]);
            arguments.subject.evaluate(&screen, |job| {
                let votes = own.as_ref().unwrap_or(&job.encoder.recipe().evaluation.knn);
                Ok(job.knn(votes, progress)?)
            })
        }
        Command::Linear(arguments) => arguments.run(&screen, progress),
        Command::Finetune(arguments) => arguments.run(&screen, progress),
        Command::Quality(subject) => {
            subject.evaluate(&screen, |job| Ok(job.quality(&QualitySettings::default(), progress)?.into()))
        }
        Command::Embed(arguments) => arguments.run(progress).map(tell),
        Command::Import(arguments) => arguments.run(&screen).map(tell),
        Command::Export(arguments) => arguments.run().map(tell),
        Command::Verify(arguments) => arguments.run(progress).map(tell),
        Command::Report(arguments) => arguments.run(progress).map(tell),
    };
    screen.finish();
    outcome?;
    Ok(Ending::Done)
}

fn describe(phase: Phase) -> &'static str {
    match phase {
        Phase::TrainFeatures => "features of the training images",
        Phase::TestFeatures => "features of the test images",
        Phase::Neighbours => "nearest neighbours",
        Phase::Probe => "fits of the probe",
        Phase::Features => "features",
        Phase::ViewFeatures => "features of views",
        Phase::LinearTraining => "training of the linear layer",
        Phase::FineTuning => "fine-tuning",
        Phase::TestAnswers => "answers on the test images",
    }
}

impl SubjectArguments {
    /// Runs a job on the weights that are asked for; for each writes what it found and tells the figures.
    fn evaluate(&self, screen: &Screen, mut job: impl FnMut(&Job) -> Result<Findings>) -> Result<()> {
        if self.beside_training {
            beside_training::begin()?;
        }
        if !self.watch {
            let findings = self.find(&self.weights.open(&self.run)?, &mut job)?;
            return self.keep(screen, &findings);
        }
        watch::each_checkpoint(
            &self.run,
            screen,
            || sleep(watch::INTERVAL),
            |name| self.find(&Encoder::open(&self.run, Some(name))?, &mut job),
            |findings| self.keep(screen, &findings),
        )
    }

    fn find(&self, encoder: &Encoder, job: &mut impl FnMut(&Job) -> Result<Findings>) -> Result<Findings> {
        // Refused now rather than after the job, which may take hours.
        Findings::prepare(&self.evaluations()?)?;
        let recipe = encoder.recipe();
        let data = self.data.as_ref().map_or_else(|| recipe.labelled_data().clone(), |data| data.of(recipe));
        job(&Job {
            encoder,
            data: &data,
            input: if self.native { Input::Native } else { Input::Crop },
            cache_dir: &self.cache.folder(),
            device: &self.device.open(&self.cache.folder())?,
        })
    }

    fn evaluations(&self) -> Result<PathBuf> {
        Ok(run_folder(&self.run)?.join("evaluations"))
    }

    /// Writes what was found, and tells the figures, those that cannot be written, too.
    fn keep(&self, screen: &Screen, findings: &Findings) -> Result<()> {
        screen.finish();
        let folder = self.evaluations()?;
        let written = findings.write(&folder);
        self.tell(findings, &folder, written.is_ok())?;
        Ok(written?)
    }

    fn tell(&self, findings: &Findings, folder: &Path, are_written: bool) -> Result<()> {
        let summary = findings.summary(folder);
        exit::answer(&match self.json {
            true => serde_json::to_string(&summary).context("write the figures as JSON")?,
            false => {
                let files =
                    [Some(summary.card), summary.picture].into_iter().flatten().filter(|_| are_written);
                let files: String = files.map(|file| format!("\n{}", file.display())).collect();
                format!("{}{files}", table::of(&findings.card))
            }
        });
        Ok(())
    }
}

impl WeightsArguments {
    fn open(&self, run: &Path) -> Result<Encoder> {
        if self.random {
            return Ok(Encoder::random_of(&run_folder(run)?)?);
        }
        Ok(Encoder::open(run, self.checkpoint.as_deref())?)
    }
}

/// The run's folder, of a path to it or to one of its checkpoints.
fn run_folder(path: &Path) -> Result<PathBuf> {
    let real = std::fs::canonicalize(path).with_context(|| format!("open {}", path.display()))?;
    let above = real.parent().and_then(Path::parent).filter(|run| run.join("recipe.toml").is_file());
    match above {
        Some(run) if !real.join("recipe.toml").is_file() => Ok(run.to_path_buf()),
        _ => Ok(path.to_path_buf()),
    }
}

impl ExportArguments {
    fn run(&self) -> Result<String> {
        let encoder = self.weights.open(&self.run)?;
        let names = match self.names {
            NamesArgument::Torchvision => Names::Torchvision,
            NamesArgument::Simsiam => Names::Simsiam,
        };
        export(&encoder, names, &self.file)?;
        let told = before_loading(&encoder.recipe().model, names).map(|lines| format!("\n{lines}"));
        let (checkpoint, file) = (encoder.identity().short_name(), self.file.display());
        Ok(format!("{checkpoint} as {file}{}", told.unwrap_or_default()))
    }
}

impl VerifyArguments {
    fn run(&self, progress: &mut evaluation::Progress<'_>) -> Result<String> {
        let card = Card::read(&self.card)?;
        let run = run_folder(&self.card)?;
        ensure!(
            run.is_dir(),
            "{}: expected a card within its run, as RUN/evaluations/CARD beside RUN/recipe.toml, found it elsewhere; \
             verify the one that lies there",
            self.card.display()
        );
        let encoder = Encoder::reopen(&run, &card.weights)?;
        let job = Job {
            encoder: &encoder,
            data: &self.images(&card, encoder.recipe())?,
            input: card.input.input,
            cache_dir: &self.cache.folder(),
            device: &self.device.open(&self.cache.folder())?,
        };
        let differences = job.verify(&card, progress)?;
        if differences.is_empty() {
            return Ok(format!("{}: equal", self.card.display()));
        }
        let lines: Vec<String> = differences
            .iter()
            .map(|one| format!("\n  {}: the card has {}, found {}", one.field, one.expected, one.found))
            .collect();
        bail!("{} is not what is computed again:{}", self.card.display(), lines.concat())
    }

    /// The card's images, where they are now.
    fn images(&self, card: &Card, recipe: &Recipe) -> Result<Data> {
        let source = &card.data.source;
        let Some(asked) = &self.data else { return Ok(present_place(source, recipe)) };
        let asked_data = asked.of(recipe);
        ensure!(
            discriminant(source) == discriminant(&asked_data),
            "--data {asked}: expected images of the card's kind, {}; name their folder",
            card.data.name
        );
        Ok(source.moved_to(&asked_data))
    }
}
