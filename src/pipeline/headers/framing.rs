//! How a message is framed on its way up: decided here, from the fields as they came and
//! the body as the listener has read it, before hygiene takes a field away. docs/FRAMING.md
//! has the table.

use http::header::{CONTENT_LENGTH, HeaderMap, HeaderValue, TRAILER, TRANSFER_ENCODING};
use http::request::Parts;
use http::{Method, Version};

use crate::config::RequestRules;
use crate::pipeline::reject::Rejection;
use crate::via::GatewayVia;

/// Refuses fields that parsers after us could read differently, and requests that have been
/// here before: wherever they lead, they would come back again.
pub(in crate::pipeline) fn check(
    headers: &HeaderMap,
    version: Version,
    rules: &RequestRules,
    via: &GatewayVia,
) -> Result<(), Rejection> {
    let is_http2 = version == Version::HTTP_2;
    let (mut hosts, mut lengths, mut underscores, mut has_passed) = (0, 0, false, false);
    for (name, _) in headers {
        match name.as_str() {
            "host" => hosts += 1,
            "content-length" => lengths += 1,
            "via" => has_passed = true,
            // RFC 9113 8.2.2: such fields make an HTTP/2 message malformed.
            name if is_http2 && super::is_of_a_connection(name) => {
                return Err(Rejection::BadRequest(
                    "a connection field in an HTTP/2 request",
                ));
            }
            name => underscores |= memchr::memchr(b'_', name.as_bytes()).is_some(),
        }
    }
    if has_passed && via.is_in(headers) {
        return Err(Rejection::Loop);
    }
    if underscores && !rules.allow_underscores {
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

/// How the content of one request goes up (RFC 9112 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pipeline) enum UpwardFraming {
    /// Bytes of content; 0 without a field unless the method asks for one.
    Length(u64),
    Chunked,
}

impl UpwardFraming {
    /// `length`: of the content, where it is known before it goes up.
    pub(in crate::pipeline) fn of(head: &Parts, length: Option<u64>) -> Self {
        match length {
            // HTTP/2 has trailers beside a length; HTTP/1 has them after chunks only.
            Some(_) if head.version == Version::HTTP_2 && head.headers.contains_key(TRAILER) => {
                Self::Chunked
            }
            Some(length) => Self::Length(length),
            None => Self::Chunked,
        }
    }

    /// Makes the framing fields say it, whatever came: a length named in `Connection`, with
    /// zeros before it, or none at all. hyper frames by these fields; left alone it would
    /// send a GET of unknown length without its content.
    pub(in crate::pipeline) fn put(self, method: &Method, fields: &mut HeaderMap) {
        match self {
            Self::Chunked => {
                fields.remove(CONTENT_LENGTH);
                fields.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            }
            Self::Length(length) => match fields.get(CONTENT_LENGTH) {
                Some(came) if is_decimal(came, length) => {}
                // RFC 9110 8.6: there are servers that answer 411 to such a method without.
                None if length == 0 && !expects_content(method) => {}
                _ => {
                    fields.insert(CONTENT_LENGTH, HeaderValue::from(length));
                    // It came chunked, and its trailers with it.
                    fields.remove(TRAILER);
                }
            },
        }
    }
}

/// Methods that define a meaning for content (RFC 9110 8.6).
fn expects_content(method: &Method) -> bool {
    matches!(method.as_str(), "POST" | "PUT" | "PATCH" | "QUERY")
}

/// Whether the field says `length` in the only spelling that nobody reads as octal.
fn is_decimal(field: &HeaderValue, length: u64) -> bool {
    let digits = field.as_bytes();
    let is_short = digits.len() == 1 || digits.first() != Some(&b'0');
    is_short && std::str::from_utf8(digits).is_ok_and(|text| text.parse() == Ok(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(
        framing: UpwardFraming,
        method: &Method,
        came: &[(&'static str, &'static str)],
    ) -> String {
        let mut fields = HeaderMap::new();
        for (name, value) in came {
            fields.append(*name, HeaderValue::from_static(value));
        }
        framing.put(method, &mut fields);
        let said = |name| {
            fields
                .get(name)
                .map_or("-", |value: &HeaderValue| value.to_str().unwrap())
        };
        format!(
            "{} {} {}",
            said("content-length"),
            said("transfer-encoding"),
            said("trailer")
        )
    }

    #[test]
    fn one_framing_goes_up_whatever_came() {
        use UpwardFraming::{Chunked, Length};
        let came_chunked = [("trailer", "x")];
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
        assert_eq!(put(Length(5), &Method::POST, &came_chunked), "5 - -");
        assert_eq!(put(Length(0), &Method::GET, &[]), "- - -");
        assert_eq!(put(Length(0), &Method::DELETE, &[]), "- - -");
        for method in [Method::POST, Method::PUT, Method::PATCH] {
            assert_eq!(put(Length(0), &method, &[]), "0 - -");
        }
        assert_eq!(put(Chunked, &Method::GET, &came_chunked), "- chunked x");
        assert_eq!(
            put(Chunked, &Method::POST, &[("content-length", "+5")]),
            "- chunked -"
        );
    }
}
