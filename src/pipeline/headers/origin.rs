//! The client's address, as far as trusted proxies tell: read from `X-Forwarded-For` or, without it,
//! from `Forwarded` (RFC 7239), in all spellings that proxies use.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use http::HeaderMap;
use http::header::FORWARDED;

use super::X_FORWARDED_FOR;
use crate::config::AddressBlock;
use crate::pipeline::peer::Peer;

/// The address that a request is counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pipeline) struct ClientOrigin<'h> {
    pub(in crate::pipeline) ip: IpAddr,
    /// What a trusted proxy sent in place of an address; `ip` is then the proxy's own.
    pub(in crate::pipeline) unreadable: Option<&'h str>,
}

/// Walks the addresses from the right, and stops at the first one that is not a trusted proxy.
pub(in crate::pipeline) fn origin<'h>(
    headers: &'h HeaderMap,
    peer: &Peer,
    trusted: &[AddressBlock],
) -> ClientOrigin<'h> {
    let mut origin = ClientOrigin {
        ip: peer.ip(),
        unreadable: None,
    };
    if !is_trusted(origin.ip, trusted) {
        return origin;
    }
    let mut hops = hops(headers).into_iter();
    while is_trusted(origin.ip, trusted) {
        let Some(hop) = hops.next() else { break };
        let Some(ip) = hop.and_then(address) else {
            // The addresses before an unreadable one cannot be trusted.
            origin.unreadable = Some(hop.unwrap_or_default());
            break;
        };
        origin.ip = ip;
    }
    origin
}

/// The addresses from the last proxy to the client; None: not text, or without `for`.
fn hops(headers: &HeaderMap) -> Vec<Option<&str>> {
    let elements = |name| {
        let values = headers.get_all(name).iter().rev();
        values.flat_map(|value| match value.to_str() {
            Ok(text) => members_from_end(text).map(Some).collect(),
            Err(_) => vec![None],
        })
    };
    let forwarded_for: Vec<_> = elements(X_FORWARDED_FOR).collect();
    if !forwarded_for.is_empty() {
        return forwarded_for;
    }
    let is_for = |pair: &&str| pair.len() > 4 && pair.as_bytes()[..4].eq_ignore_ascii_case(b"for=");
    elements(FORWARDED)
        .map(|element| pairs(element?).find(is_for).map(|pair| &pair[4..]))
        .collect()
}

/// The members of a list, the last one first: a quote that the client left open cannot absorb what
/// a proxy has appended.
fn members_from_end(text: &str) -> impl Iterator<Item = &str> {
    trimmed(text.rsplit(separator(',')))
}

/// The pairs of one member of `Forwarded`.
fn pairs(text: &str) -> impl Iterator<Item = &str> {
    trimmed(text.split(separator(';')))
}

/// Matches `wanted` outside quotes.
fn separator(wanted: char) -> impl FnMut(char) -> bool {
    let mut in_quotes = false;
    move |c: char| {
        in_quotes ^= c == '"';
        !in_quotes && c == wanted
    }
}

/// Removes white space around the parts, and empty parts (RFC 9110 5.6.1).
fn trimmed<'t>(parts: impl Iterator<Item = &'t str>) -> impl Iterator<Item = &'t str> {
    parts.map(str::trim).filter(|part| !part.is_empty())
}

/// Parses `192.0.2.1`, `192.0.2.1:4711`, `2001:db8::1`, `[2001:db8::1]` and `[2001:db8::1]:4711`,
/// with or without quotes. RFC 7239 6: a port may be a name, and an address may be `unknown`.
fn address(text: &str) -> Option<IpAddr> {
    let text = match text.strip_prefix('"') {
        Some(quoted) => quoted.strip_suffix('"')?.trim(),
        None => text,
    };
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some(ip.to_canonical());
    }
    if let Ok(socket) = text.parse::<SocketAddr>() {
        return Some(socket.ip().to_canonical());
    }
    if let Some(bracketed) = text.strip_prefix('[') {
        let (ip, port) = bracketed.split_once(']')?;
        let ip: Ipv6Addr = ip.parse().ok()?;
        return (port.is_empty() || is_hidden_port(port)).then(|| IpAddr::V6(ip).to_canonical());
    }
    let (ip, port) = text.split_at(text.find(':')?);
    let ip = ip.parse().ok()?;
    is_hidden_port(port).then_some(IpAddr::V4(ip))
}

/// `:_name` (RFC 7239 6.3).
fn is_hidden_port(text: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    text.strip_prefix(":_")
        .is_some_and(|name| !name.is_empty() && name.bytes().all(letter))
}

