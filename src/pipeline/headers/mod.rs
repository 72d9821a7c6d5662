//! Header hygiene both ways: what ends at this hop, what must not come in from
//! outside, what we say ourselves.

use std::net::IpAddr;

use http::header::{
    self, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, HeaderName, HeaderValue,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
    WWW_AUTHENTICATE,
};
use http::{HeaderMap, Uri, Version};
use memchr::memmem;

use super::peer::Peer;
use super::reject::Rejection;
use crate::config::{Http, Network};
use crate::secret::Secret;

pub(super) const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_TOLLGATE_CLIENT: HeaderName = HeaderName::from_static("x-tollgate-client");

/// RFC 9110 7.6.1 and the older names still met in the wild.
const HOP_BY_HOP: [HeaderName; 7] = [
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
    if !rules.allow_underscores && headers.keys().any(|name| name.as_str().contains('_')) {
        return Err(Rejection::BadRequest("a field name has an underscore"));
    }
    if headers.get_all(HOST).iter().count() > 1 {
        return Err(Rejection::BadRequest("more than one Host field"));
    }
    if headers.get_all(CONTENT_LENGTH).iter().count() > 1 {
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
pub(super) fn host(uri: &Uri, headers: &HeaderMap) -> String {
    let field = || headers.get(HOST)?.to_str().ok();
    let authority = uri
        .authority()
        .map(http::uri::Authority::as_str)
        .or_else(field);
    let authority = authority.unwrap_or_default().to_ascii_lowercase();
    let name = match authority.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => &authority,
    };
    // With its final dot it is the same name (RFC 1034 3.1), and has the same rules.
    name.strip_suffix('.').unwrap_or(name).to_owned()
}

/// Takes out what ends at this hop: the fixed list and what `Connection` names.
/// Done before our own credential goes in, or `Connection: authorization` would
/// take it out again.
pub(super) fn end_at_this_hop(headers: &mut HeaderMap) {
    let wants_trailers = headers
        .get_all(TE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .any(|coding| coding.trim().eq_ignore_ascii_case("trailers"));
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
    headers.remove(TE);
    // hyper answers 100-continue itself, as soon as the body is wanted.
    headers.remove(EXPECT);
    if wants_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
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
    let mut hops: Vec<&str> = headers
        .get_all(X_FORWARDED_FOR)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .map(str::trim)
        .collect();
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

/// Drops forwarding fields that outsiders sent and says our own.
pub(super) fn forwarded(
    headers: &mut HeaderMap,
    peer: &Peer,
    host: Option<&str>,
    trusted: &[Network],
) {
    let believed = is_trusted(peer.ip(), trusted);
    let ours: Vec<HeaderName> = headers
        .keys()
        .filter(|name| is_forwarding(name.as_str(), believed))
        .cloned()
        .collect();
    for name in ours {
        headers.remove(name);
    }
    let mut chain: Vec<String> = headers
        .get_all(X_FORWARDED_FOR)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .map(str::to_owned)
        .collect();
    chain.push(peer.ip().to_string());
    if let Ok(value) = HeaderValue::from_str(&chain.join(", ")) {
        headers.insert(X_FORWARDED_FOR, value);
    }
    let scheme = HeaderValue::from_static(peer.scheme());
    headers.entry(X_FORWARDED_PROTO).or_insert(scheme);
    if let Some(value) = host.and_then(|host| HeaderValue::from_str(host).ok()) {
        headers.entry(X_FORWARDED_HOST).or_insert(value);
    }
}

/// `_` and `-` are the same name to many servers, so they are to this filter.
fn is_forwarding(name: &str, believed: bool) -> bool {
    let name = name.replace('_', "-");
    if name.starts_with("x-tollgate-") {
        return true;
    }
    !believed && (name == "forwarded" || name == "x-real-ip" || name.starts_with("x-forwarded-"))
}

/// Who called, for the upstream's own logs.
pub(super) fn name_client(headers: &mut HeaderMap, client: &str, request_id: &str) {
    if !client.is_empty()
        && let Ok(value) = HeaderValue::from_str(client)
    {
        headers.insert(X_TOLLGATE_CLIENT, value);
    }
    if let Ok(value) = HeaderValue::from_str(request_id) {
        headers.insert(X_REQUEST_ID, value);
    }
}

/// The upstream's answer on its way to the client.
pub(super) fn clean_answer(headers: &mut HeaderMap, injected: Option<&Secret>) {
    end_at_this_hop(headers);
    headers.remove(TE);
    headers.remove(CONNECTION);
    // It would tell clients of a way around the gate.
    headers.remove(header::ALT_SVC);
    let ours: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().starts_with("x-tollgate-"))
        .cloned()
        .collect();
    for name in ours {
        headers.remove(name);
    }
    let Some(secret) = injected else { return };
    let needle = secret.expose().as_bytes();
    for value in headers.values_mut() {
        if memmem::find(value.as_bytes(), needle).is_some() {
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
