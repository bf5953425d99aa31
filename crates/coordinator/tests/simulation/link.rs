//! Calls of a simulated worker that outlast a coordinator, and the checkpoints that travel by them: as in crate
//! `worker`.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use protocol::{Client, v1};
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::timeout;
use tonic::{Code, Status};

use crate::state::State;

/// A worker without its coordinator goes on for this long.
pub(crate) const ABSENCE_LIMIT: Duration = Duration::from_secs(60);

const NOTICE_LIMIT: Duration = Duration::from_secs(5);
const PUBLISH_LIMIT: Duration = Duration::from_secs(20);

/// Steps between two checkpoints.
const EVERY_STEPS: u64 = 5;

/// The number of times that a coordinator was found; `None` while it is looked for.
pub(crate) type Attendance = Option<u64>;

#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) client: Client,
    pub(crate) worker_id: u64,
    pub(crate) run_id: Bytes,
    pub(crate) attendance: watch::Receiver<Attendance>,
}

impl Link {
    async fn outlast<T, F>(&self, limit: Duration, mut call: impl FnMut() -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<T, Status>>,
    {
        loop {
            let before = *self.attendance.borrow();
            match within(limit, call()).await {
                Err(status) if broke_off(&status) && self.is_found_again(before).await => {}
                outcome => return outcome,
            }
        }
    }

    async fn is_found_again(&self, before: Attendance) -> bool {
        let mut attendance = self.attendance.clone();
        let is_lost = attendance.wait_for(|now| *now != before || now.is_none());
        if !timeout(NOTICE_LIMIT, is_lost).await.is_ok_and(|found| found.is_ok()) {
            return false;
        }
        let is_found = attendance.wait_for(Option::is_some);
        timeout(ABSENCE_LIMIT, is_found).await.is_ok_and(|found| found.is_ok())
    }

    pub(crate) async fn fetch(&self, checkpoint: &str, limit: Duration) -> Result<State, Status> {
        let call = || async {
            let request = v1::FetchCheckpointRequest {
                worker_id: self.worker_id,
                run_id: self.run_id.clone(),
                checkpoint: checkpoint.to_string(),
            };
            let mut parts = self.client.clone().fetch_checkpoint(request).await?.into_inner();
            let mut model = Vec::new();
            while let Some(part) = parts.message().await? {
                part.check()?;
                if part.file == "model.safetensors" {
                    model.extend_from_slice(&part.data);
                }
            }
            State::read(&model).ok_or_else(|| Status::data_loss("no state"))
        };
        self.outlast(limit, call).await
    }

    async fn publish(&self, generation: u64, state: State) -> Result<(), Status> {
        let part = |(file, data): (&str, Bytes)| v1::CheckpointPart {
            worker_id: self.worker_id,
            run_id: self.run_id.clone(),
            generation,
            step: state.step,
            part: Some(v1::FilePart::new(file.to_string(), data)),
        };
        let call = || async {
            let parts = tokio_stream::iter(state.files().map(part));
            self.client.clone().publish_checkpoint(parts).await.map(drop)
        };
        self.outlast(PUBLISH_LIMIT, call).await
    }
}

async fn within<T>(limit: Duration, call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    timeout(limit, call).await.unwrap_or_else(|_| Err(Status::deadline_exceeded("it took too long")))
}

fn broke_off(status: &Status) -> bool {
    status.source().is_some() || matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled)
}

/// Publishes every few steps beside the training, and at its end.
pub(crate) struct Publisher {
    pub(crate) link: Link,
    pub(crate) generation: u64,
    saved_step: u64,
    is_ordered: bool,
    under_way: Option<(u64, JoinHandle<Result<(), Status>>)>,
}

impl Publisher {
    pub(crate) fn new(link: Link) -> Publisher {
        Publisher { link, generation: 0, saved_step: 0, is_ordered: false, under_way: None }
    }

    pub(crate) fn enter(&mut self, generation: u64, saved_step: u64) {
        self.generation = generation;
        self.saved_step = self.saved_step.max(saved_step);
    }

    pub(crate) async fn publish_if_due(&mut self, state: State, is_ordered: bool) {
        self.is_ordered |= is_ordered;
        if let Some((step, task)) = self.under_way.take_if(|(_, task)| task.is_finished())
            && task.await.unwrap().is_ok()
        {
            self.saved_step = step;
        }
        let is_due = self.is_ordered || state.step / EVERY_STEPS > self.saved_step / EVERY_STEPS;
        if self.under_way.is_none() && is_due {
            self.is_ordered = false;
            let (link, generation) = (self.link.clone(), self.generation);
            let task = spawn_local(async move { link.publish(generation, state).await });
            self.under_way = Some((state.step, task));
        }
    }

    pub(crate) async fn publish_last(&mut self, state: State) -> Result<(), Status> {
        if let Some((step, task)) = self.under_way.take()
            && task.await.unwrap().is_ok()
        {
            self.saved_step = step;
        }
        if self.saved_step != state.step || state.step == 0 {
            self.link.publish(self.generation, state).await?;
        }
        self.saved_step = state.step;
        Ok(())
    }
}
