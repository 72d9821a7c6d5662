//! When one endpoint is ejected because of its own responses, and when it is tried again. Pure: time is
//! passed in.
//!
//! ```text
//!             failures in a row             its time is over
//!   In use ----------------------> Ejected ------------------> Trial
//!     ^                              ^                           |
//!     |                              |  the request failed       |
//!     |                              +---------------------------+
//!     +----------------------------------------------------------+  the request succeeded
//! ```

use std::time::Duration;

use tokio::time::Instant;

use crate::config::EjectionRules;

/// A trial request that has not ended by then does not keep others from being the trial.
const TRIAL_TIMEOUT: Duration = Duration::from_secs(30);

/// The failures of one endpoint, by which it is ejected.
#[derive(Debug, Default)]
pub(super) struct OutlierRecord {
    /// Failed requests since the last success.
    failures: u32,
    /// How often it was ejected; decreases while it works.
    ejections: u32,
    /// Since when it has worked without being ejected.
    good_since: Option<Instant>,
    ejected: Option<Ejection>,
}

#[derive(Clone, Copy, Debug)]
struct Ejection {
    until: Instant,
    /// A trial request is on its way; until when others do not take its place.
    trial_until: Option<Instant>,
}

impl OutlierRecord {
    /// A request has failed at the endpoint. True: it should be ejected.
    pub(super) fn failed(&mut self, rules: &EjectionRules) -> bool {
        if let Some(ejection) = &self.ejected {
            // Without a trial on its way the request was sent before the ejection.
            return ejection.trial_until.is_some();
        }
        self.failures = self.failures.saturating_add(1);
        self.failures >= rules.failures
    }

    /// Ejects it; returns for how long.
    pub(super) fn eject(&mut self, rules: &EjectionRules, now: Instant) -> Duration {
        let factor = 2_u32.saturating_pow(self.ejections.min(16));
        let pause = rules.first.saturating_mul(factor).min(rules.max);
        if pause < rules.max {
            self.ejections += 1;
        }
        self.failures = 0;
        self.good_since = None;
        self.ejected = Some(Ejection {
            until: now + pause,
            trial_until: None,
        });
        pause
    }

    /// A request has succeeded. True: that was the trial, and the ejection has ended.
    pub(super) fn succeeded(&mut self, rules: &EjectionRules, now: Instant) -> bool {
        if let Some(ejection) = &self.ejected {
            if ejection.trial_until.is_none() {
                return false; // sent before the ejection
            }
            self.ejected = None;
            self.good_since = Some(now);
            return true;
        }
        self.failures = 0;
        let since = *self.good_since.get_or_insert(now);
        if now.saturating_duration_since(since) >= rules.first {
            self.ejections = self.ejections.saturating_sub(1);
            self.good_since = Some(now);
        }
        false
    }

    /// Takes the place of the trial request, if one is due.
    pub(super) fn claim_trial(&mut self, now: Instant) -> bool {
        let Some(ejection) = &mut self.ejected else {
            return false;
        };
        let is_taken = ejection.trial_until.is_some_and(|until| now < until);
        if now < ejection.until || is_taken {
            return false;
        }
        ejection.trial_until = Some(now + TRIAL_TIMEOUT);
        true
    }

    /// Ends an ejection without a trial: too many endpoints would be out.
    pub(super) fn pardon(&mut self) {
        self.ejected = None;
    }

    pub(super) fn is_ejected(&self) -> bool {
        self.ejected.is_some()
    }

    /// How long it is still left alone; zero: a trial is due, or it is in use.
    pub(super) fn left(&self, now: Instant) -> Duration {
        self.ejected.map_or(Duration::ZERO, |ejection| {
            ejection.until.saturating_duration_since(now)
        })
    }

    /// Whether there is nothing that a success would change.
    pub(super) fn is_clean(&self) -> bool {
        self.failures == 0 && self.ejections == 0 && self.ejected.is_none()
    }

    /// Failed requests since the last success.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: EjectionRules = EjectionRules {
        failures: 5,
        first: Duration::from_secs(10),
        max: Duration::from_secs(60),
    };

    fn ejected(record: &mut OutlierRecord, now: Instant) -> Duration {
        while !record.failed(&RULES) {}
        record.eject(&RULES, now)
    }

    #[test]
    fn five_failures_in_a_row_and_not_four() {
        let mut record = OutlierRecord::default();
        let now = Instant::now();
        for _ in 0..4 {
            assert!(!record.failed(&RULES));
        }
        assert!(!record.succeeded(&RULES, now));
        for _ in 0..4 {
            assert!(!record.failed(&RULES));
        }
        assert!(record.failed(&RULES));
    }

    #[test]
    fn after_its_time_one_request_is_the_trial_and_the_time_grows_to_its_end() {
        let mut record = OutlierRecord::default();
        let mut now = Instant::now();
        let mut pauses = Vec::new();
        let mut pause = ejected(&mut record, now);
        for _ in 0..5 {
            pauses.push(pause.as_secs());
            assert!(!record.claim_trial(now), "its time has not come");
            assert!(!record.succeeded(&RULES, now), "sent before the ejection");
            assert!(!record.failed(&RULES), "sent before the ejection");
            now += pause;
            assert!(record.claim_trial(now));
            assert!(!record.claim_trial(now), "one is on its way");
            assert!(record.failed(&RULES));
            pause = record.eject(&RULES, now);
        }
        assert_eq!(pauses, [10, 20, 40, 60, 60]);
        now += pause;
        assert!(record.claim_trial(now));
        assert!(record.succeeded(&RULES, now));
        assert!(!record.is_ejected());
    }

    #[test]
    fn a_lost_trial_is_replaced_and_the_time_shrinks_again() {
        let mut record = OutlierRecord::default();
        let mut now = Instant::now();
        for _ in 0..2 {
            now += ejected(&mut record, now);
            assert!(record.claim_trial(now));
            now += TRIAL_TIMEOUT;
            assert!(record.claim_trial(now), "the first one never ended");
            assert!(record.succeeded(&RULES, now));
        }
        assert!(!record.is_clean());
        for _ in 0..2 {
            now += RULES.first;
            record.succeeded(&RULES, now);
        }
        assert!(record.is_clean());
        assert_eq!(ejected(&mut record, now), RULES.first);
    }
}
