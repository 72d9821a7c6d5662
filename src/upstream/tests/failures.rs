//! Failed logins: their causes are distinguished, and they lead to no login storm and no hang.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::server::{Reply, Webapp, permits};
use super::{TEST_TIMEOUT, UpstreamSetup, eventually, refusal, stays};
use crate::metrics::LoginOutcome;
use crate::secret::SecretSource;
use crate::upstream::{Error, LoginFailure};

pub(super) fn lets_in_the_right_password() -> impl Fn(&super::server::Call) -> Reply + Send + Sync {
    |call| {
        if call.has_line("Authorization: Basic Z2F0ZXdheTpyaWdodA==") {
            Reply::login("tok", 600)
        } else {
            Reply::with(
                401,
                "",
                r#"{"errors":[{"code":1005,"title":"Access denied"}]}"#,
            )
        }
    }
}

#[tokio::test]
async fn a_wrong_password_is_tried_once_until_its_file_changes() {
    let webapp = Webapp::start(lets_in_the_right_password()).await;
    let setup = UpstreamSetup::of(webapp.address);
    setup.folder.write("password", "wrong");
    let session = setup.session();
    assert_eq!(refusal(&session).await.why, LoginFailure::WrongPassword);
    assert_eq!(
        session.status().to_string(),
        "upstream login: wrong password"
    );
    // The file is written again with the same wrong password.
    setup.folder.write("password", "wrong\n");
    stays("the number of logins stays 1", || webapp.requests() == 1).await;
    setup.folder.write("password", "right");
    eventually("logged in", || session.is_ready()).await;
    assert_eq!(webapp.requests(), 2);
    let logins = &setup.metrics.upstream("main").session_logins;
    assert_eq!(logins.value(LoginOutcome::WrongPassword), 1);
}

#[tokio::test]
async fn a_password_that_must_be_changed_stops_logins_too() {
    let webapp = Webapp::start(|_| {
        Reply::with(
            401,
            "",
            r#"{"errors":[{"code":1024,"title":"Password change required"}]}"#,
        )
    })
    .await;
    let setup = UpstreamSetup::of(webapp.address);
    let session = setup.session();
    let no = refusal(&session).await;
    assert_eq!(no.why, LoginFailure::PasswordChange);
    assert!(no.retry_after >= Duration::from_secs(1));
    stays("the number of logins stays 1", || webapp.requests() == 1).await;
}

#[tokio::test]
async fn a_password_file_that_is_missing_is_awaited() {
    let webapp = Webapp::start(lets_in_the_right_password()).await;
    let setup = UpstreamSetup::of(webapp.address);
    std::fs::remove_file(setup.folder.0.join("password")).unwrap();
    let session = setup.session();
    assert_eq!(refusal(&session).await.why, LoginFailure::Secret);
    assert_eq!(webapp.connections(), 0);
    setup.folder.write("password", "right");
    eventually("logged in", || session.is_ready()).await;
}

