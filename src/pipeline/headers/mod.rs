//! Header hygiene both ways: what ends at this hop, what must not come in from
//! outside, what we say ourselves.

mod ours;

use std::borrow::Cow;
use std::net::IpAddr;

use http::header::{
    self, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, HeaderName, HeaderValue,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
    WWW_AUTHENTICATE,
};
use http::{HeaderMap, Uri, Version};

pub(super) use ours::Ours;

use super::peer::Peer;
use super::reject::Rejection;
use crate::config::{Http, Network};
use crate::secret::Needle;

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

/// Refuses fields that parsers after us could read differently.
pub(super) fn check(headers: &HeaderMap, version: Version, rules: &Http) -> Result<(), Rejection> {
    let (mut hosts, mut lengths, mut underscores) = (0, 0, false);
    for (name, _) in headers {
        match name.as_str() {
            "host" => hosts += 1,
            "content-length" => lengths += 1,
            name => underscores |= memchr::memchr(b'_', name.as_bytes()).is_some(),
        }
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

/// Takes out what ends at this hop: the fixed list and what `Connection` names.
/// Done before our own credential goes in, or `Connection: authorization` would
/// take it out again.
pub(super) fn end_at_this_hop(headers: &mut HeaderMap) {
    // Most messages have few of them, or none: one look is cheaper than nine removals.
    let ends_here: Vec<HeaderName> = headers
        .keys()
        .filter(|name| is_of_this_hop(name))
        .cloned()
        .collect();
    if ends_here.is_empty() {
        return;
    }
    let wants_trailers = items(headers, &TE).any(|item| item.eq_ignore_ascii_case("trailers"));
    let named: Vec<HeaderName> = items(headers, &CONNECTION)
        .filter(|item| !item.eq_ignore_ascii_case("keep-alive"))
        .filter_map(|item| item.parse().ok())
        .collect();
    for name in named.iter().chain(&ends_here) {
        headers.remove(name);
    }
    if wants_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
}

/// hyper answers 100-continue itself, as soon as the body is wanted: `Expect` ends here.
fn is_of_this_hop(name: &HeaderName) -> bool {
    HOP_BY_HOP.contains(name) || *name == TE || *name == EXPECT
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

/// The client's own credentials; `inject` puts ours in afterwards.
pub(super) fn strip_credentials(headers: &mut HeaderMap) {
    headers.remove(AUTHORIZATION);
    headers.remove(X_API_KEY);
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

fn remove_all(headers: &mut HeaderMap, which: impl Fn(&str) -> bool) {
    let found = headers.keys().filter(|name| which(name.as_str()));
    let found: Vec<HeaderName> = found.cloned().collect();
    for name in found {
        headers.remove(name);
    }
}

/// The upstream's answer on its way to the client.
pub(super) fn clean_answer(headers: &mut HeaderMap, injected: Option<&Needle>) {
    end_at_this_hop(headers);
    remove_all(headers, |name| {
        // `Alt-Svc` would tell clients of a way around the gate. The other two are here
        // when the answer listed trailers.
        matches!(name, "alt-svc" | "te" | "connection") || name.starts_with("x-tollgate-")
    });
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
    if let Ok(value) = HeaderValue::from_str(id) {
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
