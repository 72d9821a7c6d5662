//! Stage 5, continued: a 401 from the upstream. One that concerns the client's own
//! credential goes down; any other is judged by the session, which may have the request sent
//! again with another lease. Never is a 401 about the gate's login shown to a client.

use std::error::Error;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use http::StatusCode;
use tokio::time::timeout_at;

use super::forward::{Forwarder, GatewayResponse, ask};
use super::inject::{CredentialSource, Inbound, UpstreamCredential};
use crate::metrics::RetryReason;
use crate::pipeline::access_log::entry::AccessLogEntry;
use crate::pipeline::body::permit_state::UpstreamTurn;
use crate::pipeline::reject::Rejection;
use crate::upstream::{Lease, RefusalVerdict, RefusedRequest, Session};

/// An answer that is final, what the request for it carried, and its turn.
pub(in crate::pipeline) struct JudgedResponse {
    pub(in crate::pipeline) answer: GatewayResponse,
    pub(super) carried: UpstreamCredential,
    pub(in crate::pipeline) turn: UpstreamTurn,
}

impl Forwarder<'_> {
    /// What follows when an exchange brought a 401, or broke off before its answer.
    pub(in crate::pipeline) async fn judge(
        &self,
        request: &Inbound<'_>,
        first: Result<GatewayResponse, Rejection>,
        mut carried: UpstreamCredential,
        turn: UpstreamTurn,
        record: &mut AccessLogEntry,
    ) -> Result<JudgedResponse, Rejection> {
        let mut turn = Some(turn);
        let mut outcome = first;
        let mut refusals = None;
        loop {
            let answer = match outcome {
                Ok(answer) => Some(answer),
                Err(Rejection::BrokeOff(error)) => {
                    self.confirm_refusal(&carried, error).await?;
                    None
                }
                Err(other) => return Err(other),
            };
            let is_refused = answer.as_ref().is_none_or(is_unauthorized);
            if !is_refused || !carried.is_ours() {
                // The client's own credential: the verdict is meant for the client.
                let answer = answer.ok_or(Rejection::BadAnswer("no answer"))?;
                let was_refused = refusals.is_some();
                self.note_answer(request, &carried, answer.status(), was_refused);
                let turn = turn.ok_or(Rejection::Internal("a request has no turn"))?;
                return Ok(JudgedResponse {
                    answer,
                    carried,
                    turn,
                });
            }
            drop(answer);
            carried = self
                .replacement(request, carried, &mut refusals, &mut turn)
                .await?;
            let body = request.body().again().ok_or(Rejection::RetryLater)?;
            if turn.is_none() {
                turn = Some(self.turn().await?);
            }
            record.repeated();
            self.upstream
                .metrics
                .upstream_retries
                .add(RetryReason::Refused);
            outcome = self.send(request, body, &carried, record).await;
        }
    }

    /// What a request carries next whose credential, one of ours, was refused.
    async fn replacement(
        &self,
        request: &Inbound<'_>,
        carried: UpstreamCredential,
        refusals: &mut Option<RefusedRequest>,
        turn: &mut Option<UpstreamTurn>,
    ) -> Result<UpstreamCredential, Rejection> {
        let UpstreamCredential::Session(lease) = carried else {
            if let UpstreamCredential::ApiKey(key) = &carried {
                self.upstream.note_api_key(key, StatusCode::UNAUTHORIZED);
            }
            if self.upstream.session().is_none() {
                return Err(Rejection::UpstreamLogin);
            }
            let source = CredentialSource::Session;
            let (fresh, carried) = self.admit(request, source, turn.take()).await?;
            *turn = Some(fresh);
            return Ok(carried);
        };
        let session = self.session()?;
        let refusals = refusals.get_or_insert_with(|| {
            RefusedRequest::new(request.path_key(session), request.body().is_kept())
        });
        let mut verdict = pin!(session.reconsider(refusals, &lease));
        let verdict = match poll_fn(|cx| Poll::Ready(verdict.as_mut().poll(cx))).await {
            Poll::Ready(verdict) => verdict,
            Poll::Pending => {
                // A turn is for work at the upstream, not for waiting.
                *turn = None;
                let verdict = timeout_at(self.deadline, verdict).await;
                verdict.map_err(|_| Rejection::UpstreamTimeout)?
            }
        };
        match verdict.map_err(Rejection::NoLease)? {
            RefusalVerdict::Again(lease) => Ok(UpstreamCredential::Session(lease)),
            RefusalVerdict::Upheld => Err(Rejection::UpstreamLogin),
        }
    }

    /// An upstream that refuses a request before it has read the body may close at once,
    /// and the reset then destroys its 401. Asks with something small whether it was that;
    /// fails with the error as it was if not.
    async fn confirm_refusal(
        &self,
        carried: &UpstreamCredential,
        error: Box<dyn Error + Send + Sync>,
    ) -> Result<(), Rejection> {
        let answer = match (carried, &self.settings.probe) {
            (UpstreamCredential::Session(_), Some(path)) => {
                ask(self.connections, path, carried, self.patience()).await
            }
            _ => None,
        };
        match answer {
            Some(StatusCode::UNAUTHORIZED) => Ok(()),
            _ => Err(Rejection::BrokeOff(error)),
        }
    }

    /// A turn and what the request carries, if neither has to be waited for; else `source`.
    pub(super) fn admit_at_once(
        &self,
        request: &Inbound<'_>,
        source: CredentialSource,
    ) -> Result<(UpstreamTurn, UpstreamCredential), CredentialSource> {
        let is_monitoring = self.route.monitoring;
        let Some(permit) = self.upstream.turn_at_once(self.share, is_monitoring) else {
            return Err(source);
        };
        let carried = match source {
            CredentialSource::Ready(carried) => carried,
            CredentialSource::Session => match self.lease_for(request) {
                Ok(Some(lease)) => UpstreamCredential::Session(lease),
                _ => return Err(CredentialSource::Session),
            },
        };
        Ok((UpstreamTurn::Permit(permit), carried))
    }

    /// Waits for a turn at the upstream, and then for what the request carries there: in a
    /// queue a lease would grow old.
    pub(in crate::pipeline) async fn admit(
        &self,
        request: &Inbound<'_>,
        source: CredentialSource,
        turn: Option<UpstreamTurn>,
    ) -> Result<(UpstreamTurn, UpstreamCredential), Rejection> {
        let turn = match turn {
            Some(turn) => turn,
            None => self.turn().await?,
        };
        if let CredentialSource::Ready(carried) = source {
            return Ok((turn, carried));
        }
        match self.lease_for(request)? {
            Some(lease) => Ok((turn, UpstreamCredential::Session(lease))),
            None => {
                drop(turn);
                Box::pin(self.admit_after_login(request)).await
            }
        }
    }

    async fn admit_after_login(
        &self,
        request: &Inbound<'_>,
    ) -> Result<(UpstreamTurn, UpstreamCredential), Rejection> {
        let session = self.session()?;
        loop {
            let is_up = self.upstream.health().check();
            is_up.map_err(Rejection::UpstreamDown)?;
            let lease = timeout_at(self.deadline, session.lease()).await;
            let lease = lease.map_err(|_| Rejection::UpstreamTimeout)?;
            lease.map_err(Rejection::NoLease)?;
            let turn = self.turn().await?;
            if let Some(lease) = self.lease_for(request)? {
                return Ok((turn, UpstreamCredential::Session(lease)));
            }
        }
    }

    fn lease_for(&self, request: &Inbound<'_>) -> Result<Option<std::sync::Arc<Lease>>, Rejection> {
        let session = self.session()?;
        let can_repeat = || request.body().can_repeat();
        Ok(session.lease_for(|| request.path_key(session), can_repeat))
    }

    /// Tells the session how an answer with this status speaks of a lease. `was_refused`: the
    /// same request was refused with another one before.
    pub(super) fn note_answer(
        &self,
        request: &Inbound<'_>,
        carried: &UpstreamCredential,
        status: StatusCode,
        was_refused: bool,
    ) {
        if let UpstreamCredential::ApiKey(key) = carried {
            return self.upstream.note_api_key(key, status);
        }
        let (UpstreamCredential::Session(lease), Some(session)) =
            (carried, self.upstream.session())
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
        let session = self.upstream.session();
        session
            .map(AsRef::as_ref)
            .ok_or(Rejection::Internal("no login is configured"))
    }
}

fn is_unauthorized(answer: &GatewayResponse) -> bool {
    answer.status() == StatusCode::UNAUTHORIZED
}
