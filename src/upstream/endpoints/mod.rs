//! The endpoints of one upstream: servers that are alike, of which each request goes to one. Start at
//! `EndpointSet`. `endpoint_choice` chooses, `outlier_record` and `check_record` decide which ones are
//! left out, `discovery` follows a name's addresses, `endpoint_tasks` has what runs for each endpoint.
//!
//! Two witnesses judge an endpoint: requests (ejection, breaker) and health checks. Neither overrules
//! the other: an endpoint is available if both say so.

mod check_record;
mod discovery;
mod endpoint_choice;
mod endpoint_factory;
mod endpoint_report;
mod endpoint_state;
mod endpoint_tasks;
mod health_checker;
mod outlier_record;
mod retry_budget;

pub use endpoint_choice::EndpointChoice;
pub use endpoint_report::EndpointReport;

pub(super) use discovery::{AddressDiscovery, endpoints_at_once};
pub(super) use endpoint_factory::{EndpointFactory, host};
pub(super) use endpoint_state::{EndpointState, InFlightRequest, is_endpoint_failure};
pub(super) use endpoint_tasks::EndpointTasks;

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::{join_all, select_all};
use http::{HeaderValue, StatusCode};
use parking_lot::Mutex;
use tokio::sync::watch;
use tracing::{info, warn};

use super::health::UpstreamOutage;
use super::health::breaker::{FailureSource, UpstreamPass};
use super::transport::dial_error::DialError;
use super::transport::dialer::Dialer;
use crate::config::{
    AddressResolution, BaseAddress, EndpointAffinity, EndpointPolicy, UpstreamConfig,
};
use endpoint_state::EndpointRank;
use retry_budget::RetryBudget;

/// After which a request may try again while no endpoint is known, or all are drained.
const RETRY_WITHOUT_ENDPOINT: Duration = Duration::from_secs(1);

/// A timeout counts against an endpoint that had not responded for this long. Less is the end of a
/// deadline that others have used up.
const HANGING: Duration = Duration::from_secs(1);

/// One server of an upstream, and how it is reached.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) state: Arc<EndpointState>,
    pub(super) base: BaseAddress,
    /// The `Host` field of requests to it.
    pub(super) host: HeaderValue,
    pub(super) dialer: Dialer,
}

/// The endpoints of one moment, in the order of the file or of their addresses.
#[derive(Debug, Default)]
pub(super) struct EndpointList {
    /// Another list has another number.
    pub(super) generation: u64,
    pub(super) endpoints: Vec<Arc<Endpoint>>,
}

/// The endpoints of one upstream, shared by all workers.
#[derive(Debug)]
pub struct EndpointSet {
    upstream: Arc<str>,
    policy: EndpointPolicy,
    list: ArcSwap<EndpointList>,
    /// The endpoint, if the configuration names one and its name is not followed: nothing is chosen.
    sole: Option<Arc<Endpoint>>,
    retries: RetryBudget,
    /// Held while an endpoint is ejected, so that never too many are.
    ejecting: Mutex<()>,
    /// Whether a list is known.
    is_known: watch::Sender<bool>,
    /// That no endpoint is healthy has been logged.
    is_told: AtomicBool,
}

impl EndpointSet {
    /// `endpoints`: empty if they are not known yet.
    pub(super) fn new(settings: &UpstreamConfig, endpoints: Vec<Arc<Endpoint>>) -> Arc<Self> {
        let policy = settings.endpoint_policy.clone();
        let sole = match settings.has_endpoints() {
            true => None,
            false => endpoints.first().cloned(),
        };
        let is_known = !endpoints.is_empty();
        Arc::new(Self {
            upstream: Arc::clone(&settings.name),
            retries: RetryBudget::new(policy.retry_share),
            policy,
            list: ArcSwap::from_pointee(EndpointList {
                generation: 0,
                endpoints,
            }),
            sole,
            ejecting: Mutex::new(()),
            is_known: watch::Sender::new(is_known),
            is_told: AtomicBool::new(false),
        })
    }

