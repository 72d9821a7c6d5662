//! Faults of the network: name servers that reply for one address family, silent addresses,
//! bad entries in the host's files, untrusted certificates, connections that end as announced.
//! Tests that need their own files under /etc run in a namespace.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hickory_resolver::proto::op::Message;
use hickory_resolver::proto::rr::{RData, Record, RecordType};
use serde_json::json;
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::{sleep, timeout};

use crate::harness::program::Program;
use crate::harness::upstream::{Reply, Upstream};
use crate::harness::{Gateway, NO_LIMITS, Setup, emulator, eventually, written};

const INSIDE: &str = "TOLLGATE_TEST_NAMESPACE";

/// Runs `test` of this program again, alone, with its own files under /etc. Does nothing
/// where the system allows no namespaces.
fn in_namespace(test: &str, resolv_conf: &str, hosts: &str) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("resolv.conf"), resolv_conf).unwrap();
    std::fs::write(folder.path().join("hosts"), hosts).unwrap();
    let script = "ip link set lo up && mount --bind \"$0/resolv.conf\" /etc/resolv.conf \
        && mount --bind \"$0/hosts\" /etc/hosts && exec \"$@\"";
    let run = |program: &[&str]| {
        Command::new("unshare")
            .args(["--map-root-user", "--mount", "--net", "sh", "-c", script])
            .arg(folder.path())
            .args(program)
            .env(INSIDE, "1")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .output()
    };
    if !run(&["true"]).is_ok_and(|tried| tried.status.success()) {
        eprintln!("skipped: this system lets us make no namespace");
        return;
    }
    let this = std::env::current_exe().unwrap();
    let test = format!("network::{test}");
    let args = [
        this.to_str().unwrap(),
        &test,
        "--exact",
        "--ignored",
        "--nocapture",
    ];
    let ended = run(&args).unwrap();
    let fields = String::from_utf8_lossy(&ended.stdout);
    assert!(
        ended.status.success() && fields.contains("1 passed"),
        "{fields}{}",
        String::from_utf8_lossy(&ended.stderr)
    );
}

fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// A name server that replies for IPv4 at once and never for IPv6.
async fn ipv4_only_name_server() {
    let socket = UdpSocket::bind("127.0.0.1:53").await.unwrap();
    tokio::spawn(async move {
        let mut bytes = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut bytes).await {
            let mut message = Message::from_vec(&bytes[..length]).unwrap().into_response();
            let query = message.queries[0].clone();
            if query.query_type() == RecordType::A {
                let data = RData::A(Ipv4Addr::LOCALHOST.into());
                message.add_answer(Record::from_rdata(query.name().clone(), 60, data));
                let _ = socket.send_to(&message.to_vec().unwrap(), from).await;
            }
        }
    });
}

async fn gate_before(name: &str, upstream: &Upstream) -> Gateway {
    let setup = Setup::default()
        .upstream("allow_plaintext = true")
        .rest(NO_LIMITS);
    let url = format!("http://{name}:{}", upstream.address.port());
    Gateway::before(&url, setup).await
}

/// The login may meet the fault once. Requests, each on its own connection, use what the
/// login has learned.
async fn logs_in_and_connects_quickly(upstream: &Upstream) {
    let began = Instant::now();
    let gateway = gate_before("webapp.test", upstream).await;
    let client = gateway.admin().await;
    eventually("logged in", async || {
        client.get("/v1/support").await.status() == 200
    })
    .await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(4), "{took:?}");
    for _ in 0..5 {
        let began = Instant::now();
        assert_eq!(client.get("/v1/support").await.status(), 200);
        let took = began.elapsed();
        assert!(took < Duration::from_millis(200), "{took:?}");
    }
}

