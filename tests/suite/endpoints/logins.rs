//! Logins where the upstream has several endpoints: the gate's own when its endpoint dies, those of users
//! that are relayed, and endpoints that disagree about a token.

use std::time::Duration;

use reqwest::Method;

use super::server::{Behaviour, Server};
use super::{EndpointGate, NO_EJECTION, config, urls};

#[tokio::test(flavor = "multi_thread")]
async fn the_gate_logs_in_at_an_endpoint_that_can_be_reached() {
    for _ in 0..4 {
        let (a, b) = (Server::unheard(Behaviour::Close), Server::start().await);
        // It waits for the login.
        let gate = EndpointGate::start(&[&a, &b], NO_EJECTION).await;
        assert_eq!(gate.get("/x").await, 200);
        assert_eq!(b.logins(), 1);
    }
}

/// The endpoint that issued the token is gone; the token is not.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_the_endpoint_that_issued_the_token_costs_no_login() {
    let (a, b) = (Server::start().await, Server::start().await);
    let gate = EndpointGate::start(&[&a, &b], "").await;
    let issued = if a.logins() == 1 { &a } else { &b };
    issued.kill();
    for _ in 0..20 {
        let (status, _) = gate.send(Method::POST, "/x", b"x".to_vec()).await;
        assert_eq!(status, 200);
    }
    assert_eq!(a.logins() + b.logins(), 1);
}

/// One refuses the gate's token, the other takes it: no login for each request.
#[tokio::test(flavor = "multi_thread")]
async fn endpoints_that_disagree_about_a_token_cause_no_flood_of_logins() {
    let (a, b) = (Server::start().await, Server::start().await);
    let gate = EndpointGate::start(&[&a, &b], "").await;
    a.respond(401);
    let mut well = 0;
    for _ in 0..100 {
        well += usize::from(gate.get("/x").await == 200);
    }
    let logins = a.logins() + b.logins();
    assert!(logins <= 10, "{logins} for 100 requests");
    assert!(well >= 30, "{well} of 100");
}

/// `directory = "webapp"`: a login is a POST that counts wrong passwords, and is sent once.
#[tokio::test(flavor = "multi_thread")]
async fn the_login_of_a_user_is_sent_once() {
    let (a, b) = (Server::start().await, Server::start().await);
    let text = config(&urls(&[&a, &b]), NO_EJECTION);
    let route = text.find("[[route]]").unwrap();
    let keys = text.find("[[api_key]]").unwrap();
    let relayed = format!(
        "{}[users]\ndirectory = \"webapp\"\n{}",
        text[..route].replace("profile = \"none\"", "profile = \"whatsapp\""),
        &text[keys..]
    );
    let gate = EndpointGate::of(&relayed).await;
    let client = gate.gateway.client();
    let own = a.logins() + b.logins();
    let before = |own: usize| a.logins() + b.logins() - own;
    for (nth, way) in [
        Behaviour::Close,
        Behaviour::Respond(503, Duration::ZERO),
        Behaviour::Respond(401, Duration::ZERO),
        Behaviour::Bytes("rubbish\r\n\r\n"),
    ]
    .into_iter()
    .enumerate()
    {
        a.set_logins(Some(way.clone()));
        b.set_logins(Some(way.clone()));
        let sent = before(own);
        let name = format!("worker-{nth}");
        let status = client.login(&name, "a-Passw0rd!").await.status().as_u16();
        assert!(status >= 400, "{way:?}: {status}");
        assert_eq!(before(own) - sent, 1, "{way:?}: {status}");
    }
    a.set_logins(None);
    b.set_logins(None);
    assert_eq!(client.login("worker", "a-Passw0rd!").await.status(), 200);
}
