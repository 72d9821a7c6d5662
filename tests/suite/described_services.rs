//! Services whose login is described in the file: the configurations of `examples/`, in front of servers
//! that speak as the services' documents say.

use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::login_upstream::{KEY, KeyClient};
use crate::harness::{Gateway, eventually, secret, sha256};

/// The secret after its rotation.
const ROTATED: &str = "rotated";
const SECRET: &str = "a b/\u{fc}:+%&\"\\${x}";

/// One request as it arrived.
struct ServiceCall {
    line: String,
    head: String,
    body: String,
}

impl ServiceCall {
    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().skip(1);
        lines.find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

/// Status, header lines and body of a response.
struct ServiceReply {
    status: u16,
    headers: String,
    body: String,
}

fn reply(status: u16, body: &str) -> ServiceReply {
    ServiceReply {
        status,
        headers: String::new(),
        body: body.to_owned(),
    }
}

/// Lives until the test's runtime ends.
#[derive(Clone)]
struct Service {
    address: SocketAddr,
    state: Arc<Mutex<ServiceState>>,
}

/// What the service does now.
struct ServiceState {
    /// The token that it takes.
    valid: String,
    logins: usize,
    /// In place of the response to a login.
    login_reply: Option<fn() -> ServiceReply>,
}

type Behaviour = fn(&ServiceCall, &mut ServiceState) -> ServiceReply;

impl Service {
    async fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let service = Self {
            address: listener.local_addr().unwrap(),
            state: Arc::new(Mutex::new(ServiceState {
                valid: String::new(),
                logins: 0,
                login_reply: None,
            })),
        };
        let state = Arc::clone(&service.state);
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                tokio::spawn(serve(tcp, behaviour, Arc::clone(&state)));
            }
        });
        service
    }

    fn logins(&self) -> usize {
        self.state.lock().logins
    }

    /// The token in use ends without notice.
    fn revoke(&self) {
        self.state.lock().valid = "none".to_owned();
    }

    fn respond_to_logins(&self, reply: Option<fn() -> ServiceReply>) {
        self.state.lock().login_reply = reply;
    }
}

async fn serve(
    mut tcp: TcpStream,
    behaviour: Behaviour,
    state: Arc<Mutex<ServiceState>>,
) -> std::io::Result<()> {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(tcp.read_u8().await?);
        }
        let head = String::from_utf8(head).unwrap();
        let line = head.lines().next().unwrap().replace(" HTTP/1.1", "");
        let mut call = ServiceCall {
            line,
            head,
            body: String::new(),
        };
        let length = call
            .header("content-length")
            .map_or(0, |text| text.parse().unwrap());
        let mut body = vec![0; length];
        tcp.read_exact(&mut body).await?;
        call.body = String::from_utf8(body).unwrap();
        let ServiceReply {
            status,
            headers,
            body,
        } = behaviour(&call, &mut state.lock());
        let length = body.len();
        let text =
            format!("HTTP/1.1 {status} X\r\n{headers}Content-Length: {length}\r\n\r\n{body}");
        tcp.write_all(text.as_bytes()).await?;
    }
}

/// Notes a login, and returns the token or what the test wants instead.
fn login(state: &mut ServiceState, granted: impl Fn(&str) -> ServiceReply) -> ServiceReply {
    state.logins += 1;
    match state.login_reply {
        Some(other) => other(),
        None => {
            state.valid = format!("token-{}", state.logins);
            granted(&state.valid)
        }
    }
}

/// A gate with a configuration of `examples/` in front of `service`.
async fn gate(example: &str, service: &Service) -> (Gateway, KeyClient) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/");
    let text = std::fs::read_to_string(format!("{path}{example}")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    tollgate::emulator::certificates::make(&folder.path().join("certs")).unwrap();
    secret(&folder.path().join("service-secret"), SECRET);
    secret(&folder.path().join("gate-password"), "a-Passw0rd!");
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
        assert_eq!(call.body, "grant_type=client_credentials&scope=orders.read");
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
