//! Stage 5: forwards a request to the upstream, and makes the response that the client may see.

use http::{Response, StatusCode};
use http_body::Body as _;
use hyper::ext::ReasonPhrase;

use super::authenticate::AuthenticatedClient;
use super::bound_body::bound_body;
use super::inject::{CredentialSource, Inbound, UpstreamCredential};
use super::refused_lease::JudgedResponse;
use super::response_start::{MAX_SMALL_BODY, SmallBody};
use super::upstream_exchange::{Forwarder, UpstreamResponse};
use crate::identity::Client;
use crate::pipeline::access_log::entry::AccessLogEntry;
use crate::pipeline::body::client_body::ClientBody;
use crate::pipeline::body::client_response_body::ResponseBody;
use crate::pipeline::body::permit_state::PermitState;
use crate::pipeline::body::rate_guard::RateRules;
use crate::pipeline::body::redact::redact;
use crate::pipeline::body::request_body::{BodyHandle, RequestBody};
use crate::pipeline::body::streaming_body::StreamingBody;
use crate::pipeline::headers;
use crate::pipeline::reject::Rejection;
use crate::pipeline::request_context::RequestContext;

/// Forwards a request whose target is the upstream.
pub(in crate::pipeline) async fn forward(
    request: &mut RequestContext<'_>,
    client: &AuthenticatedClient,
    body: ClientBody,
) -> Result<Response<ResponseBody>, Rejection> {
    let body = bound_body(request, body)?;
    let inbound = Inbound::new(request, &client.client, body.handle());
    let forwarder = Forwarder::new(request, &client.client);
    let source = forwarder.credential_source(client);
    let response = forwarder
        .forward(&inbound, body, source, request.entry)
        .await?;
    // A 401 to the client's own bearer token is a verdict on that token.
    if response.status() == StatusCode::UNAUTHORIZED
        && client.bearer.is_some()
        && let Some(digest) = &client.digest
    {
        request.worker.app.tokens.revoke(digest).await;
    }
    Ok(response)
}

impl Forwarder<'_> {
    /// Where the credential for this client's requests comes from.
    pub(in crate::pipeline) fn credential_source(
        &self,
        client: &AuthenticatedClient,
    ) -> CredentialSource {
        if let Some(token) = &client.bearer {
            return CredentialSource::Ready(UpstreamCredential::bearer(token));
        }
        if matches!(client.client, Client::Open) {
            return CredentialSource::Ready(UpstreamCredential::Nothing);
        }
        if self.route.monitoring
            && let Some(key) = self.upstream().api_key()
        {
            return CredentialSource::Ready(UpstreamCredential::ApiKey(key));
        }
        CredentialSource::Session
    }

    /// Sends a request, repeats it when the upstream refused the gateway's lease, and returns the
    /// response for the client.
    pub(in crate::pipeline) async fn forward(
        &self,
        request: &Inbound<'_>,
        body: RequestBody,
        source: CredentialSource,
        entry: &mut AccessLogEntry,
    ) -> Result<Response<ResponseBody>, Rejection> {
        let is_whole = request.body().prefetch().await;
        if let Some(failure) = request.body().failure() {
            return Err(failure.rejection());
        }
        let (mut permit, mut credential) = match self.admit_at_once(request, source) {
            Ok(admitted) => admitted,
            Err(source) => Box::pin(self.admit(request, source, None)).await?,
        };
        if !is_whole {
            permit = request.body().hold_permit(permit, &self.worker.watchdog);
        }
        let judged = match self.send(request, body, &mut credential, entry).await {
            Ok(response) if response.status() != StatusCode::UNAUTHORIZED => {
                self.note_response(request, &credential, response.status(), false);
                Ok(JudgedResponse {
                    response,
                    credential,
                    permit,
                })
            }
            outcome => Box::pin(self.judge(request, outcome, credential, permit, entry)).await,
        };
        let response = match judged {
            Ok(judged) => {
                entry.upstream_responded(judged.response.status());
                let JudgedResponse {
                    response,
                    credential,
                    permit,
                } = judged;
                self.finish_response(response, &credential, permit, request.body())
                    .await
            }
            Err(rejection) => Err(rejection),
        };
        if !is_whole {
            drop(request.body().take_permit());
        }
        response
    }

    async fn finish_response(
        &self,
        response: UpstreamResponse,
        credential: &UpstreamCredential,
        permit: PermitState,
        upload: &BodyHandle,
    ) -> Result<Response<ResponseBody>, Rejection> {
        let (mut head, body) = response.into_parts();
        let secret = credential.secret();
        headers::clean_response(&mut head.headers, secret);
        if let (Some(phrase), Some(secret)) = (head.extensions.get::<ReasonPhrase>(), secret)
            && secret.is_in(phrase.as_bytes())
        {
            head.extensions.remove::<ReasonPhrase>();
        }
        if body.is_end_stream() {
            return Ok(Response::from_parts(head, ResponseBody::empty()));
        }
        let arriving = match body.size_hint().exact() {
            Some(length @ ..=MAX_SMALL_BODY) => match self.read_small(body, length).await? {
                SmallBody::Whole(bytes) => {
                    let bytes = match secret {
                        Some(secret) => redact(bytes, secret),
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
        let rules = RateRules {
            idle_timeout: self.settings().body_idle_timeout,
            min_rate: self.worker.live.config.http.min_body_rate,
            deadline: self.deadline,
            is_call: self.is_call,
        };
        let held = upload.permit_for_response(permit);
        let watchdog = &self.worker.watchdog;
        let streaming = StreamingBody::new(arriving, held, rules, secret.cloned(), watchdog);
        Ok(Response::from_parts(
            head,
            ResponseBody::streaming(streaming),
        ))
    }
}