#[tokio::test]
async fn a_response_without_a_usable_token_is_a_failed_login() {
    let past = "2021-07-25 08:50:48+00:00";
    let user = |token: &str, end: &str| {
        format!(r#"{{"users":[{{"token":{token},"expires_after":{end}}}]}}"#)
    };
    let good = r#""2999-01-01 00:00:00+00:00""#;
    let bodies = [
        String::new(),
        "<html><body>Welcome to the portal</body></html>".to_owned(),
        "{}".to_owned(),
        r#"{"users":[]}"#.to_owned(),
        user("null", good),
        user("7", good),
        user(r#""""#, good),
        user(r#""two words""#, good),
        user(r#""line\nbreak""#, good),
        user(r#""tok""#, "null"),
        user(r#""tok""#, r#""tomorrow""#),
        user(r#""tok""#, "17"),
        user(r#""tok""#, &format!("\"{past}\"")),
        // More than 400 days.
        user(r#""tok""#, good),
        r#"{"users":[{"token":"tok"}]}"#.to_owned(),
        r#"{"users":[{"token":"to"#.to_owned(),
        "x".repeat(10_000_000),
    ];
    for body in bodies {
        let start: String = body.chars().take(60).collect();
        let webapp = Webapp::start(move |_| Reply::with(200, "", &body)).await;
        let setup = UpstreamSetup::of(webapp.address);
        let session = setup.session();
        assert_eq!(
            refusal(&session).await.why,
            LoginFailure::Unusable,
            "{start}"
        );
        assert!(!session.is_ready());
        setup.scope.stop.abort();
    }
}

#[tokio::test]
async fn an_incomplete_response_is_a_failed_login() {
    let whole = "HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{\"users\":[{\"token\":\"tok\",";
    let webapp = Webapp::start(move |_| Reply::raw(whole).then_close()).await;
    let setup = UpstreamSetup::of(webapp.address);
    let session = setup.session();
    assert_eq!(refusal(&session).await.why, LoginFailure::Unusable);
}

#[tokio::test]
async fn a_login_without_a_response_times_out() {
    let never = permits();
    let webapp = Webapp::start(move |_| Reply::raw("").after(&never)).await;
    let mut setup = UpstreamSetup::of(webapp.address);
    setup.login().timeout = Duration::from_millis(200);
    let session = setup.session();
    assert_eq!(refusal(&session).await.why, LoginFailure::Timeout);
    eventually("the login is tried again", || webapp.requests() > 1).await;
}

#[tokio::test]
async fn a_login_response_that_trickles_times_out() {
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n{\"users\":";
    let webapp = Webapp::start(move |_| Reply::raw(head)).await;
    let mut setup = UpstreamSetup::of(webapp.address);
    setup.login().timeout = Duration::from_millis(200);
    assert_eq!(refusal(&setup.session()).await.why, LoginFailure::Timeout);
}

#[tokio::test]
async fn the_retry_after_of_a_refused_login_is_honoured() {
    let webapp = Webapp::start(|_| Reply::with(429, "Retry-After: 120\r\n", "")).await;
    let setup = UpstreamSetup::of(webapp.address);
    let session = setup.session();
    let no = refusal(&session).await;
    assert!(matches!(no.why, LoginFailure::Refused(status) if status == 429));
    assert!(no.retry_after > Duration::from_secs(110), "{no:?}");
    stays("the number of logins stays 1", || webapp.requests() == 1).await;
}

#[tokio::test]
async fn a_403_is_not_a_verdict_on_the_password() {
    let webapp = Webapp::start(|call| match call.number {
        1 | 2 => Reply::with(403, "", r#"{"errors":[{"code":1005}]}"#),
        _ => Reply::login("tok", 600),
    })
    .await;
    let setup = UpstreamSetup::of(webapp.address);
    let session = setup.session();
    assert!(matches!(refusal(&session).await.why, LoginFailure::Refused(status) if status == 403));
    eventually("logged in", || session.is_ready()).await;
}

#[tokio::test]
async fn an_upstream_that_starts_later_is_reached() {
    // The port stays bound without a listener until then, so that no other program gets it.
    let reserved = tokio::net::TcpSocket::new_v4().unwrap();
    reserved.set_reuseaddr(true).unwrap();
    reserved.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = reserved.local_addr().unwrap();
    let setup = UpstreamSetup::of(address);
    let session = setup.session();
    let no = refusal(&session).await;
    assert_eq!(no.why, LoginFailure::Unreachable);
    assert!(session.status().to_string().contains("unreachable"));
    drop(reserved);
    let _webapp = Webapp::start_at(address, None, |_| Reply::login("tok", 600)).await;
    eventually("logged in", || session.is_ready()).await;
}

#[tokio::test]
async fn a_login_is_made_as_soon_as_the_upstream_is_back() {
    let reserved = tokio::net::TcpSocket::new_v4().unwrap();
    reserved.set_reuseaddr(true).unwrap();
    reserved.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = reserved.local_addr().unwrap();
    let setup = UpstreamSetup::of(address);
    let session = setup.session();
    // Pauses grow at random; the test needs one that is longer than its wait below.
    let deadline = Instant::now() + Duration::from_secs(120);
    while refusal(&session).await.retry_after < Duration::from_secs(12) {
        assert!(Instant::now() < deadline, "no pause became long enough");
        sleep(Duration::from_millis(50)).await;
    }
    drop(reserved);
    let _webapp = Webapp::start_at(address, None, |_| Reply::login("tok", 600)).await;
    let begin = Instant::now();
    eventually("logged in", || session.is_ready()).await;
    assert!(begin.elapsed() < Duration::from_secs(8));
}

#[tokio::test]
async fn logins_that_never_reached_the_upstream_cost_no_budget() {
    let webapp = Webapp::start(|_| Reply::login("tok", 600)).await;
    let mut setup = UpstreamSetup::of(webapp.address);
    setup.login().logins_per_hour = 1;
    setup.login().min_login_interval = Duration::from_secs(60);
    // No program listens at port 1.
    setup.settings.base.port = 1;
    let session = setup.session();
    let unreachable = || {
        setup
            .metrics
            .upstream("main")
            .session_logins
            .value(LoginOutcome::Unreachable)
    };
    assert_eq!(refusal(&session).await.why, LoginFailure::Unreachable);
    eventually("the login is tried again despite the budget", || {
        unreachable() > 1
    })
    .await;
}

#[tokio::test]
async fn an_api_key_is_checked_and_follows_its_file() {
    let never = Arc::new(AtomicBool::new(false));
    let login_seen = Arc::clone(&never);
    let webapp = Webapp::start(move |_| {
        login_seen.store(true, Ordering::SeqCst);
        Reply::raw("")
    })
    .await;
    let mut setup = UpstreamSetup::of(webapp.address).without_login();
    let path = setup.folder.write("key", "too-short");
    setup.settings.api_key = Some(SecretSource::File(path));
    assert!(matches!(setup.open(), Err(Error::ApiKey { .. })));
    setup.folder.write("key", "long-enough-key\n");
    let upstream = setup.open().unwrap();
    let key = || upstream.api_key().unwrap().headers()[0].1.clone();
    assert_eq!(key(), "Apikey long-enough-key");
    setup.folder.write("key", "short");
    stays("the old key", || key() == "Apikey long-enough-key").await;
    setup.folder.write("key", "another-good-key");
    eventually("the new key", || key() == "Apikey another-good-key").await;
    assert!(upstream.shared_session().is_none());
    drop(upstream);
    timeout(TEST_TIMEOUT, setup.scope.tasks.wait())
        .await
        .unwrap();
    assert!(!never.load(Ordering::SeqCst), "no login was configured");
}

#[tokio::test]
async fn permits_are_limited_and_the_queue_times_out() {
    let webapp = Webapp::start(|_| Reply::raw("")).await;
    let mut setup = UpstreamSetup::of(webapp.address).without_login();
    setup.settings.concurrency = 1;
    let upstream = setup.open().unwrap();
    let client = upstream.permits().key("client");
    let permit = upstream.acquire_permit(client, false).await.unwrap();
    let (timed_out, ()) = tokio::join!(upstream.acquire_permit(client, false), async {
        eventually("queued", || {
            setup
                .metrics
                .upstream("main")
                .upstream_requests_queued
                .get()
                == 1
        })
        .await;
    });
    assert!(timed_out.is_err());
    assert_eq!(
        setup
            .metrics
            .upstream("main")
            .upstream_requests_queued
            .get(),
        0
    );
    drop(permit);
    let _permit = upstream.acquire_permit(client, false).await.unwrap();
}