    /// The upstream's name.
    pub fn name(&self) -> &Arc<str> {
        &self.upstream
    }

    /// The only endpoint that there will be; None: there are several, or their number may change.
    pub(super) fn sole(&self) -> Option<&Arc<Endpoint>> {
        self.sole.as_ref()
    }

    pub(super) fn list(&self) -> Arc<EndpointList> {
        self.list.load_full()
    }

    /// The number of the list in use.
    pub(super) fn generation(&self) -> u64 {
        self.list.load().generation
    }

    /// By what requests are assigned to endpoints.
    pub(crate) fn affinity(&self) -> EndpointAffinity {
        self.policy.affinity
    }

    /// Whether requests are repeated at another endpoint.
    pub(crate) fn has_several(&self) -> bool {
        self.sole.is_none()
    }

    fn follows_name(&self) -> bool {
        self.policy.resolution == AddressResolution::All
    }

    /// Uses these endpoints from now on.
    fn replace(&self, endpoints: Vec<Arc<Endpoint>>) {
        let _ejecting = self.ejecting.lock();
        let generation = self.generation() + 1;
        let fresh = EndpointList {
            generation,
            endpoints,
        };
        fresh.pardon_surplus();
        self.list.store(Arc::new(fresh));
        self.is_known.send_replace(true);
    }

    /// The state of the endpoint with this name, for the set that takes the place of this one.
    pub(super) fn state_of(&self, name: &str) -> Option<Arc<EndpointState>> {
        let list = self.list();
        let found = list.endpoints.iter().find(|one| *one.state.name == *name);
        found.map(|endpoint| Arc::clone(&endpoint.state))
    }

    /// Waits until endpoints are known.
    pub(crate) async fn known(&self) {
        // The sender lives as long as `self`.
        let _ = self.is_known.subscribe().wait_for(|known| *known).await;
    }

    /// Whether no look-up of the name has succeeded yet.
    pub(crate) fn is_unknown(&self) -> bool {
        self.sole.is_none() && !*self.is_known.borrow()
    }

    /// Whether some endpoint has no failure since its last response.
    pub(super) fn has_quiet(&self) -> bool {
        match &self.sole {
            Some(sole) => sole.state.health.is_quiet(),
            None => {
                let list = self.list.load();
                let mut states = list.undrained();
                states.any(|state| state.health.is_quiet())
            }
        }
    }

    /// Whether a request may be forwarded now; if not, after how long a retry makes sense.
    pub(crate) fn admit(&self) -> Result<UpstreamPass, Duration> {
        if let Some(sole) = &self.sole {
            return sole.state.health.admit();
        }
        if self.check().is_ok() {
            return Ok(UpstreamPass::Ordinary);
        }
        let list = self.list.load();
        let mut shortest = RETRY_WITHOUT_ENDPOINT;
        for state in list.undrained() {
            match state.health.admit() {
                Ok(pass) => return Ok(pass),
                Err(pause) => shortest = shortest.min(pause),
            }
        }
        Err(shortest)
    }

    /// The same for a request that was queued after it had been admitted.
    pub(crate) fn readmit(&self, pass: UpstreamPass) -> Result<(), Duration> {
        match (&self.sole, pass) {
            (Some(sole), _) => sole.state.health.readmit(pass),
            (None, UpstreamPass::Trial) => Ok(()),
            (None, UpstreamPass::Ordinary) => self.check(),
        }
    }

    /// The same as `admit`, but without becoming the half-open trial request.
    pub(crate) fn check(&self) -> Result<(), Duration> {
        if let Some(sole) = &self.sole {
            return sole.state.health.check();
        }
        let list = self.list.load();
        let mut states = list.undrained();
        if states.any(|state| !state.health.is_down()) {
            return Ok(());
        }
        Err(self.pause())
    }

