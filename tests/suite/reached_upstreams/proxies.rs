//! `proxy` before a real proxy, tinyproxy, and a reload that changes the proxy.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use super::site::read_head;
use crate::harness::program::binary;
use crate::harness::{Gateway, NO_LIMITS, Setup, emulator, eventually, secret, written};

const PASSWORD: &str = "proxy-canary-5ecret";

/// tinyproxy with a login, which allows CONNECT to one port.
struct TinyProxy {
    child: Child,
    port: u16,
}

impl TinyProxy {
    async fn start(folder: &Path, allowed_port: u16) -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let file = folder.join("tinyproxy.conf");
        let log = folder.join("tinyproxy.log");
        let text = format!(
            "Port {port}\nListen 127.0.0.1\nTimeout 60\nMaxClients 100\nAllow 127.0.0.1\n\
             BasicAuth gate {PASSWORD}\nConnectPort {allowed_port}\nLogLevel Connect\n\
             LogFile \"{}\"\n",
            log.display()
        );
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new("tinyproxy");
        command.arg("-d").arg("-c").arg(&file);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.stderr(Stdio::null()).spawn().unwrap();
        let proxy = Self { child, port };
        eventually("the proxy", async || {
            TcpStream::connect(("127.0.0.1", port)).await.is_ok()
        })
        .await;
        proxy
    }

    fn key(&self) -> String {
        format!("proxy = \"http://127.0.0.1:{}\"", self.port)
    }
}

impl Drop for TinyProxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn login(file: &str) -> String {
    format!("proxy_login = {{ username = \"gate\", password = {{ file = \"{file}\" }} }}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_logs_in_and_serves_through_tinyproxy() {
    let webapp = emulator().await;
    let folder = tempfile::tempdir().unwrap();
    let proxy = TinyProxy::start(folder.path(), webapp.address().port()).await;
    let setup = Setup::default()
        .upstream(&proxy.key())
        .upstream(&login("proxy-password"));
    let secrets = [("proxy-password", PASSWORD)];
    let gateway = Gateway::with_secrets(&webapp, setup, &secrets).await;
    let client = gateway.admin().await;
    for _ in 0..3 {
        assert_eq!(client.get("/v1/support").await.status(), 200);
    }
    assert_eq!(webapp.login_count(), 1);
    let log = std::fs::read_to_string(folder.path().join("tinyproxy.log")).unwrap();
    let target = format!("CONNECT {} ", webapp.address());
    assert!(log.contains(&target), "{log}");
}

fn check(file: &Path) -> Output {
    let mut command = Command::new(binary());
    let command = command.args(["check", "--connect", "--config"]).arg(file);
    command.output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_what_tinyproxy_refuses() {
    let webapp = emulator().await;
    let folder = tempfile::tempdir().unwrap();
    let port = webapp.address().port();
    let open = TinyProxy::start(folder.path(), port).await;
    let closed_folder = tempfile::tempdir().unwrap();
    let closed = TinyProxy::start(closed_folder.path(), 1).await;
    let (good, wrong) = (login("good"), login("wrong"));
    for (lines, expected) in [
        (
            format!("{}\n{good}", open.key()),
            &[
                "is there through proxy http://127.0.0.1:",
                "certificate is trusted",
            ][..],
        ),
        (
            format!("{}\n{wrong}", open.key()),
            &["upstream.main.proxy_login", "refuses the login"],
        ),
        (
            open.key(),
            &["upstream.main.proxy_login", "asks for a login"],
        ),
        (
            format!("{}\n{good}", closed.key()),
            &[
                "upstream.main.proxy ",
                "does not allow CONNECT to 127.0.0.1:",
            ],
        ),
        (
            "proxy = \"http://127.0.0.1:1\"".to_owned(),
            &["upstream.main.proxy ", "cannot connect to the proxy"],
        ),
    ] {
        let setup = Setup::default().upstream(&lines);
        let file = written(folder.path(), &webapp, &setup, |text| text);
        secret(&folder.path().join("good"), PASSWORD);
        secret(&folder.path().join("wrong"), "another-canary");
        let output = check(&file);
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        let text = text.concat();
        for part in expected {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("canary"), "{text}");
    }
}

/// A proxy without a login that connects to where it is told; counts its tunnels.
async fn counting_proxy() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tunnels = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&tunnels);
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let count = Arc::clone(&count);
            tokio::spawn(async move {
                let head = read_head(&mut tcp).await?;
                let target = head.strip_prefix("CONNECT ")?.split(' ').next()?.to_owned();
                let mut upstream = TcpStream::connect(target).await.ok()?;
                count.fetch_add(1, Ordering::SeqCst);
                tcp.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.ok()?;
                copy_bidirectional(&mut tcp, &mut upstream).await.ok()
            });
        }
    });
    (address, tunnels)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_that_changes_the_proxy_uses_no_connection_of_the_old_one() {
    let webapp = emulator().await;
    let (first, first_count) = counting_proxy().await;
    let (second, second_count) = counting_proxy().await;
    let line = format!("proxy = \"http://{first}\"");
    let setup = Setup::default().upstream(&line).rest(NO_LIMITS);
    let gateway = Gateway::with(&webapp, setup).await;
    let client = gateway.admin().await;
    assert_eq!(client.get("/v1/support").await.status(), 200);
    assert!(
        first_count.load(Ordering::SeqCst) >= 2,
        "the login and a request"
    );
    let file = gateway.config_file();
    let old = std::fs::read_to_string(&file).unwrap();
    std::fs::write(
        &file,
        old.replace(&line, &format!("proxy = \"http://{second}\"")),
    )
    .unwrap();
    // The reload tries the new way once; from then on requests take it, and none fails.
    eventually("a request through the second proxy", async || {
        assert_eq!(client.get("/v1/support").await.status(), 200);
        second_count.load(Ordering::SeqCst) >= 2
    })
    .await;
    let before = first_count.load(Ordering::SeqCst);
    for _ in 0..20 {
        assert_eq!(client.get("/v1/support").await.status(), 200);
    }
    assert_eq!(first_count.load(Ordering::SeqCst), before);
    assert_eq!(webapp.login_count(), 1, "the token is kept");
}
