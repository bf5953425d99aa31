//! The state that a generation starts from, for a worker that does not hold it: a checkpoint of the
//! coordinator's, or the recipe's initial weights.

use std::collections::HashMap;
use std::time::Duration;

use protocol::v1;
use simsiam::{Layout, State, checkpoint};

use crate::WorkerError;
use crate::link::Link;

/// The state that `order` names: that in its checkpoint, or the initial one of `seed` if it names none.
pub(crate) fn fetch_state(
    link: &Link,
    layout: &Layout,
    seed: u64,
    order: &v1::Assemble,
) -> Result<State, WorkerError> {
    let state = match order.checkpoint.as_str() {
        "" => State::initial(layout, seed),
        // Longer than the others wait for this worker: it is to be given up by them, and not the run by it.
        name => fetch_checkpoint(link, layout, name, 2 * Duration::from_millis(order.deadline_ms))?,
    };
    if state.step != order.step {
        let problem = format!(
            "it starts from step {}, but the state it names ({:?}) is that of step {}",
            order.step, order.checkpoint, state.step
        );
        return Err(WorkerError::Unusable { what: "an order", problem });
    }
    Ok(state)
}

fn fetch_checkpoint(link: &Link, layout: &Layout, name: &str, limit: Duration) -> Result<State, WorkerError> {
    let files = link.fetch(limit, || receive(link.clone(), name, most_bytes(layout))).map_err(|status| {
        WorkerError::Call {
            call: "fetch the checkpoint to start from",
            problem: status.message().to_string(),
        }
    })?;
    checkpoint::read(layout, |file| files.get(file).map(Vec::as_slice))
        .map_err(|source| WorkerError::Checkpoint { name: name.to_string(), source })
}

/// Weights, momentum and statistics with as much again, for names and headers: more is not this network's.
fn most_bytes(layout: &Layout) -> usize {
    let values = 2 * layout.parameter_count() + layout.statistic_count();
    2 * size_of::<f32>() * values + (1 << 20)
}

async fn receive(
    link: Link,
    name: &str,
    most_bytes: usize,
) -> Result<HashMap<String, Vec<u8>>, tonic::Status> {
    let request = v1::FetchCheckpointRequest {
        worker_id: link.worker.0,
        run_id: link.run_id.clone(),
        checkpoint: name.to_string(),
    };
    let mut parts = link.line.client().fetch_checkpoint(request).await?.into_inner();
    let mut files: HashMap<String, Vec<u8>> = HashMap::new();
    let mut bytes = 0;
    while let Some(part) = parts.message().await? {
        part.check()?;
        bytes += part.data.len() + part.file.len();
        if bytes > most_bytes {
            return Err(tonic::Status::data_loss(format!(
                "{name} is larger than {most_bytes} bytes, so it is another network's checkpoint"
            )));
        }
        files.entry(part.file).or_default().extend_from_slice(&part.data);
    }
    Ok(files)
}
