//! gRPC, as far as the gateway takes part in it: which requests are calls, how long they may take, and
//! how a call is refused (`PROTOCOL-HTTP2.md` of gRPC).

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Version};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use crate::config::{Http2Mode, UpstreamConfig};

const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC: &str = "application/grpc";
/// What `grpc-message` encodes besides bytes outside ASCII.
const ENCODED: &AsciiSet = &CONTROLS.add(b'%');
/// The time of a call without a timeout of its own: no limit.
pub(super) const UNLIMITED: Duration = Duration::from_secs(365 * 86_400);

/// Whether the content is that of a call: `application/grpc`, `application/grpc+proto`. Not gRPC-Web,
/// which has no trailers.
pub(super) fn is_grpc_content(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| {
        let kind = kind.as_bytes();
        let is_grpc = kind
            .get(..GRPC.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(GRPC.as_bytes()));
        is_grpc && matches!(kind.get(GRPC.len()), None | Some(b'+' | b';' | b' '))
    })
}

/// Whether the request is a call: gRPC exists over HTTP/2 only.
pub(super) fn is_call(head: &Parts) -> bool {
    head.version == Version::HTTP_2 && is_grpc_content(&head.headers)
}

/// Whether the request is a call to an upstream that can take it.
pub(super) fn is_forwarded_call(head: &Parts, upstream: &UpstreamConfig) -> bool {
    upstream.http2 != Http2Mode::Never && is_call(head)
}

/// How long the client waits for the end of its call; without `grpc-timeout`, or with one that is not
/// understood, as long as it takes.
pub(super) fn call_timeout(headers: &HeaderMap) -> Duration {
    let text = headers
        .get(GRPC_TIMEOUT)
        .and_then(|value| value.to_str().ok());
    text.and_then(parse_timeout)
        .unwrap_or(UNLIMITED)
        .min(UNLIMITED)
}

/// One to eight digits and a unit.
fn parse_timeout(text: &str) -> Option<Duration> {
    let unit = text.chars().last().filter(char::is_ascii)?;
    let digits = &text[..text.len() - 1];
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        'H' => Duration::from_secs(number * 3600),
        'M' => Duration::from_secs(number * 60),
        'S' => Duration::from_secs(number),
        'm' => Duration::from_millis(number),
        'u' => Duration::from_micros(number),
        'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

/// The status of a call for that of a refusal. As in gRPC's `http-grpc-status-mapping.md`, except where
/// the gateway knows more than a client that sees a status of HTTP: its own limits are exhausted
/// resources, and a time that has passed is a deadline.
fn call_status(status: StatusCode) -> u16 {
    match status.as_u16() {
        400 | 414 => 13,      // INTERNAL
        401 => 16,            // UNAUTHENTICATED
        403 => 7,             // PERMISSION_DENIED
        404 | 405 => 12,      // UNIMPLEMENTED
        408 | 504 => 4,       // DEADLINE_EXCEEDED
        413 | 429 | 431 => 8, // RESOURCE_EXHAUSTED
        502 | 503 => 14,      // UNAVAILABLE
        500 | 508 => 13,      // INTERNAL
        _ => 2,               // UNKNOWN
    }
}

/// Turns a refusal into one that a client of gRPC reads: status 200, the call's status in the head, and no
/// body ("Trailers-Only"). Other fields stay.
pub(super) fn into_refused_call(refusal: Response<Bytes>, detail: &str) -> Response<Bytes> {
    let (mut head, _) = refusal.into_parts();
    head.headers.remove(CONTENT_LENGTH);
    head.headers
        .insert(CONTENT_TYPE, HeaderValue::from_static(GRPC));
    head.headers
        .insert(GRPC_STATUS, HeaderValue::from(call_status(head.status)));
    let message: Cow<'_, str> = utf8_percent_encode(detail, ENCODED).into();
    if let Ok(message) = HeaderValue::from_str(&message) {
        head.headers.insert(GRPC_MESSAGE, message);
    }
    head.status = StatusCode::OK;
    Response::from_parts(head, Bytes::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: HeaderName, value: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_static(value));
        headers
    }

    #[test]
    fn content_is_that_of_a_call_in_every_spelling() {
        for kind in [
            "application/grpc",
            "application/grpc+proto",
            "Application/GRPC;x=y",
        ] {
            assert!(is_grpc_content(&with(CONTENT_TYPE, kind)), "{kind}");
        }
        for kind in [
            "application/grpc-web",
            "application/grpc-web+proto",
            "application/json",
            "application/gr",
        ] {
            assert!(!is_grpc_content(&with(CONTENT_TYPE, kind)), "{kind}");
        }
    }

    #[test]
    fn the_timeout_of_a_call_is_read_in_all_units() {
        for (text, expected) in [
            ("1H", Duration::from_secs(3600)),
            ("2M", Duration::from_secs(120)),
            ("3S", Duration::from_secs(3)),
            ("4m", Duration::from_millis(4)),
            ("5u", Duration::from_micros(5)),
            ("6n", Duration::from_nanos(6)),
            ("99999999H", UNLIMITED),
        ] {
            assert_eq!(call_timeout(&with(GRPC_TIMEOUT, text)), expected, "{text}");
        }
        for text in ["", "S", "-1S", "1", "1s", "123456789S", "1 S", "1.5S"] {
            assert_eq!(call_timeout(&with(GRPC_TIMEOUT, text)), UNLIMITED, "{text}");
        }
        assert_eq!(call_timeout(&HeaderMap::new()), UNLIMITED);
    }

    #[test]
    fn a_refused_call_has_its_status_in_the_head_and_an_encoded_message() {
        let mut refusal = Response::new(Bytes::from("{}"));
        *refusal.status_mut() = StatusCode::GATEWAY_TIMEOUT;
        let refused = into_refused_call(refusal, "100% zu spät");
        assert_eq!(refused.status(), 200);
        assert_eq!(refused.headers()["grpc-status"], "4");
        assert_eq!(refused.headers()["grpc-message"], "100%25 zu sp%C3%A4t");
        assert!(refused.body().is_empty());
    }
}
