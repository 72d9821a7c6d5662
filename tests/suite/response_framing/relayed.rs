//! The same for relayed logins (`directory = "webapp"`): the gate reads the same bytes as the client
//! receives.

use reqwest::Method;

use crate::harness::upstream::{Call, Reply, Upstream};
use crate::harness::{Client, Gateway, NO_LIMITS, Setup};

/// Complete, in one chunk, with a wrong length.
fn minted(token: &str) -> (String, usize) {
    let end = tollgate::profiles::format_expiry(tollgate::clock::unix_seconds() + 604_800);
    let body =
        format!(r#"{{"users":[{{"token":"{token}","expires_after":"{end}"}}],"meta":{{}}}}"#);
    (
        format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len()),
        body.len(),
    )
}

fn responses(call: &Call) -> Reply {
    if !call.line().starts_with("POST /v1/users/login") {
        return Reply::ok("fine");
    }
    let name = |name: &str| {
        use base64::Engine as _;
        let basic = base64::engine::general_purpose::STANDARD.encode(format!("{name}:Passw0rd!"));
        call.head.contains(&basic)
    };
    let (chunks, length) = minted("learned-token-of-both");
    let fields = match () {
        () if name("both") => "Content-Length: 7\r\nTransfer-Encoding: chunked",
        () if name("gzip") => "Transfer-Encoding: gzip, chunked",
        () if name("cut") => {
            let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            return Reply::Close(format!("{head}{}", &chunks[..length / 2]).into());
        }
        () if name("old") => {
            let body = chunks.split("\r\n").nth(1).unwrap();
            return Reply::Close(format!("HTTP/1.0 200 OK\r\n\r\n{body}").into());
        }
        () => "Transfer-Encoding: chunked, identity",
    };
    Reply::Stay(format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n{chunks}").into())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relayed_login_is_framed_by_the_same_rule() {
    let webapp = Upstream::scripted(responses).await;
    let setup = Setup::default()
        .users("directory = \"webapp\"")
        .rest(NO_LIMITS);
    let gateway = Gateway::before(&format!("http://{}", webapp.address), setup).await;
    for client in [Client::http1(&gateway), gateway.client()] {
        for (name, status) in [
            ("both", 200),
            ("old", 200),
            ("gzip", 502),
            ("cut", 502),
            ("other", 502),
        ] {
            let response = client.login(name, "Passw0rd!").await;
            assert_eq!(response.status(), status, "{name}");
            let text = response.text().await.unwrap();
            assert_eq!(
                text.contains("learned-token-of-both"),
                status == 200,
                "{name}"
            );
        }
        let client = client.with_token("learned-token-of-both");
        let response = client.request(Method::GET, "/v1/support").send().await;
        assert_eq!(response.unwrap().status(), 200);
    }
}
