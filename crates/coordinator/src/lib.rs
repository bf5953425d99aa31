//! The control plane of a run: who takes part, with which shards, and what is kept.
//!
//! Start with [`serve`] (`run.rs`) and the control loop that it runs (`control.rs`): one task that hears events, asks
//! [`membership`] what to do, and does it. The rest stands around it:
//!
//! - [`membership`]: the decisions, as a pure state machine; `clock.rs`: the time that it goes by
//! - `service.rs`, `wire.rs`: the gRPC handlers, which translate and stream bytes
//! - `incoming.rs`, `guard.rs`, `rate.rs`: who may connect, who may call, and how often
//! - [`RunDirectory`], [`checkpoint`], [`journal`], [`flight_recorder`], `growing.rs`: what a run leaves behind; `footprint.rs`: how
//!   much
//! - [`LocalWorkers`], `restarts.rs`: worker processes on this machine
//! - [`Evaluations`]: evaluation processes beside them
//! - `diagnosis.rs`, `remedy.rs`: whether the network learns, if not, why not, and what is done about it
//! - `tensorboard/`: the run as TensorBoard reads it
//! - [`Progress`], `pace.rs`, `outlook.rs`: what a person who watches is told
//!
//! This crate computes with no tensor and sees no gradient: blocks and checkpoints are bytes to it, whose weights it counts
//! for TensorBoard.

pub mod checkpoint;
mod clock;
mod control;
mod diagnosis;
mod evaluations;
pub mod flight_recorder;
mod footprint;
mod growing;
mod guard;
mod incoming;
pub mod journal;
mod lock;
pub mod membership;
mod outlook;
mod pace;
mod progress;
mod rate;
mod reach;
mod remedy;
mod restarts;
mod run;
mod run_directory;
mod service;
mod supervisor;
mod tensorboard;
#[doc(hidden)]
pub mod untrusted;
mod wire;

pub use evaluations::{Evaluated, EvaluationSettings, Evaluations};
pub use footprint::bytes_of_steps;
pub use incoming::Listener;
pub use membership::{
    Doing, Lease, OnFailure, Outcome, Past, Phase, Request, SettingsError, Sight, StepSeconds, Timeouts,
    WorkerSight, check_max_workers, check_min_workers, check_workers, lease,
};
pub use pace::Pace;
pub use progress::{Progress, StepMetrics};
pub use run::{CoordinatorError, Run, check_certificates, serve};
pub use run_directory::{RunDirectory, RunDirectoryError};
pub use supervisor::{LocalWorkerSettings, LocalWorkers, ProcessEnd, SupervisorError};

/// Where the blocks of the data come from. Called from threads that may wait.
pub trait Blocks: Send + Sync + 'static {
    /// The bytes of a block of a shard.
    ///
    /// # Errors
    /// Why it cannot be had, as a sentence for people.
    fn block(&self, shard: u32, block: u32) -> Result<Vec<u8>, String>;
}

impl<F> Blocks for F
where
    F: Fn(u32, u32) -> Result<Vec<u8>, String> + Send + Sync + 'static,
{
    fn block(&self, shard: u32, block: u32) -> Result<Vec<u8>, String> {
        self(shard, block)
    }
}
