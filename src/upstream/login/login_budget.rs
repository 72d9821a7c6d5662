//! The times of logins: the login budget, the back-off after failures, and when to renew. Pure but
//! for jitter.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::login_slots::UpstreamLoginSlots;
use crate::backoff::Backoff;
use crate::config;
use crate::sync::lock;

const HOUR: Duration = Duration::from_secs(3600);
/// The back-off after failed logins.
const FAILURE_BACKOFF: Backoff = Backoff {
    first: Duration::from_secs(1),
    max: Duration::from_secs(300),
    jitter: 1.0,
};
/// The pauses after logins that the upstream refused: long enough not to lock an account, short enough
/// for an operator who has just corrected the password.
const REFUSED_PAUSES: [Duration; 3] = [
    Duration::from_secs(300),
    Duration::from_secs(600),
    Duration::from_secs(840),
];
/// The longest pause between logins of the quarter of the hour's that is kept back.
const MAX_RESERVE_PAUSE: Duration = Duration::from_secs(360);
const MIN_PAUSE: Duration = Duration::from_millis(50);

/// Which part of the hour's logins a login may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) enum BudgetShare {
    /// All but a quarter: logins because of refusals, while the token works elsewhere.
    Refusals,
    /// The same at once, and that quarter one by one over the hour: without a token that works, logins after
    /// others that brought none, or one that nothing accepts. They would otherwise spend the hour in minutes.
    Repeated,
    /// All, at once: the renewal of a token that works, also when it is repeated, and the first login.
    Whole,
}

/// Limits logins at the upstream: a minimum interval, and a maximum per hour.
#[derive(Debug)]
pub(in crate::upstream) struct LoginBudget {
    least: Duration,
    per_hour: u32,
    spent: VecDeque<Instant>,
}

impl LoginBudget {
    pub(in crate::upstream) fn new(least: Duration, per_hour: u32) -> Self {
        let mut budget = Self {
            least: Duration::ZERO,
            per_hour: 1,
            spent: VecDeque::new(),
        };
        budget.resize(least, per_hour);
        budget
    }

    /// Applies other settings; earlier logins still count.
    pub(super) fn resize(&mut self, least: Duration, per_hour: u32) {
        self.least = least;
        self.per_hour = per_hour.max(1);
    }

    /// The wait until the next login is allowed; None: it is allowed now.
    pub(in crate::upstream) fn wait(
        &mut self,
        share: BudgetShare,
        now: Instant,
    ) -> Option<Duration> {
        while self.spent.front().is_some_and(|&at| now - at >= HOUR) {
            self.spent.pop_front();
        }
        let for_refusals = max_for_refusals(self.per_hour);
        let most = match share {
            BudgetShare::Refusals => for_refusals,
            BudgetShare::Repeated | BudgetShare::Whole => self.per_hour,
        };
        let count = |logins| usize::try_from(logins).unwrap_or(usize::MAX);
        let most = count(most);
        let is_paced = share == BudgetShare::Repeated && self.spent.len() >= count(for_refusals);
        let pause = match is_paced {
            true => self.least.max(reserve_pause(self.per_hour)),
            false => self.least,
        };
        let interval = self.spent.back().map(|&at| at + pause);
        let hour = (self.spent.len() >= most).then(|| self.spent[self.spent.len() - most] + HOUR);
        let free = interval.max(hour)?;
        let left = free.saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }

    pub(in crate::upstream) fn spend(&mut self, now: Instant) {
        self.spent.push_back(now);
    }

    /// Returns the last login to the budget: it never reached the upstream.
    pub(super) fn refund(&mut self) {
        self.spent.pop_back();
    }
}

/// The number of logins within an hour below which a refusal may cause another one.
pub(super) fn max_for_refusals(per_hour: u32) -> u32 {
    (per_hour - per_hour.div_ceil(4)).max(1)
}

/// The pause between logins of the quarter that is kept back, so that it lasts until the hour allows others.
fn reserve_pause(per_hour: u32) -> Duration {
    let reserve = per_hour - max_for_refusals(per_hour);
    (HOUR / (reserve + 1)).min(MAX_RESERVE_PAUSE)
}

/// The budgets of all logins of this process, by address and user: upstreams that log in as the same
/// user at the same address share one. They survive reloads, also those that change the address and
/// back, or that remove an upstream and add it again.
#[derive(Debug, Default)]
pub struct LoginBudgets {
    accounts: Mutex<HashMap<String, Arc<Mutex<LoginBudget>>>>,
    /// Of all accounts.
    pub(super) slots: UpstreamLoginSlots,
}

impl LoginBudgets {
    pub(in crate::upstream) fn of(
        &self,
        identity: &str,
        settings: &config::Login,
    ) -> Arc<Mutex<LoginBudget>> {
        let (least, per_hour) = (settings.min_login_interval, settings.logins_per_hour);
        let fresh = || Arc::new(Mutex::new(LoginBudget::new(least, per_hour)));
        let mut budgets = lock(&self.accounts);
        let budget = budgets.entry(identity.to_owned()).or_insert_with(fresh);
        lock(budget).resize(least, per_hour);
        Arc::clone(budget)
    }
}

