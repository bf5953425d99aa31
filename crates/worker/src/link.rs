//! The calls that threads without async code make to the coordinator, and that outlast its restart.

use std::error::Error;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use protocol::WorkerId;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
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
    /// Waits for a call on a thread that runs no async tasks, for at most `limit`, and calls again if the coordinator
    /// was lost meanwhile and another one found, or did not answer in time: one whose disk stands still is away, though
    /// its connection lives. That is borne for as long as a coordinator may be lost.
    pub(crate) fn call<T, F>(&self, limit: Duration, call: impl FnMut() -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<T, Status>>,
    {
        self.runtime.block_on(self.outlast(limit, call))
    }

    /// The same for an async task.
    pub(crate) async fn outlast<T, F>(
        &self,
        limit: Duration,
        mut call: impl FnMut() -> F,
    ) -> Result<T, Status>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let mut attempts = 1;
        let borne_until = Instant::now() + self.absence_limit;
        loop {
            let before = *self.attendance.borrow();
            let Ok(outcome) = timeout(limit, call()).await else {
                if Instant::now() < borne_until {
                    tracing::warn!("a call that took more than {:.1} s is made again", limit.as_secs_f64());
                    continue;
                }
                return Err(too_long(limit));
            };
            match outcome {
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
        let limit = limit + self.absence_limit;
        self.runtime.block_on(timeout(limit, outcome)).unwrap_or_else(|_| Err(too_long(limit)))
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

fn too_long(limit: Duration) -> Status {
    Status::deadline_exceeded(format!("it took more than {:.1} s", limit.as_secs_f64()))
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

    /// A link to nobody, whose coordinator counts as found.
    fn link(absence_limit: Duration) -> Link {
        let access = Access { token: Token::random().unwrap(), tls: None };
        let (_found, attendance) = watch::channel(Some(1));
        Link {
            line: Line::to("127.0.0.1:1", &access).unwrap(),
            worker: WorkerId(1),
            run_id: Bytes::new(),
            runtime: Handle::current(),
            attendance,
            absence_limit,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_coordinator_that_does_not_answer_is_asked_again_for_as_long_as_it_may_be_away() {
        let limit = Duration::from_secs(60);
        for (absence_s, answers_at_call, calls_expected) in
            [(600, 1, Some(1)), (600, 4, Some(4)), (600, 99, None), (0, 2, None)]
        {
            let (link, mut calls) = (link(Duration::from_secs(absence_s)), 0);
            let call = || {
                calls += 1;
                let answers = calls >= answers_at_call;
                async move { if answers { Ok(()) } else { std::future::pending().await } }
            };
            let begun = Instant::now();
            let outcome = link.outlast(limit, call).await;
            match calls_expected {
                Some(expected) => assert_eq!((outcome.is_ok(), calls), (true, expected), "{absence_s} s"),
                None => {
                    assert_eq!(outcome.unwrap_err().message(), "it took more than 60.0 s");
                    let waited_s = begun.elapsed().as_secs();
                    assert!((absence_s.max(60)..=absence_s + 60).contains(&waited_s), "{waited_s} s");
                }
            }
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
}
