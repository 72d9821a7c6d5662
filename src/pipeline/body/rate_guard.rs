//! How long each side of a body may take: a longest pause for both, a least rate for the
//! client, a last moment. Only the side whose turn it is spends its time.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// A client may be slow for this long, all its turns together, before its rate counts.
const GRACE: Duration = Duration::from_secs(10);

/// Who owes the next step of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyDebtor {
    Client,
    Upstream,
}

/// What a body must keep to.
#[derive(Clone, Copy, Debug)]
pub(in crate::pipeline) struct PaceRules {
    /// Longest pause.
    pub(in crate::pipeline) idle: Duration,
    /// Bytes a second that a client owes; 0: none.
    pub(in crate::pipeline) min_rate: u64,
    /// End of the whole exchange.
    pub(in crate::pipeline) deadline: Instant,
}

/// Watches one body. The timer exists only once somebody had to wait.
#[derive(Debug)]
pub(super) struct RateGuard {
    rules: PaceRules,
    turn: BodyDebtor,
    /// Since when it is that side's turn.
    since: Instant,
    /// How long the client took, turns that have ended.
    client_took: Duration,
    bytes: u64,
    timer: Option<Pin<Box<Sleep>>>,
}

impl RateGuard {
    /// A body of which `first` owes the first step.
    pub(in crate::pipeline) fn new(rules: PaceRules, first: BodyDebtor) -> Self {
        Self {
            rules,
            turn: first,
            since: Instant::now(),
            client_took: Duration::ZERO,
            bytes: 0,
            timer: None,
        }
    }

    pub(in crate::pipeline) fn turn(&self) -> BodyDebtor {
        self.turn
    }

    /// The last step was found wanting: `debtor` owes it, since then or already longer.
    pub(super) fn awaits(&mut self, debtor: BodyDebtor) {
        if self.turn != debtor {
            self.begin(debtor);
        }
    }

    /// So many bytes have moved, and `next` owes the next step from now on.
    pub(in crate::pipeline) fn moved(&mut self, bytes: usize, next: BodyDebtor) {
        self.bytes += bytes as u64;
        self.begin(next);
    }

    fn begin(&mut self, debtor: BodyDebtor) {
        let now = Instant::now();
        if self.turn == BodyDebtor::Client {
            self.client_took += now.saturating_duration_since(self.since);
        }
        self.turn = debtor;
        self.since = now;
    }

    /// Bytes per second of the client's time so far.
    pub(in crate::pipeline) fn rate(&self, now: Instant) -> u64 {
        let current = match self.turn {
            BodyDebtor::Client => now.saturating_duration_since(self.since),
            BodyDebtor::Upstream => Duration::ZERO,
        };
        let millis = (self.client_took + current).as_millis();
        let millis = u64::try_from(millis).unwrap_or(u64::MAX).max(1);
        self.bytes.saturating_mul(1000) / millis
    }

    pub(super) fn is_time_up(&self, now: Instant) -> bool {
        now >= self.rules.deadline
    }

    /// Whether the side whose turn it is has paused for longer than `patience` times the
    /// longest pause, or is a client below its rate.
    pub(super) fn is_too_slow(&self, now: Instant, patience: u32) -> bool {
        now >= self.next_limit(patience)
    }

    /// Ready when the side whose turn it is, just found wanting, is too slow or its time is up.
    pub(super) fn poll_too_slow(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let limit = self.rules.deadline.min(self.next_limit(1));
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(sleep_until(limit)));
        if timer.deadline() != limit {
            timer.as_mut().reset(limit);
        }
        timer.as_mut().poll(cx)
    }

    fn next_limit(&self, patience: u32) -> Instant {
        let pause = self.rules.idle * patience;
        if self.turn == BodyDebtor::Upstream || self.rules.min_rate == 0 {
            return self.since + pause;
        }
        let covered = Duration::from_secs_f64(self.bytes as f64 / self.rules.min_rate as f64);
        let left = (GRACE + covered).saturating_sub(self.client_took);
        self.since + pause.min(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn pace(first: BodyDebtor) -> RateGuard {
        let rules = PaceRules {
            idle: 30 * SECOND,
            min_rate: 100,
            deadline: Instant::now() + 100 * SECOND,
        };
        RateGuard::new(rules, first)
    }

    async fn pass(seconds: u32) -> Instant {
        tokio::time::advance(seconds * SECOND).await;
        Instant::now()
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_has_a_grace_a_rate_and_a_longest_pause() {
        let mut pace = pace(BodyDebtor::Client);
        assert!(!pace.is_too_slow(pass(9).await, 1));
        assert!(
            pace.is_too_slow(pass(2).await, 1),
            "no bytes after the grace"
        );
        pace.moved(5_000, BodyDebtor::Client);
        assert!(!pace.is_too_slow(pass(29).await, 1), "5,000 bytes buy 50 s");
        assert!(pace.is_too_slow(pass(1).await, 1), "a pause of 30 s");
        assert!(!pace.is_too_slow(Instant::now(), 10));
        assert!(pace.is_too_slow(pass(19).await, 10), "all is spent");
        assert!(!pace.is_time_up(pass(39).await));
        assert!(pace.is_time_up(pass(1).await));
    }

    #[tokio::test(start_paused = true)]
    async fn an_upstream_has_a_longest_pause_only_and_costs_the_client_nothing() {
        let mut pace = pace(BodyDebtor::Upstream);
        for _ in 0..10 {
            assert!(!pace.is_too_slow(pass(29).await, 1));
            pace.moved(1, BodyDebtor::Client);
            pace.awaits(BodyDebtor::Upstream);
        }
        pace.awaits(BodyDebtor::Upstream);
        pass(29).await;
        pace.awaits(BodyDebtor::Upstream);
        assert!(
            pace.is_too_slow(pass(1).await, 1),
            "a second look is no progress"
        );
        pace.moved(1, BodyDebtor::Client);
        assert!(
            !pace.is_too_slow(pass(9).await, 1),
            "the client's own grace is whole"
        );
        assert!(pace.is_too_slow(pass(2).await, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_clients_turns_are_counted_together() {
        let mut pace = pace(BodyDebtor::Client);
        for _ in 0..9 {
            pass(1).await;
            pace.moved(1, BodyDebtor::Upstream);
            pass(20).await;
            pace.awaits(BodyDebtor::Client);
        }
        assert!(!pace.is_too_slow(Instant::now(), 1), "9 s of 10");
        assert_eq!(pace.rate(Instant::now()), 1);
        assert!(pace.is_too_slow(pass(2).await, 1));
    }
}
