//! Several endpoints of one upstream, with real sockets.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use tokio::time::{Instant, sleep};

use super::names::names;
use super::stub_dns::StubDns;
use super::{TEST_TIMEOUT, UpstreamSetup, eventually, outbound};
use crate::config::{
    AcceptedStatus, AddressResolution, BaseAddress, EjectionRules, HealthCheckRules,
};
use crate::upstream::{EndpointChoice, ResponseTimeout, UpstreamConnections};

type Connections = UpstreamConnections<Empty<Bytes>>;
