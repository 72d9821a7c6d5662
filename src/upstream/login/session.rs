//! The session: the gateway's standing login as requests see it. It lends leases, gives the reason when
//! there is none, and decides what happens after a refusal. Requests never log in themselves; the
//! renewer does (`renewer.rs`).

use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use foldhash::quality::RandomState;
use http::{Method, StatusCode};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};

use super::judgement::accepted_paths::PathKey;
use super::judgement::refused_paths::RefusedRequest;
use super::judgement::speculation::SpeculationPacer;
use super::judgement::{LeaseChoice, LeaseJudgement, RetryStep, SettledOutcome};
use super::lease::Lease;
use super::session_reading::SessionReading;
use super::status::{LoginFailure, MIN_RETRY, NoLease, RenewerPhase, SessionStatus};
use crate::clock::Deadline;
use crate::config;
use crate::metrics::{GaugeGuard, UpstreamMetrics};
use crate::sync::lock;

/// `Retry-After` when only the operator can end the failure.
const HUMAN_PACE: Duration = Duration::from_secs(30);
/// A login that is delayed only by `min_login_interval` is waited for if it is due this soon: the
/// client would wait as long before its retry.
pub(in crate::upstream) const SOON: Duration = Duration::from_secs(2);
/// The number of accepting paths that are remembered.
const PATHS: usize = 1024;

/// Events that the renewer has not handled yet.
#[derive(Debug, Default)]
pub(in crate::upstream) struct PendingEvents {
    pub(super) promoted: AtomicBool,
    /// The generation of a rejected candidate; 0: none.
    pub(super) rejected: AtomicU64,
    /// The operator asks for another attempt.
    pub(super) nudged: AtomicBool,
}

/// The standing login at one upstream. Callers wrap `lease` and `reconsider` in their own deadlines; a
/// caller that disconnects cancels nothing.
#[derive(Debug)]
pub struct Session {
    /// The only endpoint at which its tokens are valid; None: they are at all.
    pub(in crate::upstream) endpoint: Option<Arc<str>>,
    /// The lease in use; follows the judgement.
    pub(in crate::upstream) current: ArcSwapOption<Lease>,
    /// The leases that the judgement refers to: in use, candidate, fallback.
    pub(in crate::upstream) leases: Mutex<Vec<Arc<Lease>>>,
    pub(in crate::upstream) judgement: LeaseJudgement,
    phase: watch::Receiver<RenewerPhase>,
    /// Wakes the renewer for a pending event.
    pub(in crate::upstream) wake: Notify,
    pub(in crate::upstream) events: PendingEvents,
    /// The last generation that was assigned.
    pub(in crate::upstream) numbers: AtomicU64,
    /// When the tokens that this process obtained expire.
    pub(in crate::upstream) minted: Mutex<Vec<Deadline>>,
    hasher: RandomState,
    pub(in crate::upstream) began: Instant,
    pub(in crate::upstream) metrics: Arc<UpstreamMetrics>,
}

/// What happens to a request after a 401.
#[derive(Debug)]
pub enum RefusalVerdict {
    /// Send it again, with this lease.
    Again(Arc<Lease>),
    /// The refusal concerns the request, not the login.
    Upheld,
}

impl Session {
    pub(in crate::upstream) fn new(
        endpoint: Option<Arc<str>>,
        settings: &config::Login,
        sharers: u32,
        metrics: Arc<UpstreamMetrics>,
    ) -> (Arc<Self>, watch::Sender<RenewerPhase>) {
        let (sender, phase) = watch::channel(RenewerPhase::LoggingIn);
        let pacer = SpeculationPacer::new(settings.logins_per_hour, sharers);
        let session = Self {
            endpoint,
            current: ArcSwapOption::empty(),
            leases: Mutex::default(),
            judgement: LeaseJudgement::new(PATHS, settings.single_active_token, pacer),
            phase,
            wake: Notify::new(),
            events: PendingEvents::default(),
            numbers: AtomicU64::new(0),
            minted: Mutex::default(),
            hasher: RandomState::default(),
            began: Instant::now(),
            metrics,
        };
        (Arc::new(session), sender)
    }

