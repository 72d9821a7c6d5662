use super::*;
use crate::emulator::{ExpiryForm, LoginResponse, TokenForm};
use crate::profiles::parse_expiry;
use tokio::time::{Instant, timeout};

const SOON: Duration = Duration::from_millis(200);

#[tokio::test]
async fn the_next_logins_fail_and_the_one_after_does_not() {
    let fixture = TestEmulator::start().await;
    let fail = |how| fixture.emulator.fail_next_logins(1, how);
    for (how, status_and_code) in [
        (LoginResponse::Status(500), (500, 1014)),
        (LoginResponse::Status(503), (503, 1016)),
        (LoginResponse::Status(429), (429, 1015)),
        (LoginResponse::Status(401), (401, 1005)),
        (LoginResponse::PasswordChangeRequired, (401, 1024)),
    ] {
        fail(how);
        assert_eq!(
            fixture.admin_log_in().await.status_and_code(),
            status_and_code,
            "{how:?}"
        );
        assert_eq!(fixture.admin_log_in().await.status, 200, "{how:?}");
    }
}

#[tokio::test]
async fn a_login_can_get_bad_responses() {
    let fixture = TestEmulator::start().await;
    fixture.emulator.login_response(LoginResponse::Html);
    let html = fixture.admin_log_in().await;
    assert_eq!(
        (html.status.as_u16(), html.header("content-type")),
        (200, "text/html")
    );
    fixture.emulator.login_response(LoginResponse::EmptyBody);
    assert!(fixture.admin_log_in().await.bytes.is_empty());
    fixture.emulator.login_response(LoginResponse::TenMegabytes);
    let large = fixture.admin_log_in().await;
    assert!(large.bytes.len() > 10_000_000);
    assert!(large.json()["users"][0]["token"].is_string());
    fixture.emulator.login_response(LoginResponse::CutInMiddle);
    let basic = BasicCredentials::header("admin", &Secret::new("Webapp-Passw0rd!"));
    let login = || request("POST", "/v1/users/login", basic.expose(), "");
    let cut = fixture.send(login()).await.unwrap();
    assert_eq!(cut.status(), 200);
    assert!(cut.into_body().collect().await.is_err());
    fixture.emulator.login_response(LoginResponse::Never);
    assert!(timeout(SOON, fixture.send(login())).await.is_err());
}

#[tokio::test]
async fn an_expiry_and_a_token_can_have_any_form() {
    let fixture = TestEmulator::start().await;
    let now = crate::clock::unix_seconds();
    for (form, check) in [
        (
            ExpiryForm::Past,
            (|text, now| parse_expiry(text).unwrap() < now) as fn(&str, i64) -> bool,
        ),
        (ExpiryForm::Garbage, |text, _| parse_expiry(text).is_none()),
        (ExpiryForm::FarFuture, |text, now| {
            parse_expiry(text).unwrap() > now + 86_400 * 365 * 5000
        }),
    ] {
        fixture.emulator.expiry_form(form);
        let reply = fixture.admin_log_in().await.json();
        let text = reply["users"][0]["expires_after"].as_str().unwrap();
        assert!(check(text, now), "{form:?} {text}");
    }
    fixture.emulator.expiry_form(ExpiryForm::Null);
    let reply = fixture.admin_log_in().await.json();
    assert!(reply["users"][0].get("expires_after").unwrap().is_null());
    fixture.emulator.expiry_form(ExpiryForm::Missing);
    let reply = fixture.admin_log_in().await.json();
    assert!(reply["users"][0].get("expires_after").is_none());
    fixture
        .emulator
        .change(|to| to.token_form = TokenForm::LineBreak);
    let reply = fixture.admin_log_in().await.json();
    assert!(
        reply["users"][0]["token"]
            .as_str()
            .unwrap()
            .contains("\r\n")
    );
}

#[tokio::test]
async fn a_wrong_clock_is_wrong_consistently() {
    let fixture = TestEmulator::start().await;
    for offset in [-86_400 * 30, 86_400 * 30] {
        fixture.emulator.clock_offset(offset);
        let response = fixture.admin_log_in().await;
        let date = httpdate::parse_http_date(response.header("date")).unwrap();
        let date = date
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_secs();
        let date = i64::try_from(date).unwrap();
        let off = date - crate::clock::unix_seconds() - offset;
        assert!((-5..=5).contains(&off), "{off}");
        let reply = response.json();
        let ends = parse_expiry(reply["users"][0]["expires_after"].as_str().unwrap());
        assert!((ends.unwrap() - date - 604_800).abs() <= 1);
        assert_eq!(
            fixture.get("/v1/support", &bearer(&response)).await.status,
            200
        );
    }
    for absurd in [i64::MIN, i64::MAX] {
        fixture.emulator.clock_offset(absurd);
        assert_eq!(fixture.admin_log_in().await.status, 200);
    }
}

#[tokio::test]
async fn countdowns_apply_to_that_many_requests_and_no_login() {
    let fixture = TestEmulator::start().await;
    let token = fixture.bearer().await;
    for (set, status_and_code) in [
        (Emulator::respond_401 as fn(&Emulator, u32), (401, 1005)),
        (Emulator::respond_429, (429, 1015)),
        (Emulator::respond_503, (503, 1016)),
    ] {
        set(&fixture.emulator, 2);
        assert_eq!(fixture.admin_log_in().await.status, 200);
        for _ in 0..2 {
            assert_eq!(
                fixture.get("/v1/health", &token).await.status_and_code(),
                status_and_code
            );
        }
        assert_eq!(fixture.get("/v1/health", &token).await.status, 200);
    }
}

