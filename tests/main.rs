//! Whole runs in one process: a coordinator and its workers as threads, real gRPC on port 0, drawn images. And
//! what holds for the workspace as a whole.

mod borders;
mod cluster;
mod learning;
mod sameness;
