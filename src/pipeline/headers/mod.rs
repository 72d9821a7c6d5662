//! Header hygiene both ways: what ends at this hop, what must not come in from
//! outside, what we say ourselves.

mod forwarded;
mod framing;
mod origin;

use std::borrow::Cow;

use http::header::{
    self, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, COOKIE, HOST, HeaderName, HeaderValue,
    MAX_FORWARDS, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, SET_COOKIE, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE, WWW_AUTHENTICATE,
};
use http::{HeaderMap, Uri};

use forwarded::SAID;
pub(super) use forwarded::{ForwardedHeaders, RequestFacts};
pub(super) use framing::{UpwardFraming, check};
pub(super) use origin::origin;

use super::reject::Rejection;
use crate::config::override_field;
use crate::secret::SecretPattern;
use trace::TRACEPARENT;

pub(super) const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// RFC 9110 7.6.1 and the older names still met in the wild.
static HOP_BY_HOP: [HeaderName; 7] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// The host asked for, lower case, without port and final dot; empty if there is none.
pub(super) fn host<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Cow<'a, str> {
    let authority = authority(uri, headers);
    let name = match authority.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => authority,
    };
    // With its final dot it is the same name (RFC 1034 3.1), and has the same rules.
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

/// The fields of a request as they go up, but for the credential: a new map, as the one
/// that came is needed again should the request be sent twice. What ends at this hop,
/// credentials, and what outsiders may not say stay behind.
pub(super) fn forwarded_headers(came: &HeaderMap, said: &ForwardedHeaders<'_>) -> HeaderMap {
    let mut up = HeaderMap::with_capacity(came.len() + SAID);
    let (mut ends_here, mut cookies) = (false, 0);
    for (name, value) in came {
        let text = plain_name(name.as_str());
        if is_of_this_hop(&text) {
            ends_here = true;
        } else if !is_credential(&text) && !said.ends_here(&text) {
            cookies += usize::from(text == "cookie");
            up.append(name.clone(), value.clone());
        }
    }
    if cookies > 1 {
        join_cookies(&mut up);
    }
    // Before our own go in, or `Connection: authorization` would take them out again.
    if ends_here {
        for name in named_by_connection(came) {
            up.remove(name);
        }
        if items(came, &TE).any(|item| item.eq_ignore_ascii_case("trailers")) {
            up.insert(TE, HeaderValue::from_static("trailers"));
            up.insert(CONNECTION, HeaderValue::from_static("te"));
        }
    }
    said.put(&mut up);
    up
}

/// A field's name as programs behind CGI and its like read it, for which every byte but a
/// letter or a digit is the same: with `-` in the place of those, and none at its end.
#[inline]
fn plain_name(name: &str) -> Cow<'_, str> {
    // Most fields, told by two letters: none that the gate has a rule for begins so and has
    // more than one word.
    let bytes = name.as_bytes();
    let is_usual = matches!(
        bytes,
        [b'h', b'o', ..] | [b'u', b's', ..] | [b'a', b'c' | b'u', ..]
    );
    if is_usual || (bytes.iter().all(|byte| PLAIN[usize::from(*byte)]) && !name.ends_with('-')) {
        return Cow::Borrowed(name);
    }
    let plain = name.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    Cow::Owned(plain.trim_end_matches('-').to_owned())
}

/// Letters, digits and `-`.
const PLAIN: [bool; 256] = {
    let mut plain = [false; 256];
    let mut at = 0_u8;
    while at < 128 {
        plain[at as usize] = at.is_ascii_alphanumeric() || at == b'-';
        at += 1;
    }
    plain
};

/// HTTP/2 clients send a cookie a field; HTTP/1 has one field for all (RFC 9113 8.2.3), and
/// servers read only the first of several.
fn join_cookies(up: &mut HeaderMap) {
    let crumbs = up.get_all(COOKIE).iter().map(HeaderValue::as_bytes);
    let crumbs: Vec<&[u8]> = crumbs.filter(|crumb| !crumb.is_empty()).collect();
    // Legal pieces make a legal whole.
    if let Ok(whole) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        up.insert(COOKIE, whole);
    }
}

/// RFC 9110 7.6.2: one hop less for what asks to be counted. Only OPTIONS comes so far.
pub(super) fn count_hop(up: &mut HeaderMap) {
    if let Ok(Some(left)) = hops_left(up) {
        up.insert(MAX_FORWARDS, HeaderValue::from(left.saturating_sub(1)));
    }
}