    /// The judgement's key for the path of a request.
    pub fn path_key(&self, method: &Method, path: &str) -> PathKey {
        PathKey(self.hasher.hash_one((method, path)))
    }

    /// The lease to use now. Waits only if there is none and a login is in progress.
    pub async fn lease(&self) -> Result<Arc<Lease>, NoLease> {
        match self.usable() {
            Some(lease) => Ok(lease),
            None => self.settled().await,
        }
    }

    /// The lease, if the next request can use it. Its expiry is checked here, because timers are late after
    /// a suspension of the host.
    pub fn usable(&self) -> Option<Arc<Lease>> {
        let lease = self.current.load_full()?;
        match lease.ends.has_passed() {
            false => Some(lease),
            true => self.after_the_end_of(&lease),
        }
    }

    /// The lease for a request to this path now; None: there is none. `can_repeat`: whether
    /// the request can be sent again, should this lease be refused.
    pub fn lease_for(
        &self,
        path: impl FnOnce() -> PathKey,
        can_repeat: impl FnOnce() -> bool,
    ) -> Option<Arc<Lease>> {
        if self.judgement.has_choice()
            && let LeaseChoice::Candidate(chosen) | LeaseChoice::Fallback(chosen) =
                self.judgement.choose(path(), can_repeat(), self.now())
            && let Some(lease) = self.by_generation(chosen)
        {
            return Some(lease);
        }
        self.usable()
    }

    /// The upstream answered a request to `path`, which carried `lease`, with success.
    /// `was_refused`: the request was refused with another lease before.
    pub fn note_accepted(&self, lease: &Lease, path: PathKey, was_refused: bool) {
        if self.judgement.is_worth_settling(path, lease.generation) {
            self.record_acceptance(lease.generation, path, was_refused);
        }
    }

    /// The answer was no success. Where it is no refusal either, the lease was good for it.
    pub fn note_answered(&self, lease: &Lease, path: impl Fn() -> PathKey, status: StatusCode) {
        if !is_silent_on_tokens(status) {
            self.judgement.forget_refusals(path(), lease.generation);
        }
    }

    #[cold]
    fn record_acceptance(&self, generation: u64, path: PathKey, was_refused: bool) {
        let now = self.now();
        match self
            .judgement
            .record_acceptance(path, generation, was_refused, now)
        {
            SettledOutcome::Nothing => return,
            SettledOutcome::Promoted(_) => self.events.promoted.store(true, Ordering::Release),
            SettledOutcome::Rejected(candidate) => {
                self.events.rejected.store(candidate, Ordering::Release)
            }
        }
        self.follow_judgement();
        self.wake.notify_one();
    }

    /// What to do with `request`, whose `lease` got a 401. Returns once that is decided; one probe or login
    /// serves all requests that wait for the same decision.
    pub async fn reconsider(
        &self,
        request: &mut RefusedRequest,
        lease: &Arc<Lease>,
    ) -> Result<RefusalVerdict, NoLease> {
        self.judgement
            .note_refusal(request, lease.generation, self.now());
        let mut phases = self.phase.clone();
        let mut waiting = None;
        loop {
            // Read before the judgement, which the renewer changes first.
            let phase = *phases.borrow_and_update();
            match self.judgement.next_step(request, self.now()) {
                RetryStep::Upheld => return Ok(RefusalVerdict::Upheld),
                RetryStep::Again(generation) => {
                    if let Some(lease) = self.by_generation(generation) {
                        return Ok(RefusalVerdict::Again(lease));
                    }
                    // It has just expired.
                    return self.lease().await.map(RefusalVerdict::Again);
                }
                RetryStep::AgainAfter(pause, generation) => {
                    sleep(Duration::from_millis(pause)).await;
                    return match self.by_generation(generation) {
                        Some(lease) => Ok(RefusalVerdict::Again(lease)),
                        None => self.lease().await.map(RefusalVerdict::Again),
                    };
                }
                RetryStep::Await => self.wake.notify_one(),
                RetryStep::AwaitLease => self.may_wait(phase)?,
                RetryStep::Postponed(wait) => {
                    return Err(match phase {
                        RenewerPhase::Blocked { why, until } if !until.has_passed() => {
                            no_lease(why, until.left())
                        }
                        _ => no_lease(LoginFailure::Budget, Duration::from_millis(wait)),
                    });
                }
            }
            waiting.get_or_insert_with(|| self.count_waiting());
            if phases.changed().await.is_err() {
                return Err(NoLease::stopping());
            }
        }
    }

