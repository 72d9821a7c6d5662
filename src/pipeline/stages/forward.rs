//! Stage 5: send, at most one repeat after a refused lease, deadlines.

use std::sync::Arc;

use http::header::VIA;
use http::uri::PathAndQuery;
use http::{Request, Response, StatusCode};
use http_body::Body as _;
use hyper::ext::ReasonPhrase;
use tokio::time::Instant;

use super::inject::{CredentialSource, Inbound, UpstreamCredential, inject, probe};
use super::refused_lease::JudgedResponse;
use super::response_begin::{SMALL, SmallBody};
use crate::config::{self, Route};
use crate::metrics::RetryReason;
use crate::pipeline::access_log::entry::AccessLogEntry;
use crate::pipeline::body::permit_state::UpstreamTurn;
use crate::pipeline::body::rate_guard::PaceRules;
use crate::pipeline::body::redact::scrub;
use crate::pipeline::body::request_body::{BodyFailure, BodyHandle, RequestBody};
use crate::pipeline::body::response_body::ResponseBody;
use crate::pipeline::body::stream_watchdog::SlowStreamWatchdog;
use crate::pipeline::body::streaming::StreamingBody;
use crate::pipeline::headers;
use crate::pipeline::reject::Rejection;
use crate::shares::ShareKey;
use crate::upstream::{
    ResponseTimeout, SendError, SendErrorKind, Upstream, UpstreamConnections, UpstreamResponseBody,
};

/// What forwarding needs besides the request.
#[derive(Debug)]
pub(in crate::pipeline) struct Forwarder<'a> {
    pub upstream: &'a Arc<Upstream>,
    pub connections: &'a UpstreamConnections<RequestBody>,
    pub settings: &'a config::UpstreamConfig,
    pub http: &'a config::RequestRules,
    pub route: &'a Route,
    /// Whose permits at the upstream the request takes.
    pub share: ShareKey,
    pub flows: &'a SlowStreamWatchdog,
    /// End of the whole exchange.
    pub deadline: Instant,
}

pub(super) type GatewayResponse = Response<UpstreamResponseBody>;

impl Forwarder<'_> {
    /// Sends a request and gives back what the client gets to see.
    pub(in crate::pipeline) async fn forward(
        &self,
        request: &Inbound<'_>,
        body: RequestBody,
        source: CredentialSource,
        record: &mut AccessLogEntry,
    ) -> Result<Response<ResponseBody>, Rejection> {
        let is_whole = request.body().prefetch().await;
        if let Some(rejection) = body_failure(request) {
            return Err(rejection);
        }
        let (mut turn, carried) = match self.admit_at_once(request, source) {
            Ok(admitted) => admitted,
            Err(source) => Box::pin(self.admit(request, source, None)).await?,
        };
        if !is_whole {
            turn = request.body().hold(turn, self.flows);
        }
        let judged = match self.send(request, body, &carried, record).await {
            Ok(answer) if answer.status() != StatusCode::UNAUTHORIZED => {
                self.note_answer(request, &carried, answer.status(), false);
                Ok(JudgedResponse {
                    answer,
                    carried,
                    turn,
                })
            }
            outcome => Box::pin(self.judge(request, outcome, carried, turn, record)).await,
        };
        let answer = match judged {
            Ok(judged) => {
                record.answered_upstream(judged.answer.status());
                let JudgedResponse {
                    answer,
                    carried,
                    turn,
                } = judged;
                self.finish_response(answer, &carried, turn, request.body())
                    .await
            }
            Err(rejection) => Err(rejection),
        };
        if !is_whole {
            drop(request.body().take_turn());
        }
        answer
    }

    /// Waits for a turn at the upstream. One that is down is not waited for.
    pub(in crate::pipeline) async fn turn(&self) -> Result<UpstreamTurn, Rejection> {
        let health = self.upstream.health();
        let pass = health.admit().map_err(Rejection::UpstreamDown)?;
        let turn = self.upstream.turn(self.share, self.route.monitoring).await;
        let permit = turn.map_err(Rejection::NoTurn)?;
        // It may have gone down in the meantime.
        health.readmit(pass).map_err(Rejection::UpstreamDown)?;
        Ok(UpstreamTurn::Permit(permit))
    }

    /// One try, and one more on a fresh connection when a kept-alive one turned out
    /// dead and the request is safe to repeat.
    pub(in crate::pipeline) async fn send(
        &self,
        request: &Inbound<'_>,
        body: RequestBody,
        carried: &UpstreamCredential,
        record: &mut AccessLogEntry,
    ) -> Result<GatewayResponse, Rejection> {
        self.upstream.metrics.upstream_requests.add(carried.label());
        let outbound = inject(request, body, carried).into_request();
        let sent = Instant::now();
        match self.connections.send(outbound, self.patience()).await {
            Ok(answer) => {
                let took = sent.elapsed().as_secs_f64();
                self.upstream.metrics.first_byte_seconds.observe(took);
                Ok(answer)
            }
            Err(error) => Box::pin(self.send_again(request, error, carried, record)).await,
        }
    }

    async fn send_again(
        &self,
        request: &Inbound<'_>,
        error: SendError<RequestBody>,
        carried: &UpstreamCredential,
        record: &mut AccessLogEntry,
    ) -> Result<GatewayResponse, Rejection> {
        let Some(again) = second_try(request, &error, carried) else {
            return Err(refusal(request, error));
        };
        record.repeated();
        self.upstream
            .metrics
            .upstream_retries
            .add(RetryReason::DeadConnection);
        self.connections
            .send_fresh(again, self.patience())
            .await
            .map_err(|error| refusal(request, error))
    }

    pub(in crate::pipeline) fn patience(&self) -> ResponseTimeout {
        let settings = self.settings.first_byte_timeout;
        ResponseTimeout {
            first_byte: self.route.first_byte_timeout.unwrap_or(settings),
            until: Some(self.deadline),
        }
    }

    async fn finish_response(
        &self,
        answer: GatewayResponse,
        carried: &UpstreamCredential,
        turn: UpstreamTurn,
        upload: &BodyHandle,
    ) -> Result<Response<ResponseBody>, Rejection> {
        let (mut head, body) = answer.into_parts();
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Rejection::BadAnswer("upstream switched protocols unasked"));
        }
        let needle = carried.needle();
        headers::clean_answer(&mut head.headers, needle);
        if let (Some(phrase), Some(needle)) = (head.extensions.get::<ReasonPhrase>(), needle)
            && needle.is_in(phrase.as_bytes())
        {
            head.extensions.remove::<ReasonPhrase>();
        }
        if body.is_end_stream() {
            return Ok(Response::from_parts(head, ResponseBody::empty()));
        }
        let arriving = match body.size_hint().exact() {
            Some(length @ ..=SMALL) => match self.read_small(body, length).await? {
                SmallBody::Whole(bytes) => {
                    let bytes = match needle {
                        Some(needle) => scrub(bytes, needle),
                        None => bytes,
                    };
                    return Ok(Response::from_parts(head, ResponseBody::full(bytes)));
                }
                SmallBody::Arriving(arriving) => *arriving,
            },
            _ => match self.read_first(body, &head.headers).await? {
                Some(arriving) => arriving,
                None => return Ok(Response::from_parts(head, ResponseBody::empty())),
            },
        };
        let rules = PaceRules {
            idle: self.settings.body_idle_timeout,
            min_rate: self.http.min_body_rate,
            deadline: self.deadline,
        };
        let turn = upload.turn_for_answer(turn);
        let streaming = StreamingBody::new(arriving, turn, rules, needle.cloned(), self.flows);
        Ok(Response::from_parts(
            head,
            ResponseBody::streaming(streaming),
        ))
    }
}

