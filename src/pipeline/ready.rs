//! A request that has passed the first three stages, and what the last one makes of it.

use std::borrow::Cow;
use std::net::IpAddr;

use http::request::Parts;
use hyper::body::Incoming;
use tokio::time::Instant;

use super::authenticate::Authenticated;
use super::forward::Way;
use super::headers::Ours;
use super::inject::{Carried, Inbound};
use super::record::Record;
use super::reject::Rejection;
use super::request_body::{BodyRules, RequestBody};
use super::users_node::Call;
use super::{Live, Peer};
use crate::config::{Route, UsersCall};
use crate::identity::Client;

/// The outcome of the stages before the last: a request that may go on.
pub(super) struct Ready<'a> {
    pub(super) live: &'a Live,
    pub(super) route: &'a Route,
    pub(super) who: Authenticated,
    pub(super) peer: IpAddr,
    /// As `headers::host` reads it.
    pub(super) host: Cow<'a, str>,
    /// End of the whole exchange.
    pub(super) deadline: Instant,
}

impl Ready<'_> {
    pub(super) fn call<'a>(&'a self, kind: UsersCall, head: &'a Parts) -> Call<'a> {
        Call {
            kind,
            client: &self.who.client,
            peer: self.peer,
            route: self.route,
            path: head.uri.path(),
            headers: &head.headers,
        }
    }

    /// The body under the rules of its route; one that states too great a length is
    /// refused before a byte of it is read.
    pub(super) fn bounded(&self, body: Incoming) -> Result<RequestBody, Rejection> {
        let config = &self.live.config;
        let rules = BodyRules {
            max: self.route.max_body,
            replay_limit: config.upstream.replay_limit,
            idle: config.upstream.body_idle_timeout,
            min_rate: config.http.min_body_rate,
            deadline: self.deadline,
        };
        let body = RequestBody::new(body, rules);
        if http_body::Body::size_hint(&body).lower() > self.route.max_body {
            return Err(Rejection::TooLarge);
        }
        Ok(body)
    }

    /// The request, and what we say about it.
    pub(super) fn inbound<'h>(
        &self,
        head: &'h Parts,
        body: &RequestBody,
        peer: &Peer,
        record: &Record,
    ) -> Inbound<'h> {
        let ours = Ours {
            peer,
            host: &self.host,
            client: match &self.who.client {
                Client::Open => "",
                known => known.name(),
            },
            request_id: record.id(),
            trace: record.trace(),
        };
        let trusted = &self.live.config.http.trusted_proxies;
        Inbound::new(head, ours.about(&head.headers, trusted), body.handle())
    }
}

/// What this client's request carries up.
pub(super) async fn carried(way: &Way<'_>, who: &Authenticated) -> Result<Carried, Rejection> {
    if let Some(token) = &who.bearer {
        return Ok(Carried::bearer(token));
    }
    if matches!(who.client, Client::Open) {
        return Ok(Carried::Nothing);
    }
    if way.route.monitoring
        && let Some(key) = way.upstream.api_key()
    {
        return Ok(Carried::ApiKey(key));
    }
    way.session_lease().await.map(Carried::Session)
}
