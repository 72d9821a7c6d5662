use std::net::SocketAddr;

use proptest::prelude::*;

use super::trace::TraceParent;
use super::*;
use crate::config::{AddressBlock, AllowedFields, OVERRIDE_FIELDS, RequestRules};
use crate::pipeline::peer::Peer;
use crate::secret::Secret;

fn peer(ip: &str) -> Peer {
    Peer {
        address: SocketAddr::new(ip.parse().unwrap(), 40_000),
        local: "127.0.0.1:8443".parse().unwrap(),
        tls: None,
        last_token: crate::pipeline::LastToken::default(),
    }
}

fn network(text: &str) -> AddressBlock {
    let (address, prefix) = text.split_once('/').unwrap();
    AddressBlock {
        address: address.parse().unwrap(),
        prefix: prefix.parse().unwrap(),
    }
}

/// What is forwarded of `received` from a peer that is not a trusted proxy, without the added fields.
fn from_client(received: &HeaderMap) -> HeaderMap {
    let mut up = forwarded(received, &[]);
    for (name, _) in &forwarded(&HeaderMap::new(), &[]) {
        up.remove(name);
    }
    up
}

fn forwarded(received: &HeaderMap, trusted: &[AddressBlock]) -> HeaderMap {
    forwarded_with(received, trusted, &[])
}

fn forwarded_with(received: &HeaderMap, trusted: &[AddressBlock], allowed: &[&str]) -> HeaderMap {
    let rules = RequestRules {
        trusted_proxies: trusted.to_vec(),
        allow_underscores: true,
        allow_fields: AllowedFields::new(allowed.iter().map(ToString::to_string).collect()),
        min_body_rate: 0,
    };
    let facts = RequestFacts {
        peer: &peer("192.0.2.7"),
        authority: "gate:8443",
        client: "anna",
        request_id: "0123",
        trace: &TraceParent::of(received),
        via: &HeaderValue::from_static("1.1 tollgate-x"),
        allowed: &rules.allow_fields,
    };
    forwarded_fields(received, &facts.forwarded(received, &rules)).to_map()
}

#[test]
fn the_request_id_is_the_gateways_and_stays_out_of_the_dynamic_table_of_http2() {
    let mut headers = HeaderMap::new();
    headers.insert(X_REQUEST_ID, HeaderValue::from_static("upstream-id"));
    put_request_id(&mut headers, "gateway-id");
    let ids: Vec<_> = headers.get_all(X_REQUEST_ID).iter().collect();
    assert_eq!(ids, ["gateway-id"]);
    assert!(ids[0].is_sensitive());
}

#[test]
fn connection_cannot_remove_the_injected_credential() {
    let mut headers = HeaderMap::new();
    headers.append(
        CONNECTION,
        HeaderValue::from_static("authorization, X-Forwarded-For"),
    );
    headers.append(CONNECTION, HeaderValue::from_static("x-secret"));
    headers.insert(AUTHORIZATION, HeaderValue::from_static("Bearer client"));
    headers.insert("x-secret", HeaderValue::from_static("1"));
    let up = forwarded(&headers, &[]);
    assert!(
        up.contains_key(X_FORWARDED_FOR),
        "the gateway's own fields are added afterwards"
    );
    assert!(from_client(&headers).is_empty());
}

#[test]
fn forwarding_fields_from_outside_are_dropped_in_every_spelling() {
    let mut headers = HeaderMap::new();
    for name in [
        "forwarded",
        "x-forwarded-for",
        "x_forwarded_for",
        "x-forwarded-prefix",
        "x-real-ip",
    ] {
        headers.insert(
            HeaderName::from_static(name),
            HeaderValue::from_static("10.0.0.1"),
        );
    }
    headers.insert("x-tollgate-client", HeaderValue::from_static("admin"));
    headers.insert("tracestate", HeaderValue::from_static("a=b"));
    let headers = forwarded(&headers, &[]);
    assert_eq!(headers[X_FORWARDED_FOR], "192.0.2.7");
    assert_eq!(headers["x-forwarded-host"], "gate:8443");
    assert_eq!(headers["x-forwarded-proto"], "http");
    assert_eq!(headers["x-tollgate-client"], "anna");
    assert_eq!(headers[X_REQUEST_ID], "0123");
    assert!(headers["traceparent"].to_str().unwrap().starts_with("00-"));
    assert_eq!(headers["via"], "1.1 tollgate-x");
    assert_eq!(headers.len(), 7);
}

