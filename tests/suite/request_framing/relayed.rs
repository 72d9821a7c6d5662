//! The same rules with `directory = "webapp"`, where the gate relays logins.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::recorder::{Framing, Message, Recorder};
use super::{TLS, config, http2, http2_url, send_request, status};
use crate::harness::Gateway;

async fn relay(upstream: &Recorder) -> Gateway {
    let login = "[[route]]\nname = \"login\"\npath = \"/v1/users/login\"\nmethods = [\"POST\"]\ntarget = \"users.login\"\naccess = \"open\"\n";
    let users = "[users]\ndirectory = \"webapp\"\n";
    Gateway::of_text(&config(&upstream.url(), "", &format!("{users}\n{login}"))).await
}

/// The logins of `anna`; the gate's own are of `admin`.
fn of_the_client(upstream: &Recorder) -> Vec<Message> {
    let basic = format!("Basic {}", STANDARD.encode("anna:Secret-1"));
    let mut logins = upstream.logins();
    logins.retain(|login| login.all("authorization") == [basic.as_str()]);
    logins
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relayed_login_follows_the_same_rules() {
    let upstream = Recorder::start().await;
    let gateway = relay(&upstream).await;
    let request = http2(&gateway)
        .post(http2_url(&gateway, "/v1/users/login"))
        .basic_auth("anna", Some("Secret-1"))
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("x-http-method-override", "DELETE")
        .header("x-original-url", "/v1/users")
        .header("proxy", "http://evil/");
    assert_eq!(request.send().await.unwrap().status(), 200);
    let logins = of_the_client(&upstream);
    assert_eq!(logins.len(), 1);
    let login = &logins[0];
    assert_eq!(
        login.framing,
        Framing::Length(0),
        "an empty login has Content-Length: 0"
    );
    assert_eq!(login.all("cookie"), ["a=1; b=2"]);
    for name in ["x-http-method-override", "x-original-url", "proxy"] {
        assert!(login.all(name).is_empty(), "{name}");
    }
    let port = gateway.addresses.listeners[TLS].port();
    assert_eq!(login.all("x-forwarded-host"), [format!("localhost:{port}")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_request_causes_no_login() {
    let upstream = Recorder::start().await;
    let gateway = relay(&upstream).await;
    let before = of_the_client(&upstream).len();
    for (line, fields, expected) in [
        ("POST /v1/users/login?_method=DELETE", "", "400"),
        ("POST /v1/users/..;/login", "", "400"),
        ("TRACE /v1/users/login", "", "405"),
        ("POST /v1/users/login", "Content-Length: +0\r\n", "400"),
        (
            "POST /v1/users/login",
            "Transfer-Encoding: gzip, chunked\r\n",
            "400",
        ),
    ] {
        assert_eq!(
            status(&send_request(&gateway, line, fields).await),
            expected,
            "{line} {fields}"
        );
    }
    assert_eq!(of_the_client(&upstream).len(), before);
}
