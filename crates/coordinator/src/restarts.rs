//! How often a worker process is started again, and after which pause.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Ends within [`WINDOW`] after which a process is given up: it is the process then, not chance.
const RESTARTS: usize = 5;

/// Ends that are longer ago are forgotten.
const WINDOW: Duration = Duration::from_secs(600);

/// The pause after the first end within the window; it doubles from one to the next.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// The ends of one process that count.
#[derive(Debug, Default)]
pub(crate) struct Restarts {
    ends: VecDeque<Instant>,
}

impl Restarts {
    /// The process ended at `now`: how long to wait before it is started again, `None` if it is given up.
    pub(crate) fn after_end(&mut self, now: Instant) -> Option<Duration> {
        while self.ends.front().is_some_and(|end| now.duration_since(*end) > WINDOW) {
            self.ends.pop_front();
        }
        self.ends.push_back(now);
        let doublings = self.ends.len() - 1;
        (doublings < RESTARTS).then(|| FIRST_PAUSE * (1 << doublings))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_until_a_process_is_given_up_and_old_ends_are_forgotten() {
        let start = Instant::now();
        let mut restarts = Restarts::default();
        let pauses_ms: Vec<_> = (0..6)
            .map(|second| restarts.after_end(start + Duration::from_secs(second)))
            .map(|pause| pause.map(|pause| pause.as_millis()))
            .collect();
        assert_eq!(pauses_ms, [Some(200), Some(400), Some(800), Some(1600), Some(3200), None]);
        assert_eq!(restarts.after_end(start + Duration::from_secs(3600)), Some(FIRST_PAUSE));
    }
}
