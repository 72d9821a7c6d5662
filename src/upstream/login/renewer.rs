//! The one task that logs in. Renewal ahead of expiry, tests of new tokens, investigation of refused
//! ones, back-off and budget all happen here, one after the other. So there is never more than one
//! login at a time, and a client that disconnects cancels nothing.

use std::future::pending;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::info;

use super::judgement::{LeasePlacement, LeaseSuspicion, LoginCause};
use super::lease::Lease;
use super::lease_store::LeaseBinding;
use super::login_budget::{LoginBudget, renew_after};
use super::login_slots::UpstreamLoginSlots;
use super::plan::LoginPlan;
use super::session::Session;
use super::session_control::LeaseOrigin;
use super::shared_login::SharedLogin;
use super::status::{LoginFailure, RenewerPhase};
use crate::clock::Deadline;
use crate::lifecycle::ShutdownSignal;
use crate::metrics::UpstreamMetrics;
use crate::secret::{Secret, SecretSource};
use crate::watched_files::{ReloadRequests, WatchedFiles};

/// Timers do not advance while the host is suspended; no wait is longer than this before both clocks
/// are read again.
const MAX_SLEEP: Duration = Duration::from_secs(15);

pub(in crate::upstream) struct Renewer {
    pub(in crate::upstream) upstream: Arc<str>,
    pub(in crate::upstream) session: Arc<Session>,
    pub(in crate::upstream) phase: watch::Sender<RenewerPhase>,
    /// How to log in; replaced by a reload.
    pub(in crate::upstream) plan: watch::Receiver<Arc<LoginPlan>>,
    pub(in crate::upstream) budget: Arc<Mutex<LoginBudget>>,
    pub(in crate::upstream) slots: UpstreamLoginSlots,
    /// Failed logins in a row.
    pub(in crate::upstream) failures: u32,
    /// Consecutive tokens that no request has accepted.
    pub(in crate::upstream) unaccepted: u32,
    /// No login to replace such a token before this.
    pub(in crate::upstream) not_before: Option<Deadline>,
    /// Consecutive logins that were refused for their password.
    pub(in crate::upstream) refusals: u32,
    /// What was logged last, so that an outage is one line and not one per attempt.
    pub(in crate::upstream) reported: Option<LoginFailure>,
    /// The lifetime of the newest token, and when it began.
    pub(in crate::upstream) renewal: Option<RenewalPlan>,
    /// Where the token is saved for the next start; None: it is not.
    pub(in crate::upstream) binding: Option<LeaseBinding>,
    /// The login shared with other gateways; None: this gateway logs in for itself.
    pub(in crate::upstream) shared_login: Option<SharedLogin>,
    pub(in crate::upstream) metrics: Arc<UpstreamMetrics>,
    pub(in crate::upstream) stop: ShutdownSignal,
}

/// What a renewal time is computed from, so that a reload can compute it again.
#[derive(Clone, Copy, Debug)]
pub(in crate::upstream) struct RenewalPlan {
    pub(in crate::upstream) life: Duration,
    pub(in crate::upstream) began: Instant,
}

/// When the next attempt is due.
#[derive(Clone, Debug)]
pub(in crate::upstream) enum NextAttempt {
    /// At this time, or as soon as there is no usable lease.
    Renewal(Deadline),
    /// Not before this time.
    NotBefore(Deadline),
    /// At this time, or when the password file holds a password whose digest differs from this one.
    NewSecret(Deadline, Option<[u8; 32]>),
}

/// What ended a wait.
enum RenewerEvent {
    Due,
    Suspicion(LeaseSuspicion),
    /// A candidate was promoted: a request with it was accepted.
    Promoted,
    /// A candidate was rejected.
    Rejected(u64),
    /// The configuration has changed.
    Plan,
    /// The operator asks for another attempt.
    Nudge,
    Stop,
}

impl Renewer {
    /// Runs until drain; a login in progress is finished first, because requests wait for it.
    pub(in crate::upstream) async fn run(mut self) {
        self.phase.send_replace(RenewerPhase::LoggingIn);
        let mut due = match self.adopt_saved() {
            Some(due) => due,
            None => self.log_in(LoginCause::Renewal).await,
        };
        loop {
            due = match self.next_event(&due).await {
                RenewerEvent::Stop => return,
                RenewerEvent::Due => self.log_in(LoginCause::Renewal).await,
                RenewerEvent::Suspicion(suspicion) => self.investigate(suspicion, due).await,
                RenewerEvent::Promoted => {
                    self.serves_now();
                    due
                }
                RenewerEvent::Rejected(generation) => self.candidate_rejected(generation),
                RenewerEvent::Plan => self.follow_plan(due),
                RenewerEvent::Nudge => self.try_again(due),
            };
        }
    }