#[test]
fn the_forwarding_fields_of_a_trusted_proxy_are_kept() {
    let mut headers = HeaderMap::new();
    headers.append("x-forwarded-for", HeaderValue::from_static("198.51.100.1"));
    headers.append("x-forwarded-for", HeaderValue::from_static("203.0.113.2"));
    headers.insert("x-forwarded-proto", HeaderValue::from_static("https"));
    headers.insert("x-forwarded-host", HeaderValue::from_static("public"));
    let up = forwarded(&headers, &[network("192.0.2.0/24")]);
    assert_eq!(up[X_FORWARDED_FOR], "198.51.100.1, 203.0.113.2, 192.0.2.7");
    assert_eq!(up["x-forwarded-proto"], "https");
    assert_eq!(up["x-forwarded-host"], "public");
    let outside = forwarded(&headers, &[]);
    assert_eq!(outside[X_FORWARDED_FOR], "192.0.2.7");
    assert_eq!(outside["x-forwarded-proto"], "http");
    assert_eq!(outside["x-forwarded-host"], "gate:8443");
    for name in up.keys() {
        assert_eq!(up.get_all(name).iter().count(), 1, "{name}");
        assert_eq!(outside.get_all(name).iter().count(), 1, "{name}");
    }
}

fn map(fields: &[(&str, &str)]) -> HeaderMap {
    let parsed = |(name, value): &(&str, &str)| (name.parse().unwrap(), value.parse().unwrap());
    fields
        .iter()
        .map(parsed)
        .collect::<Vec<(HeaderName, HeaderValue)>>()
        .into_iter()
        .fold(HeaderMap::new(), |mut map, (name, value)| {
            map.append(name, value);
            map
        })
}

#[test]
fn override_fields_are_dropped_unless_allowed() {
    let proxies = [network("192.0.2.0/24")];
    for name in OVERRIDE_FIELDS {
        let received = map(&[(name, "DELETE")]);
        assert!(from_client(&received).is_empty(), "{name}");
        let spelled = name.replace('-', "_");
        assert!(
            from_client(&map(&[(&spelled, "DELETE")])).is_empty(),
            "{spelled}"
        );
        let allowed = forwarded_with(&received, &[], &[name]);
        assert_eq!(allowed[*name], "DELETE", "allowed by name");
        let is_kept = forwarded(&received, &proxies).contains_key(*name);
        assert_eq!(is_kept, ["forwarded", "x-real-ip"].contains(name), "{name}");
    }
    let of_a_proxy = map(&[
        ("x-forwarded-prefix", "/a"),
        ("x-forwarded-method", "DELETE"),
    ]);
    assert!(from_client(&of_a_proxy).is_empty());
    let up = forwarded(&of_a_proxy, &proxies);
    assert!(up.contains_key("x-forwarded-prefix") && !up.contains_key("x-forwarded-method"));
}

#[test]
fn proxy_is_never_forwarded_even_if_allowed() {
    for (name, trusted) in [("proxy", &[][..]), ("proxy", &[network("192.0.2.0/24")])] {
        let up = forwarded_with(&map(&[(name, "http://evil/")]), trusted, &["proxy"]);
        assert!(!up.contains_key("proxy"));
    }
}

#[test]
fn fields_that_are_dropped_as_headers_are_dropped_as_trailers() {
    let names = [
        "proxy",
        "via",
        "x-tollgate-client",
        "x_forwarded_for",
        "x-request-id",
        "x_api_key",
        "content_length",
        "traceparent",
        "expect",
        "if-match",
        "x.http.method.override",
    ];
    for name in names.iter().chain(OVERRIDE_FIELDS) {
        assert!(safe_trailers(map(&[(name, "v")])).is_empty(), "{name}");
    }
    assert_eq!(safe_trailers(map(&[("x-checksum", "v")])).len(), 1);
}

