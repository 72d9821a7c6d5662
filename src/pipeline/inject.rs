//! Stage 4: the client's credential out, ours in.

use std::sync::Arc;

use http::header::{AUTHORIZATION, HOST, HeaderValue};
use http::{HeaderMap, Method, Request, Uri, Version};

use super::headers;
use super::request_body::{BodyHandle, RequestBody};
use crate::metrics::Injected;
use crate::secret::{Needle, Secret};
use crate::upstream::Lease;

/// What goes up in place of the client's credential.
#[derive(Clone, Debug)]
pub(super) enum Carried {
    /// Our session's token.
    Session(Arc<Lease>),
    /// The upstream's API key, on monitoring nodes.
    ApiKey(Arc<Lease>),
    /// The client's own bearer or Basic login, when the Webapp owns the users.
    Client(HeaderValue),
    /// An open route carries nothing.
    Nothing,
}

impl Carried {
    /// The client's own bearer. A token that has been found in the store is legal in a header.
    pub(super) fn bearer(token: &Secret) -> Self {
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
    pub(super) fn needle(&self) -> Option<&Needle> {
        match self {
            Self::Session(lease) | Self::ApiKey(lease) => Some(lease.needle()),
            Self::Client(_) | Self::Nothing => None,
        }
    }

    pub(super) fn label(&self) -> Injected {
        match self {
            Self::Session(_) => Injected::Session,
            Self::ApiKey(_) => Injected::ApiKey,
            Self::Client(_) => Injected::Client,
            Self::Nothing => Injected::Nothing,
        }
    }
}

/// A request without any credential, hygiene done, that can be sent more than once.
#[derive(Debug)]
pub(super) struct Stripped {
    method: Method,
    target: Uri,
    headers: HeaderMap,
    body: BodyHandle,
}

impl Stripped {
    /// Takes out what ends at this hop and what the client presented.
    pub(super) fn new(
        method: Method,
        target: Uri,
        mut headers: HeaderMap,
        body: BodyHandle,
    ) -> Self {
        headers::end_at_this_hop(&mut headers);
        headers::strip_credentials(&mut headers);
        headers.remove(HOST);
        Self {
            method,
            target,
            headers,
            body,
        }
    }

    pub(super) fn headers_mut(&mut self) -> &mut HeaderMap {
        &mut self.headers
    }

    pub(super) fn body(&self) -> &BodyHandle {
        &self.body
    }

    /// Whether sending it twice does the same as sending it once (RFC 9110, 9.2.2).
    pub(super) fn is_idempotent(&self) -> bool {
        self.method.is_idempotent()
    }
}

/// A request that may leave the house: the client's credential is gone and ours is
/// in. Only `inject` makes one, and `forward` sends nothing else.
#[derive(Debug)]
pub(super) struct Outbound(Request<RequestBody>);

impl Outbound {
    pub(super) fn into_request(self) -> Request<RequestBody> {
        self.0
    }
}

pub(super) fn inject(request: &Stripped, body: RequestBody, carried: &Carried) -> Outbound {
    let mut outbound = Request::new(body);
    *outbound.method_mut() = request.method.clone();
    *outbound.uri_mut() = request.target.clone();
    *outbound.version_mut() = Version::HTTP_11;
    *outbound.headers_mut() = request.headers.clone();
    let headers = outbound.headers_mut();
    match carried {
        Carried::Session(lease) | Carried::ApiKey(lease) => {
            for (name, value) in lease.headers() {
                headers.insert(name, value.clone());
            }
        }
        Carried::Client(value) => {
            headers.insert(AUTHORIZATION, value.clone());
        }
        Carried::Nothing => {}
    }
    Outbound(outbound)
}
