//! Header fields in both directions: hop-by-hop fields end here, fields that only the gateway or a
//! trusted proxy may set are dropped, and the gateway adds its own (`forwarded`). `request_framing`
//! checks and sets the framing fields; `origin` and `trace` read two of them. Start with
//! `forwarded_fields`.

mod forwarded;
mod origin;
mod request_framing;
#[cfg(test)]
mod tests;
pub(super) mod trace;

use std::borrow::Cow;

use http::header::{
    self, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, COOKIE, HOST, HeaderName, HeaderValue,
    MAX_FORWARDS, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, SET_COOKIE, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE, WWW_AUTHENTICATE,
};
use http::{HeaderMap, Uri};

use forwarded::MAX_ADDED;
pub(super) use forwarded::{ForwardedHeaders, RequestFacts};
pub(super) use origin::origin;
pub(super) use request_framing::{UpstreamFraming, check};

use super::reject::Rejection;
use crate::config::override_field;
use crate::secret::SecretPattern;
use crate::upstream::OutboundFields;
use trace::TRACEPARENT;

pub(super) const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// RFC 9110 7.6.1, and the older names that are still in use.
static HOP_BY_HOP: [HeaderName; 7] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// The requested host in lower case, without a port and a final dot; empty if there is none.
pub(super) fn host<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Cow<'a, str> {
    let authority = authority(uri, headers);
    let name = match authority.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => authority,
    };
    // A final dot does not change the name (RFC 1034 3.1).
    let name = name.strip_suffix('.').unwrap_or(name);
    match name.bytes().any(|b| b.is_ascii_uppercase()) {
        true => Cow::Owned(name.to_ascii_lowercase()),
        false => Cow::Borrowed(name),
    }
}

/// Host and port as the client wrote them; empty if there are none. The target's authority
/// wins over the Host field (RFC 9112, 3.2.2).
pub(super) fn authority<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> &'a str {
    let field = || headers.get(HOST)?.to_str().ok();
    let authority = uri.authority().map(http::uri::Authority::as_str);
    authority.or_else(field).unwrap_or_default()
}

/// The fields of a request for the upstream, without the credential. Hop-by-hop fields, credentials,
/// and fields that the client may not set are left out.
pub(super) fn forwarded_fields<'a>(
    received: &'a HeaderMap,
    forwarded: &'a ForwardedHeaders<'_>,
) -> OutboundFields<'a> {
    let mut outgoing = OutboundFields::with_capacity(received.len() + MAX_ADDED);
    let mut has_hop_fields = false;
    let mut cookies = 0;
    for (name, value) in received {
        let text = plain_name(name.as_str());
        if is_of_this_hop(&text) {
            has_hop_fields = true;
        } else if !is_credential(&text) && !forwarded.drops(&text) {
            cookies += usize::from(text == "cookie");
            outgoing.push(name, value);
        }
    }
    if cookies > 1 {
        join_cookies(&mut outgoing);
    }
    // Before the gateway's own fields are added: `Connection: authorization` must not remove them.
    if has_hop_fields {
        for name in named_by_connection(received) {
            outgoing.remove(name.as_str());
        }
        if items(received, &TE).any(|item| item.eq_ignore_ascii_case("trailers")) {
            outgoing.set("te", Cow::Owned(HeaderValue::from_static("trailers")));
            outgoing.set("connection", Cow::Owned(HeaderValue::from_static("te")));
        }
    }
    forwarded.put(&mut outgoing);
    outgoing
}

/// A field name as programs behind CGI and similar interfaces read it. They do not distinguish bytes
/// other than letters and digits: each becomes `-`, and trailing ones are removed.
#[inline]
fn plain_name(name: &str) -> Cow<'_, str> {
    // Two letters identify the most frequent fields: no name that the gateway has a rule for starts
    // with these letters and has more than one word.
    let bytes = name.as_bytes();
    let is_frequent = matches!(
        bytes,
        [b'h', b'o', ..] | [b'u', b's', ..] | [b'a', b'c' | b'u', ..]
    );
    if is_frequent || (bytes.iter().all(|byte| PLAIN[usize::from(*byte)]) && !name.ends_with('-')) {
        return Cow::Borrowed(name);
    }
    let plain = name.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    Cow::Owned(plain.trim_end_matches('-').to_owned())
}

/// Letters, digits and `-`.
const PLAIN: [bool; 256] = {
    let mut plain = [false; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        plain[byte as usize] = byte.is_ascii_alphanumeric() || byte == b'-';
        byte += 1;
    }
    plain
};

/// HTTP/2 clients send one field per cookie; HTTP/1 has one field for all (RFC 9113 8.2.3), and
/// servers read only the first of several.
fn join_cookies(fields: &mut OutboundFields<'_>) {
    let cookies = fields.get_all("cookie").map(HeaderValue::as_bytes);
    let cookies: Vec<&[u8]> = cookies.filter(|cookie| !cookie.is_empty()).collect();
    // Valid values joined by `; ` are a valid value.
    if let Ok(whole) = HeaderValue::from_bytes(&cookies.join(&b"; "[..])) {
        fields.set("cookie", Cow::Owned(whole));
    }
}

/// Counts this hop in `Max-Forwards` (RFC 9110 7.6.2). For OPTIONS only: TRACE is never forwarded.
/// `received`: the client's fields.
pub(super) fn decrement_max_forwards(fields: &mut OutboundFields<'_>, received: &HeaderMap) {
    if fields.contains("max-forwards")
        && let Ok(Some(hops)) = max_forwards(received)
    {
        let left = HeaderValue::from(hops.saturating_sub(1));
        fields.set("max-forwards", Cow::Owned(left));
    }
}

