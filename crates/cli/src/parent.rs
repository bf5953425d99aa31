//! The process that started this one.

use std::io::Read;

use anyhow::{Context, Result};

/// Ends this process when its standard input closes. The coordinator that started it holds the other end, and
/// the system closes that even after `kill -9`, so nothing outlives a coordinator.
pub(crate) fn end_with_stdin() -> Result<()> {
    let wait = || {
        // Nobody writes to it, so whatever is returned means the end.
        let _ = std::io::stdin().read(&mut [0]);
        tracing::info!("standard input is closed: the coordinator is gone or needs this process no more");
        std::process::exit(0);
    };
    std::thread::Builder::new().name("stdin".to_string()).spawn(wait).context("watch standard input")?;
    Ok(())
}
