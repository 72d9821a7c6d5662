//! What is read from files and settings before an upstream is opened: at a start, at a reload and by
//! `check`.

use std::sync::Arc;

use http::HeaderValue;

use super::api_key::api_key_of;
use super::login::lease::Lease;
use super::transport::address_book::AddressBook;
use super::transport::address_memory::AddressMemory;
use super::transport::connect_proxy::ConnectProxy;
use super::transport::dialer::Dialer;
use super::transport::proxy_credentials::ProxyCredentials;
use super::transport::tcp_dialer::TcpDialer;
use super::transport::tls::client_certificate::CertificateDates;
use super::transport::tls::trust::TrustError;
use super::transport::tls::upstream_tls::UpstreamTls;
use super::transport::unix_dialer::UnixDialer;
use super::{BadApiKey, Error};
use crate::config::{self, Http2Mode};
use crate::dns::DnsResolver;
use crate::lifecycle::TaskScope;

/// An upstream's address, trust and API key, read and checked.
#[derive(Debug)]
pub struct UpstreamMaterials {
    /// The `Host` field of requests to it.
    pub(super) host: HeaderValue,
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
        let host = host(settings).map_err(&mut told).ok();
        let tls = tls(settings).map_err(&mut told).ok();
        let proxy_login = proxy_login(settings).map_err(&mut told).ok();
        let api_key = api_key(settings).map_err(&mut told).ok();
        Some(Self {
            host: host?,
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

    /// What opens connections, and the rest.
    pub(super) fn dialer(
        &mut self,
        settings: &config::UpstreamConfig,
        scope: &TaskScope,
    ) -> Dialer {
        let has_prior_knowledge = !settings.base.tls && settings.http2 == Http2Mode::Always;
        if let Some(path) = &settings.base.socket {
            let limit = settings.connect_timeout;
            let unix = UnixDialer::new(path.clone(), limit, &settings.name);
            return Dialer::Unix(unix.with_prior_knowledge(has_prior_knowledge));
        }
        let login = self.proxy_login.take().map(Arc::new);
        let proxy = settings.proxy.as_ref().map(|_| ConnectProxy {
            target: settings.base.authority(),
            login,
            upstream: Arc::clone(&settings.name),
        });
        let (host, port) = match &settings.proxy {
            None => (&settings.base.host, settings.base.port),
            Some(proxy) => (&proxy.host, proxy.port),
        };
        Dialer::Tcp(TcpDialer {
            port,
            book: AddressBook::new(host, DnsResolver::of_this_host(), scope),
            proxy: proxy.map(Arc::new),
            memory: AddressMemory::default(),
            tls: self.tls.take().map(Arc::new),
            has_prior_knowledge,
            limit: settings.connect_timeout,
            upstream: Arc::clone(&settings.name),
        })
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

fn host(settings: &config::UpstreamConfig) -> Result<HeaderValue, Error> {
    let base = &settings.base;
    let authority = base.authority();
    let default_port = if base.tls { ":443" } else { ":80" };
    let of_address = || authority.strip_suffix(default_port).unwrap_or(&authority);
    let text = settings.host.as_deref().unwrap_or_else(of_address);
    HeaderValue::from_str(text).map_err(|_| Error::Host {
        upstream: Arc::clone(&settings.name),
    })
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
