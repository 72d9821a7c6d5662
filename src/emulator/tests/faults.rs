use super::*;
use crate::emulator::{ExpiryForm, LoginAnswer, TokenForm};
use crate::profiles::parse_expiry;
use tokio::time::{Instant, timeout};

const SOON: Duration = Duration::from_millis(200);

#[tokio::test]
async fn the_next_logins_fail_and_the_one_after_does_not() {
    let bench = Bench::start().await;
    let fail = |how| bench.emulator.fail_next_logins(1, how);
    for (how, face) in [
        (LoginAnswer::Status(500), (500, 1014)),
        (LoginAnswer::Status(503), (503, 1016)),
        (LoginAnswer::Status(429), (429, 1015)),
        (LoginAnswer::Status(401), (401, 1005)),
        (LoginAnswer::PasswordChangeRequired, (401, 1024)),
    ] {
        fail(how);
        assert_eq!(bench.admin_log_in().await.face(), face, "{how:?}");
        assert_eq!(bench.admin_log_in().await.status, 200, "{how:?}");
    }
}

#[tokio::test]
async fn a_login_can_be_answered_badly() {
    let bench = Bench::start().await;
    bench.emulator.login_answer(LoginAnswer::Html);
    let html = bench.admin_log_in().await;
    assert_eq!(
        (html.status.as_u16(), html.header("content-type")),
        (200, "text/html")
    );
    bench.emulator.login_answer(LoginAnswer::EmptyBody);
    assert!(bench.admin_log_in().await.bytes.is_empty());
    bench.emulator.login_answer(LoginAnswer::TenMegabytes);
    let large = bench.admin_log_in().await;
    assert!(large.bytes.len() > 10_000_000);
    assert!(large.json()["users"][0]["token"].is_string());
    bench.emulator.login_answer(LoginAnswer::CutInMiddle);
    let basic = BasicCredentials::header("admin", &Secret::new("Webapp-Passw0rd!"));
    let login = || request("POST", "/v1/users/login", basic.expose(), "");
    let cut = bench.send(login()).await.unwrap();
    assert_eq!(cut.status(), 200);
    assert!(cut.into_body().collect().await.is_err());
    bench.emulator.login_answer(LoginAnswer::Never);
    assert!(timeout(SOON, bench.send(login())).await.is_err());
}

#[tokio::test]
async fn an_expiry_and_a_token_can_have_any_form() {
    let bench = Bench::start().await;
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
        bench.emulator.expiry_form(form);
        let reply = bench.admin_log_in().await.json();
        let text = reply["users"][0]["expires_after"].as_str().unwrap();
        assert!(check(text, now), "{form:?} {text}");
    }
    bench.emulator.expiry_form(ExpiryForm::Null);
    let reply = bench.admin_log_in().await.json();
    assert!(reply["users"][0].get("expires_after").unwrap().is_null());
    bench.emulator.expiry_form(ExpiryForm::Missing);
    let reply = bench.admin_log_in().await.json();
    assert!(reply["users"][0].get("expires_after").is_none());
    bench
        .emulator
        .change(|to| to.token_form = TokenForm::LineBreak);
    let reply = bench.admin_log_in().await.json();
    assert!(
        reply["users"][0]["token"]
            .as_str()
            .unwrap()
            .contains("\r\n")
    );
}

#[tokio::test]
async fn a_wrong_clock_is_wrong_everywhere_and_agrees_with_itself() {
    let bench = Bench::start().await;
    for offset in [-86_400 * 30, 86_400 * 30] {
        bench.emulator.clock_offset(offset);
        let answer = bench.admin_log_in().await;
        let date = httpdate::parse_http_date(answer.header("date")).unwrap();
        let date = date
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_secs();
        let date = i64::try_from(date).unwrap();
        let off = date - crate::clock::unix_seconds() - offset;
        assert!((-5..=5).contains(&off), "{off}");
        let reply = answer.json();
        let ends = parse_expiry(reply["users"][0]["expires_after"].as_str().unwrap());
        assert!((ends.unwrap() - date - 604_800).abs() <= 1);
        assert_eq!(bench.get("/v1/support", &bearer(&answer)).await.status, 200);
    }
    for absurd in [i64::MIN, i64::MAX] {
        bench.emulator.clock_offset(absurd);
        assert_eq!(bench.admin_log_in().await.status, 200);
    }
}

#[tokio::test]
async fn countdowns_hit_that_many_requests_and_no_login() {
    let bench = Bench::start().await;
    let token = bench.bearer().await;
    for (set, face) in [
        (Emulator::answer_401 as fn(&Emulator, u32), (401, 1005)),
        (Emulator::answer_429, (429, 1015)),
        (Emulator::answer_503, (503, 1016)),
    ] {
        set(&bench.emulator, 2);
        assert_eq!(bench.admin_log_in().await.status, 200);
        for _ in 0..2 {
            assert_eq!(bench.get("/v1/health", &token).await.face(), face);
        }
        assert_eq!(bench.get("/v1/health", &token).await.status, 200);
    }
}