    /// Time until the next probe; zero while requests are forwarded.
    pub(crate) fn pause(&self) -> Duration {
        if let Some(sole) = &self.sole {
            return sole.state.health.pause();
        }
        let list = self.list.load();
        let pauses = list.undrained().map(|state| state.health.pause());
        pauses.min().unwrap_or(RETRY_WITHOUT_ENDPOINT)
    }

    /// None while requests are forwarded. With several endpoints, the outage of the first one of them.
    pub fn outage(&self) -> Option<UpstreamOutage> {
        if let Some(sole) = &self.sole {
            return sole.state.health.outage();
        }
        let list = self.list.load();
        let outages: Option<Vec<_>> = list
            .undrained()
            .map(|state| state.health.outage())
            .collect();
        let mut outages = outages?;
        let nothing = || UpstreamOutage {
            upstream: Arc::clone(&self.upstream),
            endpoint: None,
            since: crate::clock::unix_seconds(),
            cause: match list.endpoints.is_empty() {
                true => "no address of its name is known yet".to_owned(),
                false => "all its endpoints are drained".to_owned(),
            },
        };
        outages.sort_by_key(|outage| outage.since);
        Some(outages.pop().unwrap_or_else(nothing))
    }

    /// Waits for the end of the next or current outage of any endpoint.
    pub(super) async fn back(&self) {
        let list = self.list();
        let waits = list.endpoints.iter();
        let waits: Vec<_> = waits
            .map(|endpoint| Box::pin(endpoint.state.health.back()))
            .collect();
        match waits.is_empty() {
            true => self.known().await,
            false => _ = select_all(waits).await,
        }
    }

    /// Opens a connection to each endpoint and closes it; the first failure if none can be reached.
    pub(super) async fn reach(&self) -> Result<(), DialError> {
        self.known().await;
        let list = self.list();
        let tries = list
            .endpoints
            .iter()
            .map(|endpoint| endpoint.dialer.reach());
        let mut tried = join_all(tries).await;
        match tried.iter().any(Result::is_ok) {
            true => Ok(()),
            false => tried.swap_remove(0),
        }
    }

    /// A response head has arrived from `state`.
    #[inline]
    pub(super) fn responded(&self, state: &Arc<EndpointState>, status: StatusCode) {
        state.health.responded();
        if self.sole.is_none() {
            self.note_response(state, status);
        }
    }

    fn note_response(&self, state: &Arc<EndpointState>, status: StatusCode) {
        let is_failure = is_endpoint_failure(status);
        if let Some(metrics) = &state.metrics {
            metrics.note_response(is_failure);
        }
        let Some(rules) = &self.policy.ejection else {
            return;
        };
        if is_failure {
            let cause = format!("status {}", status.as_u16());
            self.note_failure(state, &cause);
        } else if state.note_success(rules) {
            info!(upstream = %self.upstream, endpoint = %state.name,
                "the endpoint works again; it gets requests");
            state.begin_ramp();
        }
    }

    /// A request to `state` got no connection.
    pub(super) fn connect_failed(&self, state: &Arc<EndpointState>, failure: &DialError) {
        let is_counted = state.health.connect_failed(FailureSource::Request, failure);
        if let Some(metrics) = &state.metrics {
            metrics.note_no_connection();
        }
        if is_counted {
            self.note_failure(state, &"no connection");
        }
    }

