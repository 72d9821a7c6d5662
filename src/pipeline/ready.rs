//! A request that has passed the first three stages, and what the last one makes of it.

use std::net::IpAddr;
use std::sync::Arc;

use http::Uri;
use http::request::Parts;
use hyper::body::Incoming;
use tokio::time::Instant;

use super::authenticate::Authenticated;
use super::forward::Way;
use super::headers;
use super::inject::{Carried, Stripped};
use super::record::Record;
use super::reject::Rejection;
use super::request_body::{BodyRules, RequestBody};
use super::users_node::Call;
use super::{Live, Peer};
use crate::config::{Route, UsersCall};
use crate::identity::Client;

/// The outcome of the stages before the last: a request that may go on.
pub(super) struct Ready {
    pub(super) live: Arc<Live>,
    pub(super) route: Arc<Route>,
    pub(super) who: Authenticated,
    pub(super) peer: IpAddr,
    /// End of the whole exchange.
    pub(super) deadline: Instant,
}

impl Ready {
    pub(super) fn call<'a>(&'a self, kind: UsersCall, head: &'a Parts) -> Call<'a> {
        Call {
            kind,
            client: &self.who.client,
            peer: self.peer,
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

    /// The request as it goes up, but for the credential.
    pub(super) fn stripped(
        &self,
        head: &Parts,
        body: &RequestBody,
        peer: &Peer,
        record: &Record,
    ) -> Stripped {
        let target = head.uri.path_and_query().cloned();
        let target = target.map_or_else(|| Uri::from_static("/"), Uri::from);
        let mut request = Stripped::new(
            head.method.clone(),
            target,
            head.headers.clone(),
            body.handle(),
        );
        let headers = request.headers_mut();
        let host = headers::host(&head.uri, &head.headers);
        let host = (!host.is_empty()).then_some(host.as_str());
        headers::forwarded(headers, peer, host, &self.live.config.http.trusted_proxies);
        let client = match &self.who.client {
            Client::Open => "",
            known => known.name(),
        };
        headers::name_client(headers, client, record.id());
        record.trace().put(headers);
        request
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
