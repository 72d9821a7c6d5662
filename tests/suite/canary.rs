//! Requests with marked secrets take every failure path; no log, response or metric may show them.

use std::sync::{Arc, Mutex};

use reqwest::Method;
use serde_json::json;
use tollgate::emulator::{LoginResponse, Settings};
use tollgate::secret::Secret;

use crate::harness::program::Program;
use crate::harness::redis::RedisServer;
use crate::harness::{Client, NO_LIMITS, Setup, emulator_with, prepare, secret, sha256, text};

const WEBAPP_PASSWORD: &str = "Canary-Webapp-1!";
const WEBAPP_KEY: &str = "canary-webapp-key-000";
const ADMIN_PASSWORD: &str = "Canary-Admin-1!";
const USER_PASSWORD: &str = "Canary-User-1!";
const NEW_PASSWORD: &str = "Canary-New-1!";
const API_KEY: &str = "tgk_canary0000000000000000000000000000000000000";
const REDIS_PASSWORD: &str = "Canary-Redis-1!";
const GUESS: &str = "Canary-Guess-1!";

/// Every response to a client; searched at the end, like the logs.
#[derive(Clone, Default)]
struct Responses(Arc<Mutex<String>>);

impl Responses {
    async fn record(&self, response: Result<reqwest::Response, reqwest::Error>) -> u16 {
        let Ok(response) = response else { return 0 };
        let status = response.status().as_u16();
        let mut text = format!("{:?}", response.headers());
        text.push_str(&response.text().await.unwrap_or_default());
        self.0.lock().unwrap().push_str(&text);
        status
    }
}

async fn basic_login(client: &Client) -> Result<reqwest::Response, reqwest::Error> {
    let request = client.request(Method::POST, "/v1/users/login");
    let request = request.basic_auth("admin", Some(ADMIN_PASSWORD));
    request.send().await
}

#[expect(clippy::too_many_lines, reason = "one line per failure")]
async fn drive(client: &Client, admin: &Client, responses: &Responses) {
    let basic = |name: &'static str, password: &'static str, body: &'static str| {
        let request = client.request(Method::POST, "/v1/users/login");
        request.basic_auth(name, Some(password)).body(body).send()
    };
    for (name, password, body) in [
        ("admin", GUESS, ""),
        ("nobody", GUESS, ""),
        (
            "admin",
            ADMIN_PASSWORD,
            "{\"new_password\":\"Canary-weak\"}",
        ),
        (
            "admin",
            ADMIN_PASSWORD,
            "{\"new_password\":\"Canary-New-1!\"",
        ),
    ] {
        responses.record(basic(name, password, body).await).await;
    }
    for (field, value) in [
        ("authorization", format!("Bearer {API_KEY}")),
        ("authorization", format!("Apikey {GUESS}-longer")),
        ("authorization", format!("{GUESS} {GUESS}")),
        ("x-api-key", API_KEY.to_owned()),
        ("x-api-key", GUESS.to_owned()),
    ] {
        let request = client
            .request(Method::GET, "/v1/support")
            .header(field, value);
        responses.record(request.send().await).await;
    }
    let users = [
        json!({ "username": "worker", "password": USER_PASSWORD }),
        json!({ "username": "worker", "password": USER_PASSWORD }),
        json!({ "username": "x", "password": USER_PASSWORD }),
        json!({ "username": 7, "password": USER_PASSWORD }),
    ];
    for user in users {
        responses
            .record(Ok(admin.post("/v1/users", &user).await))
            .await;
    }
    let change = admin.request(Method::PUT, "/v1/users/worker");
    responses
        .record(
            change
                .body(format!("{{\"password\":\"{NEW_PASSWORD}\""))
                .send()
                .await,
        )
        .await;
    let change = admin.request(Method::PUT, "/v1/users/worker");
    responses
        .record(
            change
                .body(format!("{{\"password\":\"{NEW_PASSWORD}\"}}"))
                .send()
                .await,
        )
        .await;
}

