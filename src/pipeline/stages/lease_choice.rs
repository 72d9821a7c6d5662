//! Stage 5: which lease a request carries. With one login for all endpoints it comes first and any endpoint
//! follows; with a login at each endpoint the endpoint is chosen first, of those that have a lease.

use std::sync::Arc;

use http::StatusCode;

use super::inject::{Inbound, UpstreamCredential};
use super::upstream_exchange::Forwarder;
use crate::pipeline::body::request_body::RequestBody;
use crate::pipeline::reject::Rejection;
use crate::upstream::{ChosenEndpoint, Lease, Session};

impl Forwarder<'_> {
    /// The lease for a request now; None: there is none.
    pub(super) fn lease_for(&self, request: &Inbound<'_>) -> Result<Option<Arc<Lease>>, Rejection> {
        if let Some(session) = self.upstream().shared_session() {
            return Ok(lease_of(session, request));
        }
        if !self.upstream().has_login() {
            return Err(Rejection::Internal("no login is configured"));
        }
        Ok(self.lease_elsewhere(request, &mut Vec::new()))
    }

    /// The lease for a request at an endpoint that is none of `tried`; adds those that have no lease to it.
    pub(super) fn lease_elsewhere(
        &self,
        request: &Inbound<'_>,
        tried: &mut Vec<Arc<str>>,
    ) -> Option<Arc<Lease>> {
        self.choose_with_lease(request, tried)
            .map(|(_, lease)| lease)
    }

    /// The endpoint for a request that carries `credential`.
    pub(super) fn endpoint_for(
        &self,
        credential: &UpstreamCredential,
    ) -> Option<ChosenEndpoint<RequestBody>> {
        match credential.endpoint() {
            None => self.choose(&[]),
            Some(endpoint) => self.connections.choose_again(endpoint),
        }
    }

    /// Another endpoint for the request, none of `tried`. Where each endpoint has a login of its own,
    /// `credential` becomes the lease of that endpoint.
    pub(super) fn other_endpoint(
        &self,
        request: &Inbound<'_>,
        credential: &mut UpstreamCredential,
        tried: &mut Vec<Arc<str>>,
    ) -> Option<ChosenEndpoint<RequestBody>> {
        if credential.endpoint().is_none() {
            return self.choose(tried);
        }
        let (chosen, lease) = self.choose_with_lease(request, tried)?;
        *credential = UpstreamCredential::Session(lease);
        Some(chosen)
    }

    fn choose_with_lease(
        &self,
        request: &Inbound<'_>,
        tried: &mut Vec<Arc<str>>,
    ) -> Option<(ChosenEndpoint<RequestBody>, Arc<Lease>)> {
        loop {
            let chosen = self.choose(tried)?;
            let session = self.upstream().session_at(chosen.name());
            if let Some(lease) = session.and_then(|session| lease_of(session, request)) {
                return Some((chosen, lease));
            }
            tried.push(Arc::clone(chosen.name()));
        }
    }

    /// The session that lent `lease`.
    pub(super) fn session_of(&self, lease: &Lease) -> Result<&Session, Rejection> {
        let session = self.upstream().session_of(lease);
        session
            .map(AsRef::as_ref)
            .ok_or(Rejection::Internal("no login is configured"))
    }

    /// Reports to the session what this status says about the lease. `was_refused`: the same request
    /// was refused with another lease before.
    pub(super) fn note_response(
        &self,
        request: &Inbound<'_>,
        credential: &UpstreamCredential,
        status: StatusCode,
        was_refused: bool,
    ) {
        let lease = match credential {
            UpstreamCredential::ApiKey(key) => return self.upstream().note_api_key(key, status),
            UpstreamCredential::Session(lease) => lease,
            UpstreamCredential::Client(_) | UpstreamCredential::Nothing => return,
        };
        let Some(session) = self.upstream().session_of(lease) else {
            return;
        };
        if status.is_success() {
            session.note_accepted(lease, request.path_key(session), was_refused);
        } else {
            session.note_answered(lease, || request.path_key(session), status);
        }
    }
}

fn lease_of(session: &Session, request: &Inbound<'_>) -> Option<Arc<Lease>> {
    let can_repeat = || request.body().can_repeat();
    session.lease_for(|| request.path_key(session), can_repeat)
}
