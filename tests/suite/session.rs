//! The upstream login as clients see it: no request fails because a token was renewed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::StatusCode;
use serde_json::json;
use tokio::time::Instant;
use tollgate::emulator::{Emulator, ExpiryForm, LoginResponse, Settings};
use tollgate::secret::Secret;

use crate::harness::client::verdict;
use crate::harness::{
    Client, Gateway, NO_LIMITS, Setup, emulator, emulator_with, eventually, secret,
};

const QUICK_LOGINS: &str = "min_login_interval = \"10ms\"\nlogins_per_hour = 36000";

async fn gate(webapp: &Emulator) -> (Gateway, Client) {
    let setup = Setup::default().upstream(QUICK_LOGINS).rest(NO_LIMITS);
    let gateway = Gateway::with(webapp, setup).await;
    let client = gateway.admin().await;
    assert_eq!(client.get("/v1/users/admin").await.status(), 200);
    assert_eq!(client.get("/v1/support").await.status(), 200);
    (gateway, client)
}

/// Sends `count` requests at once over a few HTTP/2 connections.
async fn burst(gateway: &Gateway, token: &str, count: usize, post: bool) -> Vec<StatusCode> {
    let clients: Vec<Client> = (0..40)
        .map(|_| {
            let builder = reqwest::Client::builder().timeout(Duration::from_secs(120));
            Client::built(gateway, builder).with_token(token)
        })
        .collect();
    let all: Vec<_> = (0..count)
        .map(|index| {
            let client = clients[index % clients.len()].clone();
            tokio::spawn(async move {
                if post {
                    let text =
                        json!({ "to": "1", "type": "text", "text": { "body": index.to_string() } });
                    client.post("/v1/messages", &text).await.status()
                } else {
                    client.get("/v1/support").await.status()
                }
            })
        })
        .collect();
    let mut responses = Vec::with_capacity(count);
    for one in all {
        responses.push(one.await.unwrap());
    }
    responses
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_requests_that_meet_a_401_cause_one_login_and_no_client_sees_it() {
    let webapp = emulator().await;
    let setup = Setup::default()
        .upstream(&format!(
            "{QUICK_LOGINS}\nqueue_timeout = \"60s\"\nconnect_timeout = \"60s\"\nconcurrency = 256"
        ))
        .listener("max_streams = 1000")
        .rest(NO_LIMITS);
    let gateway = Gateway::with(&webapp, setup).await;
    let client = gateway.admin().await;
    assert_eq!(client.get("/v1/support").await.status(), 200);
    assert_eq!(webapp.login_count(), 1);

    webapp.forget_all_tokens();
    let responses = burst(&gateway, client.token.as_ref().unwrap(), 10_000, false).await;
    let good = responses
        .iter()
        .filter(|status| **status == StatusCode::OK)
        .count();
    assert_eq!(
        good,
        10_000,
        "the first bad one: {:?}",
        responses.iter().find(|s| **s != StatusCode::OK)
    );
    assert_eq!(
        webapp.login_count(),
        2,
        "one login at the start, one for all ten thousand requests"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn posts_that_meet_a_401_are_replayed_from_the_buffered_body() {
    let webapp = emulator().await;
    let (gateway, client) = gate(&webapp).await;
    webapp.forget_all_tokens();
    let responses = burst(&gateway, client.token.as_ref().unwrap(), 300, true).await;
    assert!(
        responses
            .iter()
            .all(|status| *status == StatusCode::CREATED),
        "{responses:?}"
    );
    assert_eq!(webapp.login_count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_over_the_replay_limit_gets_503_and_is_not_sent_again_in_part() {
    let webapp = emulator().await;
    let (_gateway, client) = gate(&webapp).await;
    let large = vec![7_u8; 3_000_000];
    let send = || {
        let request = client.request(reqwest::Method::POST, "/v1/media");
        request
            .header("content-type", "image/png")
            .body(large.clone())
            .send()
    };
    // The refusal arrives after more of the body was sent than is buffered.
    webapp.forget_all_tokens();
    webapp.response_delay(Duration::from_millis(300));
    let response = send().await.unwrap();
    assert_eq!(response.headers()["retry-after"], "0");
    assert_eq!(verdict(response).await, (503, 1011));
    webapp.response_delay(Duration::ZERO);
    assert_eq!(
        send().await.unwrap().status(),
        200,
        "the retry by the client succeeds"
    );

    // At an immediate refusal the whole body may still be buffered; then it is sent again.
    for _ in 0..10 {
        webapp.forget_all_tokens();
        let response = send().await.unwrap();
        match response.status().as_u16() {
            200 => {}
            _ => assert_eq!(verdict(response).await, (503, 1011)),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn under_steady_load_fifty_renewals_fail_and_delay_no_request() {
    let webapp = emulator_with(Settings {
        token_lifetime: Duration::from_secs(3),
        ..Settings::for_tests()
    })
    .await;
    let setup = Setup::default()
        .upstream(&format!(
            "{QUICK_LOGINS}\nrenew_at = 0.2\nrenew_floor = \"1s\""
        ))
        .rest(NO_LIMITS);
    let gateway = Gateway::with(&webapp, setup).await;
    let client = gateway.admin().await;
    assert_eq!(client.get("/v1/support").await.status(), 200);
    let waits_before = gateway.metrics.upstream("main").session_waits.get();

    let stop = Arc::new(AtomicBool::new(false));
    let (sent, failed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let load: Vec<_> = (0..8)
        .map(|_| {
            let (client, stop) = (client.clone(), Arc::clone(&stop));
            let (sent, failed) = (Arc::clone(&sent), Arc::clone(&failed));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let response = client.get("/v1/support").await;
                    let status = response.status();
                    response.bytes().await.unwrap();
                    sent.fetch_add(1, Ordering::Relaxed);
                    failed.fetch_add(usize::from(status != StatusCode::OK), Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(4)).await;
                }
            })
        })
        .collect();
    let begin = Instant::now();
    while webapp.login_count() < 51 && begin.elapsed() < Duration::from_secs(150) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stop.store(true, Ordering::Relaxed);
    for one in load {
        let ended = one.await;
        assert!(ended.is_ok(), "{}", gateway.metrics.text());
    }
    assert!(
        webapp.login_count() >= 51,
        "only {} logins",
        webapp.login_count()
    );
    assert!(
        sent.load(Ordering::Relaxed) > 1000,
        "too few requests for a load test"
    );
    assert_eq!(failed.load(Ordering::Relaxed), 0);
    assert_eq!(
        gateway.metrics.upstream("main").session_waits.get(),
        waits_before,
        "no request waited for a login"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn while_logins_fail_the_old_token_is_used_until_it_expires_and_then_503_until_recovery() {
    let webapp = emulator_with(Settings {
        token_lifetime: Duration::from_secs(4),
        ..Settings::for_tests()
    })
    .await;
    let setup = Setup::default()
        .upstream(&format!(
            "{QUICK_LOGINS}\nrenew_at = 0.1\nrenew_floor = \"1s\""
        ))
        .rest(NO_LIMITS);
    let gateway = Gateway::with(&webapp, setup).await;
    let client = gateway.admin().await;
    assert_eq!(client.get("/v1/support").await.status(), 200);
    webapp.fail_next_logins(1_000_000, LoginResponse::Status(500));
    let failing_since = webapp.login_count();
    eventually("a failed renewal", async || {
        webapp.login_count() > failing_since
    })
    .await;
    assert_eq!(
        client.get("/v1/support").await.status(),
        200,
        "the old token is still in use"
    );

    eventually("the end of the old token", async || {
        client.get("/v1/support").await.status() == 503
    })
    .await;
    let response = client.get("/v1/support").await;
    let wait: u64 = response.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=300).contains(&wait), "{wait}");
    assert_eq!(verdict(response).await, (503, 1011));
    let ready = reqwest::get(gateway.operator_url("/readyz")).await.unwrap();
    assert_eq!(ready.status(), 503);

    webapp.fail_next_logins(0, LoginResponse::Status(500));
    eventually("the gate recovers", async || {
        client.get("/v1/support").await.status() == 200
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_tried_once_and_again_when_its_file_changes() {
    let webapp = emulator().await;
    webapp.rotate_password(Secret::new("Another-Passw0rd!"));
    let setup = Setup::default().upstream(QUICK_LOGINS).rest(NO_LIMITS);
    let gateway = Gateway::with(&webapp, setup).await;
    let client = gateway.admin().await;
    for _ in 0..20 {
        assert_eq!(verdict(client.get("/v1/support").await).await, (503, 1011));
    }
    assert_eq!(webapp.login_count(), 1, "one attempt, no login storm");
    let ready = reqwest::get(gateway.operator_url("/readyz")).await.unwrap();
    assert_eq!(ready.status(), 503);
    assert!(ready.text().await.unwrap().contains("password"));

    secret(
        &gateway.folder.path().join("webapp-password"),
        "Another-Passw0rd!",
    );
    eventually("login with the new secret", async || {
        client.get("/v1/support").await.status() == 200
    })
    .await;
    assert_eq!(webapp.login_count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_must_be_changed_is_tried_once() {
    let webapp = emulator_with(Settings {
        first_login: true,
        ..Settings::for_tests()
    })
    .await;
    let setup = Setup::default().upstream(QUICK_LOGINS).rest(NO_LIMITS);
    let gateway = Gateway::with(&webapp, setup).await;
    let client = gateway.admin().await;
    for _ in 0..10 {
        assert_eq!(verdict(client.get("/v1/support").await).await, (503, 1011));
    }
    assert_eq!(webapp.login_count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_clock_that_is_an_hour_wrong_changes_nothing() {
    for offset in [3600, -3600] {
        let webapp = emulator_with(Settings {
            token_lifetime: Duration::from_secs(600),
            ..Settings::for_tests()
        })
        .await;
        webapp.clock_offset(offset);
        let (gateway, client) = gate(&webapp).await;
        assert_eq!(client.get("/v1/support").await.status(), 200);
        assert_eq!(webapp.login_count(), 1, "offset {offset}");
        let _ = reqwest::get(gateway.operator_url("/metrics"))
            .await
            .unwrap();
        let left = gateway
            .metrics
            .upstream("main")
            .session_seconds_to_expiry
            .get();
        assert!(
            (590..=600).contains(&left),
            "{left} s left at offset {offset}"
        );
        let skew = gateway
            .metrics
            .upstream("main")
            .session_clock_skew_seconds
            .get();
        assert!((skew - offset).abs() <= 2, "skew {skew}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unusable_login_response_is_a_failed_login_and_never_a_token() {
    let webapp = emulator().await;
    webapp.login_response(LoginResponse::Html);
    let setup = Setup::default()
        .upstream(&format!("{QUICK_LOGINS}\nlogin_timeout = \"1s\""))
        .rest(NO_LIMITS);
    let gateway = Gateway::with(&webapp, setup).await;
    let client = gateway.admin().await;
    let responses = [
        LoginResponse::Html,
        LoginResponse::TenMegabytes,
        LoginResponse::CutInMiddle,
        LoginResponse::Never,
        LoginResponse::EmptyBody,
    ];
    for form in responses {
        webapp.login_response(form);
        assert_eq!(
            verdict(client.get("/v1/support").await).await,
            (503, 1011),
            "{form:?}"
        );
    }
    webapp.login_response(LoginResponse::Normal);
    for form in [
        ExpiryForm::Null,
        ExpiryForm::Past,
        ExpiryForm::Garbage,
        ExpiryForm::Missing,
    ] {
        webapp.expiry_form(form);
        assert_eq!(
            verdict(client.get("/v1/support").await).await,
            (503, 1011),
            "{form:?}"
        );
    }
    assert_eq!(
        gateway.metrics.upstream("main").session_generation.get(),
        0,
        "no token was accepted"
    );
    webapp.expiry_form(ExpiryForm::Normal);
    eventually("a usable login", async || {
        client.get("/v1/support").await.status() == 200
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_single_active_token_no_client_sees_a_401() {
    let webapp = emulator_with(Settings {
        token_lifetime: Duration::from_secs(3),
        ..Settings::for_tests()
    })
    .await;
    webapp.single_token(true);
    let setup = Setup::default()
        .upstream(&format!(
            "{QUICK_LOGINS}\nrenew_at = 0.2\nrenew_floor = \"1s\"\nsingle_active_token = true"
        ))
        .rest(NO_LIMITS);
    let gateway = Gateway::with(&webapp, setup).await;
    let client = gateway.admin().await;
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(6) {
        assert_eq!(client.get("/v1/support").await.status(), 200);
    }
    assert!(webapp.login_count() > 4, "the login was renewed");
}
