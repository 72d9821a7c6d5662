//! A request that has passed the first three stages, and what the last one makes of it.

use std::net::IpAddr;

use http::HeaderValue;
use http::request::Parts;
use tokio::time::Instant;

use super::authenticate::AuthenticatedClient;
use super::forward::Forwarder;
use super::inject::{CredentialSource, Inbound, UpstreamCredential};
use crate::config::{Route, Target, UsersCall};
use crate::identity::Client;
use crate::pipeline::access_log::entry::AccessLogEntry;
use crate::pipeline::body::client_body::ClientBody;
use crate::pipeline::body::request_body::{BodyRules, RequestBody};
use crate::pipeline::headers::{self, RequestFacts};
use crate::pipeline::peer::sharer;
use crate::pipeline::reject::Rejection;
use crate::pipeline::users_node::own_users::{MOST_BODY, UsersNodeCall};
use crate::pipeline::{LiveRules, Peer};
use crate::shares::ShareKey;

/// The outcome of the stages before the last: a request that may go on.
pub(in crate::pipeline) struct AdmittedRequest<'a> {
    pub(in crate::pipeline) live: &'a LiveRules,
    pub(in crate::pipeline) route: &'a Route,
    pub(in crate::pipeline) who: AuthenticatedClient,
    pub(in crate::pipeline) peer: IpAddr,
    /// This gate in `Via`.
    pub(in crate::pipeline) via: &'a HeaderValue,
    /// End of the whole exchange.
    pub(in crate::pipeline) deadline: Instant,
}

impl<'a> AdmittedRequest<'a> {
    /// Whose permits at the upstream the request takes.
    pub(in crate::pipeline) fn share(&self) -> ShareKey {
        let permits = self.live.upstream.permits();
        permits.key(sharer(&self.who.client, self.peer))
    }

    pub(in crate::pipeline) fn call<'c>(
        &'c self,
        kind: UsersCall,
        head: &'c Parts,
    ) -> UsersNodeCall<'c> {
        UsersNodeCall {
            kind,
            client: &self.who.client,
            token: self.who.digest,
            peer: self.peer,
            route: self.route,
            path: head.uri.path(),
            headers: &head.headers,
        }
    }

    /// The body under the rules of its route; one that states too great a length is
    /// refused before a byte of it is read.
    pub(in crate::pipeline) fn bounded(&self, body: ClientBody) -> Result<RequestBody, Rejection> {
        let config = &self.live.config;
        // What makes a user or logs one in is read before it goes up, whatever the limit for
        // repeats.
        let least_kept = match self.route.target {
            Target::UsersNode(UsersCall::Create | UsersCall::Login) => MOST_BODY,
            _ => 0,
        };
        let rules = BodyRules {
            max: self.route.max_body,
            replay_limit: config.upstream.replay_limit.max(least_kept),
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
    pub(in crate::pipeline) fn inbound<'h>(
        &self,
        head: &'h Parts,
        body: &RequestBody,
        peer: &Peer,
        record: &AccessLogEntry,
    ) -> Inbound<'h>
    where
        'a: 'h,
    {
        let ours = RequestFacts {
            peer,
            authority: headers::authority(&head.uri, &head.headers),
            client: match &self.who.client {
                Client::Open => "",
                known => known.name(),
            },
            request_id: record.id(),
            trace: record.trace(),
            via: self.via,
            allowed: &self.route.allow_fields,
        };
        let said = ours.about(&head.headers, &self.live.config.http);
        Inbound::new(head, said, body.handle())
    }
}

/// Where the credential comes from that this client's request carries up.
pub(in crate::pipeline) fn credential_source(
    way: &Forwarder<'_>,
    who: &AuthenticatedClient,
) -> CredentialSource {
    if let Some(token) = &who.bearer {
        return CredentialSource::Ready(UpstreamCredential::bearer(token));
    }
    if matches!(who.client, Client::Open) {
        return CredentialSource::Ready(UpstreamCredential::Nothing);
    }
    if way.route.monitoring
        && let Some(key) = way.upstream.api_key()
    {
        return CredentialSource::Ready(UpstreamCredential::ApiKey(key));
    }
    CredentialSource::Session
}
