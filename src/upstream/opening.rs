//! The parts from which an upstream is opened, the one that it replaces included.

use std::sync::Arc;

use http::Version;

use super::endpoints::own_requests::OwnRequests;
use super::endpoints::{EndpointFactory, EndpointSet};
use super::login::lease_store::SealedLeaseStore;
use super::login::login_budget::LoginBudgets;
use super::materials::UpstreamMaterials;
use super::{Error, Upstream};
use crate::config::{self, AddressResolution};
use crate::dns::DnsResolver;
use crate::lifecycle::TaskScope;
use crate::metrics::Metrics;
use crate::via::GatewayVia;
use crate::watched_files::ReloadSignal;

/// An upstream to be opened.
#[derive(Debug)]
pub struct UpstreamOpening<'a> {
    pub(super) settings: &'a config::UpstreamConfig,
    pub(super) scope: &'a TaskScope,
    pub(super) metrics: &'a Arc<Metrics>,
    pub(super) lease_store: Option<SealedLeaseStore>,
    pub(super) before: Option<&'a Upstream>,
    pub(super) login_budgets: Arc<LoginBudgets>,
    pub(super) reload_signal: ReloadSignal,
    via: Option<GatewayVia>,
    materials: Option<UpstreamMaterials>,
    /// Looks the name of endpoints up.
    pub(super) names: Option<DnsResolver>,
}

impl<'a> UpstreamOpening<'a> {
    pub fn new(
        settings: &'a config::UpstreamConfig,
        scope: &'a TaskScope,
        metrics: &'a Arc<Metrics>,
    ) -> Self {
        Self {
            settings,
            scope,
            metrics,
            lease_store: None,
            before: None,
            login_budgets: Arc::default(),
            reload_signal: ReloadSignal::default(),
            via: None,
            materials: None,
            names: None,
        }
    }

    /// Uses materials that have been read already; None: they are read when it opens.
    #[must_use]
    pub fn of(self, materials: Option<UpstreamMaterials>) -> Self {
        Self { materials, ..self }
    }

    /// Looks the name of endpoints up with `names`.
    #[cfg(test)]
    pub(super) fn looked_up_by(self, names: DnsResolver) -> Self {
        let names = Some(names);
        Self { names, ..self }
    }

    /// Uses this name in `Via`.
    #[must_use]
    pub fn announced_as(self, via: &GatewayVia) -> Self {
        Self {
            via: Some(via.clone()),
            ..self
        }
    }

    /// Uses the token of an earlier start, if one was saved.
    #[must_use]
    pub fn with_sealed_leases(self, lease_store: Option<SealedLeaseStore>) -> Self {
        Self {
            lease_store,
            ..self
        }
    }

    /// Replaces `before`: takes over its login if that is the same, and the state of the endpoints whose
    /// address is the same.
    #[must_use]
    pub fn after(self, before: &'a Upstream) -> Self {
        Self {
            before: Some(before),
            ..self
        }
    }

    /// Counts its logins together with those of the other upstreams that share `budgets`.
    #[must_use]
    pub fn with_login_budgets(self, budgets: &Arc<LoginBudgets>) -> Self {
        Self {
            login_budgets: Arc::clone(budgets),
            ..self
        }
    }

    /// Reads the files of trust and API key again on this signal too.
    #[must_use]
    pub fn reloaded_on(self, signal: &ReloadSignal) -> Self {
        Self {
            reload_signal: signal.clone(),
            ..self
        }
    }

    /// Reads the files of trust and API key, and starts the renewer if there is a login.
    pub fn open(self) -> Result<Arc<Upstream>, Error> {
        Upstream::build(self)
    }

    /// The materials; read now if they were not given.
    pub(super) fn materials(&mut self) -> Result<UpstreamMaterials, Error> {
        if let Some(materials) = self.materials.take() {
            return Ok(materials);
        }
        let mut wrong = Vec::new();
        let read = UpstreamMaterials::read(self.settings, &mut wrong);
        match wrong.into_iter().next() {
            Some(error) => Err(error),
            None => Ok(read.expect("nothing was wrong with it")),
        }
    }

    /// The parts for the gateway's own requests.
    pub(super) fn own_requests(&self, endpoints: &Arc<EndpointSet>) -> OwnRequests {
        let settings = self.settings;
        let via = self.via.clone().unwrap_or_else(GatewayVia::random);
        OwnRequests {
            endpoints: Arc::clone(endpoints),
            via: via.value(Version::HTTP_11).clone(),
            probe: settings.probe.clone(),
            response_timeout: settings.first_byte_timeout,
        }
    }

    /// The endpoints that are known at once; those that were in use before keep their state.
    pub(super) fn endpoints(&self, factory: &EndpointFactory) -> Result<Arc<EndpointSet>, Error> {
        let settings = self.settings;
        let before = self.before.map(Upstream::endpoints);
        let endpoints = match settings.endpoint_policy.resolution {
            AddressResolution::One => factory.all(|name| before?.state_of(name))?,
            AddressResolution::All => Vec::new(),
        };
        if let Some(before) = before {
            let is_new = |name: &str| before.state_of(name).is_none();
            let added = endpoints.iter().filter(|one| is_new(&one.state.name));
            added.for_each(|one| one.state.begin_ramp());
        }
        let endpoints = EndpointSet::new(settings, endpoints);
        if let Some(before) = before {
            endpoints.keep_drained(before);
        }
        Ok(endpoints)
    }
}
