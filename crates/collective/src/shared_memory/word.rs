//! A 32-bit word that processes share, and that loom can stand in for.

use rustix::thread::futex;
use std::fmt::Debug;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// What the hand-over needs of an atomic word.
pub(super) trait Word: Debug + Default {
    fn load(&self, order: Ordering) -> u32;
    fn fetch_add(&self, more: u32, order: Ordering) -> u32;
    fn compare_exchange(&self, old: u32, new: u32, success: Ordering, failure: Ordering) -> Result<u32, u32>;
    /// Sleeps until woken, at most `limit`, unless the word is no longer `value`. May return early.
    fn sleep_while(&self, value: u32, limit: Duration);
    /// Wakes all who sleep on this word.
    fn wake_all(&self);
}

impl Word for AtomicU32 {
    fn load(&self, order: Ordering) -> u32 {
        self.load(order)
    }

    fn fetch_add(&self, more: u32, order: Ordering) -> u32 {
        self.fetch_add(more, order)
    }

    fn compare_exchange(&self, old: u32, new: u32, success: Ordering, failure: Ordering) -> Result<u32, u32> {
        self.compare_exchange(old, new, success, failure)
    }

    fn sleep_while(&self, value: u32, limit: Duration) {
        let limit = limit.try_into().expect("who sleeps gives a short limit");
        // Woken, too late, timed out, interrupted: in each case the caller looks again.
        let _ = futex::wait(self, futex::Flags::empty(), value, Some(&limit));
    }

    fn wake_all(&self) {
        // Fails only for words that are not mapped.
        let _ = futex::wake(self, futex::Flags::empty(), i32::MAX as u32);
    }
}

/// A word whose interleavings loom goes through. Its sleep has no limit, so that one which nobody ends is found.
#[cfg(test)]
#[derive(Debug)]
pub(super) struct LoomWord {
    value: loom::sync::atomic::AtomicU32,
    sleepers: loom::sync::Mutex<()>,
    woken: loom::sync::Condvar,
}

#[cfg(test)]
impl Default for LoomWord {
    fn default() -> Self {
        let value = loom::sync::atomic::AtomicU32::new(0);
        Self { value, sleepers: loom::sync::Mutex::new(()), woken: loom::sync::Condvar::new() }
    }
}

#[cfg(test)]
impl Word for LoomWord {
    fn load(&self, order: Ordering) -> u32 {
        self.value.load(order)
    }

    fn fetch_add(&self, more: u32, order: Ordering) -> u32 {
        self.value.fetch_add(more, order)
    }

    fn compare_exchange(&self, old: u32, new: u32, success: Ordering, failure: Ordering) -> Result<u32, u32> {
        self.value.compare_exchange(old, new, success, failure)
    }

    fn sleep_while(&self, value: u32, _limit: Duration) {
        // As the kernel does it: compared and put to sleep under one lock, which whoever wakes takes too.
        let sleepers = self.sleepers.lock().unwrap();
        if self.value.load(Ordering::SeqCst) == value {
            drop(self.woken.wait(sleepers).unwrap());
        }
    }

    fn wake_all(&self) {
        drop(self.sleepers.lock().unwrap());
        self.woken.notify_all();
    }
}
