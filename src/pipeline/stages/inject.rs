//! Stage 4: replaces the client's credential with the one for the upstream.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use http::Method;
use http::header::HeaderValue;
use http::request::Parts;
use http::uri::PathAndQuery;
use http_body::Body as _;

use crate::identity::Client;
use crate::metrics::SentCredential;
use crate::pipeline::body::request_body::{BodyHandle, RequestBody};
use crate::pipeline::headers::{self, ForwardedHeaders, RequestFacts, UpstreamFraming};
use crate::pipeline::request_context::RequestContext;
use crate::pipeline::route_rewrite::RouteRewrite;
use crate::secret::{Secret, SecretPattern};
use crate::upstream::{Lease, OutboundFields, OutboundRequest, PathKey, Session};

/// The credential that a request carries to the upstream.
#[derive(Clone, Debug)]
pub(in crate::pipeline) enum UpstreamCredential {
    /// The token of the gateway's session.
    Session(Arc<Lease>),
    /// The upstream's API key, on monitoring routes.
    ApiKey(Arc<Lease>),
    /// The client's own bearer token or Basic login, when the upstream owns the users.
    Client(HeaderValue),
    /// None, on open routes.
    Nothing,
}

/// Where the credential comes from.
#[derive(Debug)]
pub(in crate::pipeline) enum CredentialSource {
    Ready(UpstreamCredential),
    /// The session's lease, read once the request has an upstream permit.
    Session,
}

impl UpstreamCredential {
    /// Whether it is the gateway's own, and unknown to the client.
    pub(super) fn is_own(&self) -> bool {
        matches!(self, Self::Session(_) | Self::ApiKey(_))
    }

    /// The client's own bearer token.
    pub(super) fn bearer(token: &Secret) -> Self {
        let text = zeroize::Zeroizing::new(format!("Bearer {}", token.expose()));
        match HeaderValue::from_str(&text) {
            Ok(mut value) => {
                value.set_sensitive(true);
                Self::Client(value)
            }
            // Never: a token that came in a header is legal in one.
            Err(_) => Self::Nothing,
        }
    }

    /// The only endpoint that accepts it; None: all do.
    pub(super) fn endpoint(&self) -> Option<&Arc<str>> {
        match self {
            Self::Session(lease) => lease.endpoint(),
            Self::ApiKey(_) | Self::Client(_) | Self::Nothing => None,
        }
    }

    /// The secret that must not reach the client.
    pub(super) fn secret(&self) -> Option<&SecretPattern> {
        match self {
            Self::Session(lease) | Self::ApiKey(lease) => Some(lease.needle()),
            Self::Client(_) | Self::Nothing => None,
        }
    }

    pub(super) fn label(&self) -> SentCredential {
        match self {
            Self::Session(_) => SentCredential::Session,
            Self::ApiKey(_) => SentCredential::ApiKey,
            Self::Client(_) => SentCredential::Client,
            Self::Nothing => SentCredential::Nothing,
        }
    }
}

/// A request as the client sent it, and the fields that the gateway adds. `inject` makes the request
/// for the upstream from it, as often as it must be sent.
pub(in crate::pipeline) struct Inbound<'a> {
    head: &'a Parts,
    /// Path and query, as they are forwarded.
    target: Cow<'a, str>,
    rewrite: Option<&'a RouteRewrite>,
    forwarded: ForwardedHeaders<'a>,
    body: BodyHandle,
    /// The gateway itself reads the response.
    is_response_read: bool,
}