/// Exponential with full jitter, so that many gateways do not retry at the same time after an outage of
/// their upstream.
pub(super) fn back_off(failures: u32) -> Duration {
    FAILURE_BACKOFF.pause(failures).max(MIN_PAUSE)
}

/// The pause after `refusals` refused logins in a row; up to a fifteenth is added at random.
pub(super) fn refused_pause(refusals: u32) -> Duration {
    let index = usize::try_from(refusals.saturating_sub(1)).unwrap_or(usize::MAX);
    let pause = REFUSED_PAUSES[index.min(REFUSED_PAUSES.len() - 1)];
    pause.mul_f64(1.0 + rand::random::<f64>() / 15.0)
}

/// When to renew a token whose lifetime is `life` from now. Jitter only makes it earlier.
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
            assert!(back_off(u32::MAX) <= FAILURE_BACKOFF.max);
            assert!(back_off(u32::MAX) >= MIN_PAUSE);
        }
    }

    #[test]
    fn a_refused_login_is_tried_again_between_five_and_fifteen_minutes() {
        for refusals in [1, 2, 3, 4, u32::MAX] {
            let pause = refused_pause(refusals);
            assert!(pause >= Duration::from_secs(300), "{pause:?}");
            assert!(pause <= Duration::from_secs(900), "{pause:?}");
        }
    }

    #[test]
    fn refusals_leave_a_quarter_of_the_hour_to_renewals() {
        let mut budget = LoginBudget::new(Duration::ZERO, 10);
        let now = Instant::now();
        for _ in 0..7 {
            assert_eq!(budget.wait(BudgetShare::Refusals, now), None);
            budget.spend(now);
        }
        assert_eq!(budget.wait(BudgetShare::Refusals, now), Some(HOUR));
        assert_eq!(budget.wait(BudgetShare::Whole, now), None);
        let mut one = LoginBudget::new(Duration::ZERO, 1);
        assert_eq!(one.wait(BudgetShare::Refusals, now), None);
        one.spend(now);
        assert_eq!(one.wait(BudgetShare::Whole, now), Some(HOUR));
    }

    #[test]
    fn the_last_quarter_lasts_until_the_hour_allows_more_logins() {
        for (per_hour, longest) in [(40, 330), (120, 120), (1000, 15), (8, 360), (3, 360)] {
            let mut budget = LoginBudget::new(Duration::from_secs(1), per_hour);
            let start = Instant::now();
            let (mut now, mut last) = (start, start);
            let mut longest_pause = Duration::ZERO;
            while now < start + HOUR {
                if budget.wait(BudgetShare::Repeated, now).is_none() {
                    longest_pause = longest_pause.max(now - last);
                    budget.spend(now);
                    last = now;
                }
                now += Duration::from_secs(1);
            }
            assert!(longest_pause <= Duration::from_secs(longest), "{per_hour}");
            if per_hour >= 40 {
                let next = budget.wait(BudgetShare::Repeated, now).unwrap_or_default();
                assert!(
                    now + next - last <= Duration::from_secs(longest),
                    "{per_hour}"
                );
            }
        }
        // The renewal of a token that works does not wait for that.
        let mut budget = LoginBudget::new(Duration::ZERO, 3);
        let now = Instant::now();
        budget.spend(now);
        budget.spend(now);
        assert_eq!(
            budget.wait(BudgetShare::Repeated, now),
            Some(MAX_RESERVE_PAUSE)
        );
        assert_eq!(budget.wait(BudgetShare::Whole, now), None);
    }

    #[test]
    fn a_budget_survives_a_change_of_settings_and_belongs_to_one_login() {
        let budgets = LoginBudgets::default();
        let settings = |per_hour| config::Login {
            username: "gateway".to_owned(),
            password: crate::secret::SecretSource::Env("NONE".to_owned()),
            renew_at: 0.8,
            renew_floor: Duration::ZERO,
            min_login_interval: Duration::ZERO,
            logins_per_hour: per_hour,
            timeout: HOUR,
            single_active_token: false,
            per_endpoint: false,
        };
        let now = Instant::now();
        lock(&budgets.of("a", &settings(5))).spend(now);
        let again = budgets.of("a", &settings(1));
        assert_eq!(lock(&again).wait(BudgetShare::Whole, now), Some(HOUR));
        let other = budgets.of("b", &settings(1));
        assert_eq!(lock(&other).wait(BudgetShare::Whole, now), None);
    }

    #[test]
    fn the_budget_holds_by_interval_and_by_hour() {
        let mut budget = LoginBudget::new(Duration::from_secs(10), 3);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let renewal = BudgetShare::Whole;
        for login in 0..3 {
            assert_eq!(budget.wait(renewal, at(login * 10)), None);
            budget.spend(at(login * 10));
        }
        assert_eq!(
            budget.wait(renewal, at(21)),
            Some(Duration::from_secs(3579))
        );
        assert_eq!(budget.wait(renewal, at(3600)), None);
        budget.spend(at(3600));
        assert_eq!(budget.wait(renewal, at(3605)), Some(Duration::from_secs(5)));
        budget.refund();
        assert_eq!(budget.wait(renewal, at(3605)), None);
    }
}
