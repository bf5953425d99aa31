//! What membership needs to know of a run, and how long it waits for what.

use std::time::Duration;

use recipe::LearningRateChange;

/// What membership needs to know of a run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How many workers the run waits for.
    pub workers: u32,
    /// How many it has places for: others may come while it trains.
    pub max_workers: u32,
    /// Whether workers may compute on different kinds of CPUs, or of GPUs, so that the result depends on who computes what.
    pub mixes_arithmetic: bool,
    /// Whether they are processes that this coordinator started. Then the end of a process tells more than
    /// the end of its connection, and is waited for.
    pub workers_are_local: bool,
    /// What the loss of a worker means.
    pub on_failure: OnFailure,
    /// With how few workers a run that has begun goes on, if losses may shrink it.
    pub min_workers: u32,
    /// The recipe's number of shards.
    pub shards: u32,
    /// Steps in the whole run.
    pub total_steps: u64,
    /// Steps committed in the checkpoint that the run starts from; 0 for a fresh start.
    pub first_step: u64,
    /// The name of that checkpoint.
    pub checkpoint: Option<String>,
    /// What the recipe says of changes of its learning rates.
    pub learning_rate_changes: Vec<LearningRateChange>,
    /// How long it waits for what.
    pub timeouts: Timeouts,
}

/// What the loss of a worker means for a run that has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnFailure {
    /// The others take over its shards and go on at once; whoever comes in its place gets some back. The default,
    /// because the result is the same with any number of workers.
    #[default]
    Shrink,
    /// The others wait until someone has come in its place.
    Wait,
    /// The run ends with a sentence, and goes on with `--resume`.
    Abort,
}

/// How long the coordinator waits for what. What is waited for in vain ends the run with a sentence, or counts as
/// a lost worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// Until all workers have joined.
    pub join: Duration,
    /// Until all are assembled: they fetch their first blocks and the checkpoint meanwhile. To come together they have four
    /// fifths of it, so that they say first whom they miss.
    pub assemble: Duration,
    /// Until all workers of a generation that is over have left it: a shard, or a checkpoint, in hand.
    pub halt: Duration,
    /// From one sign of life of a worker to the next. Workers send one each second.
    pub heartbeat: Duration,
    /// From one committed step to the next.
    pub step: Duration,
    /// From a stop request until all have finished: one step and one checkpoint.
    pub stop: Duration,
}

impl Default for Timeouts {
    /// A person starts workers by hand within ten minutes; a slow network brings the first blocks in five; a
    /// worker is silent for fifteen seconds only if it hangs, even on a machine with far too much to do; the
    /// slowest step seen on a CPU takes about a minute, so ten means that nothing happens any more; a worker that
    /// leaves a generation may have a checkpoint on its way, for which it has four.
    fn default() -> Self {
        Timeouts {
            join: Duration::from_secs(600),
            assemble: Duration::from_secs(300),
            halt: Duration::from_secs(300),
            heartbeat: Duration::from_secs(15),
            step: Duration::from_secs(600),
            stop: Duration::from_secs(600),
        }
    }
}

/// Why a run cannot be started with these settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// Nobody would train.
    #[error("0 workers cannot train: give at least 1")]
    NoWorkers,
    /// Some would have nothing to do.
    #[error(
        "{workers} workers cannot share {shards} shards: give at most {shards} workers, or raise \
         training.shards (a power of two; it changes the result)"
    )]
    MoreWorkersThanShards {
        /// Workers asked for.
        workers: u32,
        /// The recipe's shards.
        shards: u32,
    },
    /// It would never go on, or always.
    #[error(
        "a run of {workers} workers cannot go on with at least {min_workers}: give 1 to {workers} as --min-workers"
    )]
    MinWorkers {
        /// Workers asked for.
        workers: u32,
        /// The fewest.
        min_workers: u32,
    },
    /// There would be no place for those it waits for.
    #[error(
        "a run that waits for {workers} workers cannot have places for {max_workers}: raise --max-workers"
    )]
    MaxWorkers {
        /// Workers asked for.
        workers: u32,
        /// The places.
        max_workers: u32,
    },
}

impl Settings {
    /// Whether a run can be started with these settings. To be called before anything is.
    ///
    /// # Errors
    /// No workers, or more of them than shards, or a fewest that is none of these.
    pub fn check(&self) -> Result<(), SettingsError> {
        check_workers(self.workers, self.shards)?;
        check_min_workers(self.min_workers, self.workers)?;
        check_max_workers(self.max_workers, self.workers, self.shards)
    }
}

/// Whether a run of `workers` can go on with `min_workers`.
///
/// # Errors
/// None, or more than there are.
pub fn check_min_workers(min_workers: u32, workers: u32) -> Result<(), SettingsError> {
    match (1..=workers).contains(&min_workers) {
        true => Ok(()),
        false => Err(SettingsError::MinWorkers { workers, min_workers }),
    }
}

/// Whether a run that waits for `workers` can have places for `max_workers`.
///
/// # Errors
/// Fewer than it waits for, or more than there are shards.
pub fn check_max_workers(max_workers: u32, workers: u32, shards: u32) -> Result<(), SettingsError> {
    match max_workers < workers {
        true => Err(SettingsError::MaxWorkers { workers, max_workers }),
        false => check_workers(max_workers, shards),
    }
}

/// Whether `shards` can be shared by `workers`.
///
/// # Errors
/// No workers, or more of them than shards.
pub fn check_workers(workers: u32, shards: u32) -> Result<(), SettingsError> {
    match workers {
        0 => Err(SettingsError::NoWorkers),
        _ if workers > shards => Err(SettingsError::MoreWorkersThanShards { workers, shards }),
        _ => Ok(()),
    }
}
