//! Services whose login is described in the file: the configurations of `examples/`, in front of servers
//! that speak as the services' documents say.

mod service;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::login_upstream::{KEY, KeyClient};
use crate::harness::{Gateway, eventually, secret, sha256};
use service::{Service, ServiceCall, ServiceReply, ServiceState, login, reply};

const STORE_KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
/// The secret after its rotation.
const ROTATED: &str = "rotated";
const SECRET: &str = "a b/\u{fc}:+%&\"\\${x}";

/// A gate with a configuration of `examples/` in front of `service`.
async fn gate(example: &str, service: &Service) -> (Gateway, KeyClient) {
    gate_of(&example_text(example), service).await
}

fn example_text(example: &str) -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/");
    std::fs::read_to_string(format!("{path}{example}")).unwrap()
}

async fn gate_of(text: &str, service: &Service) -> (Gateway, KeyClient) {
    let folder = tempfile::tempdir().unwrap();
    tollgate::emulator::certificates::make(&folder.path().join("certs")).unwrap();
    secret(&folder.path().join("service-secret"), SECRET);
    secret(&folder.path().join("gate-password"), "a-Passw0rd!");
    secret(&folder.path().join("store-key"), STORE_KEY);
    let url = text
        .lines()
        .find(|line| line.starts_with("url = "))
        .unwrap();
    let digest = text
        .split("sha256 = \"")
        .nth(1)
        .unwrap()
        .split('"')
        .next()
        .unwrap();
    let secret_file = text.split("secret = { file = \"").nth(1);
    let secret_file = secret_file.or_else(|| text.split("password = { file = \"").nth(1));
    let secret_file = secret_file.unwrap().split('"').next().unwrap();
    let local = text
        .replace(url, &format!("url = \"http://{}\"", service.address))
        .replace(digest, &sha256(KEY))
        .replace(secret_file, "service-secret")
        .replace("/run/secrets/gate-admin-password", "gate-password")
        .replace("/etc/tollgate/tls/gate.pem", "certs/server.pem")
        .replace("/etc/tollgate/tls/gate.key", "certs/server.key")
        .replace("0.0.0.0:8443", "127.0.0.1:0")
        .replace("/var/lib/tollgate/tollgate.redb", "memory")
        + "\n[operator]\naddress = \"127.0.0.1:0\"\n[drain]\nwait = \"0s\"\n";
    let file = folder.path().join("config.toml");
    std::fs::write(&file, local).unwrap();
    let gateway = Gateway::from_file(folder, file).await;
    let client = KeyClient(gateway.client());
    (gateway, client)
}

