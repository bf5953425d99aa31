//! The calls that threads without async code make to the coordinator, and that outlast its restart.

use std::error::Error;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use protocol::WorkerId;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::{Code, Status};

use crate::line::Line;

/// How long after a call that broke off the loss of the coordinator is noticed, if it is lost: all calls share its
/// connection.
const NOTICE_LIMIT: Duration = Duration::from_secs(5);

/// How often a call is made whose messages arrive changed. A network that does so each time is not one to train over.
const ATTEMPTS: u32 = 3;

/// Whether there is a coordinator: the number of times that one was found, `None` while it is looked for.
pub(crate) type Attendance = Option<u64>;

/// The calls of a worker to its coordinator. Clones share their connection.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) line: Line,
    pub(crate) worker: WorkerId,
    /// 16 bytes, part of every request.
    pub(crate) run_id: Bytes,
    pub(crate) runtime: Handle,
    pub(crate) attendance: watch::Receiver<Attendance>,
    /// How long a coordinator that is lost is waited for.
    pub(crate) absence_limit: Duration,
}

impl Link {
    /// Waits for something to be fetched on a thread that runs no async tasks, for at most `limit`. If the coordinator is
    /// lost meanwhile, waits for the next one, and asks again. One that does not answer, though its connection holds, is as
    /// good as lost, for its disk may hang: it is asked again for as long.
    ///
    /// # Errors
    /// What the coordinator said, or that it stayed away, or silent.
    pub(crate) fn fetch<T, F>(&self, limit: Duration, call: impl FnMut() -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<T, Status>>,
    {
        self.runtime.block_on(self.outlast_silence(limit, call))
    }

    async fn outlast_silence<T, F>(&self, limit: Duration, mut call: impl FnMut() -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let mut silence = Duration::ZERO;
        loop {
            let outcome = self.outlast(limit, &mut call).await;
            silence += limit;
            match outcome {
                Err(status) if status.code() == Code::DeadlineExceeded && silence <= self.absence_limit => {
                    tracing::warn!(
                        "the coordinator does not answer, and is asked again: {}",
                        status.message()
                    );
                }
                outcome => return outcome,
            }
        }
    }

    /// Waits for a call, for at most `limit`. If the coordinator is lost meanwhile, waits for the next one, and calls again.
    ///
    /// # Errors
    /// What the coordinator said, or that it stayed away, or that it took too long.
    pub(crate) async fn outlast<T, F>(
        &self,
        limit: Duration,
        mut call: impl FnMut() -> F,
    ) -> Result<T, Status>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let mut attempts = 1;
        loop {
            let before = *self.attendance.borrow();
            match within(limit, call()).await {
                Err(status) if was_garbled(&status) && attempts < ATTEMPTS => {
                    tracing::warn!("a call is made again, over a new connection: {}", status.message());
                    self.line.redial();
                    attempts += 1;
                }
                Err(status) if broke_off(&status) && self.is_found_again(before).await => {
                    tracing::info!("a call that broke off is made again: {}", status.message());
                }
                outcome => return outcome,
            }
        }
    }

    /// Waits on a thread that runs no async tasks, for at most `limit` beyond what a lost coordinator may take to come
    /// back.
    pub(crate) fn wait<T>(
        &self,
        limit: Duration,
        outcome: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        self.runtime.block_on(within(limit + self.absence_limit, outcome))
    }

    /// How often a coordinator was found by now.
    pub(crate) fn attendance(&self) -> Attendance {
        *self.attendance.borrow()
    }

    /// Whether the coordinator was lost since `before`, and another one found.
    async fn is_found_again(&self, before: Attendance) -> bool {
        let mut attendance = self.attendance.clone();
        holds(&mut attendance, NOTICE_LIMIT, |now| *now != before || now.is_none()).await
            && holds(&mut attendance, self.absence_limit, Option::is_some).await
    }
}

/// Whether `condition` comes true within `limit`.
async fn holds(
    attendance: &mut watch::Receiver<Attendance>,
    limit: Duration,
    condition: impl FnMut(&Attendance) -> bool,
) -> bool {
    timeout(limit, attendance.wait_for(condition)).await.is_ok_and(|found| found.is_ok())
}

async fn within<T>(limit: Duration, call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    timeout(limit, call).await.unwrap_or_else(|_| {
        let limit_s = limit.as_secs_f64();
        Err(Status::deadline_exceeded(format!("it took more than {limit_s:.1} s")))
    })
}

/// Whether the call or its answer was changed on its way: by a checksum, or because it is none by the rules of gRPC. An
/// answer that ends before its status, on a connection that stays, is `UNKNOWN` without a cause.
pub(crate) fn was_garbled(status: &Status) -> bool {
    matches!(status.code(), Code::DataLoss | Code::Internal)
        || (status.code() == Code::Unknown && status.source().is_none())
}

/// Whether nobody answered: an answer has no cause of its own on this side.
fn broke_off(status: &Status) -> bool {
    status.source().is_some() || matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::{Access, Token};

    /// To a coordinator that is there, and is waited for so long if it is not.
    fn link(absence_limit: Duration) -> Link {
        let access = Access { token: Token::random().unwrap(), tls: None };
        Link {
            line: Line::to("127.0.0.1:1", &access).unwrap(),
            worker: WorkerId(1),
            run_id: Bytes::new(),
            runtime: Handle::current(),
            attendance: watch::channel(Some(1)).1,
            absence_limit,
        }
    }

    #[tokio::test]
    async fn what_was_garbled_is_asked_again_and_what_was_refused_is_not() {
        let link = link(Duration::ZERO);
        for (code, failures, calls_expected, succeeds) in [
            (Code::DataLoss, 2, 3, true),
            (Code::Internal, 1, 2, true),
            (Code::Unknown, 2, 3, true),
            (Code::Internal, 99, 3, false),
            (Code::FailedPrecondition, 99, 1, false),
        ] {
            let mut calls = 0;
            let call = || {
                calls += 1;
                std::future::ready(if calls > failures { Ok(()) } else { Err(Status::new(code, "no")) })
            };
            let outcome = link.outlast(Duration::from_secs(9), call).await;
            assert_eq!((outcome.is_ok(), calls), (succeeds, calls_expected), "{code:?} {failures} times");
        }
    }

    #[tokio::test]
    async fn a_coordinator_that_is_silent_is_asked_for_as_long_as_one_that_is_absent() {
        let limit = Duration::from_millis(1);
        for (absence_ms, silent_calls, calls_expected, succeeds) in
            [(5, 0, 1, true), (5, 1, 2, true), (5, 5, 6, true), (5, 99, 6, false), (0, 1, 1, false)]
        {
            let link = link(Duration::from_millis(absence_ms));
            let mut calls = 0;
            let call = || {
                calls += 1;
                let is_silent = calls <= silent_calls;
                async move { if is_silent { std::future::pending().await } else { Ok(()) } }
            };
            let outcome = link.outlast_silence(limit, call).await;
            let told = format!("{silent_calls} silent calls of {absence_ms}: {outcome:?}");
            assert_eq!((outcome.is_ok(), calls), (succeeds, calls_expected), "{told}");
        }
    }
}
