//! What the gate says about a request to the upstream, in fields of its own.

use std::ops::Range;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue, VIA};

use super::origin::is_trusted;
use super::trace::{TRACEPARENT, TraceParent};
use super::{X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO, X_REQUEST_ID};
use crate::config::{AllowedFields, OverrideField, RequestRules, override_field};
use crate::pipeline::access_log::line::put_address;
use crate::pipeline::peer::Peer;

const X_TOLLGATE_CLIENT: HeaderName = HeaderName::from_static("x-tollgate-client");

/// The most fields that are said.
pub(super) const SAID: usize = 7;

/// What is to be said.
pub(in crate::pipeline) struct RequestFacts<'a, 'v> {
    pub(in crate::pipeline) peer: &'a Peer,
    /// Host and port as the client wrote them; empty: it named none.
    pub(in crate::pipeline) authority: &'a str,
    /// Empty: nobody was asked.
    pub(in crate::pipeline) client: &'a str,
    pub(in crate::pipeline) request_id: &'a str,
    pub(in crate::pipeline) trace: &'a TraceParent,
    /// This gate in `Via`, after the version that the request came in.
    pub(in crate::pipeline) via: &'v HeaderValue,
    /// Override fields that may go up on this route.
    pub(in crate::pipeline) allowed: &'v AllowedFields,
}

/// The same as field values; an empty text, and one that no field can carry, is left out.
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
    /// The peer is a proxy whose own `X-Forwarded-*` are believed.
    believed: bool,
    /// `tracestate` belongs to the trace it came with.
    keeps_trace: bool,
}

impl<'v> RequestFacts<'_, 'v> {
    /// `came`: the request's fields.
    pub(in crate::pipeline) fn about(
        &self,
        came: &HeaderMap,
        rules: &RequestRules,
    ) -> ForwardedHeaders<'v> {
        let believed = is_trusted(self.peer.ip(), &rules.trusted_proxies);
        let mut texts = HeaderValueArena::default();
        let chain = texts.add(|text| {
            if believed {
                put_chain(text, came);
            }
            put_address(text, self.peer.ip());
        });
        let host = texts.add(|text| text.extend_from_slice(self.authority.as_bytes()));
        let client = texts.add(|text| text.extend_from_slice(self.client.as_bytes()));
        let id = texts.add(|text| text.extend_from_slice(self.request_id.as_bytes()));
        let parent = texts.add(|text| self.trace.put_parent(text));
        let texts = texts.finish();
        ForwardedHeaders {
            via: self.via,
            chain: texts.value(chain),
            scheme: self.peer.scheme(),
            host: texts.value(host),
            client: texts.value(client),
            request_id: texts.value(id),
            parent: texts.value(parent),
            allowed: self.allowed,
            believed,
            keeps_trace: self.trace.is_kept(),
        }
    }
}

fn put_chain(text: &mut Vec<u8>, came: &HeaderMap) {
    for value in came.get_all(X_FORWARDED_FOR) {
        text.extend_from_slice(value.as_bytes());
        text.extend_from_slice(b", ");
    }
}

impl ForwardedHeaders<'_> {
    /// Whether a field that came ends at the gate: because the gate says it itself, or
    /// because only a trusted proxy, or nobody, may say it to the upstream.
    /// `name` as `plain_name` gives it.
    pub(super) fn ends_here(&self, name: &str) -> bool {
        let is_ours = match name.as_bytes() {
            [b'h', ..] => name == "host",
            [b't', ..] => name == "traceparent" || (name == "tracestate" && !self.keeps_trace),
            // CGI programs read `Proxy` as HTTP_PROXY, and send their own requests there.
            [b'p', ..] => name == "proxy",
            [b'x', b'-', ..] => {
                name == "x-request-id"
                    || name == "x-forwarded-for"
                    || name.starts_with("x-tollgate-")
            }
            _ => false,
        };
        is_ours
            || match override_field(name) {
                None => false,
                Some(OverrideField::Forwarding) if self.believed => false,
                Some(_) => !self.allowed.contains(name),
            }
    }

    /// Says it, in fields from which all that it replaces has been left out.
    pub(super) fn put(&self, fields: &mut HeaderMap) {
        let mut say = |name: HeaderName, value: &Option<HeaderValue>| {
            if let Some(value) = value {
                fields.append(name, value.clone());
            }
        };
        say(X_FORWARDED_FOR, &self.chain);
        say(X_TOLLGATE_CLIENT, &self.client);
        say(X_REQUEST_ID, &self.request_id);
        say(TRACEPARENT, &self.parent);
        // A line of its own: what came stays as it came, before it (RFC 9110, 7.6.3).
        fields.append(VIA, self.via.clone());
        // What a believed proxy has said of these two stands.
        if !(self.believed && fields.contains_key(X_FORWARDED_PROTO)) {
            fields.append(X_FORWARDED_PROTO, HeaderValue::from_static(self.scheme));
        }
        if let Some(host) = &self.host
            && !(self.believed && fields.contains_key(X_FORWARDED_HOST))
        {
            fields.append(X_FORWARDED_HOST, host.clone());
        }
    }
}

/// Values of several fields in one allocation, which copies of the fields share.
#[derive(Default)]
struct HeaderValueArena(Vec<u8>);

struct ArenaValues(Bytes);

impl HeaderValueArena {
    fn add(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Range<usize> {
        if self.0.capacity() == 0 {
            self.0.reserve(192);
        }
        let from = self.0.len();
        write(&mut self.0);
        from..self.0.len()
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
