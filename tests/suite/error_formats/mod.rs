//! Refusals in the format of the profile: RFC 9457 problem details without a profile, the
//! Webapp's envelope with `whatsapp`. The same requests go to a gateway of each.

mod refusal;

use std::time::Duration;

use reqwest::{Method, Response};
use serde_json::Value;

use crate::harness::login_upstream::LoginReply;
use crate::harness::raw::Raw;
use crate::harness::{Client, Gateway, WEBAPP_PASSWORD, eventually};
use refusal::{ENVELOPE, PROBLEM, Refusal, config, gate, upstream};

/// A request that is refused: method, path, one field, body; then status and the Webapp's code.
type Case = (
    &'static str,
    &'static str,
    Option<(&'static str, &'static str)>,
    &'static str,
    u16,
    u64,
);

const KEY_FIELD: Option<(&str, &str)> = Some(("authorization", "Apikey field-case-key-1"));

#[rustfmt::skip]
const CASES: &[Case] = &[
    ("GET", "/nowhere", None, "", 404, 1006),
    ("GET", "/closed", None, "", 404, 1006),
    ("DELETE", "/open/x", None, "", 405, 1006),
    ("GET", "/open/%252fx", None, "", 400, 1025),
    ("GET", "/all/x", None, "", 401, 1005),
    ("GET", "/all/x", Some(("authorization", "Bearer made-up")), "", 401, 1005),
    ("GET", "/all/x", Some(("authorization", "Bearer a b")), "", 401, 1005),
    ("GET", "/all/x", Some(("authorization", "Apikey no-such-key-1")), "", 401, 1005),
    ("POST", "/all/x", KEY_FIELD, "", 403, 1005),
    ("GET", "/all/refused", KEY_FIELD, "", 502, 1014),
    ("POST", "/my/login", None, "", 401, 1005),
    ("POST", "/my/login", Some(("authorization", "Basic !!!")), "", 401, 1005),
    ("POST", "/my/login", Some(("authorization", "Basic YWRtaW46d3Jvbmc=")), "", 401, 1005),
    ("OPTIONS", "/open/x", Some(("max-forwards", "x")), "", 400, 1025),
];

