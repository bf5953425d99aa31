//! Evaluating on a machine that trains.

use anyhow::{Context, Result};

use crate::parent;

/// The lowest priority: what the workers leave. They wait for each other in every step, so whatever is taken from one
/// is taken from all: ten steps of niceness made steps a third longer, nineteen a tenth (docs/performance.md).
const NICENESS: i32 = 19;

/// Gives way to the workers of this machine, and ends with the coordinator that started this process.
pub(super) fn begin() -> Result<()> {
    parent::end_with_stdin()?;
    rustix::process::nice(NICENESS).context("give way to the workers")?;
    Ok(())
}
