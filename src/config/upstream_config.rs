//! One upstream as it is configured.

use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;

use super::{
    AddressResolution, BaseAddress, CertificateFiles, EndpointPolicy, Http2Mode, ProxyConfig, Trust,
};
use crate::profiles::LoginDescription;
use crate::secret::SecretSource;

/// The service behind the gateway.
#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamConfig {
    pub name: Arc<str>,
    /// With several endpoints, the first.
    pub base: BaseAddress,
    /// The other endpoints.
    pub more_endpoints: Vec<BaseAddress>,
    pub endpoint_policy: EndpointPolicy,
    /// The `Host` of requests, when it is not the address's own.
    pub host: Option<String>,
    pub trust: Trust,
    /// The name the upstream's certificate must carry, when it is not the host's.
    pub server_name: Option<String>,
    /// Which version of HTTP is spoken with it.
    pub http2: Http2Mode,
    /// The gate's own certificate, shown when the upstream asks for one.
    pub client_certificate: Option<CertificateFiles>,
    /// None: the upstream is reached without a proxy.
    pub proxy: Option<ProxyConfig>,
    /// None: clients log in at the upstream themselves and there are no API keys, or the upstream
    /// needs no login.
    pub login: Option<Login>,
    /// How that login is made, and how its token goes on requests; the profile's.
    pub login_description: Arc<LoginDescription>,
    /// Sent on monitoring routes in place of the session's bearer.
    pub api_key: Option<SecretSource>,
    /// Requests in flight at once; the rest queue.
    pub concurrency: usize,
    /// Bodies that may be in transfer besides, while their clients are slow.
    pub stalled_streams: usize,
    /// Longest wait in that queue.
    pub queue_timeout: Duration,
    /// Kept-alive connections without a request are closed after this long.
    pub idle_timeout: Duration,
    pub connect_timeout: Duration,
    /// From the end of the request to the head of the response; a route may override it.
    pub first_byte_timeout: Duration,
    /// Longest pause between two pieces of a body, either way.
    pub body_idle_timeout: Duration,
    /// Bytes of a request body kept so that it can be sent again after a 401.
    pub replay_limit: usize,
    /// Path of a GET that answers 401 to a token that is not valid; None: there is none.
    pub probe: Option<PathAndQuery>,
    /// Whether the gateway is not ready while requests to this upstream would fail.
    pub required: bool,
}

impl UpstreamConfig {
    /// The addresses in the file, at least one.
    pub fn addresses(&self) -> impl Iterator<Item = &BaseAddress> {
        std::iter::once(&self.base).chain(&self.more_endpoints)
    }

    /// Whether requests are spread over endpoints.
    pub fn has_endpoints(&self) -> bool {
        !self.more_endpoints.is_empty() || self.endpoint_policy.resolution == AddressResolution::All
    }

    /// Whether connections to `other` are made in the same way.
    pub fn is_reached_like(&self, other: &Self) -> bool {
        self.base == other.base
            && self.more_endpoints == other.more_endpoints
            && self.endpoint_policy.resolution == other.endpoint_policy.resolution
            && self.trust == other.trust
            && self.server_name == other.server_name
            && self.client_certificate == other.client_certificate
            && self.proxy == other.proxy
            && self.http2 == other.http2
    }
}

/// The gateway's own login at the upstream.
#[derive(Clone, Debug, PartialEq)]
pub struct Login {
    pub username: String,
    pub password: SecretSource,
    /// Share of a token's life after which it is renewed, 0.1 to 0.95.
    pub renew_at: f64,
    /// Renewed at least this long before its end (half its life if that is shorter).
    pub renew_floor: Duration,
    pub min_login_interval: Duration,
    pub logins_per_hour: u32,
    /// For the whole login call.
    pub timeout: Duration,
    /// A new login ends the token before it.
    pub single_active_token: bool,
    /// Each endpoint has a login of its own: it knows only its own tokens.
    pub per_endpoint: bool,
}
