//! How often, how soon: the login budget, the back-off after failures, and the
//! moment to renew. Numbers only.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

const HOUR: Duration = Duration::from_secs(3600);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);

/// How many logins the upstream is asked to bear, whatever the reason for them.
#[derive(Debug)]
pub(super) struct Budget {
    least: Duration,
    per_hour: usize,
    spent: VecDeque<Instant>,
}

impl Budget {
    pub(super) fn new(least: Duration, per_hour: u32) -> Self {
        Self {
            least,
            per_hour: usize::try_from(per_hour).unwrap_or(usize::MAX).max(1),
            spent: VecDeque::new(),
        }
    }

    /// How long until the next login is allowed; None: it is now.
    pub(super) fn wait(&mut self, now: Instant) -> Option<Duration> {
        while self.spent.front().is_some_and(|&at| now - at >= HOUR) {
            self.spent.pop_front();
        }
        let interval = self.spent.back().map(|&at| at + self.least);
        let hour = (self.spent.len() >= self.per_hour)
            .then(|| self.spent[self.spent.len() - self.per_hour] + HOUR);
        let free = interval.max(hour)?;
        let left = free.saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }

    pub(super) fn spend(&mut self, now: Instant) {
        self.spent.push_back(now);
    }

    /// The last login never reached the upstream: no burden to it.
    pub(super) fn refund(&mut self) {
        self.spent.pop_back();
    }
}

/// Exponential with full jitter, so that many gates do not come back in step
/// after an outage of the upstream they share.
pub(super) fn back_off(failures: u32) -> Duration {
    let doubled = Duration::from_secs(1u64 << failures.saturating_sub(1).min(9));
    let cap = doubled.min(LONGEST_PAUSE);
    cap.mul_f64(rand::random::<f64>()).max(SHORTEST_PAUSE)
}

/// When to renew a token that lives for `life` from now. Jitter only makes it earlier.
pub(super) fn renew_after(life: Duration, renew_at: f64, floor: Duration) -> Duration {
    let latest = life - floor.min(life / 2);
    let due = life.mul_f64(renew_at.clamp(0.0, 1.0)).min(latest);
    due.mul_f64(1.0 - 0.05 * rand::random::<f64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_comes_before_the_floor_and_never_after_the_share() {
        let secs = Duration::from_secs;
        for _ in 0..1000 {
            let week = renew_after(secs(604_800), 0.8, secs(300));
            assert!(week <= secs(483_840) && week >= secs(459_000), "{week:?}");
            let short = renew_after(secs(100), 0.95, secs(30));
            assert!(short <= secs(70) && short >= secs(66), "{short:?}");
            let tiny = renew_after(secs(4), 0.8, secs(300));
            assert!(tiny <= secs(2) && tiny >= Duration::from_millis(1900));
        }
    }

    #[test]
    fn back_off_grows_to_five_minutes_and_stays_there() {
        for _ in 0..1000 {
            assert!(back_off(1) <= Duration::from_secs(1));
            assert!(back_off(3) <= Duration::from_secs(4));
            assert!(back_off(u32::MAX) <= LONGEST_PAUSE);
            assert!(back_off(u32::MAX) >= SHORTEST_PAUSE);
        }
    }

    #[test]
    fn the_budget_holds_by_interval_and_by_hour() {
        let mut budget = Budget::new(Duration::from_secs(10), 3);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        for login in 0..3 {
            assert_eq!(budget.wait(at(login * 10)), None);
            budget.spend(at(login * 10));
        }
        assert_eq!(budget.wait(at(21)), Some(Duration::from_secs(3579)));
        assert_eq!(budget.wait(at(3600)), None);
        budget.spend(at(3600));
        assert_eq!(budget.wait(at(3605)), Some(Duration::from_secs(5)));
        budget.refund();
        assert_eq!(budget.wait(at(3605)), None);
    }
}
