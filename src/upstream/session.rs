//! Our standing login as requests see it: a lease to read, or a reason why not.
//! Requests never log in themselves; the renewer does (`renewer.rs`).

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::{HeaderName, HeaderValue, StatusCode};
use tokio::sync::{Notify, watch};

use super::fence::Fence;
use crate::clock::Deadline;
use crate::metrics::{Gauged, Metrics};
use crate::secret::{Needle, Secret};

/// What a client is told to wait when only a human can end the trouble.
const HUMAN_PACE: Duration = Duration::from_secs(30);
const SHORTEST_RETRY: Duration = Duration::from_secs(1);
/// A login that only has to keep its distance from the one before is waited for when
/// it is due this soon: the client would wait as long to ask again.
const SOON: Duration = Duration::from_secs(2);

/// The upstream's token, borrowed for one request.
#[derive(Debug)]
pub struct Lease {
    pub generation: u64,
    pub(super) ends: Deadline,
    /// Marked sensitive: their `Debug` is blank.
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) secret: Secret,
    needle: Needle,
}

impl Lease {
    pub(super) fn new(
        generation: u64,
        ends: Deadline,
        headers: Vec<(HeaderName, HeaderValue)>,
        secret: Secret,
    ) -> Self {
        Self {
            generation,
            ends,
            headers,
            needle: Needle::new(&secret),
            secret,
        }
    }

    /// What to put on a request; replaces headers of the same name.
    pub fn headers(&self) -> &[(HeaderName, HeaderValue)] {
        &self.headers
    }

    /// The bare token, for whoever must see that it does not come back down.
    pub fn needle(&self) -> &Needle {
        &self.needle
    }

    pub fn ends(&self) -> Deadline {
        self.ends
    }
}

/// Why there is no lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The first login is still under way.
    Starting,
    WrongPassword,
    PasswordChange,
    Unreachable,
    Timeout,
    /// An answer that says yes but holds no usable token.
    Unusable,
    Refused(StatusCode),
    /// Our own password cannot be read.
    Secret,
    /// `min_login_interval` or `logins_per_hour` forbids a login now.
    Budget,
    Stopping,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "logging in",
            Self::WrongPassword => "wrong password",
            Self::PasswordChange => "password change required",
            Self::Unreachable => "upstream unreachable",
            Self::Timeout => "no answer in time",
            Self::Unusable => "answer without a usable token",
            Self::Refused(status) => return write!(f, "refused with status {}", status.as_u16()),
            Self::Secret => "password cannot be read",
            Self::Budget => "login budget spent",
            Self::Stopping => "stopping",
        })
    }
}

/// There is no lease now, and waiting here would not bring one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no upstream login: {why}")]
pub struct NoLease {
    pub why: Why,
    pub retry_after: Duration,
}

/// What the renewer is doing; it alone writes this.
#[derive(Clone, Copy, Debug)]
pub(super) enum Phase {
    LoggingIn,
    /// The last login was good; nothing to do until renewal.
    Resting,
    /// No login before `until`; None: not before the operator changes something.
    Blocked {
        why: Why,
        until: Option<Deadline>,
    },
}

/// Readiness in words; holds no secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    pub is_ready: bool,
    /// What keeps the next login from happening, if anything does.
    pub trouble: Option<Why>,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.is_ready, self.trouble) {
            (true, None) => f.write_str("upstream login: ready"),
            (true, Some(why)) => write!(f, "upstream login: ready, but cannot renew: {why}"),
            (false, Some(why)) => write!(f, "upstream login: {why}"),
            (false, None) => f.write_str("upstream login: token ended, logging in"),
        }
    }
}

/// Our standing login at one upstream. Callers' own deadlines wrap `lease` and
/// `replace`; a caller that leaves cancels nothing.
#[derive(Debug)]
pub struct Session {
    pub(super) lease: ArcSwapOption<Lease>,
    pub(super) fence: Fence,
    phase: watch::Receiver<Phase>,
    /// Tells the renewer that its last lease is of no use any more.
    pub(super) wake: Notify,
    /// Ends of the tokens this process obtained.
    minted: Mutex<Vec<Deadline>>,
    single_active: bool,
    metrics: Arc<Metrics>,
}

impl Session {
    pub(super) fn new(
        single_active: bool,
        metrics: Arc<Metrics>,
    ) -> (Arc<Self>, watch::Sender<Phase>) {
        let (sender, phase) = watch::channel(Phase::LoggingIn);
        let session = Self {
            lease: ArcSwapOption::empty(),
            fence: Fence::new(single_active),
            phase,
            wake: Notify::new(),
            minted: Mutex::default(),
            single_active,
            metrics,
        };
        (Arc::new(session), sender)
    }

