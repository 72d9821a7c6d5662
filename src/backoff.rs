//! Exponential back-off: how long to wait after the n-th failure in a row. Pure but for the
//! random jitter; each owner keeps its own times.

use std::time::Duration;

/// Pauses that double from `first` to `max`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    pub(crate) first: Duration,
    pub(crate) max: Duration,
    /// The part of each pause that is random, from 0.0 (none) to 1.0 ("full jitter"). It keeps
    /// gateways that failed at the same moment from retrying at the same moment.
    pub(crate) jitter: f64,
}

impl Backoff {
    /// The pause after `failures` failures in a row, counted from 1.
    pub(crate) fn pause(&self, failures: u32) -> Duration {
        let pause = self.max_pause(failures);
        pause.mul_f64(1.0 - self.jitter * rand::random::<f64>())
    }

    /// The same without jitter.
    fn max_pause(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(30);
        self.first.saturating_mul(1 << doublings).min(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff = Backoff {
        first: Duration::from_secs(1),
        max: Duration::from_secs(300),
        jitter: 1.0,
    };

    #[test]
    fn pauses_double_up_to_the_max() {
        let seconds = |failures| BACKOFF.max_pause(failures).as_secs();
        let pauses = [0, 1, 2, 3, 9, 10, 31, u32::MAX].map(seconds);
        assert_eq!(pauses, [1, 1, 2, 4, 256, 300, 300, 300]);
    }

    #[test]
    fn jitter_only_shortens_a_pause_and_by_its_part_at_most() {
        let half = Backoff {
            jitter: 0.5,
            ..BACKOFF
        };
        let none = Backoff {
            jitter: 0.0,
            ..BACKOFF
        };
        for failures in (0..40).cycle().take(2000) {
            let max = BACKOFF.max_pause(failures);
            assert!(BACKOFF.pause(failures) <= max);
            assert!(half.pause(failures) <= max && half.pause(failures) >= max.mul_f64(0.499));
            assert_eq!(none.pause(failures), max);
        }
    }
}