pub(super) fn is_trusted(ip: IpAddr, trusted: &[AddressBlock]) -> bool {
    trusted.iter().any(|network| contains(network, ip))
}

fn contains(network: &AddressBlock, ip: IpAddr) -> bool {
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

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn trusted() -> Vec<AddressBlock> {
        let network = |address: &str, prefix| AddressBlock {
            address: address.parse().unwrap(),
            prefix,
        };
        vec![network("10.0.0.0", 8), network("fd00::", 8)]
    }

    fn read(fields: &[(&'static str, &'static str)], ip: &str) -> String {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let peer = Peer {
            address: SocketAddr::new(ip.parse().unwrap(), 40_000),
            local: "127.0.0.1:8443".parse().unwrap(),
            tls: None,
            last_token: crate::pipeline::LastToken::default(),
        };
        let origin = origin(&headers, &peer, &trusted());
        let mark = if origin.unreadable.is_some() { "?" } else { "" };
        format!("{}{mark}", origin.ip)
    }

    #[test]
    fn every_spelling_of_an_address_by_a_proxy_is_read() {
        for (text, ip) in [
            ("203.0.113.1", "203.0.113.1"),
            ("203.0.113.1:50001", "203.0.113.1"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:50001", "2001:db8::1"),
            ("\"[2001:db8::1]:50001\"", "2001:db8::1"),
            ("\"203.0.113.1:50001\"", "203.0.113.1"),
            ("::ffff:203.0.113.1", "203.0.113.1"),
            ("[::ffff:203.0.113.1]:1", "203.0.113.1"),
            ("6.6.6.6, 203.0.113.1:50001 , 10.0.0.2:443", "203.0.113.1"),
            ("6.6.6.6, 203.0.113.1,", "203.0.113.1"),
            ("\", 203.0.113.1", "203.0.113.1"),
            ("\"6.6.6.6, 203.0.113.1", "203.0.113.1"),
        ] {
            assert_eq!(read(&[("x-forwarded-for", text)], "10.0.0.1"), ip, "{text}");
        }
        for (text, ip) in [
            ("for=203.0.113.1", "203.0.113.1"),
            ("For=\"203.0.113.1:4711\";proto=https", "203.0.113.1"),
            (
                "proto=http;by=10.0.0.9;FOR=\"[2001:db8::1]:4711\"",
                "2001:db8::1",
            ),
            ("for=\"[2001:db8::1]\"", "2001:db8::1"),
            ("for=203.0.113.1:_hidden", "203.0.113.1"),
            // A quote that the client left open does not reach into the proxy's part.
            ("for=6.6.6.6;x=\", for=203.0.113.1", "203.0.113.1"),
            (
                "for=6.6.6.6, for=203.0.113.1;host=\"a,b;c\", for=10.0.0.3",
                "203.0.113.1",
            ),
        ] {
            assert_eq!(read(&[("forwarded", text)], "fd00::1"), ip, "{text}");
        }
    }

    #[test]
    fn an_unreadable_address_leaves_the_proxys_own_and_is_reported() {
        for text in [
            "unknown",
            "_hidden",
            "a.example",
            "203.0.113.1:",
            "203.0.113.1:99999",
            "203.0.113.1:x",
            "[2001:db8::1",
            "[203.0.113.1]",
            "2001:db8::1]:5",
            "\"203.0.113.1",
            "203.0.113.01",
            "203.0.113",
            "é",
        ] {
            assert_eq!(
                read(&[("x-forwarded-for", text)], "10.0.0.1"),
                "10.0.0.1?",
                "{text}"
            );
        }
        for text in [
            "proto=https",
            "for=unknown",
            "for=",
            "for=\"_x\"",
            "nonsense",
        ] {
            assert_eq!(
                read(&[("forwarded", text)], "10.0.0.1"),
                "10.0.0.1?",
                "{text}"
            );
        }
        assert_eq!(read(&[], "10.0.0.1"), "10.0.0.1");
    }

    #[test]
    fn only_trusted_proxies_are_read_and_x_forwarded_for_has_precedence() {
        let both = [
            ("forwarded", "for=6.6.6.6"),
            ("x-forwarded-for", "203.0.113.1"),
        ];
        assert_eq!(read(&both, "10.0.0.1"), "203.0.113.1");
        assert_eq!(read(&both, "192.0.2.1"), "192.0.2.1");
        let garbage = [("x-forwarded-for", "unknown")];
        assert_eq!(read(&garbage, "192.0.2.1"), "192.0.2.1");
    }
}
