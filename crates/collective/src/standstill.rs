//! For how long a fold has not moved, as another thread sees it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Since when nothing has moved in the fold that a worker is in. Clones look at the same worker.
///
/// A rank that waits cannot tell a peer that computes from one whose bytes a network swallows: both are silent. But if
/// all ranks of a group stand still at once, nobody computes, and nothing will come any more. That is seen by whoever
/// hears of all of them.
#[derive(Clone, Debug, Default)]
pub struct Standstill(Arc<Mutex<Option<Instant>>>);

impl Standstill {
    /// For how long no byte has been sent or received; nothing outside of a fold.
    pub fn lasts(&self) -> Duration {
        self.since().map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// A fold begins, and lasts as long as what this gives.
    pub(crate) fn fold(&self) -> Folding {
        self.moved();
        Folding(self.clone())
    }

    /// Something was sent or received.
    pub(crate) fn moved(&self) {
        *self.since() = Some(Instant::now());
    }

    /// An instant is whole, whoever panicked beside it.
    fn since(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A fold under way.
#[derive(Debug)]
pub(crate) struct Folding(Standstill);

impl Drop for Folding {
    fn drop(&mut self) {
        *self.0.since() = None;
    }
}
