//! Which of the signals that ask for a stop are meant as one of their own.

use std::time::{Duration, Instant};

/// Who sends a signal often sends it twice, to the process and to its group, as `timeout` does. A person who means a second
/// one has seen what came of the first.
const SAME_SIGNAL: Duration = Duration::from_secs(1);

/// The signals that came so far.
#[derive(Debug, Default)]
pub(crate) struct StopSignals {
    first: Option<Instant>,
}

impl StopSignals {
    /// Whether one that comes at `now` asks for something: the first for a stop in order, a later one for an end at once.
    pub(crate) fn counts(&mut self, now: Instant) -> bool {
        let Some(first) = self.first else {
            self.first = Some(now);
            return true;
        };
        now.duration_since(first) >= SAME_SIGNAL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_comes_twice_is_one() {
        let begin = Instant::now();
        let mut signals = StopSignals::default();
        for (after_ms, counts) in
            [(0, true), (0, false), (1, false), (50, false), (999, false), (1000, true), (1001, true)]
        {
            assert_eq!(signals.counts(begin + Duration::from_millis(after_ms)), counts, "{after_ms} ms");
        }
    }
}
