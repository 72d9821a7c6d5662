//! The fields that the gateway adds to a request for the upstream.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderValue};

use super::X_FORWARDED_FOR;
use super::origin::is_trusted;
use super::trace::TraceParent;
use crate::config::{AllowedFields, OverrideField, RequestRules, override_field};
use crate::pipeline::peer::Peer;
use crate::pipeline::peer::put_address;
use crate::upstream::OutboundFields;

/// The most fields that are added.
pub(super) const MAX_ADDED: usize = 7;

/// The facts about a request that the added fields tell.
pub(in crate::pipeline) struct RequestFacts<'a, 'v> {
    pub(in crate::pipeline) peer: &'a Peer,
    /// Host and port as the client wrote them; empty: none.
    pub(in crate::pipeline) authority: &'a str,
    /// Name of the client; empty on an open route.
    pub(in crate::pipeline) client: &'a str,
    pub(in crate::pipeline) request_id: &'a str,
    pub(in crate::pipeline) trace: &'a TraceParent,
    /// The gateway's entry in `Via`, with the HTTP version of the request.
    pub(in crate::pipeline) via: &'v HeaderValue,
    /// Override fields that the route allows.
    pub(in crate::pipeline) allowed: &'v AllowedFields,
}

/// The added fields as header values. Empty values, and values that no header can carry, are omitted.
#[derive(Debug)]
pub(in crate::pipeline) struct ForwardedHeaders<'v> {
    via: &'v HeaderValue,
    chain: Option<HeaderValue>,
    scheme: &'static str,
    host: Option<HeaderValue>,
    client: Option<HeaderValue>,
    request_id: Option<HeaderValue>,
    parent: Option<HeaderValue>,
    allowed: &'v AllowedFields,
    /// The peer is a trusted proxy, whose own `X-Forwarded-*` are kept.
    is_trusted: bool,
    /// The client's trace is continued, so its `tracestate` is kept.
    keeps_trace: bool,
}

impl<'v> RequestFacts<'_, 'v> {
    /// `received`: the request's fields.
    pub(in crate::pipeline) fn forwarded(
        &self,
        received: &HeaderMap,
        rules: &RequestRules,
    ) -> ForwardedHeaders<'v> {
        let is_trusted = is_trusted(self.peer.ip(), &rules.trusted_proxies);
        let mut arena = HeaderValueArena::default();
        let chain = arena.add(|text| {
            if is_trusted {
                put_chain(text, received);
            }
            put_address(text, self.peer.ip());
        });
        let host = arena.add(|text| text.extend_from_slice(self.authority.as_bytes()));
        let client = arena.add(|text| text.extend_from_slice(self.client.as_bytes()));
        let id = arena.add(|text| text.extend_from_slice(self.request_id.as_bytes()));
        let parent = arena.add(|text| self.trace.put_parent(text));
        let values = arena.finish();
        ForwardedHeaders {
            via: self.via,
            chain: values.value(chain),
            scheme: self.peer.scheme(),
            host: values.value(host),
            client: values.value(client),
            request_id: values.value(id),
            parent: values.value(parent),
            allowed: self.allowed,
            is_trusted,
            keeps_trace: self.trace.is_kept(),
        }
    }
}

fn put_chain(text: &mut Vec<u8>, received: &HeaderMap) {
    for value in received.get_all(X_FORWARDED_FOR) {
        text.extend_from_slice(value.as_bytes());
        text.extend_from_slice(b", ");
    }
}

impl ForwardedHeaders<'_> {
    /// The host as the client wrote it.
    pub(in crate::pipeline) fn host(&self) -> Option<&HeaderValue> {
        self.host.as_ref()
    }

    /// Whether the client's value for this field must be dropped, because the gateway sets the field
    /// itself or does not trust the sender with it. `name`: normalised by `plain_name`.
    pub(super) fn drops(&self, name: &str) -> bool {
        let is_reserved = match name.as_bytes() {
            [b'h', ..] => name == "host",
            [b't', ..] => name == "traceparent" || (name == "tracestate" && !self.keeps_trace),
            // CGI programs read `Proxy` as HTTP_PROXY and send their own requests to it.
            [b'p', ..] => name == "proxy",
            [b'x', b'-', ..] => {
                name == "x-request-id"
                    || name == "x-forwarded-for"
                    || name.starts_with("x-tollgate-")
            }
            _ => false,
        };
        is_reserved
            || match override_field(name) {
                None => false,
                Some(OverrideField::Forwarding) if self.is_trusted => false,
                Some(_) => !self.allowed.contains(name),
            }
    }

    /// Adds the fields. `fields` must not contain the ones that they replace.
    pub(super) fn put<'a>(&'a self, fields: &mut OutboundFields<'a>) {
        let mut push = |name, value: &'a Option<HeaderValue>| {
            if let Some(value) = value {
                fields.push_own(name, Cow::Borrowed(value));
            }
        };
        push("x-forwarded-for", &self.chain);
        push("x-tollgate-client", &self.client);
        push("x-request-id", &self.request_id);
        push("traceparent", &self.parent);
        // A line of its own after the received ones, which are not changed (RFC 9110, 7.6.3).
        fields.push_own("via", Cow::Borrowed(self.via));
        // A trusted proxy's own values of these two are kept.
        if !(self.is_trusted && fields.contains("x-forwarded-proto")) {
            let scheme = HeaderValue::from_static(self.scheme);
            fields.push_own("x-forwarded-proto", Cow::Owned(scheme));
        }
        if let Some(host) = &self.host
            && !(self.is_trusted && fields.contains("x-forwarded-host"))
        {
            fields.push_own("x-forwarded-host", Cow::Borrowed(host));
        }
    }
}

/// Values of several fields in one allocation, which copies of the values share.
#[derive(Default)]
struct HeaderValueArena(Vec<u8>);

struct ArenaValues(Bytes);

impl HeaderValueArena {
    fn add(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Range<usize> {
        if self.0.capacity() == 0 {
            self.0.reserve(192);
        }
        let start = self.0.len();
        write(&mut self.0);
        start..self.0.len()
    }

    fn finish(self) -> ArenaValues {
        ArenaValues(self.0.into())
    }
}

impl ArenaValues {
    fn value(&self, text: Range<usize>) -> Option<HeaderValue> {
        if text.is_empty() {
            return None;
        }
        HeaderValue::from_maybe_shared(self.0.slice(text)).ok()
    }
}
