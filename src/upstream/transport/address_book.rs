//! The addresses of one upstream's name. One look-up at a time runs on a task of its own: connections
//! use the addresses found so far, and the look-up continues when they no longer need it. While DNS
//! servers do not respond, the last known addresses stay in use.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{info, warn};

use super::address_memory::AddressMemory;
use crate::dns::{DnsResolver, FoundAddresses, MAX_STALE, NameError, RESOLUTION_DELAY};
use crate::error_chain::chain;
use crate::lifecycle::{ShutdownSignal, TaskScope};
use crate::staggered::CandidateSource;

/// A name that does not exist yet is looked up again after this, whatever the zone's negative TTL: an
/// upstream that starts late must be found. The same after a failure to connect.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How long servers that did not respond are not asked again while earlier addresses are in use.
const ASK_AGAIN_WHEN_STALE: Duration = Duration::from_secs(5);
/// How long a connection waits for a look-up if there are earlier addresses.
const STALE_AFTER: Duration = Duration::from_millis(300);
/// The timeout of a look-up in which no server responds.
const LOOK_UP_LIMIT: Duration = Duration::from_secs(15);
/// The same when the program is asked to stop.
const LOOK_UP_LIMIT_AT_STOP: Duration = Duration::from_secs(1);

/// Finds the addresses of one host.
#[derive(Clone, Debug)]
pub(in crate::upstream) struct AddressBook(Arc<BookShared>);

#[derive(Debug)]
struct BookShared {
    host: String,
    names: DnsResolver,
    scope: TaskScope,
    state: Mutex<BookState>,
}

#[derive(Debug, Default)]
struct BookState {
    /// The look-up under way, or the last one.
    look_up: Option<LookUp>,
    /// The result of the last successful look-up, and until when it may be used.
    earlier: Vec<IpAddr>,
    earlier_until: Option<Instant>,
    /// The last AAAA query got no response: the next look-up does not wait for it.
    is_v6_silent: bool,
    /// No server responded last time; that has been logged.
    is_told: bool,
}

#[derive(Clone, Debug)]
struct LookUp {
    began: Instant,
    found: watch::Receiver<FoundAddresses>,
    end: watch::Receiver<Option<LookUpEnd>>,
}

#[derive(Clone, Debug)]
struct LookUpEnd {
    at: Instant,
    /// None after a success.
    failure: Option<Arc<NameError>>,
}

impl LookUp {
    /// Whether it may be used for another connection at `now`.
    fn serves(&self, now: Instant, has_earlier: bool) -> bool {
        let Some(end) = self.end.borrow().clone() else {
            return self.end.has_changed().is_ok(); // it is under way
        };
        let until = match end.failure {
            None => self.found.borrow().until(),
            Some(_) if has_earlier => Some(end.at + ASK_AGAIN_WHEN_STALE),
            Some(_) => Some(end.at + ASK_AGAIN),
        };
        until.is_some_and(|until| now < until)
    }
}

impl AddressBook {
    pub(in crate::upstream) fn new(host: &str, names: DnsResolver, scope: &TaskScope) -> Self {
        Self(Arc::new(BookShared {
            host: host.to_owned(),
            names,
            scope: scope.clone(),
            state: Mutex::default(),
        }))
    }

    pub(in crate::upstream) fn host(&self) -> &str {
        &self.0.host
    }

    pub(in crate::upstream) fn names(&self) -> &DnsResolver {
        &self.0.names
    }

