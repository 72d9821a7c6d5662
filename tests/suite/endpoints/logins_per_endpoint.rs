//! `login_per_endpoint`: servers that know only their own tokens.

use std::time::Duration;

use reqwest::Method;

use super::server::{Behaviour, Server};
use super::{EndpointGate, Load, config, failed, urls};
use crate::harness::{eventually, secret};

const STORE_KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const EACH: &str = "login_per_endpoint = true\nslow_start = \"0s\"";

async fn strict() -> Server {
    let server = Server::start().await;
    server.take_own_tokens_only();
    server
}

/// A gate that has a token for each of the servers.
async fn gate_with_all(servers: &[&Server], lines: &str) -> EndpointGate {
    let gate = EndpointGate::start(servers, &format!("{EACH}\n{lines}")).await;
    let wanted = f64::from(u32::try_from(servers.len()).unwrap());
    eventually("a token for each", async || tokens(&gate).await == wanted).await;
    gate
}

/// The number of endpoints for which the gate has a token.
async fn tokens(gate: &EndpointGate) -> f64 {
    gate.metric("tollgate_endpoint_session_up", &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_endpoint_gets_its_own_token() {
    let (a, b) = (strict().await, strict().await);
    let gate = gate_with_all(&[&a, &b], "").await;
    for number in 0..100 {
        let (status, _) = gate
            .send(Method::POST, &format!("/{number}"), b"x".to_vec())
            .await;
        assert_eq!(status, 200);
    }
    assert!(a.requests() > 20 && b.requests() > 20);
    assert_eq!(a.requests() + b.requests(), 100, "none was sent twice");
    assert_eq!((a.logins(), b.logins()), (1, 1));
    for endpoint in [&a, &b] {
        let name = "tollgate_endpoint_session_seconds_to_expiry";
        let left = gate.metric(name, &[&endpoint.url()]).await;
        assert!(left > 600_000.0, "{left}");
    }
}

/// The repeat elsewhere carries the token that is valid there.
#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_at_another_endpoint_carries_that_ones_token() {
    for way in [
        Behaviour::Close,
        Behaviour::Respond(503, Duration::ZERO),
        Behaviour::Bytes("rubbish\r\n\r\n"),
    ] {
        let (a, b) = (strict().await, strict().await);
        let gate = gate_with_all(&[&a, &b], "ejection = \"none\"\nretry_share = 1.0").await;
        a.set(way.clone());
        for _ in 0..30 {
            assert_eq!(gate.get("/x").await, 200, "{way:?}");
        }
        assert!(a.requests() > 0, "{way:?}: it was asked first now and then");
        assert_eq!((a.logins(), b.logins()), (1, 1), "{way:?}");
    }
}

/// A response of one endpoint that is passed on after a try at another has the first one's token redacted.
#[tokio::test(flavor = "multi_thread")]
async fn no_token_of_any_endpoint_reaches_the_client() {
    let (a, b) = (strict().await, strict().await);
    let gate = gate_with_all(&[&a, &b], "ejection = \"none\"\nretry_share = 1.0").await;
    let length = format!("token-0-of-{}", a.address).len();
    for (echoing, silent) in [(&a, &b), (&b, &a)] {
        let token = format!("token-0-of-{}", echoing.address);
        let echo = format!("HTTP/1.1 503 X\r\nContent-Length: {length}\r\n\r\n{token}");
        echoing.set(Behaviour::Bytes(echo.leak()));
        silent.set(Behaviour::Close);
        for _ in 0..20 {
            let (_, body) = gate.send(Method::GET, "/x", Vec::new()).await;
            assert!(!body.contains(&token), "{body}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_without_a_token_gets_no_request_and_is_told() {
    let (a, b) = (strict().await, strict().await);
    a.set_logins(Some(Behaviour::Respond(401, Duration::ZERO)));
    let gate = EndpointGate::start(&[&a, &b], EACH).await;
    for _ in 0..40 {
        let (status, _) = gate.send(Method::POST, "/x", b"x".to_vec()).await;
        assert_eq!(status, 200);
    }
    assert_eq!((a.requests(), b.requests()), (0, 40));
    let line = format!("upstream main: endpoint {}: ", a.url());
    let readiness = gate.readiness().await;
    assert!(readiness.starts_with("200"), "{readiness}");
    assert!(
        readiness.contains(&line) && readiness.contains("wrong password"),
        "{readiness}"
    );
    assert_eq!(tokens(&gate).await, 1.0);
    // The operator puts it right: a new password is tried at once.
    a.set_logins(None);
    secret(&gate.gateway.folder.path().join("webapp-password"), "right");
    gate.until("its return", async |status| {
        assert_eq!(status, 200);
        a.requests() > 0
    })
    .await;
}

/// While one login hangs, requests go to the endpoint that has a token: also those that came before it.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_hangs_delays_no_request() {
    let (a, b) = (strict().await, strict().await);
    a.set_logins(Some(Behaviour::Hang));
    b.set_logins(Some(Behaviour::Respond(503, Duration::ZERO)));
    let text = config(&urls(&[&a, &b]), EACH);
    let gate = EndpointGate::not_waiting(&text).await;
    let early = tokio::spawn({
        let client = gate.client.clone();
        async move { client.get("/early").await }
    });
    b.set_logins(None);
    gate.until("the other's token", async |status| status == 200)
        .await;
    // It was refused at once if no login was in progress at that moment, or waited for the token.
    assert!(matches!(early.await.unwrap(), 200 | 503));
    assert_eq!(a.requests(), 0);
    assert!(gate.readiness().await.starts_with("200"));
}

/// The tokens of one server end early: only there a login is made, and no request fails.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_one_endpoint_forgot_is_renewed_there() {
    let (a, b) = (strict().await, strict().await);
    let gate = gate_with_all(&[&a, &b], "").await;
    let load = Load::start(&gate, 4, &Method::POST);
    eventually("traffic", async || a.requests() > 20 && b.requests() > 20).await;
    a.take_own_tokens_only();
    let before = a.requests();
    eventually("more traffic", async || a.requests() > before + 50).await;
    let statuses = load.end().await;
    assert_eq!(failed(&statuses), Vec::<u16>::new());
    assert_eq!(b.logins(), 1);
    assert!((2..=3).contains(&a.logins()), "{}", a.logins());
}

/// One is killed and comes back with no memory of its tokens, under load.
#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_restarts_costs_no_safe_request() {
    let (a, b) = (strict().await, strict().await);
    let gate = gate_with_all(&[&a, &b], "ejection = { failures = 3, first = \"100ms\" }").await;
    let load = Load::start(&gate, 4, &Method::GET);
    eventually("traffic", async || a.requests() > 20).await;
    a.kill();
    let before = b.requests();
    eventually("traffic at the other", async || b.requests() > before + 50).await;
    a.take_own_tokens_only();
    a.listen();
    let before = a.requests();
    eventually("its return", async || a.requests() > before + 50).await;
    let statuses = load.end().await;
    assert_eq!(failed(&statuses), Vec::<u16>::new());
    assert_eq!(b.logins(), 1);
}

/// A reload that adds an endpoint and changes a limit keeps the tokens that there are.
#[tokio::test(flavor = "multi_thread")]
async fn a_reload_logs_in_only_at_endpoints_that_were_added() {
    let (a, b, c) = (strict().await, strict().await, strict().await);
    let gate = gate_with_all(&[&a, &b], "").await;
    let wider = config(&urls(&[&c, &a, &b]), &format!("{EACH}\nconcurrency = 65"));
    gate.reload(&wider).await;
    eventually("its login", async || tokens(&gate).await == 3.0).await;
    for _ in 0..60 {
        assert_eq!(gate.get("/x").await, 200);
    }
    assert!(c.requests() > 5);
    assert_eq!((a.logins(), b.logins(), c.logins()), (1, 1, 1));
    // One login for all: a token of its own is not taken for it.
    for server in [&a, &b, &c] {
        server.take_own_tokens_only();
    }
    let narrower = config(&urls(&[&c]), EACH);
    gate.reload(&narrower).await;
    for _ in 0..5 {
        assert_eq!(gate.get("/x").await, 200);
    }
    assert_eq!((a.logins(), b.logins()), (1, 1));
    assert!(c.logins() >= 2);
}

/// Each endpoint's token is kept over a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_with_a_key_logs_in_nowhere() {
    let (a, b) = (strict().await, strict().await);
    let kept = "path = \"data\"\nkey = { file = \"store-key\" }";
    let text = config(&urls(&[&a, &b]), EACH).replace("path = \"memory\"", kept);
    let gate = EndpointGate::with_file(&text, "store-key", STORE_KEY).await;
    eventually("both tokens", async || tokens(&gate).await == 2.0).await;
    assert_eq!(gate.get("/x").await, 200);
    let gate = gate.restart().await;
    eventually("both tokens", async || tokens(&gate).await == 2.0).await;
    for _ in 0..40 {
        assert_eq!(gate.get("/x").await, 200);
    }
    assert!(a.requests() > 5 && b.requests() > 5);
    assert_eq!((a.logins(), b.logins()), (1, 1));
}

/// `check --connect` logs in at each; one that refuses is a warning while another one does not.
#[tokio::test(flavor = "multi_thread")]
async fn the_check_tries_the_login_at_each_endpoint() {
    let (a, b) = (strict().await, strict().await);
    let gate = gate_with_all(&[&a, &b], "").await;
    let file = gate.gateway.config_file();
    let check = async || {
        let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_tollgate"));
        program.args(["check", "--connect", "--config"]).arg(&file);
        let output = tokio::task::spawn_blocking(move || program.output().unwrap()).await;
        let output = output.unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        (output.status.success(), told)
    };
    a.set_logins(Some(Behaviour::Respond(401, Duration::ZERO)));
    let (is_good, told) = check().await;
    let place = format!("endpoint {}: ", a.url());
    assert!(is_good && told.contains(&place), "{told}");
    assert!(told.contains("the other endpoints"), "{told}");
    b.set_logins(Some(Behaviour::Respond(401, Duration::ZERO)));
    let (is_good, told) = check().await;
    assert!(!is_good && told.contains("2 problems"), "{told}");
}
