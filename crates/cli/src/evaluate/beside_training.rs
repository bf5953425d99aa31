//! Evaluating on a machine that trains.

use anyhow::{Context, Result};

use crate::parent;

/// Ten steps of niceness leave a process about a tenth of a core that others want too, and all of one that
/// nobody wants: the workers, which wait for each other in every step, are held up by no more than that.
const NICENESS: i32 = 10;

/// Gives way to the workers of this machine, and ends with the coordinator that started this process.
pub(super) fn begin() -> Result<()> {
    parent::end_with_stdin()?;
    rustix::process::nice(NICENESS).context("give way to the workers")?;
    Ok(())
}