    /// The addresses for one connection, in the order that `memory` proposes.
    pub(in crate::upstream) fn addresses<'a>(
        &self,
        memory: &'a AddressMemory,
    ) -> AddressCandidates<'a> {
        let mut addresses = AddressCandidates {
            memory,
            given: Vec::new(),
            fixed: Vec::new(),
            look_up: None,
            earlier: Vec::new(),
            earlier_from: Instant::now() + STALE_AFTER,
            resolution_delay: RESOLUTION_DELAY,
        };
        if let Some(noted) = self.0.names.noted(&self.0.host) {
            addresses.fixed = noted;
            return addresses;
        }
        let now = Instant::now();
        let mut state = self.lock();
        if state.earlier_until.is_some_and(|until| now < until) {
            addresses.earlier.clone_from(&state.earlier);
        }
        if state.is_v6_silent {
            addresses.resolution_delay = Duration::ZERO;
        }
        let has_earlier = !addresses.earlier.is_empty();
        let look_up = state
            .look_up
            .take()
            .filter(|old| old.serves(now, has_earlier));
        let look_up = look_up.unwrap_or_else(|| self.begin());
        // Servers that did not respond last time are not waited for again.
        addresses.earlier_from = if state.is_told {
            now
        } else {
            look_up.began + STALE_AFTER
        };
        state.look_up = Some(look_up.clone());
        addresses.look_up = Some(look_up);
        addresses
    }

    /// No address could be connected to: the name may have other addresses by now.
    pub(in crate::upstream) fn doubt(&self) {
        let mut state = self.lock();
        let now = Instant::now();
        let is_old = state.look_up.as_ref().is_some_and(|look_up| {
            let end = look_up.end.borrow();
            end.as_ref().is_some_and(|end| now >= end.at + ASK_AGAIN)
        });
        if is_old {
            state.look_up = None;
        }
    }

    fn begin(&self) -> LookUp {
        let (tell, found) = watch::channel(FoundAddresses::default());
        let (tell_end, end) = watch::channel(None);
        let book = self.clone();
        self.0.scope.spawn("name look-up", async move {
            let shared = &book.0;
            let outcome = tokio::select! {
                outcome = Box::pin(shared.names.look_up(&shared.host, &tell)) => outcome,
                () = look_up_limit(&shared.scope.stop) => Err(NameError::Unanswered {
                    file: shared.names.servers_file().to_owned(),
                    source: "none came in time".into(),
                }),
            };
            let has_any = tell.borrow().first_at().is_some();
            let failure = outcome.err().filter(|_| !has_any).map(Arc::new);
            book.ended(&tell.borrow(), failure.as_deref());
            let at = Instant::now();
            tell_end.send_replace(Some(LookUpEnd { at, failure }));
        });
        LookUp {
            began: Instant::now(),
            found,
            end,
        }
    }

    fn ended(&self, found: &FoundAddresses, failure: Option<&NameError>) {
        let host = self.host();
        let mut state = self.lock();
        match failure {
            None => {
                state.earlier = found.all();
                state.earlier_until = Some(Instant::now() + MAX_STALE);
                state.is_v6_silent = !found.has_v6_answer;
                if std::mem::take(&mut state.is_told) {
                    info!(host, "the name is found again");
                }
            }
            // A negative response: the name has no addresses any more.
            Some(NameError::Unknown { .. }) => state.earlier_until = None,
            Some(failure) if state.earlier_until.is_some() => {
                if !std::mem::replace(&mut state.is_told, true) {
                    warn!(host, error = %chain(failure),
                        "the name cannot be looked up: its earlier addresses serve for up to an hour");
                }
            }
            Some(_) => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, BookState> {
        self.0.state.lock()
    }
}

async fn look_up_limit(stop: &ShutdownSignal) {
    let asked_to_stop = async {
        stop.draining().await;
        sleep(LOOK_UP_LIMIT_AT_STOP).await;
    };
    let _ = timeout(LOOK_UP_LIMIT, asked_to_stop).await;
}

/// The addresses for one connection, as the look-up finds them.
#[derive(Debug)]
pub(in crate::upstream) struct AddressCandidates<'a> {
    memory: &'a AddressMemory,
    given: Vec<IpAddr>,
    fixed: Vec<IpAddr>,
    look_up: Option<LookUp>,
    earlier: Vec<IpAddr>,
    earlier_from: Instant,
    resolution_delay: Duration,
}

impl AddressCandidates<'_> {
    /// Why there is none, if the look-up has ended so.
    pub(in crate::upstream) fn failure(&self) -> Option<Arc<NameError>> {
        let end = self.look_up.as_ref()?.end.borrow();
        end.as_ref()?.failure.clone()
    }

    /// Whether any address was known.
    pub(in crate::upstream) fn is_empty(&self) -> bool {
        self.given.is_empty()
    }

    /// What is known now, and when more of it may be used.
    fn now_known(&self) -> (Vec<IpAddr>, Option<Instant>) {
        let Some(look_up) = &self.look_up else {
            return (self.fixed.clone(), None);
        };
        let now = Instant::now();
        let found = look_up.found.borrow();
        let end = look_up.end.borrow();
        let is_over = end.is_some();
        let failure = end.as_ref().and_then(|end| end.failure.as_deref());
        // A negative response is trusted.
        let may_be_earlier = !matches!(failure, Some(NameError::Unknown { .. }));
        let mut known = Vec::new();
        let mut later = None;
        if let Some(first_at) = found.first_at() {
            let from = first_at + self.resolution_delay;
            if is_over || found.has_v6() || found.has_v6_answer || from <= now {
                known = found.all();
            } else {
                later = Some(from);
            }
        }
        if known.is_empty() && !self.earlier.is_empty() && may_be_earlier {
            if failure.is_some() || self.earlier_from <= now {
                known.clone_from(&self.earlier);
            } else {
                later = Some(later.unwrap_or(self.earlier_from).min(self.earlier_from));
            }
        }
        (known, later)
    }
}

impl CandidateSource<IpAddr> for AddressCandidates<'_> {
    fn next(&mut self) -> Option<IpAddr> {
        let (known, _) = self.now_known();
        let fresh = |ip: &IpAddr| !self.given.contains(ip);
        let next = self.memory.order(&known).into_iter().find(fresh)?;
        self.given.push(next);
        Some(next)
    }

    fn left(&self) -> usize {
        let (known, _) = self.now_known();
        known.iter().filter(|ip| !self.given.contains(ip)).count()
    }

    async fn more(&mut self) -> bool {
        let (_, later) = self.now_known();
        let Some(LookUp { found, end, .. }) = &mut self.look_up else {
            return false;
        };
        let is_over = end.borrow().is_some();
        if is_over {
            // It may have ended since `next` looked.
            return self.left() > 0;
        }
        tokio::select! {
            // Its sender goes when the look-up ends, which the other tells.
            Ok(()) = found.changed() => true,
            ended = end.changed() => ended.is_ok(),
            () = sleep_until(later.unwrap_or_else(Instant::now)), if later.is_some() => true,
        }
    }
}
