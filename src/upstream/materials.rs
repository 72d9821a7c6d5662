//! What is read from files and settings before an upstream is opened: at a start, at a reload and by
//! `check`.

use std::sync::Arc;

use super::api_key::api_key_of;
use super::endpoints::{EndpointFactory, host};
use super::login::lease::Lease;
use super::transport::proxy_credentials::ProxyCredentials;
use super::transport::tls::client_certificate::CertificateDates;
use super::transport::tls::trust::TrustError;
use super::transport::tls::upstream_tls::UpstreamTls;
use super::{BadApiKey, Error};
use crate::config;
use crate::lifecycle::TaskScope;
use crate::metrics::Metrics;

/// An upstream's address, trust and API key, read and checked.
#[derive(Debug)]
pub struct UpstreamMaterials {
    /// None: plain HTTP.
    tls: Option<UpstreamTls>,
    /// None: no proxy, or no login at it.
    proxy_login: Option<ProxyCredentials>,
    pub(super) api_key: Option<Lease>,
}

impl UpstreamMaterials {
    /// Reads the files that the settings name. All problems are added to `wrong`.
    pub fn read(settings: &config::UpstreamConfig, wrong: &mut Vec<Error>) -> Option<Self> {
        let mut told = |error: Error| wrong.push(error);
        for base in settings.addresses() {
            host(settings, base).map_err(&mut told).ok()?;
        }
        let tls = tls(settings).map_err(&mut told).ok();
        let proxy_login = proxy_login(settings).map_err(&mut told).ok();
        let api_key = api_key(settings).map_err(&mut told).ok();
        Some(Self {
            tls: tls?,
            proxy_login: proxy_login?,
            api_key: api_key?,
        })
    }

    /// The dates of the gate's own certificate, where it has one, with `now` in seconds since 1970.
    pub fn certificate_dates(&self, now: i64) -> Option<CertificateDates> {
        let certificate = self.tls.as_ref()?.certificate()?;
        Some(certificate.dates(now))
    }

    /// What makes the endpoints.
    pub(super) fn endpoint_factory(
        &mut self,
        settings: &config::UpstreamConfig,
        scope: &TaskScope,
        metrics: &Arc<Metrics>,
    ) -> EndpointFactory {
        EndpointFactory {
            settings: Arc::new(settings.clone()),
            tls: self.tls.take().map(Arc::new),
            proxy_login: self.proxy_login.take().map(Arc::new),
            metrics: Arc::clone(metrics),
            scope: scope.clone(),
        }
    }
}

impl Error {
    /// The key to look at, within the upstream's section.
    pub fn key(&self) -> &'static str {
        match self {
            Self::Host { .. } => "url",
            Self::ApiKey { .. } => "api_key",
            Self::ProxyLogin { .. } => "proxy_login.password",
            Self::ClientCertificate { source, .. } => source.key(),
            Self::Trust { source, .. } => match source {
                TrustError::BadName { .. } => "server_name",
                TrustError::Unreadable { .. }
                | TrustError::NotPem { .. }
                | TrustError::NoCertificate { .. }
                | TrustError::BadAuthority { .. } => "ca",
            },
        }
    }
}

fn tls(settings: &config::UpstreamConfig) -> Result<Option<UpstreamTls>, Error> {
    match settings.base.tls {
        true => UpstreamTls::open(settings).map(Some),
        false => Ok(None),
    }
}

fn proxy_login(settings: &config::UpstreamConfig) -> Result<Option<ProxyCredentials>, Error> {
    let proxy = settings.proxy.as_ref();
    let login = proxy.and_then(|proxy| proxy.login.as_ref());
    let login = login.map(|login| ProxyCredentials::open(login, &settings.name));
    login.transpose().map_err(|source| Error::ProxyLogin {
        upstream: Arc::clone(&settings.name),
        source,
    })
}

fn api_key(settings: &config::UpstreamConfig) -> Result<Option<Lease>, Error> {
    let source = settings.api_key.as_ref();
    let key = source.map(|source| api_key_of(source.read())).transpose();
    key.map_err(|source: BadApiKey| Error::ApiKey {
        upstream: Arc::clone(&settings.name),
        source,
    })
}
