//! How long an idle connection is reused, and a connection that changes its protocol.

use http::Method;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::connections::{RESPONSE_TIMEOUT, SHORT, connections, post, text};
use super::server::{Reply, Webapp};
use super::{TEST_TIMEOUT, UpstreamSetup, eventually};

#[tokio::test]
async fn idle_connections_are_closed() {
    let webapp = Webapp::start(|_| Reply::with(200, "", "hi")).await;
    let mut setup = UpstreamSetup::of(webapp.address).without_login();
    setup.settings.idle_timeout = SHORT;
    let connections = connections(&setup);
    text(connections.send(post("x"), RESPONSE_TIMEOUT).await.unwrap()).await;
    eventually("closed", || webapp.ended() == 1).await;
    eventually("counted", || {
        setup
            .metrics
            .upstream("main")
            .upstream_connections_open
            .get()
            == 0
    })
    .await;
    assert!(format!("{connections:?}").contains("idle: 0"));
}

#[tokio::test]
async fn a_connection_may_change_its_protocol() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let setup = UpstreamSetup::of(listener.local_addr().unwrap()).without_login();
    let echo = async {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let mut read = Vec::new();
        while !read.ends_with(b"\r\n\r\n") {
            assert!(tcp.read_buf(&mut read).await.unwrap() > 0);
        }
        let switch =
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
        tcp.write_all(switch).await.unwrap();
        let mut four = [0; 4];
        tcp.read_exact(&mut four).await.unwrap();
        tcp.write_all(&four).await.unwrap();
    };
    let connections = connections(&setup);
    let exchange = async {
        let mut request = post("");
        *request.method_mut() = Method::GET;
        request
            .headers_mut()
            .insert("connection", "upgrade".parse().unwrap());
        request
            .headers_mut()
            .insert("upgrade", "echo".parse().unwrap());
        let mut response = connections.send(request, RESPONSE_TIMEOUT).await.unwrap();
        assert_eq!(response.status(), 101);
        let upgraded = hyper::upgrade::on(&mut response).await.unwrap();
        drop(response);
        let mut tcp = TokioIo::new(upgraded);
        tcp.write_all(b"ping").await.unwrap();
        let mut four = [0; 4];
        tcp.read_exact(&mut four).await.unwrap();
        assert_eq!(&four, b"ping");
    };
    let ((), ()) = timeout(TEST_TIMEOUT, async { tokio::join!(echo, exchange) })
        .await
        .unwrap();
}
