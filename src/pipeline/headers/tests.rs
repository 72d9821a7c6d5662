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

/// What goes up of `came`, from a peer that no proxy list names; our own fields left out.
fn of_the_client(came: &HeaderMap) -> HeaderMap {
    let mut up = went_up(came, &[]);
    for (name, _) in &went_up(&HeaderMap::new(), &[]) {
        up.remove(name);
    }
    up
}

fn went_up(came: &HeaderMap, trusted: &[AddressBlock]) -> HeaderMap {
    went_up_with(came, trusted, &[])
}

fn went_up_with(came: &HeaderMap, trusted: &[AddressBlock], allowed: &[&str]) -> HeaderMap {
    let rules = RequestRules {
        trusted_proxies: trusted.to_vec(),
        allow_underscores: true,
        allow_fields: AllowedFields::new(allowed.iter().map(ToString::to_string).collect()),
        min_body_rate: 0,
    };
    let ours = RequestFacts {
        peer: &peer("192.0.2.7"),
        authority: "gate:8443",
        client: "anna",
        request_id: "0123",
        trace: &TraceParent::of(came),
        via: &HeaderValue::from_static("1.1 tollgate-x"),
        allowed: &rules.allow_fields,
    };
    forwarded_headers(came, &ours.about(came, &rules))
}

#[test]
fn the_request_id_is_ours_and_takes_no_place_in_the_table_of_http2() {
    let mut headers = HeaderMap::new();
    headers.insert(X_REQUEST_ID, HeaderValue::from_static("theirs"));
    put_request_id(&mut headers, "ours");
    let ids: Vec<_> = headers.get_all(X_REQUEST_ID).iter().collect();
    assert_eq!(ids, ["ours"]);
    assert!(ids[0].is_sensitive());
}

#[test]
fn connection_tricks_cannot_take_the_credential_out() {
    let mut headers = HeaderMap::new();
    headers.append(
        CONNECTION,
        HeaderValue::from_static("authorization, X-Forwarded-For"),
    );
    headers.append(CONNECTION, HeaderValue::from_static("x-secret"));
    headers.insert(AUTHORIZATION, HeaderValue::from_static("Bearer client"));
    headers.insert("x-secret", HeaderValue::from_static("1"));
    let up = went_up(&headers, &[]);
    assert!(up.contains_key(X_FORWARDED_FOR), "ours went in afterwards");
    assert!(of_the_client(&headers).is_empty());
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
    let headers = went_up(&headers, &[]);
    assert_eq!(headers[X_FORWARDED_FOR], "192.0.2.7");
    assert_eq!(headers[X_FORWARDED_HOST], "gate:8443");
    assert_eq!(headers[X_FORWARDED_PROTO], "http");
    assert_eq!(headers["x-tollgate-client"], "anna");
    assert_eq!(headers[X_REQUEST_ID], "0123");
    assert!(headers["traceparent"].to_str().unwrap().starts_with("00-"));
    assert_eq!(headers["via"], "1.1 tollgate-x");
    assert_eq!(headers.len(), 7);
}

