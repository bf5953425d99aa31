//! Checkpoints on their way to the coordinator, in the background.

use std::time::{Duration, Instant};

use bytes::Bytes;
use protocol::{Client, PART_BYTES, v1};
use simsiam::{DeviceFailure, Layout, Replica, State, checkpoint};
use tokio::task::JoinHandle;

use crate::WorkerError;
use crate::link::Link;

/// How long a checkpoint may take to reach the disk: half a gigabyte at two megabytes a second. Two of them fit
/// into the coordinator's patience with a run that stops.
const PUBLISH_LIMIT: Duration = Duration::from_secs(250);

/// Until a checkpoint that failed is tried again: a full disk is seldom free a step later.
const RETRY_PAUSE: Duration = Duration::from_secs(30);

/// Publishes the state when the recipe says so. At most one checkpoint is on its way; training goes on, and one
/// that is on its way when a generation ends arrives all the same: its step was committed. If its coordinator dies, it
/// is sent once more to the next one.
pub(crate) struct Publisher {
    link: Link,
    generation: u64,
    layout: Layout,
    due: Due,
    under_way: Option<Upload>,
    /// Whether a person wants one as soon as none is on its way.
    is_ordered: bool,
}

struct Upload {
    step: u64,
    task: JoinHandle<Result<String, tonic::Status>>,
}

impl Publisher {
    /// For a worker that takes part since `now`.
    pub(crate) fn new(link: Link, layout: &Layout, recipe: &recipe::Checkpoint, now: Instant) -> Publisher {
        let due = Due::new(recipe, 0, now);
        Publisher { link, generation: 0, layout: layout.clone(), due, under_way: None, is_ordered: false }
    }

    /// A generation begins, whose newest checkpoint is that of `saved_step`.
    pub(crate) fn enter(&mut self, order: &v1::Assemble, now: Instant) {
        let v1::Assemble { generation, step, checkpoint_step: saved_step, .. } = *order;
        self.generation = generation;
        // Later steps than the present one were taken back.
        if let Some(upload) = self.under_way.take_if(|upload| upload.step > step) {
            upload.task.abort();
        }
        if saved_step > self.due.saved_step || step < self.due.saved_step {
            self.due.saved(saved_step, now);
        }
    }

    /// Begins to publish the state if it is time, or was ordered. A checkpoint that failed is warned of and made up for
    /// after a pause: the one before it is still whole.
    pub(crate) fn publish_if_due(
        &mut self,
        replica: &mut Replica,
        is_ordered: bool,
        now: Instant,
    ) -> Result<(), DeviceFailure> {
        self.is_ordered |= is_ordered;
        if let Some(upload) = self.under_way.take_if(|upload| upload.task.is_finished()) {
            let step = upload.step;
            match self.finish(upload) {
                Ok(()) => self.due.saved(step, now),
                Err(error) => {
                    tracing::warn!("{error}; training goes on");
                    self.due.failed(now);
                }
            }
        }
        if self.under_way.is_none() && (self.is_ordered || self.due.is_due(replica.step(), now)) {
            self.is_ordered = false;
            self.under_way = Some(self.begin(replica.state()?));
        }
        Ok(())
    }

    /// Publishes `state` unless that has been done, and waits until it lies on the coordinator's disk.
    pub(crate) fn publish_last(&mut self, state: &State, now: Instant) -> Result<(), WorkerError> {
        let is_published = match self.under_way.take() {
            Some(upload) => {
                let step = upload.step;
                match self.finish(upload) {
                    Ok(()) => step == state.step,
                    Err(error) => {
                        tracing::warn!("{error}; the last checkpoint is published next");
                        false
                    }
                }
            }
            None => self.due.saved_step == state.step && state.step > 0,
        };
        if !is_published {
            let upload = self.begin(state);
            self.finish(upload)?;
        }
        self.due.saved(state.step, now);
        Ok(())
    }

    fn begin(&self, state: &State) -> Upload {
        let (step, state, layout) = (state.step, state.clone(), self.layout.clone());
        let (link, generation) = (self.link.clone(), self.generation);
        let task = self.link.runtime.spawn(async move {
            let written = tokio::task::spawn_blocking(move || checkpoint::write(&layout, state));
            let files = written.await.expect("a state can always be written into memory");
            // Copies of them are views of the same files.
            let parts = parts(&link, generation, step, files);
            let send = || publish(link.line.client(), parts.clone());
            link.outlast(PUBLISH_LIMIT, send).await
        });
        Upload { step, task }
    }

