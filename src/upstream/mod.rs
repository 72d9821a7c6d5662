//! The service behind the gateway: how it is reached and trusted, the session (the gateway's standing
//! login at it), and each worker's connections to it. Knows nothing of the callers. Start reading at
//! `Upstream`.
//!
//! Requests never log in. One task per login, the renewer, does; a request carries a lease and reports
//! the outcome, and the judgement (`login/judgement`) turns a hundred refusals into one probe or login,
//! or into none.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, StatusCode};

use crate::config::AddressResolution;
use crate::dns::DnsResolver;
use crate::lifecycle::{ShutdownSignal, TaskScope};
use crate::metrics::UpstreamMetrics;
use crate::secret;
use crate::shares::ShareKey;

mod api_key;
mod connections;
mod endpoints;
mod fair_queue;
mod health;
mod login;
#[cfg(fuzzing)]
pub mod login_fuzz;
mod materials;
mod opening;
mod permits;
#[cfg(fuzzing)]
pub mod response_fuzz;
#[cfg(test)]
mod tests;
mod transport;
mod trial;
mod upstream_logins;

pub use api_key::BadApiKey;
pub use connections::{ChosenEndpoint, UpstreamConnections};
pub use endpoints::{EndpointChoice, EndpointReport, EndpointSet};
pub use health::UpstreamOutage;
pub use login::call::LoginError;
pub use login::description::{BadLoginResponse, LoginDescription, UnsendableValue};
pub use login::judgement::accepted_paths::PathKey;
pub use login::judgement::refused_paths::RefusedRequest;
pub use login::lease::Lease;
pub use login::lease_store::SealedLeaseStore;
pub use login::login_budget::LoginBudgets;
pub use login::session::{RefusalVerdict, Session};
pub use login::status::{LoginFailure, NoLease, SessionStatus};
pub use login::token_probe::{ProbeTrust, ProbeVerdict, TokenProbe};
pub use materials::UpstreamMaterials;
pub use opening::UpstreamOpening;
pub use permits::{PermitTimeout, StalledPlace, UpstreamPermit, UpstreamPermits};
pub use transport::connect_proxy::{ProxyAnswer, ProxyError};
pub use transport::dial_error::{DialError, SocketFault, WaitingFor};
pub use transport::framing::{
    BodyFraming, FramingError, LengthField, ResponseFraming, ResponseHead, response_framing,
};
pub use transport::http1::connection::ResponseTimeout;
pub use transport::outbound_request::{OutboundFields, OutboundRequest};
pub use transport::response_body::UpstreamResponseBody;
pub use transport::response_error::ResponseError;
pub use transport::send_error::{SendError, SendErrorKind};
pub use transport::tls::certificate::CertificateProblem;
pub use transport::tls::client_certificate::{CertificateDates, ClientCertificateError};
pub use transport::tls::handshake::HandshakeError;
pub use transport::tls::trust::TrustError;
pub use trial::{ReachedEndpoint, TrialError, TriedLogin, UpstreamTrial};

use api_key::UpstreamApiKey;
use endpoints::own_requests::OwnRequests;
use endpoints::{AddressDiscovery, EndpointFactory, EndpointTasks};
use upstream_logins::UpstreamLogins;

/// Why an upstream cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot set up trust in upstream {upstream}")]
    Trust {
        upstream: Arc<str>,
        #[source]
        source: TrustError,
    },
    #[error("cannot use the certificate that the gate shows to upstream {upstream}")]
    ClientCertificate {
        upstream: Arc<str>,
        #[source]
        source: ClientCertificateError,
    },
    #[error("cannot read the password for the proxy of upstream {upstream}")]
    ProxyLogin {
        upstream: Arc<str>,
        #[source]
        source: secret::Error,
    },
    #[error("cannot use the API key for upstream {upstream}")]
    ApiKey {
        upstream: Arc<str>,
        #[source]
        source: BadApiKey,
    },
    #[error("upstream {upstream} has a host that cannot stand in a header")]
    Host { upstream: Arc<str> },
}

