//! Makes the endpoints of one upstream: those of the file, and those that a name's addresses add later.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::HeaderValue;

use super::{Endpoint, EndpointState};
use crate::config::{self, BaseAddress, Http2Mode};
use crate::dns::DnsResolver;
use crate::lifecycle::TaskScope;
use crate::metrics::Metrics;
use crate::upstream::Error;
use crate::upstream::health::EndpointHealth;
use crate::upstream::transport::address_book::AddressBook;
use crate::upstream::transport::address_memory::AddressMemory;
use crate::upstream::transport::connect_proxy::ConnectProxy;
use crate::upstream::transport::dialer::Dialer;
use crate::upstream::transport::proxy_credentials::ProxyCredentials;
use crate::upstream::transport::tcp_dialer::TcpDialer;
use crate::upstream::transport::tls::upstream_tls::{UpstreamTls, server_name};
use crate::upstream::transport::unix_dialer::UnixDialer;

/// What the endpoints of one upstream have in common.
#[derive(Debug)]
pub(in crate::upstream) struct EndpointFactory {
    pub(in crate::upstream) settings: Arc<config::UpstreamConfig>,
    /// None: plain HTTP.
    pub(in crate::upstream) tls: Option<Arc<UpstreamTls>>,
    /// None: no proxy, or no login at it.
    pub(in crate::upstream) proxy_login: Option<Arc<ProxyCredentials>>,
    pub(in crate::upstream) metrics: Arc<Metrics>,
    /// For name look-ups.
    pub(in crate::upstream) scope: TaskScope,
}

/// Where one endpoint is.
#[derive(Clone, Debug)]
pub(in crate::upstream) struct EndpointPlace {
    pub(in crate::upstream) base: BaseAddress,
    /// The address to connect to in place of the host's.
    pub(in crate::upstream) ip: Option<IpAddr>,
}

impl EndpointPlace {
    /// What the endpoint is called in logs and metrics.
    pub(in crate::upstream) fn name(&self) -> String {
        match self.ip {
            Some(ip) => SocketAddr::new(ip, self.base.port).to_string(),
            None => self.base.to_string(),
        }
    }
}

impl EndpointFactory {
    /// The endpoints that the file names. `known`: the state of an endpoint that was in use before.
    pub(in crate::upstream) fn all(
        &self,
        known: impl Fn(&str) -> Option<Arc<EndpointState>>,
    ) -> Result<Vec<Arc<Endpoint>>, Error> {
        let places = self.settings.addresses().map(|base| EndpointPlace {
            base: base.clone(),
            ip: None,
        });
        places.map(|place| self.make(&place, &known)).collect()
    }

    pub(in crate::upstream) fn make(
        &self,
        place: &EndpointPlace,
        known: impl Fn(&str) -> Option<Arc<EndpointState>>,
    ) -> Result<Arc<Endpoint>, Error> {
        let name = place.name();
        let state = match known(&name) {
            Some(state) if state.metrics.is_some() == self.settings.has_endpoints() => state,
            // It was the only endpoint, or is now: only what its breaker knows goes on.
            Some(state) => self.state(&name, Some(Arc::clone(&state.health))),
            None => self.state(&name, None),
        };
        Ok(Arc::new(Endpoint {
            state,
            base: place.base.clone(),
            host: host(&self.settings, &place.base)?,
            dialer: self.dialer(place)?,
        }))
    }

    fn state(&self, name: &str, health: Option<Arc<EndpointHealth>>) -> Arc<EndpointState> {
        let name: Arc<str> = Arc::from(name);
        let upstream = &self.settings.name;
        let has_several = self.settings.has_endpoints();
        let shown = has_several.then(|| Arc::clone(&name));
        let health = health.unwrap_or_else(|| {
            EndpointHealth::new(upstream, shown, &self.metrics.upstream(upstream))
        });
        let metrics = has_several.then(|| self.metrics.endpoint(upstream, &name));
        EndpointState::new(name, health, metrics)
    }

    fn dialer(&self, place: &EndpointPlace) -> Result<Dialer, Error> {
        let (settings, base) = (&self.settings, &place.base);
        let has_prior_knowledge = !base.tls && settings.http2 == Http2Mode::Always;
        if let Some(path) = &base.socket {
            let limit = settings.connect_timeout;
            let unix = UnixDialer::new(path.clone(), limit, &settings.name);
            return Ok(Dialer::Unix(unix.with_prior_knowledge(has_prior_knowledge)));
        }
        let proxy = settings.proxy.as_ref().map(|_| ConnectProxy {
            target: base.authority(),
            login: self.proxy_login.clone(),
            upstream: Arc::clone(&settings.name),
        });
        let (host, port) = match (&settings.proxy, place.ip) {
            (Some(proxy), _) => (proxy.host.clone(), proxy.port),
            (None, Some(ip)) => (ip.to_string(), base.port),
            (None, None) => (base.host.clone(), base.port),
        };
        let tls = self.tls.clone();
        Ok(Dialer::Tcp(TcpDialer {
            port,
            book: AddressBook::new(&host, DnsResolver::of_this_host(), &self.scope),
            proxy: proxy.map(Arc::new),
            memory: AddressMemory::default(),
            server_name: tls
                .as_ref()
                .map(|_| server_name(settings, base))
                .transpose()?,
            tls,
            has_prior_knowledge,
            limit: settings.connect_timeout,
            upstream: Arc::clone(&settings.name),
        }))
    }
}

/// The `Host` of requests to `base`.
pub(in crate::upstream) fn host(
    settings: &config::UpstreamConfig,
    base: &BaseAddress,
) -> Result<HeaderValue, Error> {
    let authority = base.authority();
    let default_port = if base.tls { ":443" } else { ":80" };
    let of_address = || authority.strip_suffix(default_port).unwrap_or(&authority);
    let text = settings.host.as_deref().unwrap_or_else(of_address);
    HeaderValue::from_str(text).map_err(|_| Error::Host {
        upstream: Arc::clone(&settings.name),
    })
}
