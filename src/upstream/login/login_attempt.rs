//! One login of this gateway: whether it is allowed now, its outcome, and when the next one is due.

use std::pin::pin;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use super::call::{LoginError, LoginGrant};
use super::judgement::{LeasePlacement, LoginCause};
use super::lease::Lease;
use super::login_budget::{BudgetShare, back_off, refused_pause};
use super::renewer::{NextAttempt, Renewer, digest};
use super::session_control::LeaseOrigin;
use super::status::{LoginFailure, RenewerPhase};
use crate::clock::Deadline;
use crate::error_chain::chain;
use crate::metrics::LoginOutcome;
use crate::secret::Secret;
use crate::sync::lock;

const MIN_BEFORE_END: Duration = Duration::from_secs(1);
/// A password that cannot be read is tried again after this, and at once when its file can be read.
const UNREADABLE_PAUSE: Duration = Duration::from_secs(60);

impl Renewer {
    /// Logs in if that is allowed now, and handles the outcome.
    pub(in crate::upstream) async fn attempt(&mut self, cause: LoginCause) -> NextAttempt {
        let slot = tokio::select! {
            slot = self.slots.next() => slot,
            () = self.stop.aborting() => return NextAttempt::NotBefore(Deadline::after(Duration::ZERO)),
        };
        if let Some(left) = self.budget_wait(cause) {
            if self.is_news(LoginFailure::Budget) {
                warn!(upstream = %self.upstream, seconds = left.as_secs(),
                    has_lease = self.session.is_ready(),
                    "a login is due, but logins are too frequent already; waiting");
            }
            return self.blocked(LoginFailure::Budget, left);
        }
        let plan = self.plan();
        let password = match plan.settings.password.read() {
            Ok(password) => password,
            Err(source) => return self.unreadable_password(&source),
        };
        lock(&self.budget).spend(Instant::now());
        self.phase.send_replace(RenewerPhase::LoggingIn);
        let began = self.session.now();
        let outcome = {
            let login = pin!(self.obtain(&plan, &password));
            tokio::select! {
                outcome = slot.hold_during(login) => outcome,
                () = self.stop.aborting() => return NextAttempt::NotBefore(Deadline::after(Duration::ZERO)),
            }
        };
        match outcome {
            Ok(proven) => {
                let origin = LeaseOrigin {
                    began,
                    cause,
                    is_proven: proven.is_proven,
                };
                self.adopt(proven.granted, origin, None)
            }
            Err(failure) => self.failed(&failure, &password),
        }
    }

    /// How long the budget forbids a login for this cause; None: it allows one now.
    pub(super) fn budget_wait(&self, cause: LoginCause) -> Option<Duration> {
        let share = match cause {
            LoginCause::Refusal => BudgetShare::Refusals,
            LoginCause::Renewal if self.failures == 0 || self.session.is_ready() => {
                BudgetShare::Whole
            }
            LoginCause::Renewal | LoginCause::Unproven => BudgetShare::Repeated,
        };
        lock(&self.budget).wait(share, Instant::now())
    }

    pub(super) fn unreadable_password(&mut self, source: &crate::secret::Error) -> NextAttempt {
        self.metrics
            .session_logins
            .add(LoginOutcome::SecretUnreadable);
        if self.is_news(LoginFailure::Secret) {
            error!(upstream = %self.upstream, error = %chain(source),
                "cannot read the upstream password; next try when its file can be read");
        }
        self.blocked_until_new_secret(LoginFailure::Secret, UNREADABLE_PAUSE, None)
    }

    /// Uses the token of a login. `shared`: its generation in the shared store.
    pub(super) fn adopt(
        &mut self,
        granted: LoginGrant,
        origin: LeaseOrigin,
        shared: Option<u64>,
    ) -> NextAttempt {
        self.refusals = 0;
        self.metrics.session_logins.add(LoginOutcome::Ok);
        let generation = self.session.next_generation();
        let ends = Deadline::after(granted.left);
        let mut lease = Lease::new(generation, ends, granted.headers, granted.token);
        if let Some(number) = shared {
            lease = lease.known_as(number);
        }
        let placement = self.offer(lease, origin);
        info!(upstream = %self.upstream, generation = shared.unwrap_or(generation),
            seconds = granted.left.as_secs(), is_proven = origin.is_proven,
            in_use = (placement == LeasePlacement::Current), "logged in");
        if placement == LeasePlacement::Current {
            self.serves_now();
        }
        self.renewal_due(granted.left, Duration::ZERO)
    }

