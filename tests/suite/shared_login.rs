//! One login for all clients: no client, upstream node or reload can end it for
//! the other clients (docs/LOGIN.md).

use std::time::Duration;

use reqwest::Method;
use tokio::time::{Instant, sleep};

use crate::harness::login_upstream::{KeyClient, LoginReply, LoginUpstream, gate_before};
use crate::harness::{Gateway, eventually, secret};

fn rewrite(gateway: &Gateway, from: &str, to: &str) {
    let file = gateway.config_file();
    let old = std::fs::read_to_string(&file).unwrap();
    assert!(old.contains(from), "{from:?} is not in the file");
    std::fs::write(&file, old.replace(from, to)).unwrap();
}

async fn applied(gateway: &Gateway, times: u64) {
    eventually("the reload", async || {
        gateway
            .metrics
            .reloads
            .value(tollgate::metrics::ReloadResult::Applied)
            >= times
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_always_responds_401_does_not_end_the_login() {
    let upstream = LoginUpstream::start(|request| match request.path.as_str() {
        "/bad" => 401,
        _ => 200,
    })
    .await;
    let (_gateway, client) = gate_before(&upstream, "logins_per_hour = 10").await;
    for _ in 0..15 {
        assert_eq!(client.get("/bad").await, 502);
    }
    assert_eq!(client.get("/ok").await, 200);
    for _ in 0..40 {
        assert_eq!(client.get("/bad?and=again").await, 502);
        assert_eq!(client.get("/ok").await, 200);
    }
    assert!(upstream.logins() <= 2, "{} logins", upstream.logins());
    // Once it is known, a refused request is sent once.
    let before = upstream.requests_to("/bad").len();
    assert_eq!(client.get("/bad").await, 502);
    assert_eq!(upstream.requests_to("/bad").len(), before + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_paths_methods_or_bodies_that_get_401_do_not_end_the_login() {
    let upstream = LoginUpstream::start(|request| {
        let is_bad = request.path.starts_with("/bad") || request.method == "DELETE";
        if is_bad { 401 } else { 200 }
    })
    .await;
    let (_gateway, client) = gate_before(&upstream, "logins_per_hour = 10").await;
    assert_eq!(client.get("/ok").await, 200);
    for number in 0..30 {
        assert_eq!(client.get(&format!("/bad/{number}")).await, 502);
        assert_eq!(client.send(Method::DELETE, "/ok", vec![]).await, 502);
        // Larger than replay_limit: judged before the client has to send it again.
        let large = vec![7; 300_000];
        let response = client.response(Method::POST, "/bad/upload", large).await;
        assert!(
            matches!(response.status().as_u16(), 502 | 503),
            "{response:?}"
        );
        assert_eq!(client.get("/ok").await, 200);
    }
    assert!(upstream.logins() <= 3, "{} logins", upstream.logins());
    let response = client
        .response(Method::POST, "/bad/upload", vec![7; 300_000])
        .await;
    assert_eq!(
        response.status(),
        502,
        "the client is not asked to retry without end"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_is_replaced_at_once_and_no_client_sees_it() {
    let upstream = LoginUpstream::start(|_| 200).await;
    let (_gateway, client) = gate_before(&upstream, "min_login_interval = \"10ms\"").await;
    assert_eq!(client.get("/a").await, 200);
    assert_eq!(client.get("/b").await, 200);
    for round in 1..=3 {
        // The token is old enough to be known to every node.
        sleep(Duration::from_millis(5_100)).await;
        upstream.set_paths(move |request| if request.token > round { 200 } else { 401 });
        let begin = Instant::now();
        assert_eq!(client.get("/a").await, 200);
        assert!(
            begin.elapsed() < Duration::from_secs(1),
            "{:?}",
            begin.elapsed()
        );
        assert_eq!(client.get("/b").await, 200);
        // A path without earlier requests.
        assert_eq!(client.get(&format!("/new/{round}")).await, 200);
        assert_eq!(upstream.logins(), round + 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_token_that_a_node_does_not_know_yet_is_retried() {
    // The second node learns of a token after its fourth request.
    let upstream = LoginUpstream::start(|request| match request.nth {
        1 => 401,
        _ => 200,
    })
    .await;
    let (_gateway, client) = gate_before(&upstream, "").await;
    assert_eq!(client.get("/a").await, 200);
    assert_eq!(upstream.logins(), 1);
    let requests = upstream.requests_to("/a");
    assert_eq!(requests.len(), 2);
    assert!(requests.iter().all(|request| request.token == 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_with_a_bad_token_changes_nothing_while_the_old_one_is_good() {
    for probe in ["", "probe = \"/me\""] {
        let upstream = LoginUpstream::start(|request| match request.token {
            1 => 200,
            _ => 401,
        })
        .await;
        upstream.set_logins(|nth| LoginReply::Token(if nth == 1 { 8 } else { 3600 }));
        let lines = format!("renew_at = 0.3\nrenew_floor = \"1s\"\n{probe}");
        let (gateway, client) = gate_before(&upstream, &lines).await;
        assert_eq!(client.get("/a").await, 200);
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(5_500) {
            assert_eq!(client.get("/a").await, 200, "{probe} {:?}", begin.elapsed());
            assert_eq!(client.send(Method::POST, "/b", vec![1; 100]).await, 200);
            sleep(Duration::from_millis(20)).await;
        }
        assert!(upstream.logins() >= 2, "a renewal has been tried");
        assert!(upstream.logins() <= 6, "{} logins", upstream.logins());
        let generation = gateway.metrics.upstream("main").session_generation.get();
        assert_eq!(generation, 1, "the good token is in use");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrongly_refused_login_is_retried_on_sighup_and_on_a_reload() {
    for response in [401, 403] {
        let upstream = LoginUpstream::start(|_| 200).await;
        upstream.set_logins(move |nth| match nth {
            1 => LoginReply::Status(response),
            _ => LoginReply::Token(3600),
        });
        let (gateway, client) = gate_before(&upstream, "").await;
        if response == 401 {
            assert_eq!(client.get("/a").await, 503);
        }
        gateway.steering.hup.notify_waiters();
        eventually("a login after SIGHUP", async || {
            client.get("/a").await == 200
        })
        .await;
        assert_eq!(upstream.logins(), 2);
    }
    let upstream = LoginUpstream::start(|_| 200).await;
    upstream.set_logins(|nth| match nth {
        1 => LoginReply::Status(401),
        _ => LoginReply::Token(3600),
    });
    let (gateway, client) = gate_before(&upstream, "concurrency = 64").await;
    assert_eq!(client.get("/a").await, 503);
    rewrite(&gateway, "concurrency = 64", "concurrency = 65");
    eventually("a login after a reload", async || {
        client.get("/a").await == 200
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_written_before_the_upstream_accepts_it_needs_no_second_change() {
    let upstream = LoginUpstream::start(|_| 200).await;
    upstream.set_logins(|_| LoginReply::Status(401));
    let (gateway, client) = gate_before(&upstream, "").await;
    assert_eq!(client.get("/a").await, 503);
    secret(
        &gateway.folder.path().join("webapp-password"),
        "New-Passw0rd!",
    );
    eventually("a login with the new password", async || {
        upstream.logins() == 2
    })
    .await;
    sleep(Duration::from_millis(1_500)).await;
    assert_eq!(upstream.logins(), 2, "no login storm");
    upstream.set_logins(|_| LoginReply::Token(3600));
    gateway.steering.hup.notify_waiters();
    eventually("the login", async || client.get("/a").await == 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_keeps_the_login_and_its_budget() {
    let upstream = LoginUpstream::start(|_| 200).await;
    let lines = "logins_per_hour = 3\nconcurrency = 64";
    let (gateway, client) = gate_before(&upstream, lines).await;
    assert_eq!(client.get("/a").await, 200);
    upstream.set_logins(|_| LoginReply::Status(503));
    for reload in 0..10_u64 {
        let (from, to) = (64 + reload, 65 + reload);
        rewrite(
            &gateway,
            &format!("concurrency = {from}"),
            &format!("concurrency = {to}"),
        );
        applied(&gateway, reload + 1).await;
        assert_eq!(client.get("/a").await, 200);
    }
    assert_eq!(upstream.logins(), 1);
    // Changes of trust, timeouts and login settings do not need another token.
    rewrite(
        &gateway,
        "logins_per_hour = 3",
        "logins_per_hour = 4\nrenew_at = 0.7",
    );
    applied(&gateway, 11).await;
    assert_eq!(client.get("/a").await, 200);
    assert_eq!(upstream.logins(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_address_takes_over_when_its_login_works_and_keeps_the_budget() {
    let (old, new) = (
        LoginUpstream::start(|_| 200).await,
        LoginUpstream::start(|_| 200).await,
    );
    new.set_logins(|_| LoginReply::Status(503));
    let (gateway, client) = gate_before(&old, "logins_per_hour = 30").await;
    assert_eq!(client.get("/a").await, 200);
    rewrite(&gateway, &old.url(), &new.url());
    applied(&gateway, 1).await;
    for _ in 0..20 {
        assert_eq!(client.get("/a").await, 200);
        sleep(Duration::from_millis(20)).await;
    }
    assert!(new.requests_to("/a").is_empty());
    let ready = reqwest::get(gateway.operator_url("/readyz")).await.unwrap();
    assert_eq!(ready.status(), 200);
    let page = ready.text().await.unwrap();
    assert!(page.contains("wait to take over"), "{page}");
    new.set_logins(|_| LoginReply::Token(3600));
    gateway.steering.hup.notify_waiters();
    eventually("the new one", async || {
        assert_eq!(client.get("/a").await, 200);
        !new.requests_to("/a").is_empty()
    })
    .await;
    // Each change of address and back is one login, however often.
    for (round, pair) in [(&new, &old), (&old, &new)]
        .into_iter()
        .cycle()
        .take(4)
        .enumerate()
    {
        let before = (old.logins(), new.logins());
        rewrite(&gateway, &pair.0.url(), &pair.1.url());
        applied(&gateway, 2 + round as u64).await;
        assert_eq!(client.get("/a").await, 200);
        assert!(old.logins() + new.logins() <= before.0 + before.1 + 1);
    }
    assert!(old.logins() <= 4, "{} logins", old.logins());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_waits_for_a_permit_uses_the_token_of_the_time_of_sending() {
    let upstream = LoginUpstream::start(|request| {
        // Only the newest token is good.
        if request.token == request.minted {
            200
        } else {
            401
        }
    })
    .await;
    upstream.set_logins(|nth| LoginReply::Token(if nth == 1 { 6 } else { 3600 }));
    let lines = "concurrency = 1\nqueue_timeout = \"30s\"\nrenew_at = 0.3\nrenew_floor = \"1s\"\n\
                 single_active_token = true";
    let (_gateway, client) = gate_before(&upstream, lines).await;
    assert_eq!(client.get("/a").await, 200);
    upstream.set_delay(Duration::from_secs(4));
    let slow = spawn(&client, "/slow", 0);
    sleep(Duration::from_millis(200)).await;
    upstream.set_delay(Duration::ZERO);
    let (large, small) = (
        spawn(&client, "/large", 200_000),
        spawn(&client, "/small", 10),
    );
    eventually("the renewal", async || upstream.logins() == 2).await;
    assert_eq!(slow.await.unwrap(), 200);
    assert_eq!(large.await.unwrap(), 200);
    assert_eq!(small.await.unwrap(), 200);
    for path in ["/large", "/small"] {
        let requests = upstream.requests_to(path);
        assert_eq!(requests.len(), 1, "{path} is sent once");
        assert_eq!(requests[0].token, 2);
    }
}

fn spawn(client: &KeyClient, path: &'static str, body: usize) -> tokio::task::JoinHandle<u16> {
    let client = client.clone();
    tokio::spawn(async move { client.send(Method::POST, path, vec![1; body]).await })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_only_one_of_two_nodes_accepts_causes_no_login_storm() {
    // Requests alternate between two nodes; each knows only its own tokens.
    let upstream = LoginUpstream::start(|request| {
        if request.nth % 2 == request.token % 2 {
            200
        } else {
            401
        }
    })
    .await;
    let (_gateway, client) = gate_before(&upstream, "logins_per_hour = 20").await;
    let mut good = 0;
    for _ in 0..60 {
        good += usize::from(client.get("/a").await == 200);
        sleep(Duration::from_millis(20)).await;
    }
    assert!(good >= 45, "{good} of 60");
    assert!(upstream.logins() <= 11, "{} logins", upstream.logins());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_probe_decides_what_a_refusal_means() {
    let upstream = LoginUpstream::start(|request| match (request.path.as_str(), request.token) {
        ("/bad", _) | (_, 0) => 401,
        _ => 200,
    })
    .await;
    let lines = "probe = \"/me\"\nmin_login_interval = \"10ms\"";
    let (_gateway, client) = gate_before(&upstream, lines).await;
    assert_eq!(client.get("/ok").await, 200);
    for _ in 0..30 {
        assert_eq!(client.get("/bad").await, 502);
        assert_eq!(client.get("/ok").await, 200);
    }
    assert_eq!(upstream.logins(), 1, "the probe accepts the token");
    assert!(
        upstream.requests_to("/me").len() < 20,
        "the probe is not sent for each request"
    );
    upstream.set_paths(|request| if request.token > 1 { 200 } else { 401 });
    assert_eq!(client.get("/ok").await, 200);
    assert_eq!(client.get("/never-asked").await, 200);
    assert_eq!(upstream.logins(), 2);
}
