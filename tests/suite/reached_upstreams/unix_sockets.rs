//! `url = "unix:..."`: a gate before a server at a Unix socket, which restarts.

use std::path::Path;

use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use super::site::Site;
use crate::harness::{Gateway, Setup, eventually};

/// Serves at `path` until the token is cancelled; then its connections end too.
fn serve(site: &Site, path: &Path) -> CancellationToken {
    let stop = CancellationToken::new();
    let listener = UnixListener::bind(path).unwrap();
    let (site, stopped) = (site.clone(), stop.clone());
    tokio::spawn(async move {
        loop {
            let stream = tokio::select! {
                () = stopped.cancelled() => return,
                accepted = listener.accept() => accepted.unwrap().0,
            };
            let (site, stopped) = (site.clone(), stopped.clone());
            tokio::spawn(stopped.run_until_cancelled_owned(site.serve(stream)));
        }
    });
    stop
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_serves_over_a_unix_socket_and_follows_its_restarts() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.sock");
    let site = Site::saying("first");
    let stop = serve(&site, &path);
    let url = format!("unix:{}", path.display());
    let gateway = Gateway::before(&url, Setup::default()).await;
    let client = gateway.admin().await;
    let response = client.get("/v1/support").await;
    assert_eq!(response.text().await.unwrap(), "first");
    for head in site.heads() {
        assert!(head.contains("\r\nhost: localhost\r\n"), "{head}");
    }
    assert_eq!(site.count("POST /v1/users/login"), 1);

    // The server ends and leaves its file; a request gets 502 or 503, and the cause can be read.
    stop.cancel();
    eventually("a refusal", async || {
        client.get("/v1/support").await.status().is_server_error()
    })
    .await;
    std::fs::remove_file(&path).unwrap();
    let second = Site::saying("second");
    let _stop = serve(&second, &path);
    eventually("the new server", async || {
        client.get("/v1/support").await.status() == 200
    })
    .await;
    let response = client.get("/v1/support").await;
    assert_eq!(response.text().await.unwrap(), "second");
    assert_eq!(second.count("POST /v1/users/login"), 0, "the token is kept");
}
