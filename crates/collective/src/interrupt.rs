//! A word from outside that ends one generation's waiting.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How often a waiting collective looks whether it was interrupted, or has failed elsewhere. Short beside the
/// seconds that it takes to find out that a peer is silent.
pub(crate) const INTERRUPT_TICK: Duration = Duration::from_millis(20);

/// Ends the assembly or the fold of one generation from another thread. Clones are the same; once raised, it
/// stays so.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// From now on, whoever waits in this generation fails with
    /// [`CollectiveError::Interrupted`](crate::CollectiveError::Interrupted).
    pub fn raise(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether it was raised.
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}
