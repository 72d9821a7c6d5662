//! The logins of one upstream: one whose token is valid at all its endpoints, or one at each endpoint.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::sleep;

use super::UpstreamOpening;
use super::endpoints::EndpointSet;
use super::endpoints::own_requests::OwnRequests;
use super::login::lease::Lease;
use super::login::login_identity::LoginIdentity;
use super::login::plan::LoginPlan;
use super::login::session::Session;
use super::login::session_reading::SessionReading;
use super::login::status::NoLease;
use super::login::task::{LoginScope, LoginTask, OpenedLogin};
use super::login::token_probe::TokenProbe;
use crate::lifecycle::TaskScope;
use crate::metrics::UpstreamMetrics;

/// A wait for the token of one endpoint.
struct LoginWait<'a> {
    session: &'a Arc<Session>,
    /// Nothing has ended it yet.
    is_first: bool,
    pause: Duration,
    outcome: Result<(), NoLease>,
}

impl<'a> LoginWait<'a> {
    fn new(session: &'a Arc<Session>) -> Self {
        Self {
            session,
            is_first: true,
            pause: Duration::ZERO,
            outcome: Ok(()),
        }
    }

    fn again_after(self, pause: Duration) -> Self {
        Self {
            is_first: false,
            pause,
            ..self
        }
    }

    async fn ended(self) -> Self {
        if !self.pause.is_zero() {
            sleep(self.pause).await;
        }
        let outcome = self.session.lease().await.map(drop);
        Self { outcome, ..self }
    }
}

/// The running logins.
#[derive(Debug, Default)]
pub(super) struct UpstreamLogins {
    /// In the order of the endpoints. Empty: there is no login.
    all: Vec<OpenedLogin>,
}

impl UpstreamLogins {
    /// Continues those logins of the upstream before that stay the same, and starts the others.
    pub(super) fn open(
        opening: &mut UpstreamOpening<'_>,
        scope: &TaskScope,
        own: &Arc<OwnRequests>,
        probe: Option<&Arc<TokenProbe>>,
    ) -> Self {
        let settings = opening.settings;
        let Some(login) = &settings.login else {
            return Self::default();
        };
        let metrics = &opening.metrics.upstream(&settings.name);
        let lease_store = opening.lease_store.take();
        let before = opening.before.map(|before| &before.logins);
        let description = &settings.login_description;
        let open = |identity, own: &Arc<OwnRequests>, probe| {
            let scope = LoginScope {
                tasks: &scope.tasks,
                stop: opening.scope.stop.child(),
                metrics,
                lease_store: lease_store.clone(),
                budgets: Arc::clone(&opening.login_budgets),
            };
            let plan = LoginPlan::new(login, own, probe, description);
            let before = before.and_then(|before| before.named(&identity));
            LoginTask::continue_or_start(before, identity, plan, scope)
        };
        if !login.per_endpoint {
            let identity = LoginIdentity::of_upstream(settings, login);
            let all = vec![open(identity, own, probe.cloned())];
            return Self { all };
        }
        let list = own.endpoints.list();
        let at_each = list.endpoints.iter().map(|endpoint| {
            let own = Arc::new(own.at(endpoint));
            let probe = TokenProbe::of(settings, &own, metrics);
            let identity = LoginIdentity::of_endpoint(settings, login, endpoint);
            open(identity, &own, probe)
        });
        Self {
            all: at_each.collect(),
        }
    }

    fn named(&self, identity: &LoginIdentity) -> Option<&Arc<LoginTask>> {
        let mut tasks = self.tasks();
        tasks.find(|task| task.identity == *identity)
    }