async fn send(client: &Client, case: &Case) -> Response {
    let (method, path, field, body, ..) = *case;
    let mut request = client.request(method.parse().unwrap(), path);
    if let Some((name, value)) = field {
        request = request.header(name, value);
    }
    request.body(body).send().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_has_the_format_of_the_profile_over_http1_and_http2() {
    let upstream = upstream().await;
    for profile in ["none", "whatsapp"] {
        let gateway = gate(profile, &upstream).await;
        for client in [Client::http1(&gateway), Client::new(&gateway)] {
            for case in CASES {
                let refusal = Refusal::of(send(&client, case).await).await;
                let what = format!("{} {} {:?}", case.0, case.1, case.2);
                refusal.check(profile, &what, case.4, case.5);
                let realm = match (profile, case.1) {
                    ("whatsapp", "/my/login") => "Basic realm=\"Secured\"",
                    (_, "/my/login") => "Basic realm=\"tollgate\"",
                    _ => "Bearer realm=\"tollgate\"",
                };
                let challenge = refusal.challenge.as_deref();
                let is_right = challenge.is_some_and(|text| text.starts_with(realm));
                assert_eq!(is_right, case.4 == 401, "{profile} {what} {challenge:?}");
            }
            let large = client.request(Method::POST, "/open/x");
            let large = large.body(vec![b'x'; 2000]).send().await.unwrap();
            Refusal::of(large)
                .await
                .check(profile, "too large", 413, 1009);
        }
        let client = gateway.client();
        assert_eq!(client.get("/limited").await.status(), 200);
        let limited = client.get("/limited").await;
        assert!(limited.headers().contains_key("retry-after"));
        Refusal::of(limited)
            .await
            .check(profile, "limit", 429, 1015);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_of_the_users_node_have_the_format_of_the_profile() {
    let upstream = upstream().await;
    for profile in ["none", "whatsapp"] {
        let gateway = gate(profile, &upstream).await;
        let client = gateway.client();
        let login = async || {
            let request = client.request(Method::POST, "/my/login");
            let request = request.basic_auth("admin", Some(WEBAPP_PASSWORD));
            request.send().await.unwrap()
        };
        let granted: Value = login().await.json().await.unwrap();
        assert_eq!(granted["meta"].is_object(), profile == "whatsapp");
        let admin = client
            .clone()
            .with_token(granted["users"][0]["token"].as_str().unwrap());
        for (body, status, code) in [
            ("{", 400, 1025),
            ("{\"username\":\"anna\"}", 400, 1008),
            ("{\"username\":\"a\",\"password\":\"Passw0rd!\"}", 400, 1009),
            ("{\"username\":\"anna\",\"password\":\"weak\"}", 400, 1009),
            (
                "{\"username\":\"admin\",\"password\":\"Passw0rd!\"}",
                500,
                1014,
            ),
        ] {
            let request = admin.request(Method::POST, "/my/create").body(body);
            let refusal = Refusal::of(request.send().await.unwrap()).await;
            refusal.check(profile, body, status, code);
        }
        let unknown_user = Refusal::of(admin.get("/my/show/nobody").await).await;
        unknown_user.check(profile, "no such user", 404, 1006);
        for _ in 0..2 {
            assert_eq!(login().await.status(), 200);
        }
        let full = Refusal::of(login().await).await;
        full.check(profile, "too many tokens", 429, 1015);
    }
}

/// Requests that the listener refuses before the pipeline.
#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_the_listener_refuses_has_the_format_of_the_profile() {
    let upstream = upstream().await;
    let long = "x".repeat(10_000);
    let cases = [
        ("no host", "GET /open/x HTTP/1.1\r\n\r\n".to_owned(), 400),
        (
            "bad length",
            "POST /open/x HTTP/1.1\r\nHost: a\r\nContent-Length: abc\r\n\r\n".to_owned(),
            400,
        ),
        (
            "long target",
            format!("GET /open/{long} HTTP/1.1\r\nHost: a\r\n\r\n"),
            414,
        ),
        (
            "large head",
            format!("GET /open/x HTTP/1.1\r\nHost: a\r\nX: {long}\r\n\r\n"),
            431,
        ),
        ("slow head", "GET /open/x HTTP/1.1\r\nHost:".to_owned(), 408),
    ];
    for profile in ["none", "whatsapp"] {
        let gateway = gate(profile, &upstream).await;
        for (what, text, status) in &cases {
            let mut raw = Raw::connect(&gateway).await;
            raw.send(text.as_bytes()).await;
            let refusal = Refusal::of_text(&raw.read_to_end().await);
            refusal.check(profile, what, *status, 1025);
        }
        let large = gateway.client().request(Method::GET, "/open/x");
        let large = large.header("x-large", &long).send().await.unwrap();
        let refusal = Refusal::of(large).await;
        refusal.check(profile, "large head over HTTP/2", 431, 1025);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_head_request_has_the_fields_and_no_body() {
    let upstream = upstream().await;
    for (profile, kind) in [("none", PROBLEM), ("whatsapp", ENVELOPE)] {
        let gateway = gate(profile, &upstream).await;
        for client in [Client::http1(&gateway), Client::new(&gateway)] {
            for path in ["/nowhere", "/all/x"] {
                let full = client.get(path).await;
                let head = client.request(Method::HEAD, path).send().await.unwrap();
                assert_eq!(head.status(), full.status());
                for name in ["content-type", "content-length", "www-authenticate"] {
                    assert_eq!(head.headers().get(name), full.headers().get(name), "{name}");
                }
                assert_eq!(head.headers()["content-type"], kind);
                assert_eq!(head.bytes().await.unwrap().len(), 0);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_of_the_upstream_have_the_format_of_the_profile() {
    for profile in ["none", "whatsapp"] {
        let slow = upstream().await;
        let gateway = gate(profile, &slow).await;
        slow.set_delay(Duration::from_millis(1500));
        let case = ("GET", "/all/x", KEY_FIELD, "", 504, 1014);
        let refusal = Refusal::of(send(&gateway.client(), &case).await).await;
        refusal.check(profile, "slow", 504, 1014);

        let closed = upstream().await;
        closed.set_logins(|_| LoginReply::Status(403));
        let gateway = gate(profile, &closed).await;
        let refusal = Refusal::of(send(&gateway.client(), &case).await).await;
        refusal.check(profile, "no login", 503, 1011);

        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = port.local_addr().unwrap();
        drop(port);
        let gateway = Gateway::of_text(&config(profile, &format!("http://{address}"))).await;
        let client = gateway.client();
        eventually("the upstream is known to be down", async || {
            client.get("/open/x").await.status() == 503
        })
        .await;
        let refusal = Refusal::of(client.get("/open/x").await).await;
        refusal.check(profile, "down", 503, 1011);
    }
}

/// A reload that changes the profile changes the format of the next refusal.
#[tokio::test(flavor = "multi_thread")]
async fn a_reload_changes_the_format() {
    let upstream = upstream().await;
    let gateway = gate("none", &upstream).await;
    let client = gateway.client();
    Refusal::of(client.get("/nowhere").await)
        .await
        .check("none", "before", 404, 1006);
    let file = gateway.config_file();
    std::fs::write(&file, config("whatsapp", &upstream.url())).unwrap();
    eventually("the new profile is in use", async || {
        let kind = client.get("/nowhere").await;
        kind.headers()["content-type"] == ENVELOPE
    })
    .await;
    Refusal::of(client.get("/nowhere").await)
        .await
        .check("whatsapp", "after", 404, 1006);
}