    /// A request to `state` got no response over its connection.
    pub(super) fn response_failed(
        &self,
        state: &Arc<EndpointState>,
        failure: &(dyn Error + 'static),
    ) {
        state
            .health
            .response_failed(FailureSource::Request, failure);
        self.note_no_response(state);
    }

    /// The same, after a timeout; `owed`: how long the endpoint had not responded, of at most `limit`.
    pub(super) fn timed_out(&self, state: &Arc<EndpointState>, owed: Duration, limit: Duration) {
        state.health.abandoned(owed, limit);
        if owed >= limit.min(HANGING) {
            self.note_no_response(state);
        } else if let Some(metrics) = &state.metrics {
            metrics.note_no_response();
        }
    }

    /// A response head from `state` that cannot be forwarded.
    pub(super) fn response_unusable(&self, state: &Arc<EndpointState>) {
        state.health.responded();
        self.note_no_response(state);
    }

    fn note_no_response(&self, state: &Arc<EndpointState>) {
        if let Some(metrics) = &state.metrics {
            metrics.note_no_response();
        }
        self.note_failure(state, &"no response");
    }

    #[cold]
    fn note_failure(&self, state: &Arc<EndpointState>, cause: &dyn std::fmt::Display) {
        let Some(rules) = self.policy.ejection.as_ref().filter(|_| self.has_several()) else {
            return;
        };
        if !state.note_failure(rules) {
            return;
        }
        let _ejecting = self.ejecting.lock();
        // After a failed trial it is out already.
        if !state.is_ejected() && !self.list.load().may_eject(state) {
            return;
        }
        let pause = state.eject(rules);
        if let Some(metrics) = &state.metrics {
            metrics.ejections.inc();
        }
        warn!(upstream = %self.upstream, endpoint = %state.name, seconds = pause.as_secs_f64(), cause = %cause,
            "the endpoint is ejected: its requests failed; others get them");
    }

    /// A request of a client is sent.
    pub(crate) fn note_request(&self) {
        self.retries.note_request();
    }

    /// Whether a request that may have been acted on can be sent again to another endpoint.
    pub(crate) fn try_spend_retry(&self) -> bool {
        self.retries.try_spend()
    }

    /// Takes the endpoint of this name out of use or back. None: there is none of this name; false: it was
    /// so already.
    pub fn set_drained(&self, name: &str, is_drained: bool) -> Option<bool> {
        let state = self.state_of(name)?;
        let has_changed = state.set_drained(is_drained);
        if has_changed {
            let (upstream, endpoint) = (&self.upstream, &state.name);
            match is_drained {
                true => {
                    info!(%upstream, %endpoint, "the endpoint is drained: it gets no new request")
                }
                false => info!(%upstream, %endpoint, "the endpoint is back in use"),
            }
            if !is_drained {
                state.begin_ramp();
            }
        }
        Some(has_changed)
    }

    /// Logs once that requests go to endpoints that are not healthy, and once that this has ended.
    fn tell_rank(&self, best: EndpointRank) {
        let is_bad = best >= EndpointRank::Unhealthy;
        if self.is_told.load(Ordering::Relaxed) == is_bad
            || self.is_told.swap(is_bad, Ordering::Relaxed) == is_bad
        {
            return;
        }
        match is_bad {
            true => warn!(upstream = %self.upstream,
                "no endpoint is healthy: requests go to those that are least bad"),
            false => info!(upstream = %self.upstream, "an endpoint is healthy again"),
        }
    }
}

impl EndpointList {
    fn undrained(&self) -> impl Iterator<Item = &Arc<EndpointState>> {
        let states = self.endpoints.iter().map(|endpoint| &endpoint.state);
        states.filter(|state| !state.is_drained())
    }

    /// Whether at most half of the endpoints are out when this one is too.
    fn may_eject(&self, candidate: &Arc<EndpointState>) -> bool {
        let states = self.endpoints.iter().map(|endpoint| &endpoint.state);
        let others = states.filter(|state| !Arc::ptr_eq(state, candidate));
        let out = others.filter(|state| state.is_out()).count();
        out < self.endpoints.len() / 2
    }

    /// Ends ejections until at most half of the endpoints are ejected.
    fn pardon_surplus(&self) {
        let states = self.endpoints.iter().map(|endpoint| &endpoint.state);
        let ejected = states.filter(|state| state.is_ejected());
        ejected
            .skip(self.endpoints.len() / 2)
            .for_each(|state| state.pardon());
    }
}
