//! The fold: the sum of the shards' buckets, in an order that does not depend on the number of workers.
//!
//! Shards are the leaves of a fixed binary tree. A worker adds up the aligned subtrees of the shards it leases
//! ([`SubtreeSums`]); a [`Collective`] adds the rest, in the same tree, and leaves the same bits on every
//! worker. Floating-point addition is not associative, so this order is what makes a run a function of its
//! recipe and not of its cluster.
//!
//! Between processes, [`assemble`] connects the workers of a generation (`mesh/`), sees whether they can share memory
//! (`agreement.rs`), and folds through it (`shared_memory/`) or through the connections (`tcp/`). [`loopback`] folds
//! between threads. Workers with a GPU each may sum there instead, through NVIDIA's library (`gpus.rs`, `nccl.rs`),
//! which adds in an order of its own.
//!
//! This crate never knows what the floats mean, who coordinates, or what a step does with the sum.
//! Start at [`Node`], then [`SubtreeSums`], then [`Collective`], then [`assemble`].

mod agreement;
mod checksum;
mod engine;
mod error;
mod gpus;
mod group;
mod interrupt;
mod key;
mod layout;
pub mod loopback;
mod mesh;
#[cfg(feature = "nccl")]
pub mod nccl;
mod processes;
#[cfg_attr(not(target_os = "linux"), path = "no_shared_memory.rs")]
mod shared_memory;
mod standstill;
mod sums;
mod tcp;
mod tree;

#[cfg(test)]
mod testing;

pub use engine::Collective;
pub use error::CollectiveError;
pub use gpus::Gpu;
pub use group::{Group, GroupError};
pub use interrupt::Interrupt;
pub use key::Key;
pub use processes::{Assembled, Medium, assemble, assemble_with_gpu};
pub use standstill::Standstill;
pub use sums::SubtreeSums;
pub use tree::{Node, subtrees};

use std::time::Duration;

/// What a collective carries, and how long it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Floats in a bucket; the same on every rank.
    pub bucket_len: usize,
    /// How many of them, from the first on, are rounded to bf16 wherever they go over TCP; the same on every rank. Their
    /// sum is then the same on every rank too, but not for other leases.
    pub rounded_len: usize,
    /// How long the assembly of the group may take, from its call.
    pub connect_deadline: Duration,
    /// How long one fold may take, from its call: it covers waiting for the slowest worker to come to it.
    pub step_deadline: Duration,
}
