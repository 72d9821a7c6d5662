//! Header fields: the gate decides on the same values that the upstream acts on.

use reqwest::Method;

use super::recorder::{Framing, Recorder};
use super::{TLS, exchange, gate, http2, http2_url, send_request, status};
use crate::harness::eventually;

#[tokio::test(flavor = "multi_thread")]
async fn cookies_are_sent_in_one_field_from_http2_and_http1() {
    let upstream = Recorder::start().await;
    let gateway = gate(&upstream, "", "").await;
    let request = http2(&gateway).get(http2_url(&gateway, "/open/x"));
    let request = request.header("cookie", "a=1").header("cookie", "b=2; c=3");
    let response = request.send().await.unwrap();
    assert_eq!(response.version(), reqwest::Version::HTTP_2);
    assert_eq!(upstream.one().all("cookie"), ["a=1; b=2; c=3"]);
    send_request(&gateway, "GET /open/x", "Cookie: a=1\r\nCookie: b=2\r\n").await;
    assert_eq!(upstream.one().all("cookie"), ["a=1; b=2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_that_replace_method_path_host_client_or_scheme_are_dropped() {
    let upstream = Recorder::start().await;
    let gateway = gate(&upstream, "allow_underscores = true", "").await;
    let names = [
        "X-HTTP-Method-Override",
        "X-HTTP-Method",
        "X-Method-Override",
        "X-Original-URL",
        "X-Rewrite-URL",
        "X-Original-Method",
        "X-Forwarded-Prefix",
        "X-Forwarded-Method",
        "X-Forwarded-Port",
        "X-Forwarded-User",
        "Forwarded",
        "X-Real-IP",
        "True-Client-IP",
        "CF-Connecting-IP",
        "X-Client-IP",
        "X-Host",
        "Front-End-Https",
        "Proxy",
        "X_HTTP_Method_Override",
        "True_Client_IP",
        "X-Tollgate_Client",
    ];
    for name in names {
        let response = send_request(&gateway, "POST /open/x", &format!("{name}: evil\r\n")).await;
        assert_eq!(status(&response), "200", "{name}");
        let message = upstream.one();
        let value = message
            .fields
            .iter()
            .find(|(_, value)| value.contains("evil"));
        assert_eq!(value, None, "{name}");
        let request = http2(&gateway).post(http2_url(&gateway, "/open/x"));
        request.header(name, "evil").send().await.unwrap();
        let message = upstream.one();
        let value = message
            .fields
            .iter()
            .find(|(_, value)| value.contains("evil"));
        assert_eq!(value, None, "{name} over HTTP/2");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn allow_fields_forwards_fields_for_all_routes_or_for_one() {
    let upstream = Recorder::start().await;
    let one = "[[route]]\nname = \"one\"\npath = \"/one/*\"\naccess = \"open\"\nallow_fields = [\"X-HTTP-Method-Override\", \"_method\"]\n";
    let gateway = gate(&upstream, "allow_fields = \"True-Client-IP\"", one).await;
    let both = "X-HTTP-Method-Override: PUT\r\nTrue-Client-IP: 192.0.2.1\r\nProxy: x\r\n";
    send_request(&gateway, "POST /open/x", both).await;
    let message = upstream.one();
    assert_eq!(message.all("true-client-ip"), ["192.0.2.1"]);
    assert!(message.all("x-http-method-override").is_empty());
    let response = send_request(&gateway, "POST /one/x?_method=PUT", both).await;
    assert_eq!(status(&response), "200");
    let message = upstream.one();
    assert_eq!(message.all("x-http-method-override"), ["PUT"]);
    assert!(
        message.all("true-client-ip").is_empty(),
        "a route's list replaces the global one"
    );
    assert!(message.all("proxy").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_method_in_the_query_is_refused() {
    let upstream = Recorder::start().await;
    let gateway = gate(&upstream, "", "").await;
    for query in ["_method=DELETE", "a=b&%5Fmethod=PUT", "a;.method=PUT"] {
        let response = send_request(&gateway, &format!("POST /open/x?{query}"), "").await;
        assert_eq!(status(&response), "400", "{query}");
        assert!(response.contains("allow_fields"), "{response}");
    }
    assert!(upstream.take().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_follow_the_rules_of_header_fields() {
    let upstream = Recorder::start().await;
    let gateway = gate(&upstream, "", "").await;
    let fields = "Transfer-Encoding: chunked\r\nTrailer: x-sum, x-original-url, proxy, x-tollgate-client\r\n";
    let long = "x".repeat(300_000);
    let body = format!(
        "\r\n{:x}\r\n{long}\r\n0\r\nX-Sum: 1\r\nX-Original-URL: /evil\r\nProxy: evil\r\nX-Tollgate-Client: evil\r\n",
        long.len()
    );
    let response = send_request(&gateway, "POST /open/x", &format!("{fields}{body}")).await;
    assert_eq!(status(&response), "200", "{response}");
    let message = upstream.one();
    assert_eq!(message.trailers, [("x-sum".to_owned(), "1".to_owned())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clients_address_is_read_as_trusted_proxies_write_it() {
    let upstream = Recorder::start().await;
    let limit = "[[limit]]\nname = \"one\"\nkey = \"peer\"\nrate = \"1/h burst 1\"\n";
    let trusted = "trusted_proxies = [\"127.0.0.1\"]";
    let gateway = gate(&upstream, trusted, limit).await;
    let others = [
        "X-Forwarded-For: 203.0.113.1:50001",
        "X-Forwarded-For: [2001:db8:1::1]:4711",
        "X-Forwarded-For: \"[2001:db8:2::1]\"",
        "Forwarded: for=203.0.113.2",
        "Forwarded: proto=https;For=\"203.0.113.3:99\"",
        "Forwarded: for=\"[2001:db8:3::1]:4711\"",
    ];
    for field in others {
        let response = send_request(&gateway, "GET /open/x", &format!("{field}\r\n")).await;
        assert_eq!(status(&response), "200", "{field} has its own bucket");
    }
    let again = "X-Forwarded-For: 203.0.113.1:50002\r\n";
    assert_eq!(
        status(&send_request(&gateway, "GET /open/x", again).await),
        "429"
    );
    assert_eq!(gateway.metrics.invalid_forwarded_addresses.get(), 0);
    for field in ["X-Forwarded-For: unknown\r\n", "Forwarded: for=_hidden\r\n"] {
        send_request(&gateway, "GET /open/x", field).await;
    }
    assert_eq!(gateway.metrics.invalid_forwarded_addresses.get(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_is_reported_with_its_port() {
    let upstream = Recorder::start().await;
    let gateway = gate(&upstream, "", "").await;
    send_request(&gateway, "GET /open/x", "").await;
    assert_eq!(
        upstream.one().all("x-forwarded-host"),
        ["gate.example:8443"]
    );
    let absolute =
        "GET http://[::1]:8080/open/x HTTP/1.1\r\nHost: [::1]:8080\r\nConnection: close\r\n\r\n";
    exchange(&gateway, absolute).await;
    assert_eq!(upstream.one().all("x-forwarded-host"), ["[::1]:8080"]);
    http2(&gateway)
        .get(http2_url(&gateway, "/open/x"))
        .send()
        .await
        .unwrap();
    let port = gateway.addresses.listeners[TLS].port();
    assert_eq!(
        upstream.one().all("x-forwarded-host"),
        [format!("localhost:{port}")]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_without_content_is_sent_with_content_length_0() {
    let upstream = Recorder::start().await;
    let gateway = gate(&upstream, "", "").await;
    eventually("logged in", async || !upstream.logins().is_empty()).await;
    let login = &upstream.logins()[0];
    assert_eq!(
        login.framing,
        Framing::Length(0),
        "a login by Basic has no content"
    );
    for method in [Method::POST, Method::PUT, Method::PATCH] {
        let url = http2_url(&gateway, "/open/x");
        http2(&gateway)
            .request(method.clone(), url)
            .send()
            .await
            .unwrap();
        assert_eq!(
            upstream.one().framing,
            Framing::Length(0),
            "{method} over HTTP/2"
        );
        send_request(&gateway, &format!("{method} /open/x"), "").await;
        assert_eq!(upstream.one().framing, Framing::Length(0), "{method}");
        let chunked = "Transfer-Encoding: chunked\r\n\r\n0\r\n";
        send_request(&gateway, &format!("{method} /open/x"), chunked).await;
        assert_eq!(
            upstream.one().framing,
            Framing::Length(0),
            "{method}, no chunk"
        );
    }
    for method in [Method::GET, Method::DELETE] {
        http2(&gateway)
            .request(method.clone(), http2_url(&gateway, "/open/x"))
            .send()
            .await
            .unwrap();
        assert_eq!(upstream.one().framing, Framing::None, "{method}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn content_is_forwarded_for_any_method_and_any_connection_field() {
    let upstream = Recorder::start().await;
    let gateway = gate(&upstream, "", "").await;
    let long = "x".repeat(300_000);
    for (method, body) in [("GET", "abc"), ("DELETE", "abc"), ("GET", long.as_str())] {
        let chunked = format!(
            "Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n",
            body.len()
        );
        send_request(&gateway, &format!("{method} /open/x"), &chunked).await;
        assert_eq!(upstream.one().content.len(), body.len(), "{method}");
    }
    let head = "POST /open/x HTTP/1.1\r\nHost: a\r\nConnection: close, content-length, host, transfer-encoding\r\nContent-Length: 003\r\n\r\nabc";
    exchange(&gateway, head).await;
    let message = upstream.one();
    assert_eq!(
        (message.framing, message.content.as_slice()),
        (Framing::Length(3), &b"abc"[..])
    );
    assert_eq!(message.all("content-length"), ["3"]);
    assert!(
        upstream.malformed().is_empty(),
        "{:?}",
        upstream.malformed()
    );
}
