//! Limits the requests that are sent again to another endpoint, so that repeats do not multiply the load
//! of an upstream that is failing everywhere.

use std::sync::atomic::{AtomicI64, Ordering};

/// One repeat.
const RETRY: i64 = 1000;
/// Repeats that are allowed at first, and after a pause.
pub(super) const RESERVE: i64 = 10;
/// The most repeats that unused shares add up to.
const MAX_SAVED: i64 = 100;

/// Thousandths of repeats that are allowed now.
#[derive(Debug)]
pub(super) struct RetryBudget {
    left: AtomicI64,
    /// What each request of a client adds.
    share: i64,
}

impl RetryBudget {
    /// `share`: repeats for each request of a client, 0 to 1.
    pub(super) fn new(share: f64) -> Self {
        let share = (share.clamp(0.0, 1.0) * RETRY as f64).round() as i64;
        Self {
            left: AtomicI64::new(if share == 0 { 0 } else { RESERVE * RETRY }),
            share,
        }
    }

    /// A client's request is sent.
    pub(super) fn note_request(&self) {
        if self.left.load(Ordering::Relaxed) < MAX_SAVED * RETRY {
            self.left.fetch_add(self.share, Ordering::Relaxed);
        }
    }

    /// Takes one repeat; false: none is left.
    pub(super) fn try_spend(&self) -> bool {
        let spend = |left| (left >= RETRY).then_some(left - RETRY);
        let order = Ordering::Relaxed;
        self.left.fetch_update(order, order, spend).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_stay_within_the_share_and_the_reserve() {
        let budget = RetryBudget::new(0.2);
        let mut repeats = 0;
        for _ in 0..1000 {
            budget.note_request();
            repeats += i64::from(budget.try_spend());
        }
        assert_eq!(repeats, 200 + RESERVE);
        for _ in 0..10_000 {
            budget.note_request();
        }
        let saved = (0..1000).filter(|_| budget.try_spend()).count();
        assert_eq!(saved as i64, MAX_SAVED);
    }

    #[test]
    fn a_share_of_zero_allows_none() {
        let budget = RetryBudget::new(0.0);
        budget.note_request();
        assert!(!budget.try_spend());
    }
}