#[test]
fn a_field_name_is_normalised_as_the_most_lenient_parser_does() {
    for name in [
        "x_api_key",
        "x.http.method.override",
        "x-http-method-override-",
        "x-http-method-override~",
        "transfer_encoding",
        "proxy_authorization",
        "script_name",
        "x-middleware-subrequest",
    ] {
        let up = forwarded(&map(&[(name, "v"), ("x-own.name", "v")]), &[]);
        assert!(!up.contains_key(name), "{name}");
        assert!(up.contains_key("x-own.name"));
    }
}

#[test]
fn cookies_are_forwarded_in_one_field() {
    let crumbs = [
        ("cookie", "a=1"),
        ("x-a", "b"),
        ("cookie", ""),
        ("cookie", "b=2; c=3"),
    ];
    let up = from_client(&map(&crumbs));
    let cookies: Vec<_> = up.get_all(COOKIE).iter().collect();
    assert_eq!(cookies, ["a=1; b=2; c=3"]);
    let named = map(&[
        ("cookie", "a=1"),
        ("cookie", "b=2"),
        ("connection", "cookie"),
    ]);
    assert!(from_client(&named).is_empty());
}

#[test]
fn max_forwards_is_decremented_and_never_below_zero() {
    for (received, goes) in [("5", "4"), ("1", "0"), ("010", "9")] {
        let received = map(&[("max-forwards", received)]);
        let mut fields = OutboundFields::of(&received);
        decrement_max_forwards(&mut fields, &received);
        assert_eq!(fields.to_map()[MAX_FORWARDS], goes);
        // It ended here, because `Connection` named it.
        let mut without = OutboundFields::default();
        decrement_max_forwards(&mut without, &received);
        assert!(!without.contains("max-forwards"));
    }
    for bad in ["", "-1", "+1", "1, 1", "x"] {
        assert!(
            max_forwards(&map(&[("max-forwards", bad)])).is_err(),
            "{bad}"
        );
    }
    assert!(max_forwards(&map(&[("max-forwards", "1"), ("max-forwards", "1")])).is_err());
    let endless = "9".repeat(40);
    assert_eq!(
        max_forwards(&map(&[("max-forwards", &endless)])).unwrap(),
        Some(u64::MAX)
    );
}

#[test]
fn te_is_forwarded_only_for_trailers() {
    let mut headers = HeaderMap::new();
    headers.insert(TE, HeaderValue::from_static("gzip, Trailers"));
    headers.insert(CONNECTION, HeaderValue::from_static("TE, close"));
    let up = from_client(&headers);
    assert_eq!(
        (&up[TE], &up[CONNECTION]),
        (&"trailers".parse().unwrap(), &"te".parse().unwrap())
    );
    headers.insert(TE, HeaderValue::from_static("gzip"));
    assert!(from_client(&headers).is_empty());
}

#[test]
fn the_injected_secret_does_not_reach_the_client_in_a_header() {
    let mut headers = HeaderMap::new();
    headers.insert("x-echo", HeaderValue::from_static("Bearer s3cret"));
    headers.insert("alt-svc", HeaderValue::from_static("h3=\":443\""));
    headers.insert("x-kept", HeaderValue::from_static("1"));
    clean_response(
        &mut headers,
        Some(&SecretPattern::new(&Secret::new("s3cret"))),
    );
    assert_eq!(headers["x-echo"], "[removed]");
    assert_eq!(headers.len(), 2);
}

proptest! {
    #[test]
    fn hop_by_hop_fields_are_dropped_and_all_others_kept(
        names in proptest::collection::vec("x-[a-m]{1,6}", 0..8),
        listed in proptest::collection::vec("y-[a-m]{1,6}", 0..8),
    ) {
        let mut headers = HeaderMap::new();
        for name in names.iter().chain(&listed) {
            headers.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_static("v"));
        }
        for name in &HOP_BY_HOP {
            headers.append(name, HeaderValue::from_static("v"));
        }
        headers.insert(CONNECTION, HeaderValue::from_str(&listed.join(" , ")).unwrap());
        let headers = from_client(&headers);
        for name in &names {
            prop_assert!(headers.contains_key(name.as_str()));
        }
        for name in listed.iter().map(String::as_str).chain(HOP_BY_HOP.iter().map(HeaderName::as_str)) {
            prop_assert!(!headers.contains_key(name));
        }
    }
}
