//! How often something may happen, as a pure function of the time.

use std::time::Duration;

/// A bucket of permits that fills up again while time passes.
#[derive(Debug)]
pub(crate) struct Rate {
    most: f64,
    per_s: f64,
    left: f64,
    at: Duration,
}

impl Rate {
    /// At first `most` at once, then `per_s` in a second.
    pub(crate) fn new(most: u32, per_s: f64) -> Rate {
        let most = f64::from(most);
        Rate { most, per_s, left: most, at: Duration::ZERO }
    }

    /// Takes a permit at `now`, the time since some beginning; if there is none, how long until there is one.
    pub(crate) fn take(&mut self, now: Duration) -> Result<(), Duration> {
        let passed = now.saturating_sub(self.at);
        self.at = self.at.max(now);
        self.left = (self.left + passed.as_secs_f64() * self.per_s).min(self.most);
        if self.left < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - self.left) / self.per_s));
        }
        self.left -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_are_used_up_and_come_back_with_time() {
        let mut rate = Rate::new(3, 2.0);
        for (now_ms, expected_wait_ms) in [
            (0, None),
            (0, None),
            (0, None),
            (0, Some(500)),
            (250, Some(250)),
            (500, None),
            (500, Some(500)),
            // A clock that goes back gives nothing, and takes nothing.
            (400, Some(500)),
            // However long nothing came, no more than at first.
            (3_600_000, None),
            (3_600_000, None),
            (3_600_000, None),
            (3_600_000, Some(500)),
        ] {
            let wait = rate.take(Duration::from_millis(now_ms)).err();
            assert_eq!(wait.map(|wait| wait.as_millis()), expected_wait_ms, "at {now_ms} ms");
        }
    }
}
