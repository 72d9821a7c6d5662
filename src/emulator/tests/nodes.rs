use super::*;
use crate::emulator::{Gateway, Health};

#[tokio::test]
async fn the_response_to_a_message_is_as_captured() {
    let fixture = TestEmulator::start().await;
    let token = fixture.bearer().await;
    let body = r#"{"to":"15550100101","type":"text","text":{"body":"hello"}}"#;
    for path in ["/v1/messages", "/v1/messages/"] {
        let response = fixture.call("POST", path, &token, body).await;
        assert_eq!(response.status, 201);
        let reply = response.json();
        let id = reply["messages"][0]["id"].as_str().unwrap();
        assert!(id.starts_with("gBGG") && id.len() == 27, "{id}");
        assert_eq!(reply["meta"]["version"], "2.53.0");
        let ids = response.header("x-internal-request-ids");
        let (request, job) = ids.split_once('|').unwrap();
        assert_eq!((request.len(), job.len()), (32, 18));
        assert_eq!(job, job.to_uppercase());
    }
    let long = format!(r#"{{"to":"1","text":{{"body":"{}"}}}}"#, "é".repeat(4097));
    let response = fixture.call("POST", "/v1/messages", &token, &long).await;
    assert_eq!(response.status_and_code(), (400, 1001));
    for (body, status_and_code) in [
        ("{", (400, 1025)),
        ("[]", (400, 1025)),
        ("{}", (400, 1008)),
        (r#"{"to":"1"}"#, (400, 1008)),
    ] {
        let response = fixture.call("POST", "/v1/messages", &token, body).await;
        assert_eq!(response.status_and_code(), status_and_code, "{body}");
    }
    let read = r#"{"status":"read"}"#;
    let marked = fixture
        .call("PUT", "/v1/messages/gBGGx", &token, read)
        .await;
    assert_eq!(marked.status, 200);
    assert_eq!(fixture.emulator.request_count("/v1/messages"), 8);
}

#[tokio::test]
async fn contacts_can_be_checked_with_and_without_waiting() {
    let fixture = TestEmulator::start().await;
    let token = fixture.bearer().await;
    let check = |blocking: &'static str| {
        let body = format!(r#"{{"blocking":"{blocking}","contacts":["+1 555 0100101","x"]}}"#);
        let (fixture, token) = (&fixture, &token);
        async move { fixture.call("POST", "/v1/contacts/", token, &body).await }
    };
    let first = check("no_wait").await.json();
    assert_eq!(first["contacts"][0]["status"], "processing");
    assert_eq!(first["contacts"][1]["status"], "invalid");
    let second = check("wait").await.json();
    assert_eq!(second["contacts"][0]["wa_id"], "15550100101");
    assert_eq!(check("maybe").await.status_and_code(), (400, 1009));
    let identity = fixture
        .get("/v1/contacts/15550100101/identity", &token)
        .await;
    assert!(identity.json()["identity"]["hash"].is_string());
}

#[tokio::test]
async fn media_are_returned_as_uploaded() {
    let fixture = TestEmulator::start().await;
    let token = fixture.bearer().await;
    let sent = "a picture ".repeat(100_000);
    let mut upload = request("POST", "/v1/media", &token, &sent);
    let kind = "image/png".parse().unwrap();
    upload.headers_mut().insert("content-type", kind);
    let response = read(fixture.send(upload).await.unwrap()).await;
    let id = response.json()["media"][0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(id.len(), 36);
    let path = format!("/v1/media/{id}");
    let back = fixture.get(&path, &token).await;
    assert_eq!(back.header("content-type"), "image/png");
    assert!(back.bytes == sent.as_bytes());
    let head = fixture.call("HEAD", &path, &token, "").await;
    assert_eq!(head.header("content-length"), sent.len().to_string());
    assert!(head.bytes.is_empty());
    assert_eq!(fixture.call("DELETE", &path, &token, "").await.status, 200);
    let after_delete = fixture.get(&path, &token).await;
    assert_eq!(
        (after_delete.status.as_u16(), after_delete.bytes.len()),
        (404, 0)
    );
}

#[tokio::test]
async fn media_have_a_limit_and_can_be_generated() {
    let fixture = TestEmulator::start().await;
    let token = fixture.bearer().await;
    fixture.emulator.media_limit(10);
    let large = fixture
        .call("POST", "/v1/media", &token, &"x".repeat(11))
        .await;
    assert_eq!(large.status_and_code(), (413, 1009));
    let fits = fixture
        .call("POST", "/v1/media", &token, &"x".repeat(10))
        .await;
    assert_eq!(fits.status, 200);
    fixture.emulator.media_limit(0);
    let any = fixture
        .call("POST", "/v1/media", &token, &"x".repeat(11))
        .await;
    assert_eq!(any.status, 200);
    let made = fixture.get("/v1/media/generated-1000003", &token).await;
    assert_eq!(made.header("content-length"), "1000003");
    let expected = (0u8..=250).cycle().take(1_000_003);
    assert!(made.bytes.iter().copied().eq(expected));
}

#[tokio::test]
async fn health_has_two_forms() {
    let fixture = TestEmulator::start().await;
    let token = fixture.bearer().await;
    let health = || async { fixture.get("/v1/health", &token).await.json()["health"].clone() };
    assert_eq!(health().await["gateway_status"], "connected");
    fixture
        .emulator
        .change(|to| to.gateway_status = Gateway::Disconnected);
    assert_eq!(health().await["gateway_status"], "disconnected");
    fixture.emulator.behave();
    fixture.emulator.health(Health::HighAvailability);
    let nodes = health().await;
    let nodes = nodes.as_object().unwrap();
    let connected = nodes
        .values()
        .filter(|node| node["gateway_status"] == "connected");
    assert_eq!((nodes.len(), connected.count()), (4, 1));
}

#[tokio::test]
async fn metrics_have_two_forms() {
    let fixture = TestEmulator::start().await;
    let token = fixture.bearer().await;
    let json = fixture.get("/metrics", &token).await.json();
    assert_eq!(json["metrics"]["web_uptime"]["type"], "gauge");
    let text = fixture.get("/metrics?format=prometheus", &token).await;
    let text = String::from_utf8(text.bytes.to_vec()).unwrap();
    assert!(text.contains("web_requests{state=\"read\"} 0\n"), "{text}");
    let stats = fixture.get("/v1/stats/db", &token).await.json();
    assert!(stats["stats"]["db"]["db_tokens"].is_object());
}

/// Method, path, body, and the status to expect.
const NODES: [(&str, &str, &str, u16); 24] = [
    ("GET", "/", "", 200),
    ("GET", "/v1/nothing", "", 404),
    ("GET", "/v1/messages", "", 405),
    (
        "POST",
        "/v1/account",
        r#"{"cc":"1","phone_number":"555"}"#,
        201,
    ),
    ("POST", "/v1/account/verify", r#"{"code":"123456"}"#, 201),
    ("GET", "/v1/account/shards", "", 200),
    ("POST", "/v1/account/shards", r#"{"shards":3}"#, 400),
    ("GET", "/v1/settings/application", "", 200),
    (
        "PATCH",
        "/v1/settings/application",
        r#"{"sent_status":true}"#,
        200,
    ),
    (
        "PATCH",
        "/v1/settings/application",
        r#"{"max_concurrent_requests":7}"#,
        400,
    ),
    ("POST", "/v1/settings/backup", r#"{"password":"x"}"#, 200),
    ("GET", "/v1/settings/business/profile", "", 200),
    (
        "PATCH",
        "/v1/settings/profile/about",
        r#"{"text":"hello"}"#,
        200,
    ),
    ("GET", "/v1/settings/profile/photo", "", 404),
    (
        "POST",
        "/v1/settings/account/two-step",
        r#"{"pin":"123456"}"#,
        200,
    ),
    ("GET", "/v1/stickerpacks", "", 200),
    ("GET", "/v1/groups", "", 200),
    ("POST", "/v1/groups", r#"{"subject":"x"}"#, 201),
    (
        "POST",
        "/v1/certificates/external",
        "not a certificate",
        400,
    ),
    (
        "POST",
        "/v1/certificates/external",
        "-----BEGIN CERTIFICATE-----",
        200,
    ),
    ("GET", "/v1/certificates/external/ca", "", 200),
    ("GET", "/v1/certificates/webhooks/ca", "", 404),
    ("GET", "/v1/support", "", 200),
    ("PUT", "/v1/services/message/gc", "", 200),
];

#[tokio::test]
async fn every_node_responds_to_an_admin_with_and_without_a_trailing_slash() {
    let fixture = TestEmulator::start().await;
    let token = fixture.bearer().await;
    for (method, path, body, status) in NODES {
        for slash in ["", "/"] {
            let path = format!("{}{slash}", path.trim_end_matches('/'));
            let path = if path.is_empty() { "/" } else { &path };
            let response = fixture.call(method, path, &token, body).await;
            assert_eq!(response.status, status, "{method} {path}");
        }
    }
}

#[tokio::test]
async fn settings_are_read_back() {
    let fixture = TestEmulator::start().await;
    let token = fixture.bearer().await;
    let path = "/v1/settings/application";
    let wish = r#"{"webhooks":{"url":"https://example.org"}}"#;
    fixture.call("PATCH", path, &token, wish).await;
    let read = || async { fixture.get(path, &token).await.json()["settings"].clone() };
    assert_eq!(
        read().await["application"]["webhooks"]["url"],
        "https://example.org"
    );
    fixture.call("DELETE", path, &token, "").await;
    assert_eq!(read().await["application"]["webhooks"]["url"], "");
    let path = "/v1/certificates/webhooks/ca";
    let pem = "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n";
    let response = fixture.call("POST", path, &token, pem).await;
    assert_eq!(response.bytes, "null");
    assert_eq!(fixture.get(path, &token).await.bytes, pem);
}
