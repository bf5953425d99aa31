//! Whole runs in one process: a coordinator and its workers as threads, real gRPC on port 0, drawn images. And
//! what holds for the workspace as a whole.

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the answer")]

mod borders;
mod cluster;
mod decoders;
mod learning;
mod sameness;