#[test]
fn a_trusted_proxy_has_said_where_the_request_came_from() {
    let mut headers = HeaderMap::new();
    headers.append("x-forwarded-for", HeaderValue::from_static("198.51.100.1"));
    headers.append("x-forwarded-for", HeaderValue::from_static("203.0.113.2"));
    headers.insert("x-forwarded-proto", HeaderValue::from_static("https"));
    headers.insert("x-forwarded-host", HeaderValue::from_static("public"));
    let up = went_up(&headers, &[network("192.0.2.0/24")]);
    assert_eq!(up[X_FORWARDED_FOR], "198.51.100.1, 203.0.113.2, 192.0.2.7");
    assert_eq!(up[X_FORWARDED_PROTO], "https");
    assert_eq!(up[X_FORWARDED_HOST], "public");
    let outside = went_up(&headers, &[]);
    assert_eq!(outside[X_FORWARDED_FOR], "192.0.2.7");
    assert_eq!(outside[X_FORWARDED_PROTO], "http");
    assert_eq!(outside[X_FORWARDED_HOST], "gate:8443");
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
fn fields_that_replace_what_a_rule_decided_on_end_here() {
    let proxies = [network("192.0.2.0/24")];
    for name in OVERRIDE_FIELDS {
        let came = map(&[(name, "DELETE")]);
        assert!(of_the_client(&came).is_empty(), "{name}");
        let spelled = name.replace('-', "_");
        assert!(
            of_the_client(&map(&[(&spelled, "DELETE")])).is_empty(),
            "{spelled}"
        );
        let allowed = went_up_with(&came, &[], &[name]);
        assert_eq!(allowed[*name], "DELETE", "allowed by name");
        let believed = went_up(&came, &proxies).contains_key(*name);
        assert_eq!(
            believed,
            ["forwarded", "x-real-ip"].contains(name),
            "{name}"
        );
    }
    let of_a_proxy = map(&[
        ("x-forwarded-prefix", "/a"),
        ("x-forwarded-method", "DELETE"),
    ]);
    assert!(of_the_client(&of_a_proxy).is_empty());
    let up = went_up(&of_a_proxy, &proxies);
    assert!(up.contains_key("x-forwarded-prefix") && !up.contains_key("x-forwarded-method"));
}

#[test]
fn proxy_never_goes_up_whoever_allows_it() {
    for (name, trusted) in [("proxy", &[][..]), ("proxy", &[network("192.0.2.0/24")])] {
        let up = went_up_with(&map(&[(name, "http://evil/")]), trusted, &["proxy"]);
        assert!(!up.contains_key("proxy"));
    }
}

#[test]
fn what_a_header_may_not_say_a_trailer_may_not_either() {
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
fn a_name_is_read_as_the_most_careless_program_would() {
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
        let up = went_up(&map(&[(name, "v"), ("x-own.name", "v")]), &[]);
        assert!(!up.contains_key(name), "{name}");
        assert!(up.contains_key("x-own.name"));
    }
}

#[test]
fn cookies_go_up_in_one_field() {
    let crumbs = [
        ("cookie", "a=1"),
        ("x-a", "b"),
        ("cookie", ""),
        ("cookie", "b=2; c=3"),
    ];
    let up = of_the_client(&map(&crumbs));
    let cookies: Vec<_> = up.get_all(COOKIE).iter().collect();
    assert_eq!(cookies, ["a=1; b=2; c=3"]);
    let named = map(&[
        ("cookie", "a=1"),
        ("cookie", "b=2"),
        ("connection", "cookie"),
    ]);
    assert!(of_the_client(&named).is_empty());
}

#[test]
fn a_hop_is_counted_down_and_never_below_none() {
    for (came, goes) in [("5", "4"), ("1", "0"), ("010", "9")] {
        let mut fields = map(&[("max-forwards", came)]);
        count_hop(&mut fields);
        assert_eq!(fields[MAX_FORWARDS], goes);
    }
    for bad in ["", "-1", "+1", "1, 1", "x"] {
        assert!(hops_left(&map(&[("max-forwards", bad)])).is_err(), "{bad}");
    }
    assert!(hops_left(&map(&[("max-forwards", "1"), ("max-forwards", "1")])).is_err());
    let endless = "9".repeat(40);
    assert_eq!(
        hops_left(&map(&[("max-forwards", &endless)])).unwrap(),
        Some(u64::MAX)
    );
}

#[test]
fn only_wanted_trailers_are_asked_for_again() {
    let mut headers = HeaderMap::new();
    headers.insert(TE, HeaderValue::from_static("gzip, Trailers"));
    headers.insert(CONNECTION, HeaderValue::from_static("TE, close"));
    let up = of_the_client(&headers);
    assert_eq!(
        (&up[TE], &up[CONNECTION]),
        (&"trailers".parse().unwrap(), &"te".parse().unwrap())
    );
    headers.insert(TE, HeaderValue::from_static("gzip"));
    assert!(of_the_client(&headers).is_empty());
}

#[test]
fn the_injected_secret_does_not_come_down_in_a_header() {
    let mut headers = HeaderMap::new();
    headers.insert("x-echo", HeaderValue::from_static("Bearer s3cret"));
    headers.insert("alt-svc", HeaderValue::from_static("h3=\":443\""));
    headers.insert("x-kept", HeaderValue::from_static("1"));
    clean_answer(
        &mut headers,
        Some(&SecretPattern::new(&Secret::new("s3cret"))),
    );
    assert_eq!(headers["x-echo"], "[removed]");
    assert_eq!(headers.len(), 2);
}

proptest! {
    #[test]
    fn nothing_hop_by_hop_survives_and_all_else_does(
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
        let headers = of_the_client(&headers);
        for name in &names {
            prop_assert!(headers.contains_key(name.as_str()));
        }
        for name in listed.iter().map(String::as_str).chain(HOP_BY_HOP.iter().map(HeaderName::as_str)) {
            prop_assert!(!headers.contains_key(name));
        }
    }
}