    async fn settled(&self) -> Result<Arc<Lease>, NoLease> {
        let mut phases = self.phase.clone();
        let mut waiting = None;
        loop {
            // Read before the lease: the renewer stores the lease first.
            let phase = *phases.borrow_and_update();
            if let Some(lease) = self.usable() {
                return Ok(lease);
            }
            self.may_wait(phase)?;
            waiting.get_or_insert_with(|| self.count_waiting());
            if phases.changed().await.is_err() {
                let stopped = NoLease::stopping();
                return self.usable().ok_or(stopped);
            }
        }
    }

    /// Whether a login that is worth waiting for is in progress, or soon will be.
    fn may_wait(&self, phase: RenewerPhase) -> Result<(), NoLease> {
        match phase {
            RenewerPhase::LoggingIn => {}
            RenewerPhase::Blocked { until, .. } if until.has_passed() => self.wake.notify_one(),
            RenewerPhase::Blocked {
                why: LoginFailure::Budget,
                until,
            } if until.left() <= SOON => {}
            RenewerPhase::Blocked {
                why:
                    why @ (LoginFailure::WrongPassword
                    | LoginFailure::PasswordChange
                    | LoginFailure::Secret),
                until,
            } => return Err(no_lease(why, until.left().min(HUMAN_PACE))),
            RenewerPhase::Blocked { why, until } => return Err(no_lease(why, until.left())),
            RenewerPhase::Resting => self.wake.notify_one(),
        }
        Ok(())
    }

    fn count_waiting(&self) -> GaugeGuard {
        self.metrics.session_waits.inc();
        GaugeGuard::enter(&self.metrics.session_requests_waiting)
    }

    /// Whether the next request would get a lease at once.
    pub fn is_ready(&self) -> bool {
        self.usable().is_some()
    }

    pub fn status(&self) -> SessionStatus {
        let is_ready = self.is_ready();
        let trouble = match *self.phase.borrow() {
            RenewerPhase::Blocked { why, .. } => Some(why),
            RenewerPhase::LoggingIn if !is_ready => Some(LoginFailure::Starting),
            RenewerPhase::LoggingIn | RenewerPhase::Resting => None,
        };
        SessionStatus { is_ready, trouble }
    }

    /// The operator has changed something, or asks for another attempt: a blocked login is tried again at
    /// once, within the budget.
    pub fn nudge(&self) {
        self.events.nudged.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// Updates the gauges that depend on the time; called before a scrape. The sessions of endpoints share
    /// these gauges, which `UpstreamLogins` sets.
    pub fn refresh_gauges(&self) {
        if self.endpoint.is_none() {
            self.reading().show(&self.metrics);
        }
    }

    pub(in crate::upstream) fn reading(&self) -> SessionReading {
        let is_up = self.usable().is_some();
        let leases = lock(&self.leases);
        let left = leases.iter().map(|lease| lease.ends.left().as_secs());
        let left = left.max().filter(|_| is_up).unwrap_or(0);
        drop(leases);
        let mut minted = lock(&self.minted);
        minted.retain(|ends| !ends.has_passed());
        SessionReading {
            is_up,
            seconds_to_expiry: left,
            live_tokens: minted.len(),
        }
    }

    /// Returns when the renewer has ended.
    pub(in crate::upstream) async fn ended(&self) {
        let mut phases = self.phase.clone();
        while phases.changed().await.is_ok() {}
    }
}

fn no_lease(why: LoginFailure, retry_after: Duration) -> NoLease {
    NoLease {
        why,
        retry_after: retry_after.max(MIN_RETRY),
    }
}

/// Such an answer may come from something before the service, or be about who asks.
fn is_silent_on_tokens(status: StatusCode) -> bool {
    let odd = [
        StatusCode::UNAUTHORIZED,
        StatusCode::FORBIDDEN,
        StatusCode::PROXY_AUTHENTICATION_REQUIRED,
        StatusCode::TOO_MANY_REQUESTS,
    ];
    status.is_server_error() || odd.contains(&status)
}
