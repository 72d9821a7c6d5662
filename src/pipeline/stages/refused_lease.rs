//! Stage 5, after a 401 from the upstream. A 401 to the client's own credential is passed to the
//! client. A 401 to the gateway's credential is judged by the session, which may provide another
//! lease for a repeat; it never reaches the client, which would take it for a verdict on its own
//! token.

use std::error::Error;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use http::StatusCode;
use tokio::time::timeout_at;

use super::inject::{CredentialSource, Inbound, UpstreamCredential};
use super::upstream_exchange::{Forwarder, UpstreamResponse, probe_status};
use crate::metrics::RetryReason;
use crate::pipeline::access_log::entry::AccessLogEntry;
use crate::pipeline::body::permit_state::PermitState;
use crate::pipeline::reject::Rejection;
use crate::upstream::{Lease, NoLease, RefusalVerdict, RefusedRequest, Session};

/// A final response, the credential it responds to, and the permit of the exchange.
pub(super) struct JudgedResponse {
    pub(super) response: UpstreamResponse,
    pub(super) credential: UpstreamCredential,
    pub(super) permit: PermitState,
}

/// The refusals of one request so far, for each session whose leases were refused.
#[derive(Debug, Default)]
struct Refusals {
    by_session: Vec<SessionRefusals>,
}

#[derive(Debug)]
struct SessionRefusals {
    /// None: the session is that of all endpoints.
    endpoint: Option<Arc<str>>,
    refused: RefusedRequest,
}

impl Refusals {
    /// Those of leases of the session that lent `lease`.
    fn of(&mut self, lease: &Lease, new: impl FnOnce() -> RefusedRequest) -> &mut RefusedRequest {
        let mut known = self.by_session.iter();
        let known = known.position(|one| one.endpoint.as_ref() == lease.endpoint());
        let position = known.unwrap_or_else(|| {
            self.by_session.push(SessionRefusals {
                endpoint: lease.endpoint().cloned(),
                refused: new(),
            });
            self.by_session.len() - 1
        });
        &mut self.by_session[position].refused
    }

    fn endpoints(&self) -> Vec<Arc<str>> {
        let sessions = self.by_session.iter();
        sessions.filter_map(|one| one.endpoint.clone()).collect()
    }
}

