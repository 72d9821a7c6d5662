//! How fast a body must move: a longest pause, a least rate, a last moment.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// A body may be slow for this long before its rate counts.
const GRACE: Duration = Duration::from_secs(10);

/// Watches one body. The timer exists only once somebody had to wait.
#[derive(Debug)]
pub(super) struct Pace {
    idle: Duration,
    min_rate: u64,
    deadline: Instant,
    started: Instant,
    last: Instant,
    bytes: u64,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    pub(super) fn new(idle: Duration, min_rate: u64, deadline: Instant) -> Self {
        let now = Instant::now();
        Self {
            idle,
            min_rate,
            deadline,
            started: now,
            last: now,
            bytes: 0,
            timer: None,
        }
    }

    /// Bytes have moved.
    pub(super) fn moved(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        self.last = Instant::now();
    }

    /// Bytes per second so far.
    pub(super) fn rate(&self, now: Instant) -> u64 {
        let millis = now.saturating_duration_since(self.started).as_millis();
        let millis = u64::try_from(millis).unwrap_or(u64::MAX).max(1);
        self.bytes.saturating_mul(1000) / millis
    }

    /// Whether the body has now been too slow in one of the three ways; a pause may
    /// be `patience` times as long as the longest.
    pub(super) fn is_too_slow(&self, now: Instant, patience: u32) -> bool {
        now >= self.next_limit(patience)
    }

    /// Ready when the body, which has just been found pending, is too slow.
    pub(super) fn poll_too_slow(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let limit = self.next_limit(1);
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(sleep_until(limit)));
        if timer.deadline() != limit {
            timer.as_mut().reset(limit);
        }
        timer.as_mut().poll(cx)
    }

    fn next_limit(&self, patience: u32) -> Instant {
        let mut limit = self.deadline.min(self.last + self.idle * patience);
        if self.min_rate > 0 {
            let covered = Duration::from_secs_f64(self.bytes as f64 / self.min_rate as f64);
            limit = limit.min(self.started + GRACE + covered);
        }
        limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_pause_a_trickle_and_a_late_end_are_each_too_slow() {
        let start = Instant::now();
        let mut pace = Pace::new(30 * SECOND, 100, start + 100 * SECOND);
        assert!(!pace.is_too_slow(start + 9 * SECOND, 1));
        assert!(
            pace.is_too_slow(start + 11 * SECOND, 1),
            "no bytes after the grace"
        );
        pace.moved(5_000);
        assert!(
            !pace.is_too_slow(start + 29 * SECOND, 1),
            "5,000 bytes buy 50 seconds"
        );
        assert!(
            pace.is_too_slow(start + 30 * SECOND, 1),
            "a pause of 30 seconds"
        );
        tokio::time::advance(99 * SECOND).await;
        pace.moved(1_000_000);
        assert!(pace.is_too_slow(start + 100 * SECOND, 1), "the last moment");
    }
}
