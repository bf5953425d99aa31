//! The programs: parse, build, run.
//!
//! [`coordinator`], [`worker`] and [`evaluate`] each hold the arguments of one program and what it does with them. The
//! coordinator starts its local workers by running its own executable again in the worker's role, so one
//! `cargo run` is a whole cluster. What the programs do is in the libraries; here stand only their wiring and
//! what people see of them.

pub mod coordinator;
pub mod evaluate;
pub mod worker;

mod advertise;
mod arguments;
mod cache;
mod dashboard;
mod deal;
mod device;
mod display;
mod exit;
mod forecast;
mod interfaces;
mod logging;
mod medium;
mod needs;
mod network;
mod parent;
mod private_file;
mod recipe_source;
mod security;
mod start;
mod stop_signals;

/// Coordinator and workers must have the same.
pub const PROGRAM_VERSION: &str = env!("CARGO_PKG_VERSION");
