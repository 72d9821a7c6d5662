//! A request to a node of the emulated Webapp.

use std::sync::Arc;

use http::Method;
use http::header::{self, HeaderMap};
use hyper::body::Incoming;

use super::faults::Switches;
use super::node_routes::NodeRoute;

/// A request that was routed to a node and admitted.
pub(super) struct NodeCall {
    pub method: Method,
    pub path: Vec<String>,
    pub query: String,
    pub headers: HeaderMap,
    pub body: Incoming,
    pub route: NodeRoute,
    pub switches: Switches,
    /// The user of the bearer token; empty if none is required, and with the API key.
    pub user: Arc<str>,
}

impl NodeCall {
    /// Whether the query has `{name}={value}`.
    pub(super) fn has_query(&self, name: &str, value: &str) -> bool {
        let mut pairs = self.query.split('&');
        pairs.any(|pair| pair.split_once('=') == Some((name, value)))
    }

    pub(super) fn segments(&self) -> Vec<&str> {
        self.path.iter().map(String::as_str).collect()
    }

    /// The method; nodes treat HEAD as GET, and the server omits the body.
    pub(super) fn verb(&self) -> &str {
        match self.method.as_str() {
            "HEAD" => "GET",
            verb => verb,
        }
    }
}

/// The connection is to be closed without a response.
#[derive(Debug, thiserror::Error)]
#[error("dropped on purpose")]
pub(super) struct DroppedConnection;

/// The token of `Authorization: Bearer`.
pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, rest) = text.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| rest.trim())
}