/// RFC 6749, 4.4 and 2.3.1.
fn orders(call: &ServiceCall, state: &mut ServiceState) -> ServiceReply {
    if call.line == "POST /oauth/token" {
        let basic = call.header("authorization").unwrap();
        let basic = STANDARD
            .decode(basic.strip_prefix("Basic ").unwrap())
            .unwrap();
        let encoded = "gate:a+b%2F%C3%BC%3A%2B%25%26%22%5C%24%7Bx%7D";
        let sent = String::from_utf8(basic).unwrap();
        assert!(
            sent == encoded || sent == format!("gate:{ROTATED}"),
            "{sent}"
        );
        assert!(
            call.body
                .starts_with("grant_type=client_credentials&scope=orders.")
        );
        return login(state, |token| {
            let body = json!({"access_token": token, "token_type": "bearer", "expires_in": "3600"});
            reply(200, &body.to_string())
        });
    }
    match call.header("authorization") == Some(&format!("Bearer {}", state.valid)) {
        true => reply(200, "an order"),
        false => reply(401, ""),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oauth2_service_works_with_the_example() {
    let service = Service::start(orders).await;
    let (_gateway, client) = gate("oauth2-service.toml", &service).await;
    assert_eq!(client.get("/orders/1").await, 200);
    assert_eq!(service.logins(), 1);
    service.revoke();
    for _ in 0..20 {
        assert_eq!(client.get("/orders/1").await, 200);
    }
    assert_eq!(
        service.logins(),
        2,
        "one login for a token that was revoked"
    );
}

/// Identity API v3: nested JSON, 201, the token in a header, an RFC 3339 date with a fraction.
fn keystone(call: &ServiceCall, state: &mut ServiceState) -> ServiceReply {
    if call.line == "POST /v3/auth/tokens" {
        let sent: Value = serde_json::from_str(&call.body).unwrap();
        assert_eq!(call.header("content-type"), Some("application/json"));
        let domain = json!({"id": "default"});
        let user = json!({"name": "gate", "password": SECRET, "domain": domain});
        let expected = json!({"auth": {
            "identity": {"methods": ["password"], "password": {"user": user}},
            "scope": {"project": {"name": "telephony", "domain": domain}},
        }});
        assert_eq!(sent, expected);
        let end = tollgate::profiles::format_expiry(tollgate::clock::unix_seconds() + 3600);
        let end = end.replace(' ', "T").replace("+00:00", ".000000Z");
        return login(state, |token| ServiceReply {
            headers: format!("X-Subject-Token: {token}\r\n"),
            ..reply(201, &json!({"token": {"expires_at": end}}).to_string())
        });
    }
    match call.header("x-auth-token") == Some(&state.valid)
        && call.header("authorization").is_none()
    {
        true => reply(200, "projects"),
        false => reply(401, r#"{"error":{"code":401}}"#),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keystone_works_with_the_example() {
    let service = Service::start(keystone).await;
    let (_gateway, client) = gate("keystone-service.toml", &service).await;
    assert_eq!(client.get("/v3/projects").await, 200);
    service.revoke();
    assert_eq!(client.get("/v3/projects").await, 200);
    assert_eq!(service.logins(), 2);
}

/// The same by the profile's name instead of the written login.
#[tokio::test(flavor = "multi_thread")]
async fn keystone_works_by_its_profile() {
    let service = Service::start(keystone).await;
    let text = example_text("keystone-service.toml");
    let begin = text.find("domain = \"default\"").unwrap();
    let end = text.find("[[route]]").unwrap();
    let short = format!("{}profile = \"keystone\"\n{}", &text[..begin], &text[end..]);
    let (_gateway, client) = gate_of(&short, &service).await;
    assert_eq!(client.get("/v3/projects").await, 200);
    service.revoke();
    assert_eq!(client.get("/v3/projects").await, 200);
    assert_eq!(service.logins(), 2);
}

/// A token for one project is not used for another, also where it was kept.
#[tokio::test(flavor = "multi_thread")]
async fn a_kept_token_belongs_to_its_call() {
    let service = Service::start(orders).await;
    let kept = "path = \"data\"\nkey = { file = \"store-key\" }";
    let text = example_text("oauth2-service.toml");
    let text = text.replace("path = \"/var/lib/tollgate/tollgate.redb\"", kept);
    let (gateway, client) = gate_of(&text, &service).await;
    assert_eq!(client.get("/orders/1").await, 200);
    let gateway = gateway.restart().await;
    assert_eq!(KeyClient(gateway.client()).get("/orders/1").await, 200);
    assert_eq!(service.logins(), 1, "the token was kept");
    let file = gateway.config_file();
    let written = std::fs::read_to_string(&file).unwrap();
    let folder = gateway.into_folder().await;
    std::fs::write(&file, written.replace("orders.read", "orders.write")).unwrap();
    let gateway = Gateway::from_file(folder, file).await;
    assert_eq!(KeyClient(gateway.client()).get("/orders/1").await, 200);
    assert_eq!(service.logins(), 2);
}

/// JSON-RPC: every response is a 200.
fn zabbix(call: &ServiceCall, state: &mut ServiceState) -> ServiceReply {
    let sent: Value = serde_json::from_str(&call.body).unwrap();
    if call.line == "POST /api_jsonrpc.php?client=tollgate" {
        let params = json!({"username": "gate", "password": SECRET});
        let expected = json!({"jsonrpc": "2.0", "method": "user.login", "id": 1, "params": params});
        assert_eq!(sent, expected);
        return login(state, |token| {
            reply(
                200,
                &json!({"jsonrpc": "2.0", "result": token, "id": 1}).to_string(),
            )
        });
    }
    assert_eq!(
        call.header("authorization"),
        Some(&*format!("Bearer {}", state.valid))
    );
    reply(
        200,
        &json!({"jsonrpc": "2.0", "result": [], "id": sent["id"]}).to_string(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_json_rpc_service_works_with_the_example() {
    let service = Service::start(zabbix).await;
    service.respond_to_logins(Some(|| {
        let error = json!({"code": -32602, "data": "Login name or password is incorrect."});
        reply(
            200,
            &json!({"jsonrpc": "2.0", "error": error, "id": 1}).to_string(),
        )
    }));
    let (gateway, client) = gate("zabbix-service.toml", &service).await;
    let readiness = readiness(&gateway, "without a usable token").await;
    assert!(readiness.starts_with("503"), "{readiness}");
    service.respond_to_logins(None);
    let call = json!({"jsonrpc": "2.0", "method": "host.get", "params": {}, "id": 7}).to_string();
    eventually("the login", async || {
        let sent = client.send(Method::POST, "/api_jsonrpc.php", call.clone().into());
        sent.await == 200
    })
    .await;
}

/// Waits until the page of `/readyz` has this text; status and page.
async fn readiness(gateway: &Gateway, text: &str) -> String {
    let mut page = String::new();
    eventually(text, async || {
        let response = reqwest::get(gateway.operator_url("/readyz")).await.unwrap();
        let status = response.status().as_u16();
        page = format!("{status} {}", response.text().await.unwrap());
        page.contains(text)
    })
    .await;
    page
}

/// RFC 6749, 5.2: `invalid_client` is a 400 or a 401. A service may ban an address after a few tries.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_client_secret_is_tried_once_and_a_new_one_at_once() {
    for status in [400, 401, 403, 422] {
        let refusal: fn() -> ServiceReply = match status {
            400 => || reply(400, r#"{"error":"invalid_client"}"#),
            401 => || reply(401, r#"{"error":"invalid_client"}"#),
            403 => || reply(403, "locked"),
            _ => || reply(422, "{}"),
        };
        let service = Service::start(orders).await;
        service.respond_to_logins(Some(refusal));
        let (gateway, client) = gate("oauth2-service.toml", &service).await;
        readiness(&gateway, "wrong password").await;
        for _ in 0..50 {
            assert_eq!(client.get("/orders/1").await, 503, "{status}");
        }
        assert_eq!(service.logins(), 1, "{status}");
        service.respond_to_logins(None);
        secret(&gateway.folder.path().join("service-secret"), ROTATED);
        eventually("the login with the new one", async || {
            client.get("/orders/1").await == 200
        })
        .await;
        assert_eq!(service.logins(), 2, "{status}");
    }
}

/// A token endpoint that is busy has refused nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_busy_token_endpoint_is_asked_again_after_its_retry_after() {
    let service = Service::start(orders).await;
    service.respond_to_logins(Some(|| ServiceReply {
        headers: "Retry-After: 2\r\n".to_owned(),
        ..reply(429, "{}")
    }));
    let (gateway, client) = gate("oauth2-service.toml", &service).await;
    readiness(&gateway, "refused with status 429").await;
    let logins = service.logins();
    service.respond_to_logins(None);
    eventually("the next login", async || service.logins() > logins).await;
    assert_eq!(client.get("/orders/1").await, 200);
}

/// `tollgate profiles` lists what `login.profile` takes, and prints one that can be pasted.
#[test]
fn the_command_lists_and_prints_the_known_services() {
    let run = |arguments: &[&str]| {
        let program = std::process::Command::new(env!("CARGO_BIN_EXE_tollgate"));
        let output = { program }.args(arguments).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        (
            output.status.success(),
            text,
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (is_good, list, _) = run(&["profiles"]);
    assert!(is_good && list.lines().count() >= 20, "{list}");
    for line in list.lines() {
        let name = line.split(' ').next().unwrap();
        let (is_good, shown, _) = run(&["profiles", "show", name]);
        assert!(is_good && shown.contains("[upstream.main.login"), "{shown}");
    }
    let (is_good, _, told) = run(&["profiles", "show", "keystnoe"]);
    assert!(
        !is_good && told.contains("did you mean keystone?"),
        "{told}"
    );
}