impl<'a> Inbound<'a> {
    pub(in crate::pipeline) fn new(
        request: &RequestContext<'a>,
        client: &Client,
        body: BodyHandle,
    ) -> Self {
        let head = request.head;
        let facts = RequestFacts {
            peer: request.peer,
            authority: headers::authority(&head.uri, &head.headers),
            client: match client {
                Client::Open => "",
                known => known.name(),
            },
            request_id: request.entry.id(),
            trace: request.entry.trace(),
            via: request.worker.app.via.value(head.version),
            allowed: &request.route.allow_fields,
        };
        let target = head.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        let rewrite = request.route.rewrite.as_deref();
        Self {
            head,
            target: rewrite.map_or(Cow::Borrowed(target), |rewrite| rewrite.target(target)),
            rewrite,
            forwarded: facts.forwarded(&head.headers, &request.live().config.http),
            body,
            is_response_read: false,
        }
    }

    /// The same request, asking for a response that the gateway can read.
    pub(in crate::pipeline) fn with_readable_response(self) -> Self {
        Self {
            is_response_read: true,
            ..self
        }
    }

    pub(in crate::pipeline) fn body(&self) -> &BodyHandle {
        &self.body
    }

    /// The key under which the session records this method and path.
    pub(super) fn path_key(&self, session: &Session) -> PathKey {
        session.path_key(&self.head.method, self.head.uri.path())
    }

    /// RFC 9110, 9.2.2.
    pub(super) fn is_idempotent(&self) -> bool {
        self.head.method.is_idempotent()
    }

    /// RFC 9110, 9.2.1.
    pub(super) fn is_safe(&self) -> bool {
        self.head.method.is_safe()
    }
}

// Written by hand, because the head contains the client's credential.
impl fmt::Debug for Inbound<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbound")
            .field("method", &self.head.method)
            .field("body", &self.body)
            .finish_non_exhaustive()
    }
}

/// A request for the upstream: without the client's credential, and with the gateway's. Only this
/// file makes one, and `upstream_exchange` sends nothing else.
#[derive(Debug)]
pub(super) struct Outbound<'a>(OutboundRequest<'a, RequestBody>);

impl<'a> Outbound<'a> {
    pub(super) fn into_request(self) -> OutboundRequest<'a, RequestBody> {
        self.0
    }
}

/// The request as it is sent to the upstream.
pub(super) fn inject<'a>(
    request: &'a Inbound<'_>,
    body: RequestBody,
    credential: &'a UpstreamCredential,
) -> Outbound<'a> {
    let head = request.head;
    let mut fields = headers::forwarded_fields(&head.headers, &request.forwarded);
    UpstreamFraming::of(head, body.size_hint().exact()).put(&head.method, &mut fields);
    if head.method == Method::OPTIONS {
        headers::decrement_max_forwards(&mut fields, &head.headers);
    }
    if let Some(rewrite) = request.rewrite {
        rewrite.put(&mut fields, &request.forwarded);
    }
    if request.is_response_read {
        headers::request_plain_content(&mut fields);
    }
    put_credential(&mut fields, credential);
    Outbound(OutboundRequest {
        method: &head.method,
        target: &request.target,
        fields,
        body,
    })
}

/// A request of the gateway's own that tests `credential`. `via`: the gateway's entry.
pub(super) fn probe<'a>(
    path: &'a PathAndQuery,
    credential: &'a UpstreamCredential,
    via: &'a HeaderValue,
) -> Outbound<'a> {
    let mut fields = OutboundFields::default();
    headers::request_plain_content(&mut fields);
    put_credential(&mut fields, credential);
    fields.push_own("via", Cow::Borrowed(via));
    Outbound(OutboundRequest {
        method: &Method::GET,
        target: path.as_str(),
        fields,
        body: RequestBody::empty(),
    })
}

fn put_credential<'a>(fields: &mut OutboundFields<'a>, credential: &'a UpstreamCredential) {
    match credential {
        UpstreamCredential::Session(lease) | UpstreamCredential::ApiKey(lease) => {
            for (name, value) in lease.headers() {
                fields.set(name.as_str(), Cow::Borrowed(value));
            }
        }
        UpstreamCredential::Client(value) => fields.set("authorization", Cow::Borrowed(value)),
        UpstreamCredential::Nothing => {}
    }
}
