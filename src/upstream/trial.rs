//! What `check --connect` tries at an upstream: a connection, one login, the probe. No task keeps
//! running, and nothing is saved.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use http::Version;

use super::endpoints::own_requests::OwnRequests;
use super::endpoints::{EndpointSet, endpoints_at_once};
use super::login::call::{LoginCall, LoginError};
use super::login::description::LoginDescription;
use super::login::token_probe::{ProbeTrust, ProbeVerdict, TokenProbe};
use super::materials::UpstreamMaterials;
use super::transport::dial_error::DialError;
use crate::config::{self, AddressResolution};
use crate::dns::DnsResolver;
use crate::lifecycle::TaskScope;
use crate::metrics::Metrics;
use crate::secret;
use crate::via::GatewayVia;

/// Why a login of the gateway would fail.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    #[error("our password cannot be read")]
    Secret(#[from] secret::Error),
    #[error(transparent)]
    Login(#[from] LoginError),
}

/// One upstream, to be tried.
#[derive(Debug)]
pub struct UpstreamTrial {
    own: Arc<OwnRequests>,
    probe: Option<Arc<TokenProbe>>,
    description: Arc<LoginDescription>,
}

/// Whether a login succeeds.
#[derive(Debug)]
pub struct TriedLogin {
    /// Its address; None: the token would be for all endpoints.
    pub endpoint: Option<Arc<str>>,
    /// The lifetime of the token.
    pub outcome: Result<Duration, TrialError>,
}

/// Whether one endpoint can be reached.
#[derive(Debug)]
pub struct ReachedEndpoint {
    /// Its address.
    pub endpoint: Arc<str>,
    pub outcome: Result<(), DialError>,
}

impl UpstreamTrial {
    /// Looks the endpoints up where they are the addresses of a name.
    pub async fn new(
        settings: &config::UpstreamConfig,
        mut materials: UpstreamMaterials,
        scope: &TaskScope,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, DialError> {
        let factory = materials.endpoint_factory(settings, scope, metrics);
        let endpoints = match settings.endpoint_policy.resolution {
            AddressResolution::One => {
                let made = factory.all(|_| None);
                made.expect("hosts and names were checked when the materials were read")
            }
            AddressResolution::All => {
                let found = endpoints_at_once(&factory, &DnsResolver::of_this_host()).await;
                found.map_err(|source| DialError::Resolve {
                    host: settings.base.host.clone(),
                    source: Arc::new(source),
                })?
            }
        };
        let metrics = &metrics.upstream(&settings.name);
        let own = Arc::new(OwnRequests {
            endpoints: EndpointSet::new(settings, endpoints),
            via: GatewayVia::random().value(Version::HTTP_11).clone(),
            probe: settings.probe.clone(),
            response_timeout: settings.first_byte_timeout,
        });
        let probe = TokenProbe::of(settings, &own, metrics);
        let description = Arc::clone(&settings.login_description);
        Ok(Self {
            own,
            probe,
            description,
        })
    }

    /// Tries name look-up, TCP and TLS of each endpoint, in their order.
    pub async fn reach(&self) -> Vec<ReachedEndpoint> {
        let list = self.own.endpoints.list();
        let tries = list.endpoints.iter().map(|one| async {
            ReachedEndpoint {
                endpoint: Arc::clone(&one.state.name),
                outcome: one.dialer.reach().await,
            }
        });
        join_all(tries).await
    }

    /// Tries one login, or one at each endpoint.
    pub async fn log_in(&self, login: &config::Login) -> Vec<TriedLogin> {
        if !login.per_endpoint {
            return vec![TriedLogin {
                endpoint: None,
                outcome: self.log_in_with(&self.own, login).await,
            }];
        }
        let list = self.own.endpoints.list();
        let tries = list.endpoints.iter().map(|endpoint| async {
            let own = Arc::new(self.own.at(endpoint));
            TriedLogin {
                endpoint: Some(Arc::clone(&endpoint.state.name)),
                outcome: self.log_in_with(&own, login).await,
            }
        });
        join_all(tries).await
    }

    /// The lifetime of the token of one login. The probe of all endpoints says nothing about the token of one.
    async fn log_in_with(
        &self,
        own: &Arc<OwnRequests>,
        login: &config::Login,
    ) -> Result<Duration, TrialError> {
        let call = LoginCall::new(own, &self.description, login);
        let granted = call.make(&login.password.read()?).await?;
        if let Some(probe) = self.probe.as_ref().filter(|_| !login.per_endpoint)
            && probe.verdict_on(&granted.headers).await == ProbeVerdict::Refused
        {
            return Err(LoginError::NotAccepted.into());
        }
        Ok(granted.left)
    }

    /// Whether the probe can tell tokens apart; None without a probe.
    pub async fn probe_trust(&self) -> Option<ProbeTrust> {
        match &self.probe {
            Some(probe) => Some(probe.tried().await),
            None => None,
        }
    }
}
