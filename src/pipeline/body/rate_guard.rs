//! How long each side of a body transfer may take: an idle timeout for both sides, a minimum rate
//! for the client, and a deadline. Time counts against the side that owes the next step.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use crate::clock;
use crate::lazy_timer::LazyTimer;

/// Total time that a client may take before its minimum rate applies.
const GRACE: Duration = Duration::from_secs(10);

/// The side that owes the next step of a body transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodySide {
    Client,
    Upstream,
}

/// The time limits of one body.
#[derive(Clone, Copy, Debug)]
pub(in crate::pipeline) struct RateRules {
    pub(in crate::pipeline) idle_timeout: Duration,
    /// Minimum rate of the client in bytes per second; 0: none.
    pub(in crate::pipeline) min_rate: u64,
    /// End of the whole exchange.
    pub(in crate::pipeline) deadline: Instant,
    /// A call of gRPC: the upstream may be silent between two messages.
    pub(in crate::pipeline) is_call: bool,
}

/// Times one body. The timer is created at the first wait.
#[derive(Debug)]
pub(super) struct RateGuard {
    rules: RateRules,
    /// The side that owes the next step.
    awaited: BodySide,
    /// When that side began to owe it.
    since: Instant,
    /// Time that the client has taken, without its current step.
    client_time: Duration,
    bytes: u64,
    timer: Option<Pin<Box<LazyTimer>>>,
}

impl RateGuard {
    /// Times a body whose first step is owed by `first`.
    pub(super) fn new(rules: RateRules, first: BodySide) -> Self {
        Self {
            rules,
            awaited: first,
            since: clock::now(),
            client_time: Duration::ZERO,
            bytes: 0,
            timer: None,
        }
    }

    pub(super) fn awaited(&self) -> BodySide {
        self.awaited
    }

    /// A poll found nothing: `side` owes the next step, from now on or from earlier.
    pub(super) fn await_side(&mut self, side: BodySide) {
        if self.awaited != side {
            self.begin(side);
        }
    }

    /// Counts `bytes` that have moved; `next` owes the next step from now on.
    pub(super) fn record_progress(&mut self, bytes: usize, next: BodySide) {
        self.bytes += bytes as u64;
        self.begin(next);
    }

    fn begin(&mut self, side: BodySide) {
        let now = clock::now();
        if self.awaited == BodySide::Client {
            self.client_time += now.saturating_duration_since(self.since);
        }
        self.awaited = side;
        self.since = now;
    }

    /// Bytes per second of the time that the client has taken so far.
    pub(super) fn rate(&self, now: Instant) -> u64 {
        let current = match self.awaited {
            BodySide::Client => now.saturating_duration_since(self.since),
            BodySide::Upstream => Duration::ZERO,
        };
        let millis = (self.client_time + current).as_millis();
        let millis = u64::try_from(millis).unwrap_or(u64::MAX).max(1);
        self.bytes.saturating_mul(1000) / millis
    }

    /// Whether the upstream owes nothing while it is silent.
    pub(super) fn is_call(&self) -> bool {
        self.rules.is_call
    }

    pub(super) fn is_past_deadline(&self, now: Instant) -> bool {
        now >= self.rules.deadline
    }

    /// Whether the awaited side has paused for longer than `idle_factor` times the idle timeout, or
    /// is a client below its minimum rate.
    pub(super) fn is_too_slow(&self, now: Instant, idle_factor: u32) -> bool {
        now >= self.time_limit(idle_factor)
    }

    /// Ready once the awaited side is too slow or the deadline has passed. To be polled after a
    /// poll of the body found nothing.
    pub(super) fn poll_too_slow(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let limit = self.rules.deadline.min(self.time_limit(1));
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(LazyTimer::new(limit)));
        timer.as_mut().poll_until(cx, limit)
    }

    /// When the awaited side becomes too slow.
    fn time_limit(&self, idle_factor: u32) -> Instant {
        let pause = self.rules.idle_timeout * idle_factor;
        if self.awaited == BodySide::Upstream || self.rules.min_rate == 0 {
            return self.since + pause;
        }
        let covered = Duration::from_secs_f64(self.bytes as f64 / self.rules.min_rate as f64);
        let left = (GRACE + covered).saturating_sub(self.client_time);
        self.since + pause.min(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn guard(first: BodySide) -> RateGuard {
        let rules = RateRules {
            idle_timeout: 30 * SECOND,
            min_rate: 100,
            deadline: Instant::now() + 100 * SECOND,
            is_call: false,
        };
        RateGuard::new(rules, first)
    }

    async fn pass(seconds: u32) -> Instant {
        tokio::time::advance(seconds * SECOND).await;
        Instant::now()
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_has_a_grace_period_a_minimum_rate_and_an_idle_timeout() {
        let mut guard = guard(BodySide::Client);
        assert!(!guard.is_too_slow(pass(9).await, 1));
        assert!(
            guard.is_too_slow(pass(2).await, 1),
            "no bytes after the grace"
        );
        guard.record_progress(5_000, BodySide::Client);
        assert!(
            !guard.is_too_slow(pass(29).await, 1),
            "5,000 bytes buy 50 s"
        );
        assert!(guard.is_too_slow(pass(1).await, 1), "a pause of 30 s");
        assert!(!guard.is_too_slow(Instant::now(), 10));
        assert!(
            guard.is_too_slow(pass(19).await, 10),
            "the earned time is used up"
        );
        assert!(!guard.is_past_deadline(pass(39).await));
        assert!(guard.is_past_deadline(pass(1).await));
    }

    #[tokio::test(start_paused = true)]
    async fn an_upstream_has_only_an_idle_timeout_and_its_time_does_not_count_against_the_client() {
        let mut guard = guard(BodySide::Upstream);
        for _ in 0..10 {
            assert!(!guard.is_too_slow(pass(29).await, 1));
            guard.record_progress(1, BodySide::Client);
            guard.await_side(BodySide::Upstream);
        }
        guard.await_side(BodySide::Upstream);
        pass(29).await;
        guard.await_side(BodySide::Upstream);
        assert!(
            guard.is_too_slow(pass(1).await, 1),
            "a second poll is no progress"
        );
        guard.record_progress(1, BodySide::Client);
        assert!(
            !guard.is_too_slow(pass(9).await, 1),
            "the grace period of the client is untouched"
        );
        assert!(guard.is_too_slow(pass(2).await, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn all_waits_for_a_client_count_together() {
        let mut guard = guard(BodySide::Client);
        for _ in 0..9 {
            pass(1).await;
            guard.record_progress(1, BodySide::Upstream);
            pass(20).await;
            guard.await_side(BodySide::Client);
        }
        assert!(!guard.is_too_slow(Instant::now(), 1), "9 s of 10");
        assert_eq!(guard.rate(Instant::now()), 1);
        assert!(guard.is_too_slow(pass(2).await, 1));
    }
}
