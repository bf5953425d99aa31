//! What a person who watches a run is told.

use recipe::Recipe;
use serde::Serialize;

use crate::evaluations::Evaluated;
use crate::journal::Record;
use crate::membership::{Monitors, Outcome, Sight, StepReport, StepSeconds};

/// What a person who watches a run is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Progress {
    /// The run goes on from a checkpoint.
    Resumed {
        /// Its name.
        checkpoint: String,
        /// Steps committed in it.
        step: u64,
    },
    /// Workers of the coordinator before this one may still be at work, and are waited for.
    Awaiting {
        /// How many.
        workers: u32,
    },
    /// One of them is back.
    Returned {
        /// How many workers are here.
        workers: u32,
        /// How many the run waits for.
        expected: u32,
        /// Steps committed in the state that it holds, if it holds one.
        step: Option<u64>,
    },
    /// All of the last generation are back, and it goes on.
    Adopted {
        /// Which one.
        generation: u64,
        /// Steps that are known to be committed.
        step: u64,
    },
    /// A worker joined.
    Joined {
        /// How many have.
        workers: u32,
        /// How many the run waits for.
        expected: u32,
        /// Host and process of this one.
        description: String,
    },
    /// A worker left; its place is free again.
    Left {
        /// How many are still here.
        workers: u32,
        /// How many the run waits for.
        expected: u32,
        /// What was seen of it.
        reason: String,
    },
    /// All workers are here, and fetch what they need.
    Assembling {
        /// Which generation they form.
        generation: u64,
        /// How many they are.
        workers: u32,
    },
    /// All workers hold the same and train.
    Started {
        /// Which generation they form.
        generation: u64,
        /// The step that is run first.
        step: u64,
    },
    /// A step is committed.
    Step(StepMetrics),
    /// A checkpoint lies whole in the run directory.
    CheckpointPublished {
        /// Its name.
        checkpoint: String,
        /// Steps committed in it.
        step: u64,
    },
    /// An evaluation has ended.
    Evaluated(Evaluated),
    /// An evaluation failed, for a reason that a person can read; the run goes on.
    EvaluationFailed(String),
    /// A step was left out.
    Skipped {
        /// Steps committed, this one included.
        step: u64,
        /// The shards in which something was not finite.
        shards: Vec<u32>,
    },
    /// The others wait for this worker.
    Straggling {
        /// Its id.
        worker: u64,
        /// Host and process.
        description: String,
        /// How many times longer than the median of the others it takes for a shard.
        times_slower: f64,
    },
    /// The network does not learn as it should.
    Unhealthy {
        /// Steps committed by then.
        step: u64,
        /// What was seen, what it means, and what to do.
        finding: String,
        /// Whether the run stops for it.
        stops: bool,
    },
    /// A person wants no more steps for now.
    Paused {
        /// Steps committed by then.
        step: u64,
    },
    /// The run goes on after a pause.
    Continued {
        /// Steps committed by then.
        step: u64,
    },
    /// A stop was asked for; the workers finish the step in hand and save.
    Stopping {
        /// Steps committed by then.
        step: u64,
    },
    /// The run is over.
    Ended(Outcome),
    /// The run at this moment. Told each second.
    Seen(Sight),
}

impl Progress {
    /// What the journal notes is also what a person wants to know, but for the first lines.
    pub(crate) fn from_record(record: &Record, workers: u32, expected: u32) -> Option<Progress> {
        match record.clone() {
            Record::Created(_) => None,
            Record::Opened { awaited, .. } if !awaited.is_empty() => {
                Some(Progress::Awaiting { workers: awaited.len() as u32 })
            }
            Record::Opened { checkpoint, step, .. } => {
                checkpoint.map(|checkpoint| Progress::Resumed { checkpoint, step })
            }
            Record::Returned { step, .. } => Some(Progress::Returned { workers, expected, step }),
            Record::Adopted { generation, step } => Some(Progress::Adopted { generation, step }),
            Record::Joined { description, .. } => Some(Progress::Joined { workers, expected, description }),
            Record::Lost { reason, .. } => Some(Progress::Left { workers, expected, reason }),
            Record::Generation { generation, .. } => Some(Progress::Assembling { generation, workers }),
            Record::Started { generation, step, .. } => Some(Progress::Started { generation, step }),
            Record::Checkpoint { checkpoint, step, .. } => {
                Some(Progress::CheckpointPublished { checkpoint, step })
            }
            Record::Skipped { step, shards } => Some(Progress::Skipped { step, shards }),
            Record::Straggler { worker, description, times_slower, .. } => {
                Some(Progress::Straggling { worker, description, times_slower })
            }
            Record::Unhealthy { step, finding, stops } => Some(Progress::Unhealthy { step, finding, stops }),
            Record::Paused { step } => Some(Progress::Paused { step }),
            Record::Continued { step } => Some(Progress::Continued { step }),
            Record::StopRequested { step } => Some(Progress::Stopping { step }),
            Record::Ended(outcome) => Some(Progress::Ended(outcome)),
        }
    }
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
