//! The one task that logs in. It owns the login: renewal ahead, replacement of a
//! refused lease, back-off and budget all happen here, one after the other, so
//! there is never more than one login at a time and nobody's leaving cancels it.

use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::{debug, error, info, warn};

use super::common::Common;
use super::fence::Attempt;
use super::keeper::Place;
use super::login::{Granted, LoginCall, LoginError};
use super::pace::{Budget, back_off, renew_after};
use super::session::{Lease, Phase, Session, Why};
use crate::causes::chain;
use crate::clock::Deadline;
use crate::config;
use crate::lifecycle::Stop;
use crate::metrics::{LoginOutcome, Metrics};
use crate::secret::Secret;

/// Timers stand still while the host is suspended; no wait is longer than this
/// before both clocks are asked again.
const LONGEST_SLEEP: Duration = Duration::from_secs(15);
const SECRET_POLL: Duration = Duration::from_secs(1);

pub(super) struct Renewer {
    pub(super) upstream: Arc<str>,
    pub(super) session: Arc<Session>,
    pub(super) phase: watch::Sender<Phase>,
    pub(super) call: LoginCall,
    pub(super) settings: config::Login,
    pub(super) budget: Budget,
    /// Failed logins in a row.
    pub(super) failures: u32,
    /// What was said last, so that an outage is one line and not one per attempt.
    pub(super) reported: Option<Why>,
    /// Where the token outlives a restart; None: it does not.
    pub(super) place: Option<Place>,
    /// The login of all gates; None: this gate logs in for itself.
    pub(super) common: Option<Common>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) stop: Stop,
}

/// When to come back.
pub(super) enum Due {
    /// At this time, or as soon as the lease is of no use.
    Renewal(Deadline),
    /// At this time, whatever happens.
    NotBefore(Deadline),
    /// When the secret is not the one with this digest any more.
    NewSecret(Option<[u8; 32]>),
}

impl Renewer {
    /// Runs until drain; a login that is under way then is finished first, because
    /// requests wait for it.
    pub(super) async fn run(mut self) {
        if self.common.is_some() {
            return self.run_in_common().await;
        }
        let mut due = match self.adopt_kept() {
            Some(due) => due,
            None => self.attempt().await,
        };
        while self.has_come(&due).await {
            self.forget_the_refused();
            due = self.attempt().await;
        }
    }

    /// The token of an earlier start: as good as a login's, until the upstream says
    /// otherwise.
    fn adopt_kept(&mut self) -> Option<Due> {
        let kept = self.place.as_ref()?.find()?;
        let header = self.call.description.inject.header(&kept.token).ok()?;
        let ends = Deadline::at_unix_millis(kept.ends_millis);
        let attempt = self.session.fence.begin();
        let generation = self.session.fence.publish(attempt)?;
        info!(upstream = %self.upstream, seconds = ends.left().as_secs(),
            "using the token of the start before");
        self.publish(Lease::new(generation, ends, vec![header], kept.token));
        let settings = &self.settings;
        let renew = renew_after(kept.life, settings.renew_at, settings.renew_floor);
        let left = renew.saturating_sub(kept.age);
        Some(Due::Renewal(Deadline::after(left)))
    }

    pub(super) fn publish(&self, lease: Lease) {
        self.metrics
            .session_generation
            .set(i64::try_from(lease.generation).unwrap_or(i64::MAX));
        self.session.lease.store(Some(Arc::new(lease)));
        self.phase.send_replace(Phase::Resting);
        self.session.refresh_gauges();
    }

    fn forget_the_refused(&self) {
        if let Some(place) = &self.place
            && let Some(lease) = &*self.session.lease.load()
            && self.session.fence.is_refused(lease.generation)
        {
            place.forget();
        }
    }

    /// One login, if it is allowed now; publishes what came of it.
    pub(super) async fn attempt(&mut self) -> Due {
        if let Some(left) = self.budget.wait(Instant::now()) {
            if self.is_news(Why::Budget) {
                warn!(upstream = %self.upstream, seconds = left.as_secs(),
                    has_lease = self.session.is_ready(),
                    "a login is due, but logins are too frequent already; waiting");
            }
            return self.blocked(Why::Budget, left);
        }
        let password = match self.settings.password.read() {
            Ok(password) => password,
            Err(source) => {
                self.metrics.session_logins.add(LoginOutcome::Secret);
                if self.is_news(Why::Secret) {
                    error!(upstream = %self.upstream, error = %chain(&source),
                        "cannot read the upstream password; trying again every second");
                }
                return self.blocked_until_new_secret(Why::Secret, None);
            }
        };
        self.budget.spend(Instant::now());
        self.phase.send_replace(Phase::LoggingIn);
        let attempt = self.session.fence.begin();
        let outcome = tokio::select! {
            outcome = self.call.make(&password) => outcome,
            () = self.stop.aborting() => return Due::NotBefore(Deadline::after(Duration::ZERO)),
        };
        match outcome {
            Ok(granted) => self.adopt(granted, attempt),
            Err(failure) => self.failed(&failure, &password),
        }
    }

