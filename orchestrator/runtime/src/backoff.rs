//! How long to wait before trying again: exponential, capped, jittered.

use std::time::Duration;

/// A growing wait between tries.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// Starts at `first`, doubles up to `longest`.
    #[must_use]
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// Returns the next wait, between half and the whole of the current step, and grows.
    ///
    /// The jitter keeps a rack that was powered on at once from knocking in step.
    pub fn step(&mut self) -> Duration {
        let whole = self.next;
        self.next = whole.saturating_mul(2).min(self.longest);
        whole.mul_f64(rand::random_range(0.5..=1.0))
    }

    /// Starts over after a success.
    pub const fn reset(&mut self) {
        self.next = self.first;
    }
}

impl Default for Backoff {
    /// 100 ms doubling to 15 s: quick after a blip, light on a dead server.
    fn default() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(15))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_limit_and_start_over() {
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(40));
        for whole in [10, 20, 40, 40] {
            let wait = backoff.step();
            assert!(wait >= Duration::from_millis(whole / 2), "{wait:?}");
            assert!(wait <= Duration::from_millis(whole), "{wait:?}");
        }
        backoff.reset();
        assert!(backoff.step() <= Duration::from_millis(10));
    }
}
