//! A request that returns to the gate is refused (RFC 9110, 7.6.3), and `Via` is forwarded.

use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};

use reqwest::StatusCode;
use tollgate::emulator::certificates;
use tollgate::metrics::Reason;

use crate::harness::client::verdict;
use crate::harness::raw::Raw;
use crate::harness::upstream::{Call, Reply, Upstream};
use crate::harness::{ADMIN_PASSWORD, Client, Gateway, Setup, WEBAPP_PASSWORD, secret, text};

const OPEN: &str = "[[route]]\nname = \"open\"\npath = \"/open/*\"\naccess = [\"open\"]\n";

/// A free port.
fn free_port() -> u16 {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap().port()
}

fn write(folder: &Path, text: &str) -> std::path::PathBuf {
    certificates::make(&folder.join("certs")).unwrap();
    secret(&folder.join("webapp-password"), WEBAPP_PASSWORD);
    secret(&folder.join("gate-password"), ADMIN_PASSWORD);
    let file = folder.join("config.toml");
    std::fs::write(&file, text).unwrap();
    file
}

/// A gate that listens at `port`, with TLS or not, and whose upstream is `url`.
async fn gate(port: u16, url: &str, has_login: bool) -> Gateway {
    let folder = tempfile::tempdir().unwrap();
    let mut setup = Setup::default().rest(OPEN);
    if !has_login {
        setup = setup.users("directory = \"webapp\"");
    }
    let mut config = text(&setup, url);
    let listener = "address = \"127.0.0.1:0\"\ntls";
    config = config.replace(listener, &format!("address = \"127.0.0.1:{port}\"\ntls"));
    if url.starts_with("http:") {
        let tls = config
            .lines()
            .find(|line| line.starts_with("tls = "))
            .unwrap();
        config = config.replace(tls, "");
        config = config.replace("ca = \"webapp-ca.pem\"\nserver_name = \"localhost\"", "");
    } else {
        config = config.replace("webapp-ca.pem", "certs/ca.pem");
    }
    if !has_login {
        let login = config
            .lines()
            .find(|line| line.starts_with("login = "))
            .unwrap();
        config = config.replace(login, "");
    }
    let file = write(folder.path(), &config);
    Gateway::from_file(folder, file).await
}

fn client(gateway: &Gateway, scheme: &str) -> Client {
    let port = gateway.addresses.listeners[0].port();
    let base = format!("{scheme}://localhost:{port}");
    Client::of(gateway.folder.path(), &base, reqwest::Client::builder())
}

