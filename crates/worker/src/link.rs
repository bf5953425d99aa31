//! The calls that threads without async code make to the coordinator.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use protocol::{Client, WorkerId};
use tokio::runtime::Handle;

/// A worker's connection to its coordinator. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) client: Client,
    pub(crate) worker: WorkerId,
    /// 16 bytes, part of every request.
    pub(crate) run_id: Bytes,
    pub(crate) runtime: Handle,
}

impl Link {
    /// Waits for a call on a thread that runs no async tasks, for at most `limit`.
    pub(crate) fn wait<T>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<T, tonic::Status>>,
    ) -> Result<T, tonic::Status> {
        self.runtime.block_on(async {
            tokio::time::timeout(limit, call).await.unwrap_or_else(|_| {
                let limit_s = limit.as_secs_f64();
                Err(tonic::Status::deadline_exceeded(format!("it took more than {limit_s:.1} s")))
            })
        })
    }
}