    fn tasks(&self) -> impl Iterator<Item = &Arc<LoginTask>> {
        self.all.iter().map(|login| &login.task)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn sessions(&self) -> impl Iterator<Item = &Arc<Session>> {
        self.all.iter().map(|login| &login.task.session)
    }

    /// The session whose tokens are valid at all endpoints.
    pub(super) fn shared(&self) -> Option<&Arc<Session>> {
        let session = self.sessions().next()?;
        session.endpoint.is_none().then_some(session)
    }

    /// The session that lent `lease`.
    pub(super) fn of_lease(&self, lease: &Lease) -> Option<&Arc<Session>> {
        match &lease.endpoint() {
            None => self.shared(),
            Some(endpoint) => self.at(endpoint),
        }
    }

    /// The session of this endpoint alone.
    pub(super) fn at(&self, endpoint: &str) -> Option<&Arc<Session>> {
        let is_there = |session: &&Arc<Session>| session.endpoint.as_deref() == Some(endpoint);
        self.sessions().find(is_there)
    }

    /// Waits until a request could have a token, at an endpoint that may get requests.
    pub(super) async fn ready(&self, endpoints: &EndpointSet) -> Result<(), NoLease> {
        if let Some(session) = self.shared() {
            return session.lease().await.map(drop);
        }
        let may_be_used = |session: &&Arc<Session>| {
            let mut usable = session.endpoint.iter();
            usable.all(|name| endpoints.may_be_used(name))
        };
        let sessions = self.sessions().filter(may_be_used);
        let mut logins: FuturesUnordered<_> = sessions
            .map(|session| LoginWait::new(session).ended())
            .collect();
        let mut in_progress = logins.len();
        let mut soonest = None::<NoLease>;
        while let Some(wait) = logins.next().await {
            let Err(no_lease) = wait.outcome else {
                return Ok(());
            };
            if wait.is_first {
                in_progress -= 1;
            }
            if soonest.is_none_or(|soonest| no_lease.retry_after < soonest.retry_after) {
                soonest = Some(no_lease);
            }
            if in_progress == 0 {
                break;
            }
            // Its next login may succeed while the others are still in progress.
            logins.push(wait.again_after(no_lease.retry_after).ended());
        }
        Err(soonest.unwrap_or_else(NoLease::stopping))
    }

    /// Whether the next request would get a token at once, at an endpoint that may get requests.
    pub(super) fn is_ready(&self, endpoints: &EndpointSet) -> bool {
        let is_ready = |session: &Arc<Session>| {
            let mut endpoint = session.endpoint.iter();
            session.is_ready() && endpoint.all(|name| endpoints.may_be_used(name))
        };
        self.all.is_empty() || self.sessions().any(is_ready)
    }

    /// A line for each endpoint with a login of its own and without a token, while others have one.
    pub(super) fn notes(&self, endpoints: &EndpointSet) -> Vec<String> {
        if self.shared().is_some() || !self.is_ready(endpoints) {
            return Vec::new();
        }
        let upstream = endpoints.name();
        let unready = self.sessions().filter(|session| !session.is_ready());
        let line = |session: &Arc<Session>| {
            let endpoint = session.endpoint.as_deref().unwrap_or_default();
            format!(
                "upstream {upstream}: endpoint {endpoint}: {}",
                session.status()
            )
        };
        unready.map(line).collect()
    }

    /// Whether each is also a login of `other`.
    pub(super) fn continue_those_of(&self, other: &Self) -> bool {
        self.tasks().all(|task| other.has(task))
    }

    fn has(&self, task: &Arc<LoginTask>) -> bool {
        self.tasks().any(|other| Arc::ptr_eq(other, task))
    }

    /// The upstream is in use from now on: logins that it has taken over follow its settings.
    pub(super) fn take_over(&self) {
        for login in &self.all {
            if let Some(plan) = &login.plan {
                login.task.follow(plan);
            }
        }
    }

    /// Ends those that `next` has not taken over; returns when they have ended.
    pub(super) async fn end_all_but(&self, next: Option<&Self>) {
        let is_kept = |task: &Arc<LoginTask>| next.is_some_and(|next| next.has(task));
        for task in self.tasks().filter(|task| !is_kept(task)) {
            task.end().await;
        }
    }

    /// Sets the gauges that are computed just before a scrape.
    pub(super) fn refresh_gauges(&self, metrics: &UpstreamMetrics, endpoints: &EndpointSet) {
        let readings = self.sessions().map(|session| {
            let reading = session.reading();
            if let Some(endpoint) = &session.endpoint {
                endpoints.show_session(endpoint, reading.is_up, reading.seconds_to_expiry);
            }
            reading
        });
        if let Some(reading) = readings.reduce(SessionReading::and) {
            reading.show(metrics);
        }
    }
}