#[tokio::test]
async fn states_of_the_webapp_have_their_codes() {
    let bench = Bench::start().await;
    let token = bench.bearer().await;
    bench.emulator.not_ready(true);
    assert_eq!(bench.admin_log_in().await.face(), (503, 1011));
    bench.emulator.behave();
    bench.emulator.change(|to| to.overload = true);
    assert_eq!(bench.get("/v1/health", &token).await.face(), (503, 1016));
    assert_eq!(bench.admin_log_in().await.status, 200);
    bench.emulator.behave();
    bench.emulator.change(|to| to.coreapp_down = true);
    let down = bench.get("/v1/health", &token).await;
    assert_eq!(down.face(), (500, 1014));
    assert!(String::from_utf8_lossy(&down.bytes).contains("wacore is running"));
    assert_eq!(bench.get("/v1/users/admin", &token).await.status, 200);
}

#[tokio::test]
async fn an_answer_can_break_off_stall_or_drip() {
    let bench = Bench::start().await;
    let token = bench.bearer().await;
    let ask = || request("GET", "/v1/health", &token, "");
    bench.emulator.close_mid_body(1);
    let cut = bench.send(ask()).await.unwrap();
    assert_eq!(cut.status(), 200);
    let mut body = cut.into_body();
    assert!(
        body.frame().await.unwrap().is_ok(),
        "the first half arrives"
    );
    assert!(body.collect().await.is_err());

    bench.emulator.stall_after_headers(true);
    let stalled = bench.send(ask()).await.unwrap();
    assert!(timeout(SOON, stalled.into_body().collect()).await.is_err());
    bench.emulator.behave();

    bench.emulator.slow_body(true);
    let before = Instant::now();
    let slow = bench.get("/v1/health", &token).await;
    assert!(slow.json()["health"].is_object());
    assert!(before.elapsed() >= Duration::from_millis(60));
    bench.emulator.behave();

    bench.emulator.hang(true);
    assert!(timeout(SOON, bench.send(ask())).await.is_err());
    bench.emulator.behave();
    bench.emulator.change(|to| to.refuse_connections = true);
    assert!(bench.send(ask()).await.is_err());
}

#[tokio::test]
async fn a_hung_request_is_forgotten_when_its_client_leaves() {
    let bench = Bench::start().await;
    let token = bench.bearer().await;
    bench.emulator.hang(true);
    {
        let hung = bench.send(request("GET", "/v1/health", &token, ""));
        assert!(timeout(SOON, hung).await.is_err());
    }
    eventually("nothing in flight", || bench.emulator.in_flight() == 0).await;
    assert_eq!(bench.emulator.webapp.state.counts.most_in_flight(), 1);
}

#[tokio::test]
async fn an_echo_repeats_the_credential_and_trailers_come_last() {
    let bench = Bench::start().await;
    let token = bench.bearer().await;
    bench.emulator.echo(true);
    let echoed = bench.get("/v1/health", &token).await;
    assert_eq!(echoed.header("x-echo-authorization"), token);
    assert_eq!(echoed.json()["echo"], token.as_str());
    bench.emulator.behave();
    bench.emulator.trailers(true);
    let mut ask = request("GET", "/v1/health", &token, "");
    ask.headers_mut().insert("te", "trailers".parse().unwrap());
    let whole = bench.send(ask).await.unwrap().into_body();
    let whole = whole.collect().await.unwrap();
    assert!(whole.trailers().unwrap().contains_key("x-emulator-sha256"));
}

#[tokio::test]
async fn a_slow_login_holds_its_token_already() {
    let bench = Bench::start().await;
    bench.emulator.login_takes(Duration::from_millis(300));
    let token = async {
        eventually("a token", || {
            bench.emulator.webapp.state.tokens.count() == 1
        })
        .await;
        bench.emulator.forget_all_tokens();
    };
    let (answer, ()) = tokio::join!(bench.admin_log_in(), token);
    let refused = bench.get("/v1/support", &bearer(&answer)).await;
    assert_eq!(refused.status, 401, "forgotten before it was answered");
}

#[tokio::test]
async fn with_limits_on_each_node_has_its_own_bucket() {
    let settings = Settings {
        limits: true,
        ..Settings::for_tests()
    };
    let bench = Bench::with(settings).await;
    let token = bench.bearer().await;
    let mut refused = 0;
    for _ in 0..150 {
        let answer = bench.get("/v1/health", &token).await;
        if answer.status == 429 {
            assert_eq!(answer.code(), 1015);
            refused += 1;
        }
    }
    assert!(refused > 0, "60 at once and 20 a second are far fewer");
    assert_eq!(bench.get("/v1/support", &token).await.status, 200);
}

#[tokio::test]
async fn a_drain_ends_everything_and_an_abort_does_so_at_once() {
    let bench = Bench::start().await;
    assert_eq!(bench.admin_log_in().await.status, 200);
    bench.scope.stop.drain();
    let ended = timeout(Duration::from_secs(10), bench.scope.tasks.wait()).await;
    assert!(ended.is_ok(), "all tasks have ended");

    let bench = Bench::start().await;
    let token = bench.bearer().await;
    bench.emulator.hang(true);
    let ask = bench.send(request("GET", "/v1/health", &token, ""));
    let stop = async {
        eventually("the request hangs", || bench.emulator.in_flight() == 1).await;
        bench.emulator.stop();
    };
    let (hung, ()) = tokio::join!(ask, stop);
    assert!(hung.is_err());
    assert!(bench.scope.tasks.failed() == 0);
}