fn forwarded(gateway: &Gateway) -> u64 {
    let counts = |status| {
        let values = ["open", status];
        gateway.metrics.requests.with_label_values(&values).get()
    };
    ["2xx", "4xx", "5xx"].into_iter().map(counts).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_that_is_its_own_upstream_ends_the_request_at_the_first_hop() {
    for scheme in ["http", "https"] {
        let port = free_port();
        let gateway = gate(port, &format!("{scheme}://127.0.0.1:{port}"), false).await;
        let response = client(&gateway, scheme).get("/open/x").await;
        assert_eq!(verdict(response).await, (508, 1014), "{scheme}");
        assert_eq!(
            gateway.metrics.rejections.value(Reason::Loop),
            1,
            "{scheme}"
        );
        assert_eq!(forwarded(&gateway), 1, "{scheme}: only one hop");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_gates_in_a_loop_end_the_request_at_its_return() {
    let (first_port, second_port) = (free_port(), free_port());
    let one = gate(
        first_port,
        &format!("http://127.0.0.1:{second_port}"),
        false,
    )
    .await;
    let two = gate(
        second_port,
        &format!("http://127.0.0.1:{first_port}"),
        false,
    )
    .await;
    let response = client(&one, "http").get("/open/x").await;
    assert_eq!(verdict(response).await, (508, 1014));
    assert_eq!((forwarded(&one), forwarded(&two)), (1, 1));
    assert_eq!(one.metrics.rejections.value(Reason::Loop), 1);
    assert_eq!(two.metrics.rejections.value(Reason::Loop), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_returns_is_reported_as_a_loop_and_not_as_a_wrong_password() {
    let port = free_port();
    let gateway = gate(port, &format!("https://127.0.0.1:{port}"), true).await;
    crate::harness::eventually("the loop is reported", async || {
        let response = reqwest::get(gateway.operator_url("/readyz")).await.unwrap();
        let text = response.text().await.unwrap();
        text.contains("upstream login: refused with status 508")
    })
    .await;
    assert!(gateway.metrics.rejections.value(Reason::Loop) >= 1);
}

/// A gate in front of an upstream that records its requests.
async fn recorded() -> (Gateway, Arc<Mutex<Vec<String>>>) {
    let heads: Arc<Mutex<Vec<String>>> = Arc::default();
    let record = Arc::clone(&heads);
    let upstream = Upstream::start(move |call: &Call| {
        record.lock().unwrap().push(call.head.clone());
        Reply::ok("through")
    })
    .await;
    let url = format!("http://{}", upstream.address);
    let gateway = Gateway::before(&url, Setup::default().rest(OPEN)).await;
    (gateway, heads)
}

fn vias(head: &str) -> Vec<String> {
    let lines = head.lines().filter_map(|line| line.split_once(": "));
    let vias = lines.filter(|(name, _)| name.eq_ignore_ascii_case("via"));
    vias.map(|(_, value)| value.to_owned()).collect()
}

async fn sent(gateway: &Gateway, version: &str, vias: &[&str]) -> String {
    let mut raw = Raw::connect(gateway).await;
    let lines: String = vias.iter().map(|via| format!("Via: {via}\r\n")).collect();
    let head = format!("GET /open/x HTTP/{version}\r\nHost: localhost\r\n{lines}");
    raw.send(format!("{head}Connection: close\r\n\r\n").as_bytes())
        .await;
    raw.read_to_end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_via_of_other_proxies_is_kept_and_the_gates_is_appended() {
    let (gateway, heads) = recorded().await;
    let last = || vias(heads.lock().unwrap().last().unwrap());
    let foreign = [
        "1.0 fred, 1.1 p.example:8080 (a, b)",
        "2 tollgate-0123456789abcdef",
    ];
    for version in ["1.0", "1.1"] {
        let response = sent(&gateway, version, &foreign).await;
        assert!(
            response.contains(" 200 ") && response.ends_with("through"),
            "{response}"
        );
        assert!(
            !response.to_ascii_lowercase().contains("\r\nvia:"),
            "{response}"
        );
        let up = last();
        assert_eq!(up[..2], foreign);
        assert!(up[2].starts_with(&format!("{version} tollgate-")), "{up:?}");
        assert_eq!(up.len(), 3);
        assert_eq!(up[2].len(), "1.1 tollgate-".len() + 16);
    }
    let h2 = gateway.client().get("/open/x").await;
    assert_eq!(h2.status(), StatusCode::OK);
    assert!(last()[0].starts_with("2.0 tollgate-"), "{:?}", last());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gates_own_name_is_found_anywhere_in_via_and_fails_only_that_request() {
    let (gateway, heads) = recorded().await;
    sent(&gateway, "1.1", &[]).await;
    let ours = vias(&heads.lock().unwrap()[0])[0].clone();
    let name = ours.strip_prefix("1.1 ").unwrap();
    for lines in [
        vec![ours.clone()],
        vec!["1.1 fred".to_owned(), ours.clone(), "1.1 last".to_owned()],
        vec![format!(
            "1.0 fred (x, y), HTTP/1.1\t{name} (tollgate), 1.1 last"
        )],
        vec![format!(
            "1.1 fred (never closed, 1.1 {}",
            name.to_uppercase()
        )],
    ] {
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let response = sent(&gateway, "1.1", &lines).await;
        assert!(
            response.starts_with("HTTP/1.1 508 "),
            "{lines:?}: {response}"
        );
        assert!(response.contains("come back to this gateway"), "{response}");
    }
    // A comment in the field does not count.
    let response = sent(&gateway, "1.1", &[&format!("1.1 fred (not, 1.1 {name})")]).await;
    assert!(response.contains(" 200 "), "{response}");
    let response = gateway.client().get("/v1/support").await;
    assert_eq!(verdict(response).await, (401, 1005));
    assert_eq!(
        heads.lock().unwrap().len(),
        2,
        "no looping request was forwarded"
    );
}
