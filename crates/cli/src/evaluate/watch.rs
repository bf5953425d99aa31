//! Evaluating a run while it goes on, here or on another machine that sees its folder.

use std::collections::BTreeSet;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;

/// How often a folder, which may be another machine's, is looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// Calls `evaluate` with the name of each checkpoint of `run`, as they are published, until the run has ended.
/// One that fails, because it was deleted meanwhile, say, is told of and passed over.
///
/// # Errors
/// A folder that is no run, and the last failure if no checkpoint could be evaluated.
pub(super) fn each_checkpoint(run: &Path, mut evaluate: impl FnMut(&str) -> Result<()>) -> Result<()> {
    let mut seen = BTreeSet::new();
    let (mut succeeded, mut failure) = (false, None);
    loop {
        // Asked before the checkpoints, so that the last one is not missed.
        let has_ended = evaluation::has_ended(run)?;
        for name in evaluation::checkpoints(run)? {
            if !seen.insert(name.clone()) {
                continue;
            }
            match evaluate(&name) {
                Ok(()) => succeeded = true,
                Err(error) => {
                    tracing::warn!("{name} is passed over: {error:#}");
                    failure = Some(error);
                }
            }
        }
        if has_ended {
            return failure.filter(|_| !succeeded).map_or(Ok(()), Err);
        }
        sleep(INTERVAL);
    }
}
