//! The framing of a request for the upstream. It is decided from the received fields and from the
//! body as hyper has parsed it, before any field is removed. docs/FRAMING.md has the table.

use std::borrow::Cow;

use http::header::{HeaderMap, HeaderValue, TRAILER};
use http::request::Parts;
use http::{Method, Version};

use crate::config::RequestRules;
use crate::pipeline::reject::Rejection;
use crate::upstream::OutboundFields;
use crate::via::GatewayVia;

/// Rejects fields that the next parser could read differently, and requests that have passed this
/// gateway before, which would loop.
pub(in crate::pipeline) fn check(
    headers: &HeaderMap,
    version: Version,
    rules: &RequestRules,
    via: &GatewayVia,
) -> Result<(), Rejection> {
    let is_http2 = version == Version::HTTP_2;
    let mut hosts = 0;
    let mut lengths = 0;
    let mut has_underscore = false;
    let mut has_via = false;
    for (name, _) in headers {
        match name.as_str() {
            "host" => hosts += 1,
            "content-length" => lengths += 1,
            "via" => has_via = true,
            // RFC 9113 8.2.2: such fields make an HTTP/2 message malformed.
            name if is_http2 && super::is_of_a_connection(name) => {
                return Err(Rejection::BadRequest(
                    "a connection field in an HTTP/2 request",
                ));
            }
            name => has_underscore |= memchr::memchr(b'_', name.as_bytes()).is_some(),
        }
    }
    if has_via && via.is_in(headers) {
        return Err(Rejection::Loop);
    }
    if has_underscore && !rules.allow_underscores {
        return Err(Rejection::BadRequest("a field name has an underscore"));
    }
    if hosts > 1 {
        return Err(Rejection::BadRequest("more than one Host field"));
    }
    if lengths > 1 {
        return Err(Rejection::BadRequest("more than one Content-Length field"));
    }
    Ok(())
}

/// How the content of a request is framed for the upstream (RFC 9112 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pipeline) enum UpstreamFraming {
    /// Bytes of content. 0 is sent without a field, unless the method expects content.
    Length(u64),
    Chunked,
}

impl UpstreamFraming {
    /// `length`: of the content, if it is known in advance.
    pub(in crate::pipeline) fn of(head: &Parts, length: Option<u64>) -> Self {
        match length {
            // HTTP/2 allows trailers with a length; HTTP/1 only after chunks.
            Some(_) if head.version == Version::HTTP_2 && head.headers.contains_key(TRAILER) => {
                Self::Chunked
            }
            Some(length) => Self::Length(length),
            None => Self::Chunked,
        }
    }

    /// Sets the framing fields, whatever was received: a length named in `Connection`, a length with
    /// leading zeros, or none. The body is sent by these fields.
    pub(in crate::pipeline) fn put(self, method: &Method, fields: &mut OutboundFields<'_>) {
        match self {
            Self::Chunked => {
                fields.remove("content-length");
                let chunked = HeaderValue::from_static("chunked");
                fields.set("transfer-encoding", Cow::Owned(chunked));
            }
            Self::Length(length) => match fields.get("content-length") {
                Some(received) if is_decimal(received, length) => {}
                // RFC 9110 8.6: some servers respond 411 to a method that expects content without it.
                None if length == 0 && !expects_content(method) => {}
                _ => {
                    let length = HeaderValue::from(length);
                    fields.set("content-length", Cow::Owned(length));
                    // Trailers end with the chunks that they came with.
                    fields.remove("trailer");
                }
            },
        }
    }
}

/// Methods that define a meaning for content (RFC 9110 8.6).
fn expects_content(method: &Method) -> bool {
    matches!(method.as_str(), "POST" | "PUT" | "PATCH" | "QUERY")
}

/// Whether the field is `length` without leading zeros, which some parsers read as octal.
fn is_decimal(field: &HeaderValue, length: u64) -> bool {
    let digits = field.as_bytes();
    let is_short = digits.len() == 1 || digits.first() != Some(&b'0');
    is_short && std::str::from_utf8(digits).is_ok_and(|text| text.parse() == Ok(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(
        framing: UpstreamFraming,
        method: &Method,
        received: &[(&'static str, &'static str)],
    ) -> String {
        let mut fields = OutboundFields::default();
        for (name, value) in received {
            fields.push_own(name, Cow::Owned(HeaderValue::from_static(value)));
        }
        framing.put(method, &mut fields);
        let value_of = |name| {
            fields
                .get(name)
                .map_or("-", |value: &HeaderValue| value.to_str().unwrap())
        };
        format!(
            "{} {} {}",
            value_of("content-length"),
            value_of("transfer-encoding"),
            value_of("trailer")
        )
    }

    #[test]
    fn exactly_one_framing_is_sent_whatever_was_received() {
        use UpstreamFraming::{Chunked, Length};
        let chunked_fields = [("trailer", "x")];
        assert_eq!(
            put(Length(3), &Method::POST, &[("content-length", "3")]),
            "3 - -"
        );
        assert_eq!(
            put(Length(3), &Method::POST, &[("content-length", "003")]),
            "3 - -"
        );
        assert_eq!(put(Length(3), &Method::GET, &[]), "3 - -");
        assert_eq!(
            put(Length(3), &Method::POST, &[("content-length", "4")]),
            "3 - -"
        );
        assert_eq!(put(Length(5), &Method::POST, &chunked_fields), "5 - -");
        assert_eq!(put(Length(0), &Method::GET, &[]), "- - -");
        assert_eq!(put(Length(0), &Method::DELETE, &[]), "- - -");
        for method in [Method::POST, Method::PUT, Method::PATCH] {
            assert_eq!(put(Length(0), &method, &[]), "0 - -");
        }
        assert_eq!(put(Chunked, &Method::GET, &chunked_fields), "- chunked x");
        assert_eq!(
            put(Chunked, &Method::POST, &[("content-length", "+5")]),
            "- chunked -"
        );
    }
}