/// One service behind the gateway, shared by all workers.
#[derive(Debug)]
pub struct Upstream {
    pub name: Arc<str>,
    endpoints: Arc<EndpointSet>,
    logins: UpstreamLogins,
    own: Arc<OwnRequests>,
    probe: Option<Arc<TokenProbe>>,
    api_key: Arc<UpstreamApiKey>,
    permits: Arc<UpstreamPermits>,
    idle_timeout: Duration,
    pub(crate) metrics: Arc<UpstreamMetrics>,
    stop: ShutdownSignal,
}

impl Upstream {
    fn build(mut opening: UpstreamOpening<'_>) -> Result<Arc<Self>, Error> {
        let settings = opening.settings;
        let metrics = &opening.metrics.upstream(&settings.name);
        let scope = opening.scope.child();
        let mut materials = opening.materials()?;
        let factory = materials.endpoint_factory(settings, &scope, opening.metrics);
        let api_key = materials.api_key;
        let endpoints = opening.endpoints(&factory)?;
        let own = Arc::new(opening.own_requests(&endpoints));
        let probe = TokenProbe::of(settings, &own, metrics);
        let logins = UpstreamLogins::open(&mut opening, &scope, &own, probe.as_ref());
        let upstream = Arc::new(Self {
            name: Arc::clone(&settings.name),
            endpoints,
            own: Arc::clone(&own),
            probe,
            logins,
            api_key: Arc::new(UpstreamApiKey::new(settings, api_key, metrics)),
            permits: UpstreamPermits::new(settings, metrics),
            idle_timeout: settings.idle_timeout,
            metrics: Arc::clone(metrics),
            stop: scope.stop.clone(),
        });
        upstream.watch_files(&scope, &opening, &factory);
        upstream.run_endpoints(&scope, opening, factory);
        Ok(upstream)
    }

    /// False: no token is injected, at most an API key.
    pub fn has_login(&self) -> bool {
        !self.logins.is_empty()
    }

    /// The session whose tokens are valid at all endpoints; None: there is no login, or one at each endpoint.
    pub fn shared_session(&self) -> Option<&Arc<Session>> {
        self.logins.shared()
    }

    /// The session whose tokens are valid at the endpoint of this name only.
    pub fn session_at(&self, endpoint: &str) -> Option<&Arc<Session>> {
        self.logins.at(endpoint)
    }

    /// The session that lent `lease`.
    pub fn session_of(&self, lease: &Lease) -> Option<&Arc<Session>> {
        self.logins.of_lease(lease)
    }

    /// All its sessions: none without a login, one, or one for each endpoint.
    pub fn sessions(&self) -> impl Iterator<Item = &Arc<Session>> {
        self.logins.sessions()
    }

    /// Waits until a request could have a token, as far as a login that is worth waiting for is in progress.
    pub async fn logged_in(&self) -> Result<(), NoLease> {
        self.logins.ready(&self.endpoints).await
    }

    /// Whether the next request would get a token, where it needs one.
    pub fn is_logged_in(&self) -> bool {
        self.logins.is_ready(&self.endpoints)
    }

    /// A line for each endpoint at which there is no token, while there is one at others.
    pub fn login_notes(&self) -> Vec<String> {
        self.logins.notes(&self.endpoints)
    }

    /// Makes logins that have stopped until an operator acts try again.
    pub fn nudge(&self) {
        self.sessions().for_each(|session| session.nudge());
    }

    /// Whether this upstream shares the running logins of `other`.
    pub fn continues(&self, other: &Self) -> bool {
        self.logins.continue_those_of(&other.logins)
    }

    /// This upstream is in use from now on: logins that it has taken over follow its settings.
    pub fn take_over(&self) {
        self.logins.take_over();
    }

    /// Opens a connection to each endpoint and closes it: whether one can be reached as configured.
    pub async fn reach(&self) -> Result<(), DialError> {
        self.endpoints.reach().await
    }

    pub(crate) fn via(&self) -> &HeaderValue {
        &self.own.via
    }

    /// Its servers, and their health.
    pub fn endpoints(&self) -> &Arc<EndpointSet> {
        &self.endpoints
    }

    /// The token probe of this upstream; None without one.
    pub fn probe(&self) -> Option<&TokenProbe> {
        self.probe.as_deref()
    }

