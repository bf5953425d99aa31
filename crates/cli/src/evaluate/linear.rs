//! `evaluate linear`: a linear probe of frozen features, by one of two protocols.

use anyhow::{Result, bail};
use clap::ValueEnum;
use evaluation::{OfficialSettings, Optimizer, ProbeSettings, Progress};

use super::SubjectArguments;
use crate::display::Screen;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    subject: SubjectArguments,
    /// How the probe is fitted
    #[arg(long, value_enum, default_value_t = Protocol::Cached)]
    protocol: Protocol,
    /// STL-10's official folds of 1,000 training images, mean and standard deviation; with --protocol cached
    #[arg(long)]
    folds: bool,
    #[command(flatten)]
    official: OfficialArguments,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Protocol {
    /// A logistic regression on features that are computed once, solved to convergence: quick, nothing to tune
    Cached,
    /// A layer trained as SimSiam's authors do it, on random crops and flips in each epoch: one pass of the
    /// network over all training images for each epoch
    Official,
}

/// Absent is the default of the optimizer.
#[derive(Debug, Clone, PartialEq, clap::Args)]
#[command(next_help_heading = "With --protocol official")]
struct OfficialArguments {
    /// Which rule of the steps [default: sgd]
    #[arg(long, value_enum)]
    optimizer: Option<OptimizerArgument>,
    /// Passes over the training images [default: 90]
    #[arg(long)]
    epochs: Option<u64>,
    /// Images in a step [default: 256, with LARS 4096]
    #[arg(long)]
    batch: Option<usize>,
    /// The learning rate at a batch of 256; of a few thousand images, 3 makes more than the 30 of ImageNet does
    /// [default: 30, with LARS 0.1]
    #[arg(long, value_name = "RATE")]
    learning_rate: Option<f64>,
    /// Another draw of first weights, orders and views [default: 0]
    #[arg(long)]
    seed: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OptimizerArgument {
    /// SGD with momentum, for data of any size
    Sgd,
    /// LARS with batches of thousands: needs 50,000 training images or more to get anywhere
    Lars,
}

impl Arguments {
    pub(super) fn run(&self, screen: &Screen, progress: &mut Progress<'_>) -> Result<()> {
        match self.protocol {
            Protocol::Cached => {
                if let Some(option) = self.official.first_given() {
                    bail!(
                        "{option} needs --protocol official: the cached features are fitted to convergence"
                    );
                }
                let settings = ProbeSettings::default();
                self.subject.evaluate(screen, |job| {
                    let card = if self.folds {
                        job.linear_folds(&settings, progress)
                    } else {
                        job.linear(&settings, progress)
                    };
                    Ok(card?.into())
                })
            }
            Protocol::Official if self.folds => {
                bail!("--folds needs --protocol cached: leave out one of --folds and --protocol official")
            }
            Protocol::Official => {
                let settings = self.official.settings();
                self.subject.evaluate(screen, |job| Ok(job.linear_official(&settings, progress)?.into()))
            }
        }
    }
}

impl OfficialArguments {
    fn settings(&self) -> OfficialSettings {
        let usual = OfficialSettings::usual(match self.optimizer {
            None | Some(OptimizerArgument::Sgd) => Optimizer::Sgd,
            Some(OptimizerArgument::Lars) => Optimizer::Lars,
        });
        OfficialSettings {
            epochs: self.epochs.unwrap_or(usual.epochs),
            batch: self.batch.unwrap_or(usual.batch),
            base_learning_rate: self.learning_rate.unwrap_or(usual.base_learning_rate),
            seed: self.seed.unwrap_or(usual.seed),
            ..usual
        }
    }

    /// An option that was given, for errors.
    fn first_given(&self) -> Option<&'static str> {
        let given = [
            ("--optimizer", self.optimizer.is_some()),
            ("--epochs", self.epochs.is_some()),
            ("--batch", self.batch.is_some()),
            ("--learning-rate", self.learning_rate.is_some()),
            ("--seed", self.seed.is_some()),
        ];
        given.into_iter().find(|(_, given)| *given).map(|(option, _)| option)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn parse(options: &[&str]) -> Arguments {
        Program::parse_from([&["linear", "runs/none"], options].concat()).arguments
    }

    #[test]
    fn options_of_the_other_protocol_are_refused_before_anything_is_read() {
        for (options, phrase) in [
            (&["--batch", "8"][..], "--batch needs --protocol official"),
            (&["--protocol", "cached", "--optimizer", "lars"], "--optimizer needs --protocol official"),
            (&["--seed", "0", "--folds"], "--seed needs --protocol official"),
            (&["--protocol", "official", "--folds"], "--folds needs --protocol cached"),
        ] {
            let error =
                parse(options).run(&Screen::plain(|_| {}), &mut |_, _, _| {}).unwrap_err().to_string();
            assert!(error.contains(phrase), "{error:?} lacks {phrase:?}");
        }
    }

    #[test]
    fn what_is_not_given_is_the_optimizers_default() {
        let settings = |options: &[&str]| parse(options).official.settings();
        assert_eq!(settings(&[]), OfficialSettings::usual(Optimizer::Sgd));
        assert_eq!(settings(&["--optimizer", "lars"]), OfficialSettings::usual(Optimizer::Lars));
        let options = ["--optimizer", "lars", "--batch", "512", "--learning-rate", "0.4", "--epochs", "7"];
        let given = settings(&options);
        assert_eq!((given.batch, given.base_learning_rate, given.epochs), (512, 0.4, 7));
        assert_eq!(given.optimizer, Optimizer::Lars);
    }
}
