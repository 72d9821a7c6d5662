use std::net::SocketAddr;

use proptest::prelude::*;

use super::*;
use crate::pipeline::trace::Trace;
use crate::secret::Secret;

fn peer(ip: &str) -> Peer {
    Peer {
        address: SocketAddr::new(ip.parse().unwrap(), 40_000),
        local: "127.0.0.1:8443".parse().unwrap(),
        tls: None,
    }
}

fn network(text: &str) -> Network {
    let (address, prefix) = text.split_once('/').unwrap();
    Network {
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

fn went_up(came: &HeaderMap, trusted: &[Network]) -> HeaderMap {
    let ours = Ours {
        peer: &peer("192.0.2.7"),
        host: "gate",
        client: "anna",
        request_id: "0123",
        trace: &Trace::of(came),
        via: &HeaderValue::from_static("1.1 tollgate-x"),
    };
    upward(came, &ours.about(came, trusted))
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
    assert_eq!(headers[X_FORWARDED_HOST], "gate");
    assert_eq!(headers[X_FORWARDED_PROTO], "http");
    assert_eq!(headers["x-tollgate-client"], "anna");
    assert_eq!(headers[X_REQUEST_ID], "0123");
    assert!(headers["traceparent"].to_str().unwrap().starts_with("00-"));
    assert_eq!(headers["via"], "1.1 tollgate-x");
    assert_eq!(headers.len(), 7);
}

#[test]
fn a_trusted_proxy_is_believed_from_the_right_only() {
    let trusted = [network("10.0.0.0/8"), network("fd00::/8")];
    let mut headers = HeaderMap::new();
    headers.insert(
        X_FORWARDED_FOR,
        HeaderValue::from_static("6.6.6.6, 192.0.2.9, 10.1.1.1"),
    );
    let origin_from =
        |ip: &str, headers: &HeaderMap| origin(headers, &peer(ip), &trusted).to_string();
    assert_eq!(origin_from("10.2.2.2", &headers), "192.0.2.9");
    assert_eq!(origin_from("192.0.2.1", &headers), "192.0.2.1");
    assert_eq!(origin_from("::ffff:10.2.2.2", &headers), "192.0.2.9");
    headers.insert(
        X_FORWARDED_FOR,
        HeaderValue::from_static("192.0.2.9, unknown"),
    );
    assert_eq!(origin_from("fd00::1", &headers), "fd00::1");
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
    assert_eq!(outside[X_FORWARDED_HOST], "gate");
    for name in up.keys() {
        assert_eq!(up.get_all(name).iter().count(), 1, "{name}");
        assert_eq!(outside.get_all(name).iter().count(), 1, "{name}");
    }
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
    clean_answer(&mut headers, Some(&Needle::new(&Secret::new("s3cret"))));
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
