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
mod endpoint_list;
mod endpoint_outcomes;
mod endpoint_report;
mod endpoint_state;
mod endpoint_tasks;
mod health_checker;
mod health_prober;
mod outlier_record;
pub(super) mod own_requests;
mod retry_budget;

pub use endpoint_choice::EndpointChoice;
pub use endpoint_report::EndpointReport;

pub(super) use discovery::{AddressDiscovery, endpoints_at_once};
pub(super) use endpoint_factory::{EndpointFactory, host};
pub(super) use endpoint_list::{Endpoint, EndpointList};
pub(super) use endpoint_state::EndpointState;
pub(super) use endpoint_tasks::EndpointTasks;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::{join_all, select_all};
use parking_lot::Mutex;
use tokio::sync::watch;
use tracing::{info, warn};

use super::health::UpstreamOutage;
use super::health::breaker::UpstreamPass;
use super::transport::dial_error::DialError;
use crate::config::{AddressResolution, EndpointAffinity, EndpointPolicy, UpstreamConfig};
use endpoint_state::EndpointRank;
use retry_budget::RetryBudget;

/// After which a request may try again while no endpoint is known, or all are drained.
const RETRY_WITHOUT_ENDPOINT: Duration = Duration::from_secs(1);

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
    /// Names of drained endpoints. One that leaves and comes back is still drained.
    drained: Mutex<Vec<Arc<str>>>,
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
            drained: Mutex::default(),
            is_told: AtomicBool::new(false),
        })
    }

    /// A set of this endpoint alone, for the gateway's own requests to it.
    fn only(&self, endpoint: &Arc<Endpoint>) -> Arc<Self> {
        Arc::new(Self {
            upstream: Arc::clone(&self.upstream),
            policy: self.policy.clone(),
            list: ArcSwap::from_pointee(EndpointList {
                generation: 0,
                endpoints: vec![Arc::clone(endpoint)],
            }),
            sole: Some(Arc::clone(endpoint)),
            retries: RetryBudget::new(self.policy.retry_share),
            ejecting: Mutex::new(()),
            is_known: watch::Sender::new(true),
            drained: Mutex::default(),
            is_told: AtomicBool::new(false),
        })
    }

    /// Whether requests can go to the endpoint of this name: it is neither drained nor down.
    pub(super) fn may_be_used(&self, name: &str) -> bool {
        let state = self.state_of(name);
        state.is_some_and(|state| !state.is_drained() && !state.health.is_down())
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
        self.drain_again(&endpoints);
        let fresh = EndpointList {
            generation,
            endpoints,
        };
        fresh.pardon_surplus();
        self.list.store(Arc::new(fresh));
        self.is_known.send_replace(true);
    }

    /// Keeps out what the operator took out of use: `before` is the set that this one replaces.
    pub(super) fn keep_drained(&self, before: &Self) {
        self.drained.lock().clone_from(&before.drained.lock());
        self.drain_again(&self.list().endpoints);
    }

    fn drain_again(&self, endpoints: &[Arc<Endpoint>]) {
        let drained = self.drained.lock();
        let again = endpoints
            .iter()
            .filter(|one| drained.contains(&one.state.name));
        again.for_each(|one| _ = one.state.set_drained(true));
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

    /// None while requests are forwarded. With several endpoints, the latest of their outages.
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
        let mut drained = self.drained.lock();
        drained.retain(|other| *other != state.name);
        if is_drained {
            drained.push(Arc::clone(&state.name));
        }
        drop(drained);
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