    /// The API key that monitoring requests carry in place of the session's lease; None: there is none,
    /// or the upstream refuses it.
    pub fn api_key(&self) -> Option<Arc<Lease>> {
        self.api_key.get()
    }

    /// Records the status of a response to a request that carried this API key.
    pub fn note_api_key(&self, key: &Lease, status: StatusCode) {
        self.api_key.note(key, status);
    }

    /// One line about a refused API key.
    pub fn api_key_trouble(&self) -> Option<String> {
        self.api_key.trouble()
    }

    /// The permits of this upstream.
    pub fn permits(&self) -> &Arc<UpstreamPermits> {
        &self.permits
    }

    /// Waits for an upstream permit.
    pub async fn acquire_permit(
        &self,
        client: ShareKey,
        is_monitoring: bool,
    ) -> Result<UpstreamPermit, PermitTimeout> {
        self.permits.acquire(client, is_monitoring).await
    }

    /// A permit without waiting. None: the upstream's health is in doubt, or no permit is free for this
    /// client.
    pub fn try_acquire_permit(
        &self,
        client: ShareKey,
        is_monitoring: bool,
    ) -> Option<UpstreamPermit> {
        if !self.endpoints.has_quiet() {
            return None;
        }
        self.permits.try_acquire(client, is_monitoring)
    }

    /// Stops the tasks of this upstream after a reload has replaced it by `next`, or removed it. Requests that
    /// still use it keep its lease.
    pub async fn retire(&self, next: Option<&Self>) {
        self.stop.drain();
        self.logins.end_all_but(next.map(|next| &next.logins)).await;
    }

    /// Sets the gauges that are computed just before a scrape.
    pub fn refresh_gauges(&self) {
        self.logins.refresh_gauges(&self.metrics, &self.endpoints);
        self.endpoints.refresh_gauges();
        let is_up = self.endpoints.outage().is_none();
        self.metrics.upstream_up.set(i64::from(is_up));
    }

    /// Starts the tasks of the endpoints, and the one that follows their name.
    fn run_endpoints(
        &self,
        scope: &TaskScope,
        opening: UpstreamOpening<'_>,
        factory: EndpointFactory,
    ) {
        let tasks = EndpointTasks {
            set: Arc::clone(&self.endpoints),
            own: Arc::clone(&self.own),
            metrics: Arc::clone(&self.metrics),
        };
        if opening.settings.endpoint_policy.resolution == AddressResolution::One {
            let list = self.endpoints.list();
            for endpoint in &list.endpoints {
                tasks.start(endpoint, scope);
            }
            return;
        }
        let discovery = AddressDiscovery {
            factory,
            tasks,
            names: opening.names.unwrap_or_else(DnsResolver::of_this_host),
            scope: scope.clone(),
            before: opening.before.map(|before| Arc::clone(&before.endpoints)),
        };
        scope.spawn("upstream addresses", discovery.run());
    }

    /// Reads the files of trust, client certificate and API key again when they change, or on request.
    fn watch_files(
        &self,
        scope: &TaskScope,
        opening: &UpstreamOpening<'_>,
        factory: &EndpointFactory,
    ) {
        let reload = &opening.reload_signal;
        if let Some(login) = &factory.proxy_login {
            let watch = Arc::clone(login).watch(scope.stop.clone(), reload.subscribe());
            scope.spawn("upstream proxy login watch", watch);
        }
        if let Some(tls) = &factory.tls {
            let stop = || scope.stop.clone();
            let watch = Arc::clone(tls).watch_authorities(stop(), reload.subscribe());
            scope.spawn("upstream CA watch", watch);
            let metrics = Arc::clone(opening.metrics);
            let watch = Arc::clone(tls).watch_certificate(stop(), reload.subscribe(), metrics);
            scope.spawn("upstream client certificate watch", watch);
        }
        let key = Arc::clone(&self.api_key);
        let watch = key.watch(scope.stop.clone(), reload.subscribe());
        scope.spawn("upstream API key watch", watch);
    }
}

impl Drop for Upstream {
    /// Stops the tasks of an upstream that was not retired.
    fn drop(&mut self) {
        self.stop.drain();
    }
}