/// The number in `Max-Forwards`; an error when it is not a number, or comes twice.
pub(super) fn max_forwards(headers: &HeaderMap) -> Result<Option<u64>, Rejection> {
    let mut values = headers.get_all(MAX_FORWARDS).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let is_digits = !value.is_empty() && value.as_bytes().iter().all(u8::is_ascii_digit);
    if values.next().is_some() || !is_digits {
        return Err(Rejection::BadRequest("Max-Forwards is not one number"));
    }
    // No request makes more hops than a u64 can count.
    let number = value.to_str().ok().and_then(|text| text.parse().ok());
    Ok(Some(number.unwrap_or(u64::MAX)))
}

/// Makes a request ask for the complete content without a content coding, since the gateway reads it.
pub(super) fn request_plain_content(fields: &mut OutboundFields<'_>) {
    // Each of these may lead to a part, a difference, or nothing instead of the content (RFC 9110 13
    // and 14, RFC 3229, RFC 7240), or to content in another charset.
    let partial = [
        "range",
        "if-range",
        "if-match",
        "if-none-match",
        "if-modified-since",
        "if-unmodified-since",
        "accept-charset",
        "a-im",
        "prefer",
    ];
    for name in partial {
        fields.remove(name);
    }
    let plain = HeaderValue::from_static("identity");
    fields.set("accept-encoding", Cow::Owned(plain));
}

/// `Expect` is answered by this hop: over HTTP/1 hyper sends 100 when the body is read, over HTTP/2
/// the listener does.
fn is_of_this_hop(name: &str) -> bool {
    is_of_a_connection(name) || matches!(name, "te" | "expect")
}

/// The names in `HOP_BY_HOP`.
fn is_of_a_connection(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// The client's own credential; `inject` adds the upstream's afterwards.
fn is_credential(name: &str) -> bool {
    matches!(name, "authorization" | "x-api-key")
}

/// The fields that `Connection` names as hop-by-hop.
fn named_by_connection(headers: &HeaderMap) -> impl Iterator<Item = HeaderName> {
    items(headers, &CONNECTION)
        .filter(|item| !item.eq_ignore_ascii_case("keep-alive"))
        .filter_map(|item| item.parse().ok())
}

/// The items of the comma-separated fields with this name.
fn items<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .map(str::trim)
}

/// Removes the fields of an upstream's response that the client must not get. `injected`: the secret
/// that was sent to the upstream.
pub(super) fn clean_response(headers: &mut HeaderMap, injected: Option<&SecretPattern>) {
    // Most responses have none of them: one pass is cheaper than many removals.
    let ends_here = |name: &&HeaderName| {
        let name = name.as_str();
        // `Alt-Svc` would tell clients a way around the gateway.
        is_of_this_hop(name) || name == "alt-svc" || name.starts_with("x-tollgate-")
    };
    let mut ends: Vec<HeaderName> = headers.keys().filter(ends_here).cloned().collect();
    if !ends.is_empty() {
        ends.extend(named_by_connection(headers));
    }
    for name in ends {
        headers.remove(name);
    }
    if let Some(secret) = injected {
        redact_fields(headers, secret);
    }
}

/// Replaces each value that contains the secret.
pub(super) fn redact_fields(fields: &mut HeaderMap, secret: &SecretPattern) {
    for value in fields.values_mut() {
        if secret.is_in(value.as_bytes()) {
            *value = HeaderValue::from_static("[removed]");
        }
    }
}

/// Sets the request id on a response. It replaces an id of the upstream's own, so that a client's
/// report can be found in the gateway's log; the upstream has received the same id.
pub(super) fn put_request_id(headers: &mut HeaderMap, id: &str) {
    if let Ok(mut value) = HeaderValue::from_str(id) {
        // Not a secret, but never repeated: kept out of HTTP/2's dynamic table.
        value.set_sensitive(true);
        headers.insert(X_REQUEST_ID, value);
    }
}

/// Trailers without the fields that are not allowed there (RFC 9110 6.5.1).
pub(super) fn safe_trailers(mut trailers: HeaderMap) -> HeaderMap {
    const UNSAFE: [HeaderName; 18] = [
        AUTHORIZATION,
        CONTENT_LENGTH,
        COOKIE,
        HOST,
        SET_COOKIE,
        TE,
        TRAILER,
        WWW_AUTHENTICATE,
        header::CONTENT_ENCODING,
        header::CONTENT_RANGE,
        header::CONTENT_TYPE,
        header::CACHE_CONTROL,
        header::EXPECT,
        header::RANGE,
        TRACEPARENT,
        HeaderName::from_static("tracestate"),
        X_API_KEY,
        MAX_FORWARDS,
    ];
    // Fields that a client may not set as a header are not allowed as a trailer either.
    let spoofs = |name: &&HeaderName| {
        let name = plain_name(name.as_str());
        let is_same = |field: &HeaderName| *field == *name;
        UNSAFE.iter().chain(&HOP_BY_HOP).any(is_same)
            || name == "proxy"
            || name.starts_with("if-")
            || name == "via"
            || name == "x-request-id"
            || name.starts_with("x-tollgate-")
            || override_field(&name).is_some()
    };
    let spoofing: Vec<HeaderName> = trailers.keys().filter(spoofs).cloned().collect();
    for name in spoofing {
        trailers.remove(name);
    }
    trailers
}
