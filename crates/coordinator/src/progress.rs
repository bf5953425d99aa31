//! What a person who watches a run is told.

use recipe::Recipe;
use serde::Serialize;

use crate::evaluations::Evaluated;
use crate::flight_recorder::StepSpans;
use crate::journal::Record;
use crate::membership::{Monitors, Sight, StepReport, StepSeconds};

/// What a person who watches a run is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Progress {
    /// The journal has one more line.
    Noted {
        /// What it tells.
        record: Record,
        /// How many workers are here.
        workers: u32,
        /// How many the run waits for.
        expected: u32,
    },
    /// A step is committed.
    Step(StepMetrics),
    /// Where the time of a step went on one worker.
    Spans(StepSpans),
    /// An evaluation has begun.
    EvaluationBegan,
    /// An evaluation has ended.
    Evaluated(Evaluated),
    /// An evaluation failed, for a reason that a person can read; the run goes on.
    EvaluationFailed(String),
    /// The run at this moment. Told each second.
    Seen(Sight),
}

/// A committed step: one line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepMetrics {
    /// Steps committed, this one included.
    pub step: u64,
    /// Steps in the whole run.
    #[serde(skip)]
    pub total_steps: u64,
    /// The pass over the data that it belongs to, from 1.
    pub epoch: u64,
    /// Passes in the whole run.
    #[serde(skip)]
    pub total_epochs: u64,
    /// Mean over all shards of -cos(p, z), between -1 and 1.
    pub loss: f64,
    /// Std of the normalised z over 1/sqrt(d): near 1 healthy, 0 collapsed.
    pub collapse_level: f64,
    /// Learning rate of the backbone.
    pub learning_rate: f64,
    /// Euclidean norm of the folded gradient.
    pub gradient_norm: f64,
    /// Whether the step was left out because something was not finite; then the values above may be no numbers, which
    /// are written as `null`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub skipped: bool,
    /// What the step says of the network's health; every ten steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monitors: Option<Monitors>,
    /// Images of the whole batch over the seconds of the whole step; each image gives two views.
    pub images_per_second: f64,
    /// Where the first worker's time went.
    pub seconds: StepSeconds,
    /// The workers that made it.
    pub generation: u64,
}

impl StepMetrics {
    pub(crate) fn new(report: &StepReport, recipe: &Recipe, total_steps: u64) -> StepMetrics {
        let total_epochs = u64::from(recipe.training.epochs);
        let steps_per_epoch = (total_steps / total_epochs).max(1);
        StepMetrics {
            step: report.step,
            total_steps,
            epoch: report.step.saturating_sub(1) / steps_per_epoch + 1,
            total_epochs,
            loss: report.loss,
            collapse_level: report.collapse_level,
            learning_rate: report.learning_rate,
            gradient_norm: report.gradient_norm,
            skipped: report.skipped.is_some(),
            monitors: report.monitors.clone(),
            images_per_second: f64::from(recipe.training.batch) / report.seconds.step,
            seconds: report.seconds,
            generation: report.generation.0,
        }
    }
}
