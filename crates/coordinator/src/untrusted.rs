//! Where bytes from outside come in, for the tests that send others than those which are expected.

use protocol::{WorkerId, v1};

use crate::membership::Event;
use crate::service::Input;
use crate::{RunDirectory, RunDirectoryError, wire};

/// Reads a report as the service does, whoever made it; `None` if it reports nothing.
///
/// # Errors
/// It cannot be read.
pub fn report(report: v1::Report) -> Result<Option<Event>, tonic::Status> {
    let worker = WorkerId(report.worker_id);
    let input = report.event.map(|event| wire::input(worker, event)).transpose()?;
    Ok(input.and_then(|input| match input {
        Input::Event(event) => Some(event),
        // What is only looked at decides nothing.
        _ => None,
    }))
}

/// Reads `metrics.jsonl` as a coordinator does that takes charge of the run after this step, and takes back what comes after.
///
/// # Errors
/// Those of the disk, or a file that is none.
pub fn metrics(run: &mut RunDirectory, step: u64) -> Result<(), RunDirectoryError> {
    run.told()?;
    run.forget_metrics_after(step)
}
