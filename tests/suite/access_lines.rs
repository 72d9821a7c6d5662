//! One access line per request, however it ended, as JSON or text.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tollgate::emulator::Emulator;

use crate::harness::program::{Program, at_ports, binary, free_port};
use crate::harness::{
    ADMIN, ADMIN_PASSWORD, Client, NO_LIMITS, Setup, WEBAPP_PASSWORD, emulator, eventually, written,
};

struct LoggedGate {
    program: Program,
    client: Client,
    _folder: tempfile::TempDir,
}

async fn logged(webapp: &Emulator, format: &str) -> LoggedGate {
    let log = format!("{NO_LIMITS}\n[log]\nformat = \"{format}\"");
    let logged = running(webapp, &Setup::default().rest(&log));
    let client = logged.client.logged_in(ADMIN, ADMIN_PASSWORD).await;
    LoggedGate { client, ..logged }
}

fn running(webapp: &Emulator, setup: &Setup) -> LoggedGate {
    let folder = tempfile::tempdir().unwrap();
    let ports = (free_port(), free_port());
    let file = written(folder.path(), webapp, setup, |text| at_ports(&text, ports));
    let mut command = Command::new(binary());
    command.args(["serve", "--config"]).arg(&file);
    let program = Program::with_ports(command, ports);
    program.wait_for("ready to accept");
    let client = Client::of(folder.path(), &program.url(""), reqwest::Client::builder());
    LoggedGate {
        program,
        client,
        _folder: folder,
    }
}

