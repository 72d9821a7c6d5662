//! What `check --connect` tries at an upstream: a connection, one login, the probe. No task keeps
//! running, and nothing is saved.

use std::sync::Arc;
use std::time::Duration;

use http::Version;

use super::health::UpstreamHealth;
use super::login::call::{LoginCall, LoginError};
use super::login::description::LoginDescription;
use super::login::token_probe::{ProbeTrust, ProbeVerdict, TokenProbe};
use super::materials::UpstreamMaterials;
use super::own_requests::OwnRequests;
use super::transport::dial_error::DialError;
use super::transport::dialer::Dialer;
use crate::config;
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
    dialer: Arc<Dialer>,
    own: Arc<OwnRequests>,
    probe: Option<Arc<TokenProbe>>,
    description: LoginDescription,
}

impl UpstreamTrial {
    pub fn new(
        settings: &config::UpstreamConfig,
        mut materials: UpstreamMaterials,
        scope: &TaskScope,
        metrics: &Arc<Metrics>,
    ) -> Self {
        let metrics = &metrics.upstream(&settings.name);
        let dialer = Arc::new(materials.dialer(settings, scope));
        let own = Arc::new(OwnRequests {
            dialer: Arc::clone(&dialer),
            host: materials.host,
            via: GatewayVia::random().value(Version::HTTP_11).clone(),
            health: UpstreamHealth::new(&settings.name, metrics),
            probe: settings.probe.clone(),
            response_timeout: settings.first_byte_timeout,
        });
        let injection = settings.login_description.inject.clone();
        let probe = TokenProbe::of(settings, &own, injection, metrics);
        let description = settings.login_description.clone();
        Self {
            dialer,
            own,
            probe,
            description,
        }
    }

    /// Tries name look-up, TCP and TLS.
    pub async fn reach(&self) -> Result<(), DialError> {
        self.dialer.reach().await
    }

    /// Tries one login; returns the lifetime of its token.
    pub async fn log_in(&self, login: &config::Login) -> Result<Duration, TrialError> {
        let call = LoginCall::new(&self.own, self.description.clone(), login);
        let granted = call.make(&login.password.read()?).await?;
        if let Some(probe) = &self.probe
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
