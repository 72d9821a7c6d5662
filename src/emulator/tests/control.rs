use super::*;

impl TestEmulator {
    async fn order(&self, method: &str, path: &str, body: &str) -> TestResponse {
        let request = request(method, path, "", body);
        let sent = exchange(&self.scope.tasks, self.emulator.control_address(), request).await;
        read(sent.unwrap()).await
    }
}

#[tokio::test]
async fn the_state_is_shown_without_a_secret() {
    let fixture = TestEmulator::start().await;
    let token = fixture.bearer().await;
    let state = fixture.order("GET", "/", "").await;
    assert_eq!(state.json()["counts"]["logins"], 1);
    assert_eq!(state.json()["tokens"], 1);
    assert!(state.json()["calls"]["POST /faults"].is_string());
    let text = String::from_utf8_lossy(&state.bytes);
    for secret in [&token[7..], "Webapp-Passw0rd!", "webapp-api-key-for-tests"] {
        assert!(!text.contains(secret));
    }
}

#[tokio::test]
async fn switches_are_set_by_name_all_or_none() {
    let fixture = TestEmulator::start().await;
    let wish = r#"{"respond_503":2,"fail_next_logins":{"times":1,"how":{"status":500}}}"#;
    let set = fixture.order("POST", "/faults", wish).await;
    assert_eq!(set.status, 200);
    assert_eq!(set.json()["switches"]["respond_503"], 2);
    assert_eq!(fixture.admin_log_in().await.status, 500);
    let before = fixture.emulator.switches();
    for bad in [
        r#"{"hang":true,"hangg":true}"#,
        r#"{"hang":"yes"}"#,
        r#"{"login_response":"sideways"}"#,
        "[]",
        "{",
        "",
    ] {
        let refused = fixture.order("POST", "/faults", bad).await;
        assert_eq!(refused.status, 400, "{bad}");
        let reason = refused.json()["error"].as_str().unwrap().to_owned();
        assert!(reason.contains("expected"), "{bad}: {reason}");
    }
    assert_eq!(fixture.emulator.switches(), before);
    fixture.order("DELETE", "/faults", "").await;
    assert_eq!(fixture.emulator.switches().respond_503, 0);
}

#[tokio::test]
async fn tokens_and_the_password_can_be_controlled() {
    let fixture = TestEmulator::start().await;
    let token = fixture.bearer().await;
    let revoke = format!("{{\"token\":\"{}\"}}", &token[7..]);
    assert_eq!(
        fixture
            .order("POST", "/tokens/revoke", &revoke)
            .await
            .status,
        200
    );
    assert_eq!(
        fixture
            .order("POST", "/tokens/revoke", &revoke)
            .await
            .status,
        404
    );
    assert_eq!(
        fixture.order("POST", "/tokens/revoke", "{}").await.status,
        400
    );
    fixture.bearer().await;
    let expired = fixture.order("POST", "/tokens/expire", "").await;
    assert_eq!(expired.json()["expired"], 1);
    let forgotten = fixture.order("POST", "/tokens/forget", "").await;
    assert_eq!(forgotten.json()["forgotten"], 1);
    let new = r#"{"password":"An0ther-one"}"#;
    assert_eq!(fixture.order("POST", "/password", new).await.status, 200);
    assert_eq!(fixture.order("POST", "/password", "{}").await.status, 400);
    assert_eq!(fixture.admin_log_in().await.status, 401);
    assert_eq!(fixture.log_in("admin", "An0ther-one", "").await.status, 200);
    assert_eq!(fixture.order("DELETE", "/counts", "").await.status, 200);
    assert_eq!(fixture.emulator.login_count(), 0);
    assert_eq!(fixture.order("GET", "/nothing", "").await.status, 404);
}

#[tokio::test]
async fn a_web_page_cannot_send_control_requests() {
    let fixture = TestEmulator::start().await;
    let mut order = request("POST", "/tokens/forget", "", "");
    let origin = "https://evil.example".parse().unwrap();
    order.headers_mut().insert("origin", origin);
    let sent = exchange(
        &fixture.scope.tasks,
        fixture.emulator.control_address(),
        order,
    )
    .await;
    assert_eq!(sent.unwrap().status(), 400);
}

/// Sends `bytes`, and reads the response for a moment.
async fn send_bytes(fixture: &TestEmulator, bytes: &[u8]) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut tcp = TcpStream::connect(fixture.emulator.control_address())
        .await
        .unwrap();
    // The emulator may close before it has read all bytes.
    let _ = tcp.write_all(bytes).await;
    let _ = tcp.shutdown().await;
    let mut response = Vec::new();
    let read = tcp.read_to_end(&mut response);
    let _ = tokio::time::timeout(Duration::from_secs(10), read).await;
}

#[tokio::test]
async fn invalid_bytes_change_nothing_and_cause_no_failure() {
    let fixture = TestEmulator::start().await;
    let before = fixture.emulator.switches();
    let order = |head: &str, body: &[u8]| [head.as_bytes(), body].concat();
    let faults = "POST /faults HTTP/1.1\r\nHost: a\r\n";
    let deep = [vec![b'['; 60_000], vec![b']'; 60_000]].concat();
    let sized = |body: &[u8]| {
        order(
            &format!("{faults}Content-Length: {}\r\n\r\n", body.len()),
            body,
        )
    };
    let hostile = [
        vec![0; 4096],
        (0..=255).cycle().take(70_000).collect(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        order("GET /", &vec![b'a'; 1 << 20]),
        order("GET / HTTP/1.1\r\nHost: a\r\nX: ", &vec![b'a'; 1 << 20]),
        sized(&vec![b' '; 1 << 20]),
        sized(&deep),
        sized(b"{\"hang\":true,\"hang\":1e999}"),
        sized(b"{\"token_lifetime_seconds\":-1}"),
        sized(b"{\"token_lifetime_seconds\":99999999999999999999}"),
        sized(b"\xff\xfe{}"),
        order(faults, b"Content-Length: 100\r\n\r\n{\"hang\":true}"),
        order(faults, b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n{\"hang\":true}"),
        order(faults, b"Content-Length: -1\r\n\r\n"),
        b"POST /tokens/revoke HTTP/1.1\r\nHost: a\r\nContent-Length: 18\r\n\r\n{\"token\":\"\\u0000\"}".to_vec(),
    ];
    for bytes in &hostile {
        send_bytes(&fixture, bytes).await;
    }
    // A head without an end blocks only its own connection.
    let mut slow = TcpStream::connect(fixture.emulator.control_address())
        .await
        .unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut slow, b"GET / HT")
        .await
        .unwrap();
    assert_eq!(fixture.order("GET", "/", "").await.status, 200);
    assert_eq!(fixture.emulator.switches(), before);
    assert_eq!(fixture.scope.tasks.failed(), 0, "no task panicked");
}