#[tokio::test]
async fn each_state_of_the_webapp_has_its_code() {
    let fixture = TestEmulator::start().await;
    let token = fixture.bearer().await;
    fixture.emulator.not_ready(true);
    assert_eq!(fixture.admin_log_in().await.status_and_code(), (503, 1011));
    fixture.emulator.behave();
    fixture.emulator.change(|to| to.overload = true);
    assert_eq!(
        fixture.get("/v1/health", &token).await.status_and_code(),
        (503, 1016)
    );
    assert_eq!(fixture.admin_log_in().await.status, 200);
    fixture.emulator.behave();
    fixture.emulator.change(|to| to.coreapp_down = true);
    let down = fixture.get("/v1/health", &token).await;
    assert_eq!(down.status_and_code(), (500, 1014));
    assert!(String::from_utf8_lossy(&down.bytes).contains("wacore is running"));
    assert_eq!(fixture.get("/v1/users/admin", &token).await.status, 200);
}

#[tokio::test]
async fn a_response_can_end_early_stall_or_be_slow() {
    let fixture = TestEmulator::start().await;
    let token = fixture.bearer().await;
    let call = || request("GET", "/v1/health", &token, "");
    fixture.emulator.close_mid_body(1);
    let cut = fixture.send(call()).await.unwrap();
    assert_eq!(cut.status(), 200);
    let mut body = cut.into_body();
    assert!(
        body.frame().await.unwrap().is_ok(),
        "the first half arrives"
    );
    assert!(body.collect().await.is_err());

    fixture.emulator.stall_after_headers(true);
    let stalled = fixture.send(call()).await.unwrap();
    assert!(timeout(SOON, stalled.into_body().collect()).await.is_err());
    fixture.emulator.behave();

    fixture.emulator.slow_body(true);
    let before = Instant::now();
    let slow = fixture.get("/v1/health", &token).await;
    assert!(slow.json()["health"].is_object());
    assert!(before.elapsed() >= Duration::from_millis(60));
    fixture.emulator.behave();

    fixture.emulator.hang(true);
    assert!(timeout(SOON, fixture.send(call())).await.is_err());
    fixture.emulator.behave();
    fixture.emulator.change(|to| to.refuse_connections = true);
    assert!(fixture.send(call()).await.is_err());
}

#[tokio::test]
async fn a_hanging_request_ends_when_its_client_disconnects() {
    let fixture = TestEmulator::start().await;
    let token = fixture.bearer().await;
    fixture.emulator.hang(true);
    {
        let hung = fixture.send(request("GET", "/v1/health", &token, ""));
        assert!(timeout(SOON, hung).await.is_err());
    }
    eventually("no request is in flight", || {
        fixture.emulator.in_flight() == 0
    })
    .await;
    assert_eq!(fixture.emulator.webapp.state.counts.most_in_flight(), 1);
}

#[tokio::test]
async fn an_echo_repeats_the_credential_and_trailers_come_last() {
    let fixture = TestEmulator::start().await;
    let token = fixture.bearer().await;
    fixture.emulator.echo(true);
    let echoed = fixture.get("/v1/health", &token).await;
    assert_eq!(echoed.header("x-echo-authorization"), token);
    assert_eq!(echoed.json()["echo"], token.as_str());
    fixture.emulator.behave();
    fixture.emulator.trailers(true);
    let mut call = request("GET", "/v1/health", &token, "");
    call.headers_mut().insert("te", "trailers".parse().unwrap());
    let whole = fixture.send(call).await.unwrap().into_body();
    let whole = whole.collect().await.unwrap();
    assert!(whole.trailers().unwrap().contains_key("x-emulator-sha256"));
}

#[tokio::test]
async fn a_slow_login_has_created_its_token_already() {
    let fixture = TestEmulator::start().await;
    fixture.emulator.login_takes(Duration::from_millis(300));
    let token = async {
        eventually("the token exists", || {
            fixture.emulator.webapp.state.tokens.count() == 1
        })
        .await;
        fixture.emulator.forget_all_tokens();
    };
    let (response, ()) = tokio::join!(fixture.admin_log_in(), token);
    let refused = fixture.get("/v1/support", &bearer(&response)).await;
    assert_eq!(
        refused.status, 401,
        "the token was removed before the response"
    );
}

#[tokio::test]
async fn with_limits_on_each_node_has_its_own_bucket() {
    let settings = Settings {
        limits: true,
        ..Settings::for_tests()
    };
    let fixture = TestEmulator::with(settings).await;
    let token = fixture.bearer().await;
    let mut refused = 0;
    for _ in 0..150 {
        let response = fixture.get("/v1/health", &token).await;
        if response.status == 429 {
            assert_eq!(response.code(), 1015);
            refused += 1;
        }
    }
    assert!(refused > 0, "60 at once and 20 a second are far fewer");
    assert_eq!(fixture.get("/v1/support", &token).await.status, 200);
}

#[tokio::test]
async fn a_drain_ends_all_tasks_and_an_abort_does_so_at_once() {
    let fixture = TestEmulator::start().await;
    assert_eq!(fixture.admin_log_in().await.status, 200);
    fixture.scope.stop.drain();
    let ended = timeout(Duration::from_secs(10), fixture.scope.tasks.wait()).await;
    assert!(ended.is_ok(), "all tasks have ended");

    let fixture = TestEmulator::start().await;
    let token = fixture.bearer().await;
    fixture.emulator.hang(true);
    let call = fixture.send(request("GET", "/v1/health", &token, ""));
    let stop = async {
        eventually("the request hangs", || fixture.emulator.in_flight() == 1).await;
        fixture.emulator.stop();
    };
    let (hung, ()) = tokio::join!(call, stop);
    assert!(hung.is_err());
    assert!(fixture.scope.tasks.failed() == 0);
}