#[test]
fn an_address_of_one_family_is_enough_despite_a_bad_entry() {
    in_namespace(
        "inside_an_address_of_one_family_is_enough",
        "search bad..domain\nnameserver not-an-address\nnameserver 127.0.0.1\noptions what:ever\n",
        "127.0.0.1 localhost\n10.0.0.300 webapp.test\n",
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "runs in a namespace, started by another test"]
async fn inside_an_address_of_one_family_is_enough() {
    if !is_inside() {
        return;
    }
    ipv4_only_name_server().await;
    let upstream = Upstream::start(|_| Reply::Close(ok("{}"))).await;
    logs_in_and_connects_quickly(&upstream).await;
}

#[test]
fn a_silent_address_delays_one_connection() {
    in_namespace(
        "inside_a_silent_address",
        "nameserver 127.0.0.1\n",
        "127.0.0.1 localhost\n127.0.0.2 webapp.test\n127.0.0.1 webapp.test\n",
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "runs in a namespace, started by another test"]
async fn inside_a_silent_address() {
    if !is_inside() {
        return;
    }
    let upstream = Upstream::start(|_| Reply::Close(ok("{}"))).await;
    let silent: SocketAddr = format!("127.0.0.2:{}", upstream.address.port())
        .parse()
        .unwrap();
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&silent.into()).unwrap();
    listener.listen(0).unwrap();
    let connect = || std::net::TcpStream::connect_timeout(&silent, Duration::from_millis(100));
    let _filling: Vec<_> = std::iter::from_fn(|| connect().ok()).collect();

    logs_in_and_connects_quickly(&upstream).await;
}

fn ok(body: &str) -> Vec<u8> {
    match Reply::ok(body) {
        Reply::Stay(bytes) | Reply::Close(bytes) => bytes,
    }
}

/// Answers requests that arrive within `limit` of the previous response, with `said` in each
/// head. A later request meets a connection that is being closed.
async fn closing_after(fields: &'static str, limit: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let login = Upstream::start(|_| Reply::ok("{}")).await.address;
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(serve_until(tcp, login, fields, limit));
        }
    });
    address
}

async fn serve_until(mut tcp: TcpStream, login: SocketAddr, fields: &str, limit: Duration) {
    let mut bytes = vec![0; 65_536];
    loop {
        let Ok(length @ 1..) = tcp.read(&mut bytes).await else {
            return;
        };
        if bytes.starts_with(b"POST /v1/users/login") {
            let mut other = TcpStream::connect(login).await.unwrap();
            other.write_all(&bytes[..length]).await.unwrap();
            let mut response = vec![0; 65_536];
            let length = other.read(&mut response).await.unwrap();
            let _ = tcp.write_all(&response[..length]).await;
            return;
        }
        let response = format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 2\r\n\r\n{{}}");
        let _ = tcp.write_all(response.as_bytes()).await;
        if timeout(limit, tcp.readable()).await.is_err() {
            // The server closes now and does not read a request in flight.
            let _ = tcp.readable().await;
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_never_uses_a_connection_that_ends_as_announced() {
    for fields in [
        "Keep-Alive: timeout=1\r\n",
        "keep-alive: max=5, Timeout=\"1\"\r\n",
        "Connection: keep-alive\r\nKeep-Alive: timeout=1;max=99\r\n",
    ] {
        let address = closing_after(fields, Duration::from_millis(800)).await;
        let setup = Setup::default().rest(NO_LIMITS);
        let gateway = Gateway::before(&format!("http://{address}"), setup).await;
        let client = gateway.admin().await;
        eventually("logged in", async || {
            client.get("/v1/support").await.status() == 200
        })
        .await;
        for pause in [1000, 900, 0, 1500, 0, 850] {
            sleep(Duration::from_millis(pause)).await;
            let sent = client.post("/v1/messages", &json!({ "to": "1" })).await;
            assert_eq!(sent.status(), 200, "{fields} {pause}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_error_for_an_untrusted_certificate_names_the_pin_to_set() {
    let webapp = emulator().await;
    let folder = tempfile::tempdir().unwrap();
    let trust = "ca = \"webapp-ca.pem\"";
    let without = |text: String| text.replace(trust, "");
    let file = written(folder.path(), &webapp, &Setup::default(), without);
    let program = Program::serve(&file);
    let line = program.wait_for("upstream.main.pins");
    assert!(
        line.contains("upstream.main.ca") && line.contains("issued by"),
        "{line}"
    );
    assert_eq!(
        line.matches("issued by").count(),
        1,
        "the issuer is named once: {line}"
    );
    drop(program);

    let (_, rest) = line.split_once("sha256//").unwrap();
    let is_base64 = |c: &char| c.is_ascii_alphanumeric() || "+/=".contains(*c);
    let pin: String = rest.chars().take_while(is_base64).collect();
    let pinned = |text: String| text.replace(trust, &format!("pins = [\"sha256//{pin}\"]"));
    let file = written(folder.path(), &webapp, &Setup::default(), pinned);
    let gateway = Gateway::from_file(folder, file).await;
    let http = reqwest::Client::new();
    eventually("logged in with the pin from the log", async || {
        let ready = http.get(gateway.operator_url("/readyz")).send().await;
        ready.is_ok_and(|response| response.status() == 200)
    })
    .await;
}
