//! The time by which membership measures its waits.

use std::time::Duration;

/// A coordinator that has not looked at the time for this long, though it does so ten times a second, did not run: it was
/// stopped, or waited for a disk.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// The time in which a coordinator could hear its workers. While it does not run, their words wait for it to read them, so
/// that what it missed is nobody's silence.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    looked_at: Duration,
    now: Duration,
}

impl Clock {
    /// The time when `elapsed` has passed since the coordinator began. It never goes back.
    pub(crate) fn at(&mut self, elapsed: Duration) -> Duration {
        self.now += elapsed.saturating_sub(self.looked_at).min(LONGEST_PAUSE);
        self.looked_at = elapsed;
        self.now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_time_in_which_it_looks_passes() {
        let mut clock = Clock::default();
        let mut at_ms = |elapsed_ms| clock.at(Duration::from_millis(elapsed_ms)).as_millis();
        assert_eq!([0, 100, 250, 250, 750].map(&mut at_ms), [0, 100, 250, 250, 750]);
        // It slept for an hour.
        assert_eq!([3_600_750, 3_600_850].map(&mut at_ms), [1250, 1350]);
    }
}
