//! The data plane: one worker, one device.
//!
//! Two halves with one pair of channels between them. [`run`] (`control.rs`) is the asynchronous half: it joins
//! the coordinator, passes its orders on and the reports back. The training thread (`training_thread.rs`) is
//! the synchronous half; its loop, one step from top to bottom, is in `train.rs`. Views of the next steps are
//! made ahead by a third thread (`batches.rs`).
//!
//! This crate decides nothing about membership: it does what it is ordered, and says what it did.

mod batches;
mod blame;
mod blocks;
mod control;
mod error;
mod line;
mod link;
mod lockstep;
mod publish;
mod replay;
mod reports;
mod session;
mod shards;
mod start;
mod stopwatch;
mod sums;
mod train;
mod training_thread;
mod transport;

pub use blame::{Blame, Culprit};
pub use control::{Settings, run};
pub use error::WorkerError;
pub use replay::{Replayed, ReplayedShard, replay};
pub use simsiam::Device;
pub use transport::Transport;