#[expect(
    clippy::too_many_lines,
    reason = "one story: drive everything, then search"
)]
#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_any_log_line_response_or_metric() {
    let webapp = emulator_with(Settings {
        password: Secret::new(WEBAPP_PASSWORD),
        api_key: Some(Secret::new(WEBAPP_KEY)),
        ..Settings::for_tests()
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path(), &webapp);
    for (name, value) in [
        ("webapp-password", WEBAPP_PASSWORD),
        ("webapp-key", WEBAPP_KEY),
        ("gate-password", ADMIN_PASSWORD),
        ("redis-password", REDIS_PASSWORD),
    ] {
        secret(&folder.path().join(name), value);
    }
    let rest = format!(
        "{NO_LIMITS}\n[log]\nformat = \"text\"\nfilter = \"trace\"\n[[api_key]]\nname = \"k\"\nsha256 = [\"{}\"]\n",
        sha256(API_KEY)
    );
    let server = RedisServer::with(&["--requirepass", REDIS_PASSWORD]);
    let rest = format!(
        "{rest}\n[store]\nurl = \"redis://127.0.0.1:{}\"\npassword = {{ file = \"redis-password\" }}\n",
        server.port
    );
    let setup = Setup::default()
        .upstream("api_key = { file = \"webapp-key\" }\nmin_login_interval = \"10ms\"\nlogins_per_hour = 36000\nfirst_byte_timeout = \"500ms\"\nlogin_timeout = \"500ms\"")
        .rest(&rest);
    let file = folder.path().join("config.toml");
    std::fs::write(
        &file,
        text(&setup, &format!("https://{}", webapp.address())),
    )
    .unwrap();
    let mut program = Program::serve(&file);
    let client = Client::of(folder.path(), &program.url(""), reqwest::Client::builder());
    let admin = client.clone().logged_in("admin", ADMIN_PASSWORD).await;
    let responses = Responses::default();
    drive(&client, &admin, &responses).await;

    // Every failure of the upstream, whose responses echo the request.
    webapp.echo(true);
    assert_eq!(
        responses.record(Ok(admin.get("/v1/support").await)).await,
        200
    );
    responses.record(Ok(admin.get("/v1/health").await)).await;
    let tokens = || -> Vec<String> {
        let all = webapp.live_tokens();
        all.iter().map(|token| token.expose().to_owned()).collect()
    };
    let mut canaries = tokens();
    for response in [
        LoginResponse::Html,
        LoginResponse::CutInMiddle,
        LoginResponse::Never,
        LoginResponse::Normal,
    ] {
        webapp.forget_all_tokens();
        webapp.login_response(response);
        responses.record(Ok(admin.get("/v1/support").await)).await;
        canaries.extend(tokens());
    }
    webapp.hang(true);
    // This path's route must not wait longer than the upstream's first_byte_timeout.
    responses.record(Ok(admin.get("/v1/health").await)).await;
    webapp.hang(false);
    webapp.close_mid_body(1);
    responses
        .record(Ok(admin.get("/v1/media/generated-100000").await))
        .await;
    webapp.rotate_password(Secret::new("Canary-Rotated-1!"));
    webapp.forget_all_tokens();
    responses.record(Ok(admin.get("/v1/support").await)).await;
    secret(&folder.path().join("webapp-password"), "Canary-Rotated-1!");
    let broken = std::fs::read_to_string(&file)
        .unwrap()
        .replace("{ file = \"gate-password\" }", "\"Canary-Inline-1!\"");
    std::fs::write(&file, broken).unwrap();
    program.signal("HUP");
    program.wait_for("problem");
    // The store refuses the gate's password from now on.
    let url = format!("redis://:{REDIS_PASSWORD}@127.0.0.1:{}", server.port);
    let mut operator = redis::Client::open(url).unwrap().get_connection().unwrap();
    for words in [
        ["CONFIG", "SET", "requirepass", "Canary-Redis-2!"].as_slice(),
        ["CLIENT", "KILL", "TYPE", "normal"].as_slice(),
    ] {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]).exec(&mut operator).unwrap();
    }
    program.wait_for("the store cannot be reached");
    responses.record(Ok(admin.get("/v1/support").await)).await;
    responses.record(basic_login(&client).await).await;
    let metrics = reqwest::get(format!("http://127.0.0.1:{}/metrics", program.operator))
        .await
        .unwrap();
    let mut everything = metrics.text().await.unwrap();
    program.signal("TERM");
    program.wait();
    everything.push_str(&program.lines().join("\n"));
    assert!(everything.len() > 10_000, "there is something to search");
    everything.push_str(&responses.0.lock().unwrap());

    canaries.extend([API_KEY, WEBAPP_KEY].map(str::to_owned));
    canaries.push(admin.token.clone().unwrap());
    canaries.push("Canary-".to_owned());
    assert!(canaries.len() > 4);
    for canary in canaries {
        let at = everything.find(&canary);
        let around =
            at.map(|at| &everything[at.saturating_sub(200)..(at + 60).min(everything.len())]);
        assert!(at.is_none(), "found {canary:?} in: {around:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_of_a_relayed_client_is_in_any_log_line_or_metric() {
    let webapp = emulator_with(Settings {
        password: Secret::new(WEBAPP_PASSWORD),
        ..Settings::for_tests()
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path(), &webapp);
    secret(&folder.path().join("webapp-password"), WEBAPP_PASSWORD);
    let setup = Setup::default()
        .users("directory = \"webapp\"\nunknown_tokens = \"ask\"")
        .upstream("first_byte_timeout = \"500ms\"")
        .rest(&format!(
            "{NO_LIMITS}\n[log]\nfilter = \"trace\"\nformat = \"text\""
        ));
    let file = folder.path().join("config.toml");
    let url = format!("https://{}", webapp.address());
    std::fs::write(&file, text(&setup, &url)).unwrap();
    let mut program = Program::serve(&file);
    let client = Client::of(folder.path(), &program.url(""), reqwest::Client::builder());
    let responses = Responses::default();
    for password in [GUESS, WEBAPP_PASSWORD] {
        responses
            .record(Ok(client.login("admin", password).await))
            .await;
    }
    let known = client.clone().logged_in("admin", WEBAPP_PASSWORD).await;
    let older = webapp.mint_token("admin").unwrap();
    let probed = client.clone().with_token(older.expose());
    let made_up = client
        .clone()
        .with_token("eyJhbGciOiJIUzI1NiJ9.e30.Canary-made-up");
    for one in [&known, &probed, &made_up] {
        responses.record(Ok(one.get("/v1/groups").await)).await;
    }
    webapp.hang(true);
    for one in [&known, &probed] {
        responses.record(Ok(one.get("/v1/groups").await)).await;
    }
    webapp.hang(false);
    webapp.close_mid_body(1);
    responses
        .record(Ok(known.get("/v1/media/generated-100000").await))
        .await;
    webapp.forget_all_tokens();
    for one in [&known, &probed, &known] {
        responses.record(Ok(one.get("/v1/groups").await)).await;
    }
    let metrics = reqwest::get(format!("http://127.0.0.1:{}/metrics", program.operator)).await;
    let mut everything = metrics.unwrap().text().await.unwrap();
    program.signal("TERM");
    program.wait();
    everything.push_str(&program.lines().join("\n"));
    assert!(everything.len() > 10_000, "there is something to search");
    // The response to a login contains the client's own token, which is meant for the client.
    let tokens = [known.token.unwrap(), older.expose().to_owned()];
    for canary in tokens.iter().map(String::as_str).chain(["Canary-"]) {
        assert!(!everything.contains(canary), "found {canary:?}");
    }
}

#[test]
fn debug_output_of_types_with_secrets_does_not_show_them() {
    use tollgate::token::{Token, TokenDigest};
    let token = Token::mint();
    let digest = TokenDigest::of(token.secret().expose());
    let shown = format!("{token:?} {digest:?} {:?}", Secret::new("Canary-Debug"));
    assert!(!shown.contains(token.secret().expose()) && !shown.contains("Canary"));
}

fn fails<T>(with: T) -> Result<(), T> {
    Err(with)
}

#[test]
fn a_panic_message_with_such_a_type_does_not_show_the_secret() {
    use tollgate::profiles::BasicCredentials;
    let basic = BasicCredentials::parse("YWRtaW46Q2FuYXJ5LUJhc2lj").unwrap(); // admin:Canary-Basic
    let holders = (
        Secret::new("Canary-Panic"),
        tollgate::token::Token::mint(),
        basic,
    );
    let shown = holders.1.secret().expose().to_owned();
    let panic = std::panic::catch_unwind(|| fails(holders).unwrap()).unwrap_err();
    let message = panic.downcast_ref::<String>().unwrap();
    assert!(message.contains("[secret]"), "{message}");
    assert!(
        !message.contains("Canary") && !message.contains(&shown),
        "{message}"
    );
}