    /// The lease to use now. Waits only when there is none and a login for it is
    /// under way.
    pub async fn lease(&self) -> Result<Arc<Lease>, NoLease> {
        self.lease_but(None).await
    }

    /// The lease to use now, but not the one of this generation.
    async fn lease_but(&self, not: Option<u64>) -> Result<Arc<Lease>, NoLease> {
        match self.usable_but(not) {
            Some(lease) => Ok(lease),
            None => self.settled(not).await,
        }
    }

    /// A newer lease than `old`, which the upstream has refused. However many
    /// requests come with the same refusal, they share one login.
    pub async fn replace(&self, old: &Lease) -> Result<Arc<Lease>, NoLease> {
        if self.fence.refuse(old.generation) {
            self.wake.notify_one();
        }
        // A login that has just ended is in the fence before its lease is here: the refusal
        // is no news then, and the lease that is here is still the one refused.
        self.lease_but(Some(old.generation)).await
    }

    /// The lease, if the next request can use it. Checked here and not when a timer
    /// fires: after a suspension timers are late.
    pub fn usable(&self) -> Option<Arc<Lease>> {
        let lease = self.lease.load_full()?;
        let is_usable = !self.fence.is_refused(lease.generation) && !lease.ends.has_passed();
        is_usable.then_some(lease)
    }

    fn usable_but(&self, not: Option<u64>) -> Option<Arc<Lease>> {
        let lease = self.usable()?;
        (Some(lease.generation) != not).then_some(lease)
    }

    async fn settled(&self, not: Option<u64>) -> Result<Arc<Lease>, NoLease> {
        let mut phases = self.phase.clone();
        let mut waiting = None;
        loop {
            // Read before the lease: the renewer stores the lease first.
            let phase = *phases.borrow_and_update();
            if let Some(lease) = self.usable_but(not) {
                return Ok(lease);
            }
            match phase {
                Phase::LoggingIn => {}
                Phase::Blocked {
                    why: Why::Budget,
                    until: Some(until),
                } if !until.has_passed() && until.left() <= SOON => {}
                Phase::Blocked { why, until: None } => return Err(no_lease(why, HUMAN_PACE)),
                Phase::Blocked {
                    why,
                    until: Some(until),
                } if !until.has_passed() => return Err(no_lease(why, until.left())),
                Phase::Blocked { .. } | Phase::Resting => self.wake.notify_one(),
            }
            waiting.get_or_insert_with(|| {
                self.metrics.session_waits.inc();
                Gauged::enter(&self.metrics.session_requests_waiting)
            });
            if phases.changed().await.is_err() {
                let stopped = no_lease(Why::Stopping, SHORTEST_RETRY);
                return self.usable_but(not).ok_or(stopped);
            }
        }
    }

    /// The next request would have a lease at once.
    pub fn is_ready(&self) -> bool {
        self.usable().is_some()
    }

    pub fn status(&self) -> Status {
        let is_ready = self.is_ready();
        let trouble = match *self.phase.borrow() {
            Phase::Blocked { why, .. } => Some(why),
            Phase::LoggingIn if !is_ready => Some(Why::Starting),
            Phase::LoggingIn | Phase::Resting => None,
        };
        Status { is_ready, trouble }
    }

    /// Sets the gauges that change by themselves; call it just before a scrape.
    pub fn refresh_gauges(&self) {
        let lease = self.usable();
        let left = lease
            .as_ref()
            .map_or(0, |lease| lease.ends.left().as_secs());
        let metrics = &self.metrics;
        metrics
            .session_seconds_to_expiry
            .set(i64::try_from(left).unwrap_or(i64::MAX));
        metrics.session_up.set(i64::from(lease.is_some()));
        let mut minted = self.minted.lock().unwrap_or_else(PoisonError::into_inner);
        minted.retain(|ends| !ends.has_passed());
        metrics
            .session_live_tokens
            .set(i64::try_from(minted.len()).unwrap_or(i64::MAX));
    }

    /// A login brought a token, whether or not it will be used.
    pub(super) fn minted(&self, ends: Deadline) {
        let mut minted = self.minted.lock().unwrap_or_else(PoisonError::into_inner);
        if self.single_active {
            minted.clear();
        }
        minted.retain(|ends| !ends.has_passed());
        minted.push(ends);
    }

    /// Returns when the renewer has ended.
    pub(super) async fn ended(&self) {
        let mut phases = self.phase.clone();
        while phases.changed().await.is_ok() {}
    }
}

fn no_lease(why: Why, retry_after: Duration) -> NoLease {
    NoLease {
        why,
        retry_after: retry_after.max(SHORTEST_RETRY),
    }
}
