//! HTTP/2 towards the upstream, with servers that write the frames of the test.
#![expect(
    clippy::disallowed_methods,
    reason = "tests spawn servers of their own"
)]

#[cfg(feature = "emulator")]
mod choice_by_alpn;
mod exchanges;
mod hostile;
mod raw_server;
mod streams;

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::Full;
use tokio::task::JoinHandle;

use super::connections::{RESPONSE_TIMEOUT, connections};
use super::{TEST_TIMEOUT, UpstreamSetup, outbound};
use crate::config::Http2Mode;
use crate::upstream::{SendError, UpstreamConnections, UpstreamResponseBody};
use raw_server::RawServer;

type Connections = Arc<UpstreamConnections<Full<Bytes>>>;
type Outcome = Result<Response<UpstreamResponseBody>, SendError>;

fn setup(server: &RawServer) -> UpstreamSetup {
    let mut setup = UpstreamSetup::of(server.address).without_login();
    setup.settings.http2 = Http2Mode::Always;
    setup
}

fn opened(setup: &UpstreamSetup) -> Connections {
    Arc::new(connections(setup))
}

/// Sends a request in a task; its target has the number.
fn send(connections: &Connections, method: Method, number: usize) -> JoinHandle<Outcome> {
    let connections = Arc::clone(connections);
    tokio::spawn(async move {
        let body = match method {
            Method::POST => Full::from("some content"),
            _ => Full::default(),
        };
        let request = Request::builder().method(method).uri(format!("/{number}"));
        let request = outbound(request.body(body).unwrap());
        connections.send(request, RESPONSE_TIMEOUT).await
    })
}

fn get(connections: &Connections) -> JoinHandle<Outcome> {
    send(connections, Method::GET, 0)
}