/// The access line of the request for `path`, once it has been written.
async fn record(program: &Program, path: &str) -> Value {
    let mut found = None;
    eventually(&format!("the access line of {path}"), async || {
        let records = program.lines().into_iter().filter_map(|line| {
            let line: Value = serde_json::from_str(&line).ok()?;
            (line["target"] == "tollgate::access" && line["path"] == path).then_some(line)
        });
        found = records.collect::<Vec<_>>().pop();
        found.is_some()
    })
    .await;
    found.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_request_has_a_json_line_with_client_request_and_outcome() {
    let webapp = emulator().await;
    let LoggedGate {
        program, client, ..
    } = &logged(&webapp, "json").await;
    let response = client.get("/v1/support?with=query").await;
    let id = response.headers()["x-request-id"]
        .to_str()
        .unwrap()
        .to_owned();
    let length = response.bytes().await.unwrap().len();
    let good = record(program, "/v1/support").await;
    for (field, value) in [
        ("id", Value::from(id)),
        ("peer", "127.0.0.1".into()),
        ("client", "admin".into()),
        ("route", "support.show".into()),
        ("method", "GET".into()),
        ("status", 200.into()),
        ("upstream_status", 200.into()),
        ("bytes_out", length.into()),
        ("retried", false.into()),
        ("outcome", "complete".into()),
    ] {
        assert_eq!(good[field], value, "{field} in {good}");
    }
    assert!(good["duration_ms"].as_f64().unwrap() > 0.0);

    let message = serde_json::json!({ "to": "1", "type": "text", "text": { "body": "x" } });
    client.post("/v1/messages", &message).await;
    let sent = record(program, "/v1/messages").await;
    assert_eq!(sent["bytes_in"], message.to_string().len());

    let unknown = client.clone().with_token("made-up");
    unknown.get("/v1/groups").await;
    let refused = record(program, "/v1/groups").await;
    assert_eq!(
        (&refused["status"], &refused["client"]),
        (&401.into(), &"".into())
    );
    assert_eq!(refused["reason"], "unauthenticated");
    assert_eq!(
        refused["upstream_status"],
        Value::Null,
        "nothing was sent to the upstream"
    );

    webapp.forget_all_tokens();
    client.get("/v1/stickerpacks").await;
    let again = record(program, "/v1/stickerpacks").await;
    assert_eq!(
        (&again["retried"], &again["status"]),
        (&true.into(), &200.into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_line_of_an_incomplete_response_names_the_responsible_party() {
    let webapp = emulator().await;
    let LoggedGate {
        program, client, ..
    } = &logged(&webapp, "json").await;
    webapp.close_mid_body(1);
    let broken = client.get("/v1/media/generated-100000").await;
    assert!(broken.bytes().await.is_err());
    let broken = record(program, "/v1/media/generated-100000").await;
    assert_eq!(
        (&broken["outcome"], &broken["blame"]),
        (&"aborted".into(), &"upstream".into())
    );

    webapp.slow_body(true);
    let url = program.url("/v1/media/generated-200000");
    let token = client.token.as_ref().unwrap();
    let request = client.http.get(url).bearer_auth(token).send();
    let mut response = tokio::time::timeout(Duration::from_secs(20), request)
        .await
        .unwrap()
        .unwrap();
    response.chunk().await.unwrap();
    drop(response);
    let left = record(program, "/v1/media/generated-200000").await;
    assert_eq!(left["outcome"], "client_disconnected");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_line_has_the_same_fields_and_no_colours_in_a_file() {
    let webapp = emulator().await;
    let LoggedGate {
        program, client, ..
    } = &logged(&webapp, "text").await;
    client.get("/v1/support").await;
    let line = program.wait_for("path=\"/v1/support\"");
    for field in [
        "client=\"admin\"",
        "route=\"support.show\"",
        "status=200",
        "outcome=\"complete\"",
    ] {
        assert!(line.contains(field), "{field} in {line}");
    }
    assert!(!line.contains('\u{1b}'), "{line:?}");
}

/// Tries to log in; returns `attempted_user` of the access line.
async fn tried(logged: &LoggedGate, name: &str, password: &str) -> (Value, String) {
    let lines = || {
        let lines = logged.program.lines().into_iter();
        lines
            .filter(|line| line.contains("/v1/users/login"))
            .collect::<Vec<_>>()
    };
    let before = lines().len();
    let request = logged
        .client
        .request(reqwest::Method::POST, "/v1/users/login");
    request
        .basic_auth(name, Some(password))
        .send()
        .await
        .unwrap();
    eventually("the login's line", async || lines().len() > before).await;
    let line = lines().pop().unwrap();
    let parsed: Value = serde_json::from_str(&line).unwrap_or_else(|_| Value::Null);
    (parsed["attempted_user"].clone(), line)
}

const JSON: &str = "[log]\nformat = \"json\"";

#[tokio::test(flavor = "multi_thread")]
async fn the_line_of_a_login_has_the_user_name_and_never_a_password() {
    let webapp = emulator().await;
    let setup = Setup::default().rest(NO_LIMITS).rest(JSON);
    let logged = running(&webapp, &setup);
    let long = "x".repeat(5000);
    for (name, password, shown) in [
        (ADMIN, ADMIN_PASSWORD, ADMIN),
        (ADMIN, "Wrong-Passw0rd!", ADMIN),
        ("amdin", "Wrong-Passw0rd!", "am…"),
        (
            "S3cret!pw-typed-as-name",
            "x",
            "(not shown: could be a password)",
        ),
        ("ad\",\"status\":200,\"x\":\"\r\n{", "x", "ad\",\"s…"),
        (
            "\u{9b}2J\u{202e}\r\nabcdefgh",
            "x",
            "\u{fffd}2J\u{fffd}\u{fffd}\u{fffd}a…",
        ),
        (&long, "x", "xxxxxxxx…"),
    ] {
        let (tried, line) = tried(&logged, name, password).await;
        assert_eq!(tried, shown, "{line}");
        assert!(!line.contains(password) || password == "x", "{line}");
    }
    let whole = logged.program.lines().join("\n");
    for secret in [ADMIN_PASSWORD, "Wrong-Passw0rd!", "S3cret!pw"] {
        assert!(!whole.contains(secret), "{secret}");
    }
    let other = record(&logged.program, "/v1/users/login").await;
    assert_eq!(other["client"], "-");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_line_of_a_relayed_login_has_the_user_name_too() {
    let webapp = emulator().await;
    let relay = Setup::default().users("directory = \"webapp\"");
    let logged = running(&webapp, &relay.rest(NO_LIMITS).rest(JSON));
    // No user has logged in through this gate yet, so it knows none.
    for (name, password, shown) in [
        (ADMIN, "Wrong-Passw0rd!", "ad…"),
        (ADMIN, WEBAPP_PASSWORD, ADMIN),
        (ADMIN, "Wrong-Passw0rd!", ADMIN),
        ("amdin", "Wrong-Passw0rd!", "am…"),
        (WEBAPP_PASSWORD, "x", "(not shown: could be a password)"),
    ] {
        let (tried, line) = tried(&logged, name, password).await;
        assert_eq!(tried, shown, "{line}");
        assert!(
            !line.contains(WEBAPP_PASSWORD) && !line.contains("Wrong-"),
            "{line}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_in_a_text_log_stays_one_line() {
    let webapp = emulator().await;
    let setup = Setup::default().rest(NO_LIMITS);
    let logged = running(&webapp, &setup);
    let (_, line) = tried(&logged, "eve\" status=200\r\n2030-01-01", "x").await;
    assert!(line.contains(" attempted_user=\"eve\\\" sta…\" "), "{line}");
    let (_, line) = tried(&logged, ADMIN, ADMIN_PASSWORD).await;
    assert!(line.contains(" attempted_user=\"admin\" "), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_several_upstreams_a_line_names_the_one_of_its_request() {
    let webapp = emulator().await;
    let second = format!(
        "[log]\nformat = \"json\"\n[upstream.second]\nurl = \"https://{}\"\n\
         ca = \"webapp-ca.pem\"\nserver_name = \"localhost\"\n\
         login = {{ username = \"admin\", password = {{ file = \"webapp-password\" }} }}\n\
         path_prefix = \"/second\"",
        webapp.address()
    );
    let setup = Setup::default()
        .upstream("path_prefix = \"/\"")
        .rest(&second);
    let LoggedGate {
        program, client, ..
    } = &running(&webapp, &setup);
    let client = client.clone().logged_in(ADMIN, ADMIN_PASSWORD).await;
    for (path, name) in [("/v1/support", "main"), ("/second/v1/support", "second")] {
        eventually("the login there", async || {
            client.get(path).await.status() == 200
        })
        .await;
        assert_eq!(record(program, path).await["upstream"], name);
    }
    let own = record(program, "/v1/users/login").await;
    assert_eq!(own["upstream"], Value::Null, "answered by the gate");
}
