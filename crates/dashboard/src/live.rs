//! What only a coordinator that is at work knows: heard from its control loop, which must not be held up.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use coordinator::journal::Record;
use coordinator::{Progress, Sight};

/// The run as the control loop told it last.
#[derive(Debug, Default)]
pub(crate) struct Live {
    pub(crate) sight: Option<Sight>,
    /// When that was.
    pub(crate) seen_at: Option<Instant>,
    /// Why the last evaluation failed, until one succeeds.
    pub(crate) evaluation_failure: Option<String>,
    /// Whether a stop was asked for; a second one would end the run without saving.
    pub(crate) is_stopping: bool,
    /// Whether a pause was asked for, and not yet to go on.
    pub(crate) is_paused: bool,
}

impl Live {
    /// Whether a worker takes part, as far as that was told.
    pub(crate) fn has_worker(&self, worker: u64) -> bool {
        self.sight.iter().flat_map(|sight| &sight.workers).any(|other| other.worker == worker)
    }
}

/// What the control loop calls: see [`Observer::hear`].
#[derive(Debug, Clone)]
pub struct Observer(pub(crate) Arc<Mutex<Live>>);

impl Observer {
    /// Keeps what is to be shown. Steps, which come often, are not: they are read from the file that the control loop
    /// has written them to. What remains comes once a second, and is put down under a lock that readers hold for as
    /// long as it takes to copy it.
    pub fn hear(&self, progress: &Progress) {
        match progress {
            Progress::Step(_) | Progress::Spans(_) | Progress::EvaluationBegan => {}
            Progress::Seen(sight) => {
                let mut live = lock(&self.0);
                (live.sight, live.seen_at) = (Some(sight.clone()), Some(Instant::now()));
            }
            Progress::EvaluationFailed(reason) => lock(&self.0).evaluation_failure = Some(reason.clone()),
            Progress::Evaluated(_) => lock(&self.0).evaluation_failure = None,
            Progress::Noted { record: Record::StopRequested { .. } | Record::Ended(_), .. } => {
                lock(&self.0).is_stopping = true;
            }
            Progress::Noted { record: Record::Paused { .. }, .. } => lock(&self.0).is_paused = true,
            Progress::Noted { record: Record::Continued { .. }, .. } => lock(&self.0).is_paused = false,
            // The journal itself is read.
            Progress::Noted { .. } => {}
        }
    }
}

/// What a mutex holds here is whole even if someone panicked beside it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
