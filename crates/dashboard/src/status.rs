//! Where a run stands: what `/api/status` answers, the page shows and `coordinator status` prints.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use coordinator::{Evaluated, Outcome, Phase, WorkerSight};
use recipe::{Data, Recipe};
use serde::{Deserialize, Serialize};

use crate::health::{Judgement, judge};
use crate::live::Live;
use crate::metrics::Step;
use crate::rates::{Rates, Yardsticks, over};
use crate::record::RunRecord;
use crate::timeline::{Kind, Moment};

/// Faults that a status names, the last ones.
const LAST_FAULTS: usize = 5;

/// Where a run stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Its name.
    pub run: String,
    /// 32 hexadecimal digits that no other run has.
    pub run_id: Option<String>,
    /// When this was so, in milliseconds since 1970.
    pub unix_time_ms: u64,
    /// When the run was begun.
    pub begun_unix_time_ms: Option<u64>,
    /// What it does, in one word.
    pub state: State,
    /// Steps committed.
    pub step: u64,
    /// Steps in the whole run, if that is known.
    pub total_steps: Option<u64>,
    /// The pass over the data, from 1; 0 before the first step.
    pub epoch: u64,
    /// Passes in the whole run.
    pub total_epochs: u64,
    /// How long the steps that are left take at the present pace; none while nothing moves.
    pub remaining_s: Option<f64>,
    /// The last line of a step in `metrics.jsonl`.
    pub last_step: Option<Step>,
    /// Averages over the last steps.
    pub recent: Option<Recent>,
    /// Whether it goes well.
    pub health: Judgement,
    /// The generation that was formed last; 0 before the first.
    pub generation: u64,
    /// How many workers it waits for.
    pub workers_expected: u32,
    /// The recipe's shards.
    pub shards: u32,
    /// Images in each step, over all shards.
    pub batch: u32,
    /// Its workers; none are known where no coordinator answers, and none are left once the run is over.
    pub workers: Vec<WorkerSight>,
    /// How fast those of them are that make steps, by their ids.
    #[serde(default)]
    pub rates: BTreeMap<u64, Rates>,
    /// How many workers were lost so far.
    pub workers_lost: u64,
    /// The last faults, the newest last.
    pub faults: Vec<Moment>,
    /// The newest evaluation of each kind.
    pub evaluations: Vec<Evaluated>,
    /// Why the last evaluation failed, if it did.
    pub evaluation_failure: Option<String>,
    /// Whether there is a report of the run.
    pub has_report: bool,
    /// What may be asked of the run now, by the names of the actions.
    pub actions: Vec<String>,
}

/// What a run does, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Too few workers are here.
    Gathering,
    /// The coordinator was restarted, and the workers come back to it.
    Reuniting,
    /// The workers fetch what they need and connect to each other.
    Assembling,
    /// Steps are being made.
    Training,
    /// A worker was lost or came, and the next generation is formed.
    Regrouping,
    /// A person wants no more steps for now.
    Paused,
    /// The step in hand is finished and a checkpoint saved.
    Stopping,
    /// All steps are done.
    Completed,
    /// A person stopped it.
    Stopped,
    /// It failed.
    Failed,
    /// It has not ended, and no coordinator answers: it may be gone, without a dashboard, or out of reach.
    Unattended,
}

/// Averages over the last steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Recent {
    /// Over how many.
    pub steps: u64,
    /// Mean loss.
    pub loss: f64,
    /// Mean collapse level.
    pub collapse_level: f64,
    /// Images over the seconds of these steps.
    pub images_per_second: f64,
    /// What the network has to compute for these images ([`Recipe::flops_per_image`]) over these seconds, all workers
    /// together.
    pub model_flops_per_second: Option<f64>,
    /// Mean seconds of a step.
    pub step_s: f64,
    /// Which share of it the first worker waited for images and views, from 0 to 1.
    pub data_share: f64,
    /// Which share of it went into forward passes.
    pub forward_share: f64,
    /// Which share of it went into backward passes.
    pub backward_share: f64,
    /// Which share of it went into the fold, waiting for the slowest included.
    pub all_reduce_share: f64,
    /// Which share of it went into the optimizer.
    pub update_share: f64,
}

/// What is known of a run beside what it leaves behind.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) recipe: Recipe,
    pub(crate) total_steps: Option<u64>,
    pub(crate) yardsticks: Yardsticks,
}

impl Frame {
    /// Of a run that is only known by its folder: drawn images are counted by the recipe.
    pub(crate) fn of_recipe(recipe: Recipe) -> Frame {
        let total_steps = match recipe.data {
            Data::Synthetic { images } => Some(recipe.total_steps(u64::from(images))),
            _ => None,
        };
        Frame { recipe, total_steps, yardsticks: Yardsticks::default() }
    }
}

