//! The outcomes of one endpoint's health checks. Pure: time is passed in.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::HealthCheckRules;

/// What the health checks say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum CheckState {
    /// None has ended yet.
    #[default]
    Unknown,
    Passing,
    Failing,
}

/// The outcomes of the last health checks of one endpoint.
#[derive(Debug, Default)]
pub(super) struct CheckRecord {
    state: CheckState,
    /// Outcomes in a row that contradict `state`.
    contrary: u32,
    /// When the next check is due. It survives reloads, so that they cause none.
    next: Option<Instant>,
    /// Why the last check failed; contains no secret.
    cause: String,
}

impl CheckRecord {
    pub(super) fn state(&self) -> CheckState {
        self.state
    }

    pub(super) fn cause(&self) -> &str {
        &self.cause
    }

    /// When the next check is due; None: now.
    pub(super) fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Takes the next check. False: another checker has taken it, or it is not due. `jitter` in 0..1
    /// spreads the checks of several gateways.
    pub(super) fn claim(&mut self, rules: &HealthCheckRules, now: Instant, jitter: f64) -> bool {
        if self.next.is_some_and(|next| now < next) {
            return false;
        }
        let share = 1.0 - 0.2 * jitter.clamp(0.0, 1.0);
        self.next = Some(now + rules.interval.mul_f64(share).max(Duration::from_millis(10)));
        true
    }

    /// Records an outcome; returns the new state if it has changed. The first outcome decides at once.
    pub(super) fn note(
        &mut self,
        outcome: Result<(), String>,
        rules: &HealthCheckRules,
    ) -> Option<CheckState> {
        let (seen, enough) = match outcome {
            Ok(()) => (CheckState::Passing, rules.healthy_after),
            Err(cause) => {
                self.cause = cause;
                (CheckState::Failing, rules.unhealthy_after)
            }
        };
        if seen == self.state {
            self.contrary = 0;
            return None;
        }
        self.contrary += 1;
        if self.state != CheckState::Unknown && self.contrary < enough {
            return None;
        }
        self.state = seen;
        self.contrary = 0;
        Some(seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AcceptedStatus;

    fn rules() -> HealthCheckRules {
        HealthCheckRules {
            path: None,
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(2),
            unhealthy_after: 3,
            healthy_after: 2,
            accepted: AcceptedStatus::default(),
        }
    }

    #[test]
    fn the_first_outcome_decides_and_later_ones_by_the_thresholds() {
        let rules = rules();
        let failed = || Err("refused".to_owned());
        let mut record = CheckRecord::default();
        assert_eq!(record.note(failed(), &rules), Some(CheckState::Failing));
        assert_eq!(record.note(Ok(()), &rules), None);
        assert_eq!(record.note(failed(), &rules), None, "the count begins anew");
        assert_eq!(record.note(Ok(()), &rules), None);
        assert_eq!(record.note(Ok(()), &rules), Some(CheckState::Passing));
        assert_eq!(record.note(failed(), &rules), None);
        assert_eq!(record.note(failed(), &rules), None);
        assert_eq!(record.note(failed(), &rules), Some(CheckState::Failing));
        assert_eq!(record.cause(), "refused");
    }

    #[test]
    fn two_checkers_make_one_check_in_an_interval() {
        let rules = rules();
        let mut record = CheckRecord::default();
        let now = Instant::now();
        assert!(record.claim(&rules, now, 0.0));
        assert!(!record.claim(&rules, now, 0.0));
        assert!(!record.claim(&rules, now + rules.interval / 2, 0.0));
        assert!(record.claim(&rules, now + rules.interval, 1.0));
        assert!(record.claim(&rules, now + rules.interval.mul_f64(1.8), 0.0));
    }
}
