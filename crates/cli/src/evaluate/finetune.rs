//! `evaluate finetune`: the whole network trained on with labels.

use anyhow::Result;
use evaluation::{FinetuneSettings, Progress};

use super::SubjectArguments;
use crate::display::Screen;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    subject: SubjectArguments,
    /// How many of each class's training images to learn from, in percent: 1 and 10 are usual
    #[arg(long, value_name = "PERCENT", default_value_t = FinetuneSettings::default().labels_percent)]
    labels: f64,
    /// Passes over these images
    #[arg(long, default_value_t = FinetuneSettings::default().epochs)]
    epochs: u64,
    /// Images in a step
    #[arg(long, default_value_t = FinetuneSettings::default().batch)]
    batch: usize,
    /// The backbone's learning rate at the first step
    #[arg(long, value_name = "RATE", default_value_t = FinetuneSettings::default().backbone_learning_rate)]
    learning_rate: f64,
    /// The classifier's learning rate at the first step
    #[arg(long, value_name = "RATE", default_value_t = FinetuneSettings::default().classifier_learning_rate)]
    classifier_learning_rate: f64,
    /// Another draw of images, first weights, orders and views
    #[arg(long, default_value_t = FinetuneSettings::default().seed)]
    seed: u64,
}

impl Arguments {
    pub(super) fn run(&self, screen: &Screen, progress: &mut Progress<'_>) -> Result<()> {
        let settings = FinetuneSettings {
            labels_percent: self.labels,
            epochs: self.epochs,
            batch: self.batch,
            backbone_learning_rate: self.learning_rate,
            classifier_learning_rate: self.classifier_learning_rate,
            seed: self.seed,
            ..FinetuneSettings::default()
        };
        self.subject.evaluate(screen, |job| Ok(job.finetune(&settings, progress)?.into()))
    }
}