    fn adopt(&mut self, granted: Granted, attempt: Attempt) -> Due {
        let ends = Deadline::after(granted.left);
        self.session.minted(ends);
        self.metrics
            .session_clock_skew_seconds
            .set(granted.skew_seconds);
        let Some(generation) = self.session.fence.publish(attempt) else {
            self.metrics.session_logins.add(LoginOutcome::Superseded);
            info!(upstream = %self.upstream,
                "tokens were revoked while logging in; this login is not used");
            return Due::NotBefore(Deadline::after(Duration::ZERO));
        };
        if let Some(place) = self.place.as_ref().filter(|place| place.shared().is_none()) {
            place.keep(&granted.token, ends.unix_millis());
        }
        self.take_up(granted, (generation, ends))
    }

    /// Uses what our own login brought.
    pub(super) fn take_up(&mut self, granted: Granted, (generation, ends): (u64, Deadline)) -> Due {
        self.failures = 0;
        self.reported = None;
        self.metrics.session_logins.add(LoginOutcome::Ok);
        info!(upstream = %self.upstream, generation, seconds = granted.left.as_secs(), "logged in");
        self.publish(Lease::new(generation, ends, granted.headers, granted.token));
        let settings = &self.settings;
        let renew = renew_after(granted.left, settings.renew_at, settings.renew_floor);
        Due::Renewal(Deadline::after(renew))
    }

    pub(super) fn failed(&mut self, failure: &LoginError, password: &Secret) -> Due {
        let why = failure.why();
        self.metrics.session_logins.add(failure.outcome());
        self.failures = self.failures.saturating_add(1);
        if failure.is_unsent() {
            self.budget.refund();
        }
        let is_news = self.is_news(why);
        if matches!(why, Why::WrongPassword | Why::PasswordChange) {
            error!(upstream = %self.upstream, user = %self.settings.username,
                secret = %self.settings.password, error = %chain(failure),
                "logging in has stopped until the password file changes; please act");
            return self.blocked_until_new_secret(why, Some(digest(password)));
        }
        let pause = back_off(self.failures)
            .max(failure.retry_after().unwrap_or_default())
            .max(self.budget.wait(Instant::now()).unwrap_or_default());
        if is_news {
            warn!(upstream = %self.upstream, error = %chain(failure),
                has_lease = self.session.is_ready(), "upstream login failed; trying again");
        } else {
            debug!(upstream = %self.upstream, error = %chain(failure), "upstream login failed");
        }
        self.blocked(why, pause)
    }

    pub(super) fn blocked(&self, why: Why, pause: Duration) -> Due {
        let until = Deadline::after(pause);
        self.phase.send_replace(Phase::Blocked {
            why,
            until: Some(until),
        });
        self.session.refresh_gauges();
        Due::NotBefore(until)
    }

    pub(super) fn blocked_until_new_secret(&self, why: Why, known: Option<[u8; 32]>) -> Due {
        self.phase.send_replace(Phase::Blocked { why, until: None });
        self.session.refresh_gauges();
        Due::NewSecret(known)
    }

    fn is_news(&mut self, why: Why) -> bool {
        self.reported.replace(why) != Some(why)
    }

    /// Waits; false when it is time to stop instead.
    pub(super) async fn has_come(&self, due: &Due) -> bool {
        let mut back = std::pin::pin!(self.call.health.back());
        loop {
            if self.stop.is_draining() {
                return false;
            }
            if self.common.as_ref().is_some_and(Common::has_news) {
                return true;
            }
            let pause = match due {
                Due::Renewal(at) if at.has_passed() || !self.session.is_ready() => return true,
                Due::NotBefore(at) if at.has_passed() => return true,
                Due::NewSecret(known) if self.has_new_secret(known.as_ref()) => return true,
                Due::Renewal(at) | Due::NotBefore(at) => at.left().min(LONGEST_SLEEP),
                Due::NewSecret(_) => SECRET_POLL,
            };
            tokio::select! {
                () = sleep(pause) => {}
                () = self.session.wake.notified() => {}
                // The pause was for an upstream that could not be reached.
                () = &mut back, if self.waits_for_upstream(due) => return true,
                () = self.stop.draining() => return false,
            }
        }
    }

    fn waits_for_upstream(&self, due: &Due) -> bool {
        matches!(due, Due::NotBefore(_))
            && matches!(self.reported, Some(Why::Unreachable | Why::Timeout))
    }

    fn has_new_secret(&self, known: Option<&[u8; 32]>) -> bool {
        let now = self.settings.password.read();
        now.is_ok_and(|now| known != Some(&digest(&now)))
    }
}

fn digest(secret: &Secret) -> [u8; 32] {
    Sha256::digest(secret.expose().as_bytes()).into()
}
