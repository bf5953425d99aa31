//! The pauses between attempts to reach the coordinator.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// The first pause: a coordinator that starts together with its workers listens within this time.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// Pauses that double, each shortened by up to half at random, so that workers which lost their coordinator
/// together do not come back together.
#[derive(Debug)]
pub struct Pauses {
    next: Duration,
    longest: Duration,
}

impl Pauses {
    /// From 50 ms up to `longest`.
    pub fn up_to(longest: Duration) -> Pauses {
        Pauses { next: FIRST_PAUSE.min(longest), longest }
    }

    /// How long to wait before the next attempt.
    pub fn next_pause(&mut self) -> Duration {
        let pause = self.next.mul_f64(0.5 + 0.5 * unit_random());
        self.next = (self.next * 2).min(self.longest);
        pause
    }
}

/// Between 0 and 1, different in every process: `RandomState` is seeded by the operating system.
fn unit_random() -> f64 {
    RandomState::new().hash_one(0) as f64 / u64::MAX as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_longest_and_are_never_less_than_half_of_it() {
        let mut pauses = Pauses::up_to(Duration::from_millis(300));
        for longest_ms in [50, 100, 200, 300, 300] {
            let pause = pauses.next_pause();
            let longest = Duration::from_millis(longest_ms);
            assert!((longest / 2..=longest).contains(&pause), "{pause:?} of {longest:?}");
        }
    }
}