/// What the upstream says to `carried` at its probe.
pub(in crate::pipeline) async fn ask(
    connections: &UpstreamConnections<RequestBody>,
    path: &PathAndQuery,
    carried: &UpstreamCredential,
    patience: ResponseTimeout,
) -> Option<StatusCode> {
    let mut outbound = probe(path, carried).into_request();
    let via = connections.via().clone();
    outbound.headers_mut().insert(VIA, via);
    let answer = connections.send(outbound, patience).await.ok()?;
    Some(answer.status())
}

/// The request for a second try, if a dead kept-alive connection was all that was wrong.
fn second_try(
    request: &Inbound<'_>,
    error: &SendError<RequestBody>,
    carried: &UpstreamCredential,
) -> Option<Request<RequestBody>> {
    if error.kind != SendErrorKind::DeadConnection {
        return None;
    }
    if error.unsent.is_none() && !request.is_idempotent() {
        return None;
    }
    let body = request.body().again()?;
    Some(inject(request, body, carried).into_request())
}

/// What is wrong with the client's own body.
fn body_failure(request: &Inbound<'_>) -> Option<Rejection> {
    Some(match request.body().failure()? {
        BodyFailure::TooLarge => Rejection::TooLarge,
        BodyFailure::TooSlow => Rejection::TooSlow,
        BodyFailure::Gone => Rejection::BadRequest("the body broke off"),
        BodyFailure::NoTurn => Rejection::Overloaded,
    })
}

fn refusal(request: &Inbound<'_>, error: SendError<RequestBody>) -> Rejection {
    if let Some(rejection) = body_failure(request) {
        return rejection;
    }
    match error.kind {
        SendErrorKind::FirstByteTimeout | SendErrorKind::ConnectTimeout => {
            Rejection::UpstreamTimeout
        }
        SendErrorKind::Closed | SendErrorKind::DeadConnection if request.body().is_some() => {
            Rejection::BrokeOff(Box::new(error))
        }
        SendErrorKind::Framing(why) => Rejection::BadAnswer(why.text()),
        _ => Rejection::Unreachable(Box::new(error)),
    }
}