    /// Waits for the next event.
    async fn next_event(&mut self, due: &NextAttempt) -> RenewerEvent {
        let plan = self.plan();
        let mut back = plan.calls.back();
        let mut password_changed = pin!(new_secret(&plan.settings.password, due));
        let waits_for_upstream =
            matches!(due, NextAttempt::NotBefore(_) | NextAttempt::NewSecret(..))
                && matches!(
                    self.reported,
                    Some(LoginFailure::Unreachable | LoginFailure::Timeout)
                );
        loop {
            if self.stop.is_draining() {
                return RenewerEvent::Stop;
            }
            if let Some(event) = self.pending_event() {
                return event;
            }
            let pause = match due {
                NextAttempt::Renewal(at) if at.has_passed() || !self.session.is_ready() => {
                    return RenewerEvent::Due;
                }
                NextAttempt::NotBefore(at) | NextAttempt::NewSecret(at, _) if at.has_passed() => {
                    return RenewerEvent::Due;
                }
                NextAttempt::Renewal(at)
                | NextAttempt::NotBefore(at)
                | NextAttempt::NewSecret(at, _) => at.left().min(MAX_SLEEP),
            };
            tokio::select! {
                () = sleep(pause) => {}
                () = self.session.wake.notified() => {}
                _ = self.plan.changed() => return RenewerEvent::Plan,
                // The pause was due to an unreachable upstream.
                () = &mut back, if waits_for_upstream => return RenewerEvent::Due,
                () = &mut password_changed => return RenewerEvent::Due,
                () = self.stop.draining() => return RenewerEvent::Stop,
            }
        }
    }

    fn pending_event(&mut self) -> Option<RenewerEvent> {
        if self.plan.has_changed().unwrap_or(false) {
            return Some(RenewerEvent::Plan);
        }
        if self.session.take_promoted() {
            return Some(RenewerEvent::Promoted);
        }
        if let Some(generation) = self.session.take_rejected() {
            return Some(RenewerEvent::Rejected(generation));
        }
        if self.session.take_nudge() {
            return Some(RenewerEvent::Nudge);
        }
        if let Some(suspicion) = self.session.judgement.suspicion() {
            return Some(RenewerEvent::Suspicion(suspicion));
        }
        let has_news = self
            .shared_login
            .as_ref()
            .is_some_and(SharedLogin::has_news);
        has_news.then_some(RenewerEvent::Due)
    }

    pub(in crate::upstream) fn plan(&self) -> Arc<LoginPlan> {
        Arc::clone(&self.plan.borrow())
    }

    /// One login, by this gateway or by the one that holds the shared lock.
    pub(in crate::upstream) async fn log_in(&mut self, cause: LoginCause) -> NextAttempt {
        let Some(mut shared_login) = self.shared_login.take() else {
            return self.attempt(cause).await;
        };
        let due = self.turn(&mut shared_login, cause).await;
        self.shared_login = Some(shared_login);
        due
    }

    /// Adopts the token of an earlier start; it is used until the upstream refuses it.
    fn adopt_saved(&mut self) -> Option<NextAttempt> {
        if self.shared_login.is_some() {
            return None;
        }
        let kept = self.binding.as_ref()?.find()?;
        let headers = self.plan().description.token_headers(&kept.token).ok()?;
        let ends = Deadline::at_unix_millis(kept.ends_millis);
        info!(upstream = %self.upstream, seconds = ends.left().as_secs(),
            "using the token of the start before");
        let generation = self.session.next_generation();
        let lease = Lease::new(generation, ends, headers, kept.token);
        let origin = LeaseOrigin {
            began: self.session.now(),
            cause: LoginCause::Renewal,
            is_proven: false,
        };
        self.offer(lease, origin);
        Some(self.renewal_due(kept.life, kept.age))
    }

    /// Adds a lease and notifies waiting requests.
    pub(in crate::upstream) fn offer(&self, lease: Lease, origin: LeaseOrigin) -> LeasePlacement {
        let placement = self.session.offer(lease, origin);
        self.phase.send_replace(RenewerPhase::Resting);
        self.session.refresh_gauges();
        placement
    }

    /// When to renew a token with the lifetime `life` that is `age` old.
    pub(super) fn renewal_due(&mut self, life: Duration, age: Duration) -> NextAttempt {
        let now = Instant::now();
        let began = now.checked_sub(age).unwrap_or(now);
        self.renewal = Some(RenewalPlan { life, began });
        let settings = &self.plan().settings;
        let renew = renew_after(life, settings.renew_at, settings.renew_floor);
        NextAttempt::Renewal(Deadline::after(renew.saturating_sub(age)))
    }
}

/// Waits until the file of `source` holds a password that `due` waits for; for ever if there is none.
async fn new_secret(source: &SecretSource, due: &NextAttempt) {
    let (NextAttempt::NewSecret(_, known), Some(path)) = (due, source.file()) else {
        return pending().await;
    };
    // Its content is new to the watch, so that a password written during the login is found too.
    let files = WatchedFiles::new(vec![path.to_owned()]);
    let mut requests = ReloadRequests::never();
    loop {
        let file = files.next_look(&mut requests).await.contents.into_file();
        let password = source.secret_of_file(&file.path, file.content);
        // A file written again with the password that was refused is no reason for a login.
        if password.is_ok_and(|password| *known != Some(digest(&password))) {
            return;
        }
    }
}

pub(in crate::upstream) fn digest(secret: &Secret) -> [u8; 32] {
    use sha2::{Digest as _, Sha256};
    Sha256::digest(secret.expose().as_bytes()).into()
}
