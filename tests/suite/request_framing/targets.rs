//! Targets and methods: ambiguous paths, TRACE, OPTIONS.

use reqwest::Method;

use super::recorder::Recorder;
use super::{exchange, gate, http2, http2_url, send_request, status};

#[tokio::test(flavor = "multi_thread")]
async fn an_ambiguous_path_is_refused() {
    let upstream = Recorder::start().await;
    let gateway = gate(&upstream, "", "").await;
    let paths = [
        "/open/..;/v1/users",
        "/open/.;/v1/users",
        "/open/..;a=b/v1/users",
        "/open/..%3b/v1/users",
        "/open/;/v1/users",
        "/open/%c0%ae%c0%ae/v1/users",
        "/open/%e0%80%ae/v1",
        "/open/%c0%afv1",
        "/open/%ff",
        "/open/%ed%a0%80",
        "/open/caf%e9",
    ];
    for path in paths {
        let response = send_request(&gateway, &format!("GET {path}"), "").await;
        assert_eq!(status(&response), "400", "{path}");
        let response = http2(&gateway).get(http2_url(&gateway, path)).send().await;
        assert_eq!(response.unwrap().status(), 400, "{path} over HTTP/2");
    }
    assert!(upstream.take().is_empty());
    for path in ["/open/caf%c3%a9", "/open/a;b=c", "/open/..a", "/open/a..;b"] {
        assert_eq!(
            status(&send_request(&gateway, &format!("GET {path}"), "").await),
            "200",
            "{path}"
        );
        assert_eq!(upstream.one().line, format!("GET {path}"), "byte for byte");
    }
}

const SOME: &str = "[[route]]\nname = \"some\"\npath = \"/some\"\nmethods = [\"GET\", \"POST\"]\naccess = \"open\"\n[[route]]\nname = \"shut\"\npath = \"/shut\"\ntarget = \"closed\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn trace_is_never_forwarded() {
    let upstream = Recorder::start().await;
    let gateway = gate(&upstream, "", SOME).await;
    let response = send_request(&gateway, "TRACE /all/x", "").await;
    assert_eq!(status(&response), "405", "{response}");
    assert!(
        response.contains("allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n"),
        "{response}"
    );
    let response = send_request(&gateway, "TRACE /some", "Max-Forwards: 3\r\n").await;
    assert_eq!(status(&response), "405", "{response}");
    assert!(response.contains("allow: GET, POST"), "{response}");
    // Similar methods, and usual ones in lower case, which no rule matches.
    for method in [
        "trace", "TRACK", "DEBUG", "CONNECT", "connect", "get", "Delete",
    ] {
        let response = send_request(&gateway, &format!("{method} /all/x"), "").await;
        assert_eq!(status(&response), "405", "{method}: {response}");
    }
    let url = http2_url(&gateway, "/open/x");
    let response = http2(&gateway)
        .request(Method::TRACE, url)
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 405);
    assert!(response.headers().contains_key("allow"));
    assert!(upstream.take().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn options_for_the_server_get_the_gates_own_response() {
    let upstream = Recorder::start().await;
    let gateway = gate(&upstream, "", SOME).await;
    let head = "OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let response = exchange(&gateway, head).await;
    assert_eq!(status(&response), "204", "{response}");
    assert!(
        response.contains("allow: GET") && response.contains("x-request-id: "),
        "{response}"
    );
    let refused = exchange(&gateway, head.replace("OPTIONS", "GET")).await;
    assert_eq!(
        status(&refused),
        "400",
        "no other method may have the target *"
    );
    assert!(upstream.take().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn max_forwards_is_decremented_for_options_and_the_gate_responds_at_0() {
    let upstream = Recorder::start().await;
    let gateway = gate(&upstream, "", SOME).await;
    let response = send_request(&gateway, "OPTIONS /some", "Max-Forwards: 0\r\n").await;
    assert_eq!(status(&response), "204", "{response}");
    assert!(response.contains("allow: GET, POST"), "{response}");
    let url = http2_url(&gateway, "/open/x");
    let request = http2(&gateway).request(Method::OPTIONS, url);
    let response = request.header("max-forwards", "0").send().await.unwrap();
    assert_eq!(response.status(), 204);
    for bad in ["x", "-1", "1, 1", "1\r\nMax-Forwards: 1"] {
        let response = send_request(
            &gateway,
            "OPTIONS /some",
            &format!("Max-Forwards: {bad}\r\n"),
        )
        .await;
        assert_eq!(status(&response), "400", "{bad}");
    }
    assert!(upstream.take().is_empty());
    assert_eq!(
        status(&send_request(&gateway, "OPTIONS /some", "Max-Forwards: 1\r\n").await),
        "200"
    );
    assert_eq!(upstream.one().all("max-forwards"), ["0"]);
    // RFC 9110 7.6.2: for other methods the field has no meaning.
    assert_eq!(
        status(&send_request(&gateway, "GET /some", "Max-Forwards: 0\r\n").await),
        "200"
    );
    assert_eq!(upstream.one().all("max-forwards"), ["0"]);
    let shut = send_request(&gateway, "OPTIONS /shut", "Max-Forwards: 0\r\n").await;
    assert_eq!(status(&shut), "404");
}