impl Forwarder<'_> {
    /// Continues after an exchange that ended with a 401, or broke off before its response.
    pub(super) async fn judge(
        &self,
        request: &Inbound<'_>,
        first: Result<UpstreamResponse, Rejection>,
        mut credential: UpstreamCredential,
        permit: PermitState,
        entry: &mut AccessLogEntry,
    ) -> Result<JudgedResponse, Rejection> {
        let mut permit = Some(permit);
        let mut outcome = first;
        let mut refusals = Refusals::default();
        loop {
            let response = match outcome {
                Ok(response) => Some(response),
                Err(Rejection::BrokeOff(error)) => {
                    self.confirm_refusal(&credential, error).await?;
                    None
                }
                Err(other) => return Err(other),
            };
            let is_refused = response.as_ref().is_none_or(is_unauthorized);
            if !is_refused || !credential.is_own() {
                // A 401 to the client's own credential is meant for the client.
                let response = response.ok_or(Rejection::BadUpstreamResponse("no response"))?;
                let was_refused = !refusals.by_session.is_empty();
                self.note_response(request, &credential, response.status(), was_refused);
                let permit = permit.ok_or(Rejection::Internal("a request has no permit"))?;
                return Ok(JudgedResponse {
                    response,
                    credential,
                    permit,
                });
            }
            drop(response);
            credential = self
                .replacement(request, credential, &mut refusals, &mut permit)
                .await?;
            let body = request.body().again().ok_or(Rejection::RetryLater)?;
            if permit.is_none() {
                permit = Some(self.permit().await?);
            }
            entry.set_retried();
            let metrics = &self.upstream().metrics;
            metrics.upstream_retries.add(RetryReason::Refused);
            outcome = self.send(request, body, &mut credential, entry).await;
        }
    }

    /// The next credential for a request whose credential, one of the gateway's own, was refused.
    async fn replacement(
        &self,
        request: &Inbound<'_>,
        refused: UpstreamCredential,
        refusals: &mut Refusals,
        permit: &mut Option<PermitState>,
    ) -> Result<UpstreamCredential, Rejection> {
        let UpstreamCredential::Session(lease) = refused else {
            if let UpstreamCredential::ApiKey(key) = &refused {
                self.upstream().note_api_key(key, StatusCode::UNAUTHORIZED);
            }
            if !self.upstream().has_login() {
                return Err(Rejection::UpstreamLogin);
            }
            let source = CredentialSource::Session;
            let (held, credential) = self.admit(request, source, permit.take()).await?;
            *permit = Some(held);
            return Ok(credential);
        };
        let session = self.session_of(&lease)?;
        let refused = refusals.of(&lease, || {
            RefusedRequest::new(request.path_key(session), request.body().is_kept())
        });
        let verdict = self.verdict(session, refused, &lease, permit).await?;
        match verdict {
            Ok(RefusalVerdict::Again(lease)) => Ok(UpstreamCredential::Session(lease)),
            Ok(RefusalVerdict::Upheld) => Err(Rejection::UpstreamLogin),
            // This endpoint gives no token now; another one with a login of its own may.
            Err(no_lease) => {
                let mut tried = refusals.endpoints();
                let other = lease.endpoint().map(|_| &mut tried);
                let other = other.and_then(|tried| self.lease_elsewhere(request, tried));
                other
                    .map(UpstreamCredential::Session)
                    .ok_or(Rejection::NoLease(no_lease))
            }
        }
    }

    /// The session's verdict on the refusal of `lease`. A permit stands for work at the upstream, so none is held
    /// while the verdict is waited for.
    async fn verdict(
        &self,
        session: &Session,
        refused: &mut RefusedRequest,
        lease: &Arc<Lease>,
        permit: &mut Option<PermitState>,
    ) -> Result<Result<RefusalVerdict, NoLease>, Rejection> {
        let mut verdict = pin!(session.reconsider(refused, lease));
        match poll_fn(|cx| Poll::Ready(verdict.as_mut().poll(cx))).await {
            Poll::Ready(verdict) => Ok(verdict),
            Poll::Pending => {
                *permit = None;
                let verdict = timeout_at(self.deadline, verdict).await;
                verdict.map_err(|_| Rejection::UpstreamTimeout)
            }
        }
    }

    /// An upstream that refuses a request before it has read the body may close the connection at
    /// once, and the reset then destroys its 401. Sends a probe to find out whether the lease was
    /// refused; if it was not, fails with `error`.
    async fn confirm_refusal(
        &self,
        credential: &UpstreamCredential,
        error: Box<dyn Error + Send + Sync>,
    ) -> Result<(), Rejection> {
        let status = match (credential, &self.settings().probe) {
            (UpstreamCredential::Session(_), Some(path)) => {
                probe_status(self.connections, path, credential, self.timeout()).await
            }
            _ => None,
        };
        match status {
            Some(StatusCode::UNAUTHORIZED) => Ok(()),
            _ => Err(Rejection::BrokeOff(error)),
        }
    }

    /// A permit and a credential, if both are available without a wait; otherwise gives `source`
    /// back.
    pub(super) fn admit_at_once(
        &self,
        request: &Inbound<'_>,
        source: CredentialSource,
    ) -> Result<(PermitState, UpstreamCredential), CredentialSource> {
        let is_monitoring = self.route.monitoring;
        let Some(permit) = self
            .upstream()
            .try_acquire_permit(self.share, is_monitoring)
        else {
            return Err(source);
        };
        let credential = match source {
            CredentialSource::Ready(credential) => credential,
            CredentialSource::Session => match self.lease_for(request) {
                Ok(Some(lease)) => UpstreamCredential::Session(lease),
                _ => return Err(CredentialSource::Session),
            },
        };
        Ok((PermitState::Held(permit), credential))
    }

    /// Waits for an upstream permit first, then for the credential: a lease would age in the queue.
    pub(super) async fn admit(
        &self,
        request: &Inbound<'_>,
        source: CredentialSource,
        permit: Option<PermitState>,
    ) -> Result<(PermitState, UpstreamCredential), Rejection> {
        let permit = match permit {
            Some(permit) => permit,
            None => self.permit().await?,
        };
        if let CredentialSource::Ready(credential) = source {
            return Ok((permit, credential));
        }
        match self.lease_for(request)? {
            Some(lease) => Ok((permit, UpstreamCredential::Session(lease))),
            None => {
                drop(permit);
                Box::pin(self.admit_after_login(request)).await
            }
        }
    }

    async fn admit_after_login(
        &self,
        request: &Inbound<'_>,
    ) -> Result<(PermitState, UpstreamCredential), Rejection> {
        loop {
            let is_up = self.upstream().endpoints().check();
            is_up.map_err(Rejection::UpstreamDown)?;
            let logged_in = timeout_at(self.deadline, self.upstream().logged_in()).await;
            let logged_in = logged_in.map_err(|_| Rejection::UpstreamTimeout)?;
            logged_in.map_err(Rejection::NoLease)?;
            let permit = self.permit().await?;
            if let Some(lease) = self.lease_for(request)? {
                return Ok((permit, UpstreamCredential::Session(lease)));
            }
        }
    }
}

fn is_unauthorized(response: &UpstreamResponse) -> bool {
    response.status() == StatusCode::UNAUTHORIZED
}