    /// The newest token is in use. A candidate that nothing has accepted yet leaves the count of failures
    /// as it is: it may be given up, and the back-off must go on growing then.
    pub(super) fn serves_now(&mut self) {
        self.failures = 0;
        self.reported = None;
        self.keep_newest();
    }

    /// Saves the lease in use for the next start, if that is configured.
    fn keep_newest(&self) {
        if let Some(place) = self
            .binding
            .as_ref()
            .filter(|place| place.shared().is_none())
            && let Some(lease) = self.session.in_use()
        {
            place.keep(&lease.secret, lease.ends.unix_millis());
        }
        self.session.refresh_gauges();
    }

    pub(in crate::upstream) fn failed(
        &mut self,
        failure: &LoginError,
        password: &Secret,
    ) -> NextAttempt {
        let why = failure.why();
        self.metrics.session_logins.add(failure.outcome());
        if failure.is_unsent() {
            lock(&self.budget).refund();
        }
        if matches!(
            why,
            LoginFailure::WrongPassword | LoginFailure::PasswordChange
        ) {
            return self.password_refused(why, failure, password);
        }
        self.failures = self.failures.saturating_add(1);
        let is_news = self.is_news(why);
        let budget = self.budget_wait(LoginCause::Renewal);
        let pause = self
            .back_off(failure.retry_after().unwrap_or_default())
            .max(budget.unwrap_or_default());
        if is_news {
            warn!(upstream = %self.upstream, error = %chain(failure),
                has_lease = self.session.is_ready(), "upstream login failed; trying again");
        } else {
            debug!(upstream = %self.upstream, error = %chain(failure), "upstream login failed");
        }
        // The password may have to be changed: a new one ends the pause.
        self.blocked_until_new_secret(why, pause, Some(digest(password)))
    }

    /// The pause after a failure, at least `at_least`. While a lease is still valid, the pause is at most
    /// half of its remaining lifetime, so that the last attempt is close to its end.
    pub(super) fn back_off(&self, at_least: Duration) -> Duration {
        let pause = back_off(self.failures).max(at_least);
        let left = self.session.usable().map(|lease| lease.ends.left());
        left.map_or(pause, |left| pause.min((left / 2).max(MIN_BEFORE_END)))
    }

    /// The operator must act, most likely. In case the refusal was temporary, the login is tried again,
    /// but so seldom that no account is locked.
    fn password_refused(
        &mut self,
        why: LoginFailure,
        failure: &LoginError,
        password: &Secret,
    ) -> NextAttempt {
        self.refusals = self.refusals.saturating_add(1);
        self.reported = Some(why);
        let plan = self.plan();
        let pause = refused_pause(self.refusals);
        error!(upstream = %self.upstream, user = %plan.settings.username,
            secret = %plan.settings.password, error = %chain(failure),
            has_lease = self.session.is_ready(), seconds = pause.as_secs(),
            "upstream login refused; next try after this pause, or at once when the password or \
             the configuration changes, or on SIGHUP");
        self.blocked_until_new_secret(why, pause, Some(digest(password)))
    }

    pub(super) fn blocked(&self, why: LoginFailure, pause: Duration) -> NextAttempt {
        let until = Deadline::after(pause);
        self.phase
            .send_replace(RenewerPhase::Blocked { why, until });
        self.session.refresh_gauges();
        NextAttempt::NotBefore(until)
    }

    pub(super) fn blocked_until_new_secret(
        &self,
        why: LoginFailure,
        pause: Duration,
        known: Option<[u8; 32]>,
    ) -> NextAttempt {
        let until = Deadline::after(pause);
        self.phase
            .send_replace(RenewerPhase::Blocked { why, until });
        self.session.refresh_gauges();
        NextAttempt::NewSecret(until, known)
    }

    pub(in crate::upstream) fn is_news(&mut self, why: LoginFailure) -> bool {
        self.reported.replace(why) != Some(why)
    }
}
