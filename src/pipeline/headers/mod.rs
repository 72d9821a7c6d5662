//! Header hygiene both ways: what ends at this hop, what must not come in from
//! outside, what we say ourselves.

mod ours;

use std::borrow::Cow;
use std::net::IpAddr;

use http::header::{
    self, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, COOKIE, HOST, HeaderName, HeaderValue,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
    WWW_AUTHENTICATE,
};
use http::{HeaderMap, Uri, Version};

use ours::SAID;
pub(super) use ours::{Ours, Said};

use super::peer::Peer;
use super::reject::Rejection;
use crate::config::{Http, Network};
use crate::secret::Needle;
use crate::via::GatewayVia;

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

/// Refuses fields that parsers after us could read differently, and requests that have been
/// here before: wherever they lead, they would come back again.
pub(super) fn check(
    headers: &HeaderMap,
    version: Version,
    rules: &Http,
    via: &GatewayVia,
) -> Result<(), Rejection> {
    let (mut hosts, mut lengths, mut underscores, mut has_passed) = (0, 0, false, false);
    for (name, _) in headers {
        match name.as_str() {
            "host" => hosts += 1,
            "content-length" => lengths += 1,
            "via" => has_passed = true,
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
    // RFC 9113 8.2.2: such fields make an HTTP/2 message malformed.
    if version == Version::HTTP_2 && HOP_BY_HOP.iter().any(|name| headers.contains_key(name)) {
        return Err(Rejection::BadRequest(
            "a connection field in an HTTP/2 request",
        ));
    }
    Ok(())
}

/// The host asked for, lower case, without port and final dot; empty if there is none. The
/// target's authority wins over the Host field (RFC 9112, 3.2.2).
pub(super) fn host<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Cow<'a, str> {
    let field = || headers.get(HOST)?.to_str().ok();
    let authority = uri
        .authority()
        .map(http::uri::Authority::as_str)
        .or_else(field);
    let authority = authority.unwrap_or_default();
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

/// The fields of a request as they go up, but for the credential: a new map, as the one
/// that came is needed again should the request be sent twice. What ends at this hop,
/// credentials, and what outsiders may not say stay behind.
pub(super) fn upward(came: &HeaderMap, said: &Said<'_>) -> HeaderMap {
    let mut up = HeaderMap::with_capacity(came.len() + SAID);
    let mut ends_here = false;
    for (name, value) in came {
        let text = name.as_str();
        if is_of_this_hop(text) {
            ends_here = true;
        } else if !is_credential(text) && !said.replaces(text) {
            up.append(name.clone(), value.clone());
        }
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

/// RFC 9110 7.6.1 and the older names still met in the wild. `Expect` ends here: hyper sends
/// 100 over HTTP/1 as soon as the body is wanted, the listener over HTTP/2.
fn is_of_this_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "transfer-encoding"
            | "upgrade"
            | "te"
            | "expect"
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

/// Where the request came from, as far as that can be believed: walks
/// `X-Forwarded-For` from the right, past trusted proxies only.
pub(super) fn origin(headers: &HeaderMap, peer: &Peer, trusted: &[Network]) -> IpAddr {
    let mut ip = peer.ip();
    if !is_trusted(ip, trusted) {
        return ip;
    }
    let mut hops: Vec<&str> = items(headers, &X_FORWARDED_FOR).collect();
    while is_trusted(ip, trusted) {
        match hops.pop().map(str::parse::<IpAddr>) {
            Some(Ok(hop)) => ip = hop.to_canonical(),
            // An address nobody can read is the end of what can be believed.
            Some(Err(_)) | None => break,
        }
    }
    ip
}

fn is_trusted(ip: IpAddr, trusted: &[Network]) -> bool {
    trusted.iter().any(|network| contains(network, ip))
}

fn contains(network: &Network, ip: IpAddr) -> bool {
    let shift = |width: u8| u32::from(width.saturating_sub(network.prefix));
    match (network.address.to_canonical(), ip) {
        (IpAddr::V4(net), IpAddr::V4(ip)) => {
            let difference = net.to_bits() ^ ip.to_bits();
            difference.checked_shr(shift(32)).unwrap_or(0) == 0
        }
        (IpAddr::V6(net), IpAddr::V6(ip)) => {
            let difference = net.to_bits() ^ ip.to_bits();
            difference.checked_shr(shift(128)).unwrap_or(0) == 0
        }
        _ => false,
    }
}

/// The upstream's answer on its way to the client.
pub(super) fn clean_answer(headers: &mut HeaderMap, injected: Option<&Needle>) {
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
    let Some(needle) = injected else { return };
    for value in headers.values_mut() {
        if needle.is_in(value.as_bytes()) {
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
    let unsafe_here = [
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
        X_API_KEY,
    ];
    for name in unsafe_here.iter().chain(&HOP_BY_HOP) {
        trailers.remove(name);
    }
    trailers
}

#[cfg(test)]
mod tests;
