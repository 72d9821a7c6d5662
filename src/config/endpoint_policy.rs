//! How requests are spread over the endpoints of one upstream.

use std::time::Duration;

use http::StatusCode;
use http::uri::PathAndQuery;

/// What is common to the endpoints of one upstream.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointPolicy {
    pub resolution: AddressResolution,
    pub affinity: EndpointAffinity,
    /// None: endpoints are judged by their responses to requests only.
    pub health_check: Option<HealthCheckRules>,
    /// None: endpoints are not ejected.
    pub ejection: Option<EjectionRules>,
    /// How long an endpoint that has become available gets less than its share; zero: not at all.
    pub slow_start: Duration,
    /// Requests that may be sent again to another endpoint, as a share of those that clients send.
    pub retry_share: f64,
}

/// What the addresses of the name in `url` are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressResolution {
    /// One server: a connection is made to any of them.
    One,
    /// Servers that are alike: each is an endpoint.
    All,
}

/// By what requests are assigned to endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointAffinity {
    /// The one of two random endpoints that has fewer requests in flight.
    LeastRequests,
    /// All requests of a client go to one endpoint while it is available.
    Client,
}

/// The gate's own requests that find out whether an endpoint works.
#[derive(Clone, Debug, PartialEq)]
pub struct HealthCheckRules {
    /// None: a connection is enough.
    pub path: Option<PathAndQuery>,
    pub interval: Duration,
    /// For connection and response together.
    pub timeout: Duration,
    /// Failed checks in a row after which the endpoint is unhealthy.
    pub unhealthy_after: u32,
    /// Passed checks in a row after which an unhealthy endpoint is healthy.
    pub healthy_after: u32,
    pub accepted: AcceptedStatus,
}

/// The statuses with which a health check has passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedStatus(pub Vec<std::ops::RangeInclusive<u16>>);

/// When an endpoint gets no requests because of its own responses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EjectionRules {
    /// Failed requests in a row.
    pub failures: u32,
    /// For how long, the first time; longer each time, up to `max`.
    pub first: Duration,
    pub max: Duration,
}

impl AcceptedStatus {
    pub fn contains(&self, status: StatusCode) -> bool {
        let status = status.as_u16();
        self.0.iter().any(|range| range.contains(&status))
    }
}

impl Default for AcceptedStatus {
    fn default() -> Self {
        Self(vec![200..=399])
    }
}

impl Default for EjectionRules {
    fn default() -> Self {
        Self {
            failures: 5,
            first: Duration::from_secs(10),
            max: Duration::from_secs(300),
        }
    }
}

impl Default for EndpointPolicy {
    fn default() -> Self {
        Self {
            resolution: AddressResolution::One,
            affinity: EndpointAffinity::LeastRequests,
            health_check: None,
            ejection: Some(EjectionRules::default()),
            slow_start: Duration::from_secs(10),
            retry_share: 0.2,
        }
    }
}
