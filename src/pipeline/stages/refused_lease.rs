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
use crate::upstream::{Lease, RefusalVerdict, RefusedRequest, Session};

/// A final response, the credential it responds to, and the permit of the exchange.
pub(super) struct JudgedResponse {
    pub(super) response: UpstreamResponse,
    pub(super) credential: UpstreamCredential,
    pub(super) permit: PermitState,
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
        let mut refusals = None;
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
                let was_refused = refusals.is_some();
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
            outcome = self.send(request, body, &credential, entry).await;
        }
    }

    /// The next credential for a request whose credential, one of the gateway's own, was refused.
    async fn replacement(
        &self,
        request: &Inbound<'_>,
        refused: UpstreamCredential,
        refusals: &mut Option<RefusedRequest>,
        permit: &mut Option<PermitState>,
    ) -> Result<UpstreamCredential, Rejection> {
        let UpstreamCredential::Session(lease) = refused else {
            if let UpstreamCredential::ApiKey(key) = &refused {
                self.upstream().note_api_key(key, StatusCode::UNAUTHORIZED);
            }
            if self.upstream().session().is_none() {
                return Err(Rejection::UpstreamLogin);
            }
            let source = CredentialSource::Session;
            let (held, credential) = self.admit(request, source, permit.take()).await?;
            *permit = Some(held);
            return Ok(credential);
        };
        let session = self.session()?;
        let refusals = refusals.get_or_insert_with(|| {
            RefusedRequest::new(request.path_key(session), request.body().is_kept())
        });
        let mut verdict = pin!(session.reconsider(refusals, &lease));
        let verdict = match poll_fn(|cx| Poll::Ready(verdict.as_mut().poll(cx))).await {
            Poll::Ready(verdict) => verdict,
            Poll::Pending => {
                // A permit stands for work at the upstream, so none is held during this wait.
                *permit = None;
                let verdict = timeout_at(self.deadline, verdict).await;
                verdict.map_err(|_| Rejection::UpstreamTimeout)?
            }
        };
        match verdict.map_err(Rejection::NoLease)? {
            RefusalVerdict::Again(lease) => Ok(UpstreamCredential::Session(lease)),
            RefusalVerdict::Upheld => Err(Rejection::UpstreamLogin),
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
        let session = self.session()?;
        loop {
            let is_up = self.upstream().endpoints().check();
            is_up.map_err(Rejection::UpstreamDown)?;
            let lease = timeout_at(self.deadline, session.lease()).await;
            let lease = lease.map_err(|_| Rejection::UpstreamTimeout)?;
            lease.map_err(Rejection::NoLease)?;
            let permit = self.permit().await?;
            if let Some(lease) = self.lease_for(request)? {
                return Ok((permit, UpstreamCredential::Session(lease)));
            }
        }
    }

    fn lease_for(&self, request: &Inbound<'_>) -> Result<Option<Arc<Lease>>, Rejection> {
        let session = self.session()?;
        let can_repeat = || request.body().can_repeat();
        Ok(session.lease_for(|| request.path_key(session), can_repeat))
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
        if let UpstreamCredential::ApiKey(key) = credential {
            return self.upstream().note_api_key(key, status);
        }
        let (UpstreamCredential::Session(lease), Some(session)) =
            (credential, self.upstream().session())
        else {
            return;
        };
        if status.is_success() {
            session.note_accepted(lease, request.path_key(session), was_refused);
        } else {
            session.note_answered(lease, || request.path_key(session), status);
        }
    }

    fn session(&self) -> Result<&Session, Rejection> {
        let session = self.upstream().session();
        session
            .map(AsRef::as_ref)
            .ok_or(Rejection::Internal("no login is configured"))
    }
}

fn is_unauthorized(response: &UpstreamResponse) -> bool {
    response.status() == StatusCode::UNAUTHORIZED
}
