//! Which requests are sent to another endpoint, with which body, and how many of them (rows U2, U3, U15).

use std::time::Duration;

use reqwest::Method;

use super::server::{Behaviour, Server};
use super::{EndpointGate, NO_EJECTION};

const SLOW: Behaviour = Behaviour::Respond(200, Duration::from_millis(100));

/// Two endpoints that both behave like that, and a gate that has `reused` requests behind it.
async fn two(behaviour: Behaviour, reused: usize) -> (Server, Server, EndpointGate) {
    let (a, b) = (Server::start().await, Server::start().await);
    let lines = format!("retry_share = 1.0\n{NO_EJECTION}");
    let gate = EndpointGate::start(&[&a, &b], &lines).await;
    for number in 0..reused {
        assert_eq!(gate.get(&format!("/warm-{number}")).await, 200);
    }
    a.set(behaviour.clone());
    b.set(behaviour);
    (a, b, gate)
}

fn both(a: &Server, b: &Server, line: &str) -> usize {
    a.count(line) + b.count(line)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_may_have_been_acted_on_is_not_sent_again() {
    for reused in [0, 20] {
        let (a, b, gate) = two(Behaviour::Close, reused).await;
        for (number, method) in [Method::POST, Method::PATCH].into_iter().enumerate() {
            let path = format!("/once-{number}");
            let (status, _) = gate.send(method.clone(), &path, b"body".to_vec()).await;
            assert_eq!(status, 502, "{method} after {reused}");
            let line = format!("{method} {path}");
            assert_eq!(both(&a, &b, &line), 1, "{method} after {reused}");
        }
    }
}

/// A response with an error status is an answer: the request was acted on, or may have been.
#[tokio::test(flavor = "multi_thread")]
async fn an_unsafe_request_gets_the_refusal_of_its_endpoint() {
    let (a, b, gate) = two(Behaviour::Respond(503, Duration::ZERO), 0).await;
    for method in [Method::POST, Method::PUT, Method::DELETE] {
        let path = format!("/{}", method.as_str().to_ascii_lowercase());
        let response = gate
            .client
            .response(method.clone(), &path, b"x".to_vec())
            .await;
        assert_eq!(response.status().as_u16(), 503);
        assert_eq!(response.headers()["retry-after"], "7", "the endpoint's own");
        assert_eq!(both(&a, &b, &format!("{method} {path}")), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_safe_request_goes_to_the_other_endpoint() {
    let ways = [
        Behaviour::Close,
        Behaviour::Respond(502, Duration::ZERO),
        Behaviour::Respond(503, Duration::ZERO),
        Behaviour::Respond(504, Duration::ZERO),
        Behaviour::Bytes("HTTP/1.1 200 OK\r\nContent-Le"),
        Behaviour::Bytes("SSH-2.0-OpenSSH_9.9\r\n"),
        Behaviour::Bytes("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
    ];
    let (a, b, gate) = two(SLOW, 0).await;
    b.respond(200);
    for (number, way) in ways.into_iter().enumerate() {
        a.set(way.clone());
        for method in [Method::GET, Method::HEAD, Method::OPTIONS] {
            for nth in 0..6 {
                let path = format!("/safe-{number}-{nth}");
                let (status, _) = gate.send(method.clone(), &path, Vec::new()).await;
                assert_eq!(status, 200, "{method} after {way:?}");
                let line = format!("{method} {path}");
                assert!(a.count(&line) <= 1, "{line}: an endpoint already tried");
                assert_eq!(b.count(&line), 1, "{line}");
            }
        }
    }
}

/// A status about the request, or a bug for this request, is the client's answer.
#[tokio::test(flavor = "multi_thread")]
async fn other_statuses_are_the_response() {
    let (a, b, gate) = two(SLOW, 0).await;
    for status in [400, 404, 409, 429, 500, 501] {
        a.respond(status);
        b.respond(status);
        let path = format!("/status-{status}");
        assert_eq!(gate.get(&path).await, status);
        assert_eq!(both(&a, &b, &format!("GET {path}")), 1, "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_goes_whole_or_the_request_does_not_go_again() {
    // (method, size of the body, bytes that the first endpoint reads)
    let cases = [
        (Method::PUT, 1_000_000, 64_000),
        (Method::POST, 1_000_000, 64_000),
        (Method::PUT, 1_000, 10),
        (Method::GET, 1_000, 10),
        (Method::GET, 1_000_000, 64_000),
        (Method::PUT, 1_000_000, 0),
    ];
    for (number, (method, size, read)) in cases.into_iter().enumerate() {
        let (a, b, gate) = two(SLOW, 10 * (number % 2)).await;
        a.set(Behaviour::Reset(read));
        b.respond(200);
        for nth in 0..6 {
            let path = format!("/body-{nth}");
            let (status, text) = gate.send(method.clone(), &path, vec![b'x'; size]).await;
            let what = format!("{method} {size} {read} {nth}: {status} {text}");
            match status {
                200 => assert_eq!(text, format!("{} {size}", b.address), "{what}"),
                _ => assert_eq!(status, 502, "{what}"),
            }
            let at_b = b.count(&format!("{method} {path}"));
            assert_eq!(at_b, usize::from(status == 200), "{what}");
            if method == Method::POST && a.count(&format!("{method} {path}")) > 0 {
                assert_eq!(at_b, 0, "{what}");
            }
        }
    }
}

/// Nothing was sent: a request of any method goes to the other endpoint, whatever its body.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_connection_costs_no_request_and_no_repeat() {
    let a = Server::unheard(SLOW);
    let b = Server::start().await;
    let lines = format!("retry_share = 0.0\n{NO_EJECTION}");
    let gate = EndpointGate::start(&[&a, &b], &lines).await;
    for number in 0..30 {
        let path = format!("/any-{number}");
        let sent = gate.send(Method::POST, &path, vec![b'x'; 100_000]).await;
        assert_eq!(sent, (200, format!("{} 100000", b.address)));
        assert_eq!(b.count(&format!("POST {path}")), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn repeats_stay_within_their_share() {
    let refuse = Behaviour::Respond(503, Duration::from_millis(30));
    let (a, b) = (Server::start().await, Server::start().await);
    let c = Server::start().await;
    let all = [&a, &b, &c];
    let gate = EndpointGate::start(&all, NO_EJECTION).await;
    all.iter().for_each(|server| server.set(refuse.clone()));
    let clients = (0..50).map(|client| {
        let gate = &gate;
        async move {
            for nth in 0..8 {
                assert_eq!(gate.get(&format!("/c-{client}-{nth}")).await, 503);
            }
        }
    });
    futures_util::future::join_all(clients).await;
    let sent = 50 * 8;
    let arrived: usize = all.iter().map(|server| server.requests()).sum();
    assert!(arrived <= sent + sent / 5 + 10, "{arrived} of {sent}");
    assert!(arrived >= sent + sent / 10, "{arrived} of {sent}");
    for server in all {
        for (line, count) in server.seen() {
            assert_eq!(count, 1, "{line}: an endpoint already tried");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_share_nothing_that_was_sent_is_repeated() {
    let (a, b) = (Server::with(Behaviour::Close).await, Server::start().await);
    let lines = format!("retry_share = 0.0\n{NO_EJECTION}");
    let gate = EndpointGate::start(&[&a, &b], &lines).await;
    for number in 0..20 {
        let path = format!("/zero-{number}");
        let status = gate.get(&path).await;
        let line = format!("GET {path}");
        assert_eq!(both(&a, &b, &line), 1);
        assert_eq!(status, if a.count(&line) == 1 { 502 } else { 200 });
    }
}

/// One deadline over all tries: both endpoints hang, and the client waits once.
#[tokio::test(flavor = "multi_thread")]
async fn one_deadline_covers_all_tries() {
    let (a, b) = (Server::start().await, Server::start().await);
    let text = super::config(&super::urls(&[&a, &b]), "first_byte_timeout = \"900ms\"");
    let text = text.replace(
        "access = \"api_key\"",
        "access = \"api_key\"\ntimeout = \"1s\"",
    );
    let gate = EndpointGate::of(&text).await;
    a.set(Behaviour::Hang);
    b.set(Behaviour::Hang);
    let start = std::time::Instant::now();
    assert_eq!(gate.get("/hang").await, 504);
    let took = start.elapsed();
    assert!(took < Duration::from_millis(1700), "{took:?}");
    assert!(both(&a, &b, "GET /hang") <= 2);
    gate.becomes_quiet().await;
}

/// A client that goes away ends its request; it is not repeated for nobody.
#[tokio::test(flavor = "multi_thread")]
async fn the_request_of_a_client_that_has_gone_is_not_repeated() {
    let (a, b, gate) = two(Behaviour::Respond(503, Duration::from_millis(400)), 0).await;
    for number in 0..10 {
        let path = format!("/gone-{number}");
        let sent = gate.get(&path);
        let _ = tokio::time::timeout(Duration::from_millis(150), sent).await;
    }
    tokio::time::sleep(Duration::from_millis(700)).await;
    for number in 0..10 {
        assert!(both(&a, &b, &format!("GET /gone-{number}")) <= 1);
    }
    gate.becomes_quiet().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_one_endpoint_nothing_is_repeated_or_ejected() {
    let only = Server::with(Behaviour::Respond(503, Duration::ZERO)).await;
    let gate = EndpointGate::start(&[&only], "").await;
    for number in 0..20 {
        let path = format!("/only-{number}");
        assert_eq!(gate.get(&path).await, 503);
        assert_eq!(only.count(&format!("GET {path}")), 1);
    }
    assert_eq!(gate.ejections().await, 0.0);
    only.respond(200);
    assert_eq!(gate.get("/well").await, 200);
}
