//! What the gate says about a request to the upstream, in fields of its own.

use std::ops::Range;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::{X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO, X_REQUEST_ID, is_trusted};
use crate::config::Network;
use crate::pipeline::access_line::put_address;
use crate::pipeline::peer::Peer;
use crate::pipeline::trace::{TRACEPARENT, TRACESTATE, Trace};

const X_TOLLGATE_CLIENT: HeaderName = HeaderName::from_static("x-tollgate-client");

/// What is said.
pub(in crate::pipeline) struct Ours<'a> {
    pub(in crate::pipeline) peer: &'a Peer,
    /// Empty: the client named none.
    pub(in crate::pipeline) host: &'a str,
    /// Empty: nobody was asked.
    pub(in crate::pipeline) client: &'a str,
    pub(in crate::pipeline) request_id: &'a str,
    pub(in crate::pipeline) trace: &'a Trace,
}

impl Ours<'_> {
    /// Drops the fields that outsiders may not send, and says our own.
    pub(in crate::pipeline) fn put(&self, headers: &mut HeaderMap, trusted: &[Network]) {
        let believed = is_trusted(self.peer.ip(), trusted);
        super::remove_all(headers, |name| is_ours(name, believed));
        let mut texts = Texts::default();
        let chain = texts.add(|text| {
            for value in headers.get_all(X_FORWARDED_FOR) {
                text.extend_from_slice(value.as_bytes());
                text.extend_from_slice(b", ");
            }
            put_address(text, self.peer.ip());
        });
        let host = texts.add(|text| text.extend_from_slice(self.host.as_bytes()));
        let client = texts.add(|text| text.extend_from_slice(self.client.as_bytes()));
        let id = texts.add(|text| text.extend_from_slice(self.request_id.as_bytes()));
        let parent = texts.add(|text| self.trace.put_parent(text));
        let texts = texts.finish();

        texts.insert(headers, X_FORWARDED_FOR, chain);
        let scheme = HeaderValue::from_static(self.peer.scheme());
        headers.entry(X_FORWARDED_PROTO).or_insert(scheme);
        if !believed || !headers.contains_key(X_FORWARDED_HOST) {
            texts.insert(headers, X_FORWARDED_HOST, host);
        }
        texts.insert(headers, X_TOLLGATE_CLIENT, client);
        texts.insert(headers, X_REQUEST_ID, id);
        texts.insert(headers, TRACEPARENT, parent);
        // It belongs to the trace it came with.
        if !self.trace.is_kept() {
            headers.remove(TRACESTATE);
        }
    }
}

/// `_` and `-` are the same name to many servers, so they are to this filter.
fn is_ours(name: &str, believed: bool) -> bool {
    let begins = |with: &str| {
        let mut bytes = name.bytes().map(|b| if b == b'_' { b'-' } else { b });
        with.bytes().all(|byte| bytes.next() == Some(byte))
    };
    let is = |whole: &str| name.len() == whole.len() && begins(whole);
    match name.as_bytes().first() {
        Some(b'x') if begins("x-tollgate-") => true,
        Some(b'x') => !believed && (is("x-real-ip") || begins("x-forwarded-")),
        Some(b'f') => !believed && is("forwarded"),
        _ => false,
    }
}

/// Values of several fields in one allocation, which copies of the fields share: the
/// request is kept for a second try.
#[derive(Default)]
struct Texts(Vec<u8>);

struct Finished(Bytes);

impl Texts {
    fn add(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Range<usize> {
        if self.0.capacity() == 0 {
            self.0.reserve(192);
        }
        let from = self.0.len();
        write(&mut self.0);
        from..self.0.len()
    }

    fn finish(self) -> Finished {
        Finished(self.0.into())
    }
}

impl Finished {
    /// An empty text, and one that no field can carry, is left out.
    fn insert(&self, headers: &mut HeaderMap, name: HeaderName, text: Range<usize>) {
        if !text.is_empty()
            && let Ok(value) = HeaderValue::from_maybe_shared(self.0.slice(text))
        {
            headers.insert(name, value);
        }
    }
}
