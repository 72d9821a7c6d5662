//! Endpoints that are reached by Unix sockets, and through a proxy.

use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UnixListener};

use super::server::Server;
use super::{EndpointGate, config, urls};
use crate::harness::eventually;

/// A Unix socket that leads to `server`. It ends with its task.
fn socket(path: &Path, server: &Server) -> tokio::task::JoinHandle<()> {
    let listener = UnixListener::bind(path).unwrap();
    let address = server.address;
    tokio::spawn(async move {
        let mut links = tokio::task::JoinSet::new();
        while let Ok((mut near, _)) = listener.accept().await {
            links.spawn(async move {
                let mut far = TcpStream::connect(address).await.unwrap();
                let _ = copy_bidirectional(&mut near, &mut far).await;
            });
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn unix_sockets_are_endpoints_as_addresses_are() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (Server::start().await, Server::start().await);
    let paths = [folder.path().join("a.sock"), folder.path().join("b.sock")];
    let _first = socket(&paths[0], &a);
    let second = socket(&paths[1], &b);
    let names = paths.map(|path| format!("unix:{}", path.display()));
    let gate = EndpointGate::of(&config(&names, "slow_start = \"0s\"")).await;
    for _ in 0..40 {
        assert_eq!(gate.get("/both").await, 200);
    }
    assert!(a.requests() > 5 && b.requests() > 5);
    second.abort();
    let _ = second.await;
    for number in 0..40 {
        let path = format!("/one-{number}");
        assert_eq!(gate.get(&path).await, 200);
        assert_eq!(a.count(&format!("GET {path}")), 1);
    }
    let readiness = gate.readiness().await;
    let line = format!("endpoint {}: ", names[1]);
    assert!(
        readiness.starts_with("200") && readiness.contains(&line),
        "{readiness}"
    );
    std::fs::remove_file(names[1].trim_start_matches("unix:")).unwrap();
    let path = names[1].trim_start_matches("unix:").to_owned();
    let _again = socket(Path::new(&path), &b);
    let before = b.requests();
    gate.until("its return", async |status| {
        assert_eq!(status, 200);
        b.requests() > before
    })
    .await;
}

/// A proxy that knows CONNECT only. Its own 502 stands for an endpoint that it cannot reach.
struct ConnectProxy {
    url: String,
    /// The target of each open tunnel.
    tunnels: Arc<Mutex<Vec<String>>>,
}

impl ConnectProxy {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let tunnels = Arc::new(Mutex::new(Vec::new()));
        let open = Arc::clone(&tunnels);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(tunnel(near, Arc::clone(&open)));
            }
        });
        Self { url, tunnels }
    }

    /// Waits until no tunnel leads to `server`: the gate's kept-alive connections to it are closed.
    async fn closed(&self, server: &Server) {
        let target = server.address.to_string();
        eventually("the tunnels' end", async || {
            !self.tunnels.lock().contains(&target)
        })
        .await;
    }
}

async fn tunnel(mut near: TcpStream, open: Arc<Mutex<Vec<String>>>) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(near.read_u8().await?);
    }
    let head = String::from_utf8(head).unwrap();
    let target = head.strip_prefix("CONNECT ").unwrap();
    let target = target.split(' ').next().unwrap();
    let Ok(mut far) = TcpStream::connect(target).await else {
        let refusal = "HTTP/1.1 502 X\r\nContent-Length: 0\r\n\r\n";
        return near.write_all(refusal.as_bytes()).await;
    };
    open.lock().push(target.to_owned());
    near.write_all(b"HTTP/1.1 200 X\r\n\r\n").await?;
    let result = copy_bidirectional(&mut near, &mut far).await;
    drop(near);
    let mut open = open.lock();
    let position = open.iter().position(|other| other == target).unwrap();
    open.swap_remove(position);
    result.map(|_| ())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_endpoint_behind_a_proxy_costs_no_request() {
    let (a, b) = (Server::start().await, Server::start().await);
    let proxy = ConnectProxy::start().await;
    let lines = format!("proxy = \"{}\"", proxy.url);
    let gate = EndpointGate::of(&config(&urls(&[&a, &b]), &lines)).await;
    for _ in 0..40 {
        assert_eq!(gate.get("/both").await, 200);
    }
    assert!(a.requests() > 5 && b.requests() > 5);
    b.kill();
    // An unsafe request that meets a connection just while it closes is not sent again.
    proxy.closed(&b).await;
    for number in 0..40 {
        let path = format!("/one-{number}");
        let (status, _) = gate.send(reqwest::Method::POST, &path, b"x".to_vec()).await;
        let line = format!("POST {path}");
        let arrived = a.count(&line) + b.count(&line);
        assert!(status == 200 && arrived == 1, "{status} {arrived}");
    }
    let readiness = gate.readiness().await;
    let line = format!("endpoint {}: ", b.url());
    assert!(
        readiness.starts_with("200") && readiness.contains(&line),
        "{readiness}"
    );
}
