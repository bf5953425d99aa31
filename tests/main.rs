//! Whole runs in one process: a coordinator and its workers as threads, real gRPC on port 0, drawn images.

mod cluster;
mod learning;
mod sameness;