/// What `Max-Forwards` says; an error when it is no number, or said twice.
pub(super) fn hops_left(headers: &HeaderMap) -> Result<Option<u64>, Rejection> {
    let mut values = headers.get_all(MAX_FORWARDS).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let is_digits = !value.is_empty() && value.as_bytes().iter().all(u8::is_ascii_digit);
    if values.next().is_some() || !is_digits {
        return Err(Rejection::BadRequest("Max-Forwards is not one number"));
    }
    // A number that no u64 holds is a number of hops that no request makes.
    let number = value.to_str().ok().and_then(|text| text.parse().ok());
    Ok(Some(number.unwrap_or(u64::MAX)))
}

/// Makes a request ask for its whole answer, uncoded: the gate reads it.
pub(super) fn ask_plain(headers: &mut HeaderMap) {
    // Each of them may bring a part, a difference, or nothing at all instead of the content
    // (RFC 9110 13 and 14, RFC 3229, RFC 7240), or content in another alphabet.
    let bring_less = [
        header::RANGE,
        header::IF_RANGE,
        header::IF_MATCH,
        header::IF_NONE_MATCH,
        header::IF_MODIFIED_SINCE,
        header::IF_UNMODIFIED_SINCE,
        header::ACCEPT_CHARSET,
        HeaderName::from_static("a-im"),
        HeaderName::from_static("prefer"),
    ];
    for name in bring_less {
        headers.remove(name);
    }
    let plain = HeaderValue::from_static("identity");
    headers.insert(header::ACCEPT_ENCODING, plain);
}

/// `Expect` ends here: hyper sends 100 over HTTP/1 as soon as the body is wanted, the listener
/// over HTTP/2.
fn is_of_this_hop(name: &str) -> bool {
    is_of_a_connection(name) || matches!(name, "te" | "expect")
}

/// RFC 9110 7.6.1 and the older names still met in the wild.
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

/// The client's own; `inject` puts ours in afterwards.
fn is_credential(name: &str) -> bool {
    matches!(name, "authorization" | "x-api-key")
}

/// What `Connection` says ends at this hop.
fn named_by_connection(headers: &HeaderMap) -> impl Iterator<Item = HeaderName> {
    items(headers, &CONNECTION)
        .filter(|item| !item.eq_ignore_ascii_case("keep-alive"))
        .filter_map(|item| item.parse().ok())
}

/// What the fields of a name list, comma by comma.
fn items<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .map(str::trim)
}

/// The upstream's answer on its way to the client.
pub(super) fn clean_answer(headers: &mut HeaderMap, injected: Option<&SecretPattern>) {
    // Most answers have none of them: one look is cheaper than many removals.
    let ends_here = |name: &&HeaderName| {
        let name = name.as_str();
        // `Alt-Svc` would tell clients of a way around the gate.
        is_of_this_hop(name) || name == "alt-svc" || name.starts_with("x-tollgate-")
    };
    let mut ends: Vec<HeaderName> = headers.keys().filter(ends_here).cloned().collect();
    if !ends.is_empty() {
        ends.extend(named_by_connection(headers));
    }
    for name in ends {
        headers.remove(name);
    }
    if let Some(needle) = injected {
        blot_out(headers, needle);
    }
}

/// Leaves no value with the secret in it.
pub(super) fn blot_out(fields: &mut HeaderMap, secret: &SecretPattern) {
    for value in fields.values_mut() {
        if secret.is_in(value.as_bytes()) {
            *value = HeaderValue::from_static("[removed]");
        }
    }
}

/// The record's id on every answer. The Webapp saw it too: where it answers with one
/// of its own, ours takes its place, so that a client's report can be found in our log.
pub(super) fn put_request_id(headers: &mut HeaderMap, id: &str) {
    if let Ok(mut value) = HeaderValue::from_str(id) {
        // No secret, but never the same again: kept out of HTTP/2's table of fields.
        value.set_sensitive(true);
        headers.insert(X_REQUEST_ID, value);
    }
}

/// Trailers without the fields that may not stand there (RFC 9110 6.5.1).
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
    // Nor in a trailer may a client say what it may not say in a header.
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

#[cfg(test)]
mod tests;
pub(super) mod trace;