    fn finish(&self, upload: Upload) -> Result<(), WorkerError> {
        let step = upload.step;
        let abort = upload.task.abort_handle();
        let joined =
            async { upload.task.await.unwrap_or_else(|error| Err(tonic::Status::from_error(error.into()))) };
        match self.link.wait(PUBLISH_LIMIT, joined) {
            Ok(checkpoint) => {
                tracing::info!(step, checkpoint, "published");
                Ok(())
            }
            Err(status) => {
                // If it only took too long, nobody waits for it any more.
                abort.abort();
                Err(WorkerError::Publish { step, problem: status.message().to_string() })
            }
        }
    }
}

async fn publish(mut client: Client, parts: Vec<v1::CheckpointPart>) -> Result<String, tonic::Status> {
    Ok(client.publish_checkpoint(tokio_stream::iter(parts)).await?.into_inner().checkpoint)
}

/// The files cut into messages. Each part is a view of its file, not a copy.
fn parts(
    link: &Link,
    generation: u64,
    step: u64,
    files: Vec<(&'static str, Vec<u8>)>,
) -> Vec<v1::CheckpointPart> {
    let mut parts = Vec::new();
    for (file, content) in files {
        let mut rest = Bytes::from(content);
        while !rest.is_empty() {
            let data = rest.split_to(rest.len().min(PART_BYTES));
            let part = Some(v1::FilePart::new(file.to_string(), data));
            let (worker_id, run_id) = (link.worker.0, link.run_id.clone());
            parts.push(v1::CheckpointPart { worker_id, run_id, generation, step, part });
        }
    }
    parts
}

/// When the next checkpoint is due.
#[derive(Debug)]
struct Due {
    every_steps: Option<u64>,
    every: Option<Duration>,
    saved_step: u64,
    saved_at: Instant,
    /// Not before, after one that failed.
    retry_at: Instant,
}

impl Due {
    fn new(recipe: &recipe::Checkpoint, step: u64, now: Instant) -> Due {
        let every = recipe.every_minutes.map(|minutes| Duration::from_secs_f64(60.0 * minutes));
        Due { every_steps: recipe.every_steps, every, saved_step: step, saved_at: now, retry_at: now }
    }

    /// Steps count from the run's beginning, so that a run which was resumed saves the same ones.
    fn is_due(&self, step: u64, now: Instant) -> bool {
        let by_steps = self.every_steps.is_some_and(|every| step / every > self.saved_step / every);
        let by_time = self.every.is_some_and(|every| now.duration_since(self.saved_at) >= every);
        step > self.saved_step && now >= self.retry_at && (by_steps || by_time)
    }

    fn saved(&mut self, step: u64, now: Instant) {
        (self.saved_step, self.saved_at) = (step, now);
    }

    fn failed(&mut self, now: Instant) {
        self.retry_at = now + RETRY_PAUSE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_are_due_by_steps_or_by_time() {
        let start = Instant::now();
        let minutes = |minutes: u64| start + Duration::from_secs(60 * minutes);
        let recipe = |every_steps, every_minutes| recipe::Checkpoint { every_steps, every_minutes, keep: 3 };
        for (recipe, saved, step, now, expected) in [
            (recipe(Some(40), None), 0, 39, minutes(99), false),
            (recipe(Some(40), None), 0, 40, start, true),
            (recipe(Some(40), None), 40, 79, start, false),
            // One that could not be published is made up for at once.
            (recipe(Some(40), None), 40, 81, start, true),
            (recipe(Some(40), None), 50, 80, start, true),
            (recipe(None, Some(10.0)), 0, 5, minutes(9), false),
            (recipe(None, Some(10.0)), 0, 5, minutes(10), true),
            // Nothing new to save.
            (recipe(None, Some(10.0)), 5, 5, minutes(10), false),
            (recipe(Some(40), Some(10.0)), 0, 5, minutes(10), true),
            (recipe(None, None), 0, 5000, minutes(5000), false),
        ] {
            let due = Due::new(&recipe, saved, start);
            assert_eq!(due.is_due(step, now), expected, "{recipe:?}, saved {saved}, step {step}");
        }
        let mut due = Due::new(&recipe(Some(40), None), 0, start);
        due.failed(start);
        assert_eq!([start, start + RETRY_PAUSE].map(|now| due.is_due(41, now)), [false, true]);
    }
}
