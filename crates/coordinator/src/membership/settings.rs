//! What membership needs to know of a run, and how long it waits for what.

use std::time::Duration;

/// What membership needs to know of a run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How many workers the run waits for.
    pub workers: u32,
    /// Whether they are processes that this coordinator started. Then the end of a process tells more than
    /// the end of its connection, and is waited for.
    pub workers_are_local: bool,
    /// The recipe's number of shards.
    pub shards: u32,
    /// Steps in the whole run.
    pub total_steps: u64,
    /// Steps committed in the checkpoint that the run starts from; 0 for a fresh start.
    pub first_step: u64,
    /// The name of that checkpoint.
    pub checkpoint: Option<String>,
    /// How long it waits for what.
    pub timeouts: Timeouts,
}

/// How long the coordinator waits for what. Each wait ends the run with a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// Until all workers have joined.
    pub join: Duration,
    /// Until all are assembled: they fetch their first blocks and the checkpoint meanwhile.
    pub assemble: Duration,
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
    /// slowest step seen on a CPU takes about a minute, so ten means that nothing happens any more.
    fn default() -> Self {
        Timeouts {
            join: Duration::from_secs(600),
            assemble: Duration::from_secs(300),
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
}

impl Settings {
    /// Whether a run can be started with these settings. To be called before anything is.
    ///
    /// # Errors
    /// No workers, or more of them than shards.
    pub fn check(&self) -> Result<(), SettingsError> {
        check_workers(self.workers, self.shards)
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
