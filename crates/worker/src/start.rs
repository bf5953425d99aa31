//! The state that a run starts from: a checkpoint of the coordinator's, or the recipe's initial weights.

use std::collections::HashMap;
use std::time::Duration;

use protocol::v1;
use simsiam::{Layout, State, checkpoint};

use crate::WorkerError;
use crate::link::Link;

/// The state in the checkpoint called `name`; the initial one of `seed` if the name is empty.
pub(crate) fn first_state(
    link: &Link,
    layout: &Layout,
    seed: u64,
    name: &str,
    limit: Duration,
) -> Result<State, WorkerError> {
    if name.is_empty() {
        return Ok(State::initial(layout, seed));
    }
    let files = link.wait(limit, receive(link.clone(), name, most_bytes(layout))).map_err(|status| {
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
    mut link: Link,
    name: &str,
    most_bytes: usize,
) -> Result<HashMap<String, Vec<u8>>, tonic::Status> {
    let request = v1::FetchCheckpointRequest { worker_id: link.worker.0, checkpoint: name.to_string() };
    let mut parts = link.client.fetch_checkpoint(request).await?.into_inner();
    let mut files: HashMap<String, Vec<u8>> = HashMap::new();
    let mut bytes = 0;
    while let Some(part) = parts.message().await? {
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