impl Status {
    /// Where the run stands; `live` is there where a coordinator is at work.
    pub(crate) fn new(frame: &Frame, record: &RunRecord, live: Option<&Live>) -> Status {
        let training = &frame.recipe.training;
        let sight = live.and_then(|live| live.sight.as_ref());
        let last_step = record.recent.back().cloned();
        let recent = Recent::of(record, &frame.recipe);
        let step = last_step.as_ref().map_or(0, |last| last.step).max(sight.map_or(0, |sight| sight.step));
        let total_epochs = u64::from(training.epochs);
        let total_steps =
            frame.total_steps.or_else(|| Some(record.steps_per_epoch?.saturating_mul(total_epochs)));
        let state = State::of(record, live);
        let left = total_steps.map(|total| total.saturating_sub(step) as f64);
        let remaining_s =
            recent.filter(|_| state == State::Training).and_then(|recent| Some(left? * recent.step_s));
        let faults = record.timeline.moments.iter().rev().filter(|moment| moment.kind == Kind::Fault);
        let mut faults: Vec<Moment> = faults.take(LAST_FAULTS).cloned().collect();
        faults.reverse();
        // What was seen last of the workers of a run that is over stays as it was, and they are gone.
        let workers = sight.filter(|_| !state.is_over()).map(|sight| sight.workers.clone());
        let mut workers = workers.unwrap_or_default();
        let since_ms = live.and_then(|live| live.seen_at).map_or(0, |at| at.elapsed().as_millis() as u64);
        workers.iter_mut().for_each(|worker| worker.silent_ms += since_ms);
        let members = workers.iter().filter(|worker| worker.rank.is_some()).count() as u32;
        let rates = workers.iter().filter_map(|one| Some((one.worker, Rates::of(one, members, frame)?)));
        let rates = rates.collect();
        Status {
            run: frame.recipe.name.clone(),
            run_id: record.timeline.run_id.clone(),
            unix_time_ms: unix_time_ms(),
            begun_unix_time_ms: record.timeline.begun_ms,
            state,
            step,
            total_steps,
            epoch: last_step.as_ref().map_or(0, |last| last.epoch),
            total_epochs,
            remaining_s,
            health: judge(
                recent.map(|recent| recent.collapse_level),
                recent.map_or(f64::NAN, |recent| recent.loss),
            ),
            last_step,
            recent,
            generation: record.timeline.generations.back().map_or(0, |last| last.generation),
            workers_expected: record.timeline.workers_expected,
            shards: training.shards,
            batch: training.batch,
            workers,
            rates,
            workers_lost: record.timeline.counts.lost,
            faults,
            evaluations: record.last_evaluations().into_iter().cloned().collect(),
            evaluation_failure: live.and_then(|live| live.evaluation_failure.clone()),
            has_report: record.report.is_some(),
            actions: Vec::new(),
        }
    }
}

impl State {
    fn of(record: &RunRecord, live: Option<&Live>) -> State {
        match &record.timeline.outcome {
            Some(Outcome::Completed { .. }) => return State::Completed,
            Some(Outcome::Stopped { .. }) => return State::Stopped,
            Some(Outcome::Failed { .. }) => return State::Failed,
            None => {}
        }
        let Some(live) = live else { return State::Unattended };
        match live.sight.as_ref().map(|sight| sight.phase) {
            // It is said a moment later how it ended.
            Some(Phase::Finished | Phase::Failed | Phase::Stopping) => State::Stopping,
            Some(Phase::Training) if live.is_stopping => State::Stopping,
            Some(Phase::Training) => State::Training,
            Some(Phase::Paused) => State::Paused,
            Some(Phase::Assembling) => State::Assembling,
            Some(Phase::Regrouping) => State::Regrouping,
            Some(Phase::Reuniting) => State::Reuniting,
            Some(Phase::Gathering) | None => State::Gathering,
        }
    }

    /// Its word for people.
    pub fn word(self) -> &'static str {
        match self {
            State::Gathering => "waiting for workers",
            State::Reuniting => "waiting for workers to come back",
            State::Assembling => "assembling",
            State::Training => "training",
            State::Regrouping => "regrouping",
            State::Paused => "paused",
            State::Stopping => "stopping",
            State::Completed => "completed",
            State::Stopped => "stopped",
            State::Failed => "failed",
            State::Unattended => "its coordinator does not answer",
        }
    }

    /// Whether nothing more will happen by itself.
    pub fn is_over(self) -> bool {
        matches!(self, State::Completed | State::Stopped | State::Failed)
    }
}

impl Recent {
    fn of(record: &RunRecord, recipe: &Recipe) -> Option<Recent> {
        let batch = f64::from(recipe.training.batch);
        let mean = |of: fn(&Step) -> f64| record.recent_mean(of);
        let step_s = mean(|step| step.seconds.step)?;
        let share =
            |of: fn(&Step) -> f64| mean(of).map_or(0.0, |seconds| seconds / step_s.max(f64::MIN_POSITIVE));
        Some(Recent {
            steps: record.recent.len() as u64,
            loss: mean(|step| step.loss)?,
            collapse_level: mean(|step| step.collapse_level)?,
            images_per_second: batch / step_s.max(f64::MIN_POSITIVE),
            model_flops_per_second: over(batch * recipe.flops_per_image(), step_s),
            step_s,
            data_share: share(|step| step.seconds.data),
            forward_share: share(|step| step.seconds.forward),
            backward_share: share(|step| step.seconds.backward),
            all_reduce_share: share(|step| step.seconds.all_reduce),
            update_share: share(|step| step.seconds.update),
        })
    }
}

pub(crate) fn unix_time_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}
