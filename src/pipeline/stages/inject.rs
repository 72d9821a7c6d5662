//! Stage 4: the client's credential out, ours in.

use std::fmt;
use std::sync::Arc;

use http::header::{AUTHORIZATION, HeaderValue};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, Uri};

use crate::metrics::SentCredential;
use crate::pipeline::body::request_body::{BodyHandle, RequestBody};
use crate::pipeline::headers::{self, ForwardedHeaders, UpwardFraming};
use crate::secret::{Secret, SecretPattern};
use crate::upstream::{Lease, PathKey, Session};

/// What goes up in place of the client's credential.
#[derive(Clone, Debug)]
pub(in crate::pipeline) enum UpstreamCredential {
    /// Our session's token.
    Session(Arc<Lease>),
    /// The upstream's API key, on monitoring nodes.
    ApiKey(Arc<Lease>),
    /// The client's own bearer or Basic login, when the Webapp owns the users.
    Client(HeaderValue),
    /// An open route carries nothing.
    Nothing,
}

/// Where that comes from.
#[derive(Debug)]
pub(in crate::pipeline) enum CredentialSource {
    Ready(UpstreamCredential),
    /// The lease that the session has when the request's turn has come.
    Session,
}

impl UpstreamCredential {
    /// One of the gate's own credentials, of which the client knows nothing.
    pub(in crate::pipeline) fn is_ours(&self) -> bool {
        matches!(self, Self::Session(_) | Self::ApiKey(_))
    }

    /// The client's own bearer. A token that has been found in the store is legal in a header.
    pub(in crate::pipeline) fn bearer(token: &Secret) -> Self {
        let text = zeroize::Zeroizing::new(format!("Bearer {}", token.expose()));
        match HeaderValue::from_str(&text) {
            Ok(mut value) => {
                value.set_sensitive(true);
                Self::Client(value)
            }
            Err(_) => Self::Nothing,
        }
    }

    /// What must not come down again.
    pub(in crate::pipeline) fn needle(&self) -> Option<&SecretPattern> {
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

/// A request as it came, and what we say about it: `inject` makes of it what goes up, as
/// often as it must be sent.
pub(in crate::pipeline) struct Inbound<'a> {
    head: &'a Parts,
    said: ForwardedHeaders<'a>,
    body: BodyHandle,
    /// The gate itself reads the answer.
    is_answer_read: bool,
}

impl<'a> Inbound<'a> {
    pub(in crate::pipeline) fn new(
        head: &'a Parts,
        said: ForwardedHeaders<'a>,
        body: BodyHandle,
    ) -> Self {
        Self {
            head,
            said,
            body,
            is_answer_read: false,
        }
    }

    /// The same, asking for an answer that the gate can read.
    pub(in crate::pipeline) fn answer_read(self) -> Self {
        Self {
            is_answer_read: true,
            ..self
        }
    }

    pub(in crate::pipeline) fn body(&self) -> &BodyHandle {
        &self.body
    }

    /// Method and path, as the session knows them.
    pub(super) fn path_key(&self, session: &Session) -> PathKey {
        session.path_key(&self.head.method, self.head.uri.path())
    }

    /// Whether sending it twice does the same as sending it once (RFC 9110, 9.2.2).
    pub(super) fn is_idempotent(&self) -> bool {
        self.head.method.is_idempotent()
    }
}

// By hand: the head holds the client's credential.
impl fmt::Debug for Inbound<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbound")
            .field("method", &self.head.method)
            .field("body", &self.body)
            .finish_non_exhaustive()
    }
}

/// A request that may leave the house: the client's credential is gone and ours is
/// in. Only `inject` makes one, and `forward` sends nothing else.
#[derive(Debug)]
pub(in crate::pipeline) struct Outbound(Request<RequestBody>);

impl Outbound {
    pub(super) fn into_request(self) -> Request<RequestBody> {
        self.0
    }
}

pub(in crate::pipeline) fn inject(
    request: &Inbound<'_>,
    body: RequestBody,
    carried: &UpstreamCredential,
) -> Outbound {
    let framing = UpwardFraming::of(request.head, http_body::Body::size_hint(&body).exact());
    let mut outbound = Request::new(body);
    *outbound.method_mut() = request.head.method.clone();
    if let Some(target) = request.head.uri.path_and_query() {
        *outbound.uri_mut() = Uri::from(target.clone());
    }
    *outbound.headers_mut() = headers::forwarded_headers(&request.head.headers, &request.said);
    framing.put(&request.head.method, outbound.headers_mut());
    if request.head.method == Method::OPTIONS {
        headers::count_hop(outbound.headers_mut());
    }
    if request.is_answer_read {
        headers::ask_plain(outbound.headers_mut());
    }
    carry(outbound.headers_mut(), carried);
    Outbound(outbound)
}

/// A question of our own about `carried`.
pub(super) fn probe(path: &PathAndQuery, carried: &UpstreamCredential) -> Outbound {
    let mut outbound = Request::new(RequestBody::empty());
    *outbound.uri_mut() = Uri::from(path.clone());
    headers::ask_plain(outbound.headers_mut());
    carry(outbound.headers_mut(), carried);
    Outbound(outbound)
}

fn carry(headers: &mut HeaderMap, carried: &UpstreamCredential) {
    match carried {
        UpstreamCredential::Session(lease) | UpstreamCredential::ApiKey(lease) => {
            for (name, value) in lease.headers() {
                headers.insert(name, value.clone());
            }
        }
        UpstreamCredential::Client(value) => {
            headers.insert(AUTHORIZATION, value.clone());
        }
        UpstreamCredential::Nothing => {}
    }
}
