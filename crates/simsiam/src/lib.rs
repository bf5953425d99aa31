//! The algorithm: SimSiam (Chen & He 2020, arXiv 2011.10566), its networks, its optimizer, its state.
//!
//! Start at [`simsiam`](crate::SimSiam), which is the paper on one page. Around it: [`State`] is everything
//! that a step changes, [`Layout`] says where each named parameter lies in the state's flat vectors,
//! [`BucketLayout`] what one shard contributes to a step, [`Schedule`] the learning rates, and
//! [`checkpoint`] the files. burn lives here and nowhere else.
//!
//! This crate knows nothing of networks, workers, files' places or async code: one device, one thread.

pub mod checkpoint;

mod bucket;
mod device;
mod features;
mod fine_tuning;
mod flat;
mod heads;
mod kernels;
mod layers;
mod monitors;
mod parameters;
mod replica;
mod resnet;
mod schedule;
mod sgd;
mod simsiam;
mod state;
mod step;
mod views;

pub use bucket::{BucketLayout, DeviceBucket, Folded};
pub use burn::tensor::Device;
/// Where a thread's work for a GPU queues up. Every thread has a queue of its own, with memory of its own there, which it
/// keeps: threads that come and go must be given one to [`execute`](DeviceQueue::executes) in.
pub use burn_std::id::StreamId as DeviceQueue;
pub use device::{DeviceError, DeviceName, arithmetic, gpu};
pub use features::FrozenBackbone;
pub use fine_tuning::{Diverged, FineTuner, FrozenClassifier, TuningRates};
pub use kernels::{AllShards, ShardSum};
pub use layers::{BatchStatistics, Statistics};
pub use monitors::{Monitors, Parts};
pub use parameters::{Entry, Layout};
pub use replica::Replica;
pub use schedule::{LearningRates, Schedule};
pub use simsiam::{Encoded, SimSiam};
pub use state::{State, StateHash};
pub use step::{Bound, Commit, DeviceFailure, NonFinite, PhaseSeconds, Trainer};
pub use views::{ViewLoader, Views};
