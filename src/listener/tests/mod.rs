//! The real listener on real sockets, with a small service behind it.

mod activity;
mod framing;
mod life;
mod records;
mod rest;
mod secured;
mod streams;
mod wire;

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use ::http::{Request, Response, StatusCode, request};
use arc_swap::ArcSwap;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::config;
use crate::lifecycle::TaskScope;
use crate::metrics::{ConnectionEnd, Metrics};
use crate::pipeline::{Peer, Rejection};

const TEST_TIMEOUT: Duration = Duration::from_secs(15);

fn settings() -> config::Listener {
    config::Listener {
        address: "127.0.0.1:0".parse().unwrap(),
        tls: None,
        max_connections: 100,
        handshake_timeout: TEST_TIMEOUT,
        header_timeout: TEST_TIMEOUT,
        idle_timeout: TEST_TIMEOUT,
        max_header_bytes: 16 * 1024,
        max_headers: 50,
        max_streams: 100,
    }
}

/// A running listener with two workers.
struct Gate {
    address: SocketAddr,
    scope: TaskScope,
    metrics: Arc<Metrics>,
    slots: Arc<ConnectionLimit>,
    tls: Option<Arc<ServerTls>>,
    /// One permit lets one request to `/slow` continue.
    slow: Arc<Semaphore>,
}

impl Gate {
    fn start(settings: config::Listener) -> Self {
        let metrics = Metrics::new();
        let bound = bind(&settings, 2).unwrap();
        let tls = settings.tls.as_ref();
        let tls = tls.map(|tls| ServerTls::open(tls, &metrics).unwrap());
        let gate = Self {
            address: bound.address(),
            scope: TaskScope::new(Handle::current()),
            slots: ConnectionLimit::new(settings.max_connections),
            metrics,
            tls,
            slow: Arc::new(Semaphore::new(0)),
        };
        let settings = Arc::new(ArcSwap::from_pointee(settings));
        for socket in bound.into_sockets() {
            let slow = Arc::clone(&gate.slow);
            let parts = ListenerParts {
                settings: Arc::clone(&settings),
                tls: gate.tls.clone(),
                service: SmallService(slow),
                scope: gate.scope.clone(),
                metrics: Arc::clone(&gate.metrics),
                connection_limit: Arc::clone(&gate.slots),
            };
            gate.scope.spawn("worker", serve(socket, parts));
        }
        gate
    }

    async fn connect(&self) -> Raw {
        Raw(TcpStream::connect(self.address).await.unwrap())
    }

    /// Sends all of `text`; returns everything received until the connection closes.
    async fn exchange(&self, text: impl AsRef<[u8]>) -> String {
        let mut raw = self.connect().await;
        raw.send(text).await;
        raw.rest().await
    }

    fn ends(&self, why: ConnectionEnd) -> u64 {
        self.metrics.connection_ends.value(why)
    }

    async fn ended(&self) {
        timeout(TEST_TIMEOUT, self.scope.tasks.wait())
            .await
            .unwrap();
        assert_eq!(self.scope.tasks.failed(), 0);
        assert_eq!(self.metrics.connections_open.get(), 0);
    }
}

async fn eventually(what: &str, is_true: impl Fn() -> bool) {
    let deadline = Instant::now() + TEST_TIMEOUT;
    while !is_true() {
        assert!(Instant::now() < deadline, "timeout: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

#[derive(Clone)]
struct SmallService(Arc<Semaphore>);

impl RequestService for SmallService {
    type Body = Full<Bytes>;
    type Future = Pin<Box<dyn Future<Output = Response<Full<Bytes>>> + Send>>;

    fn handle(&self, request: Request<Incoming>, peer: Arc<Peer>) -> Self::Future {
        Box::pin(response(request, peer, Arc::clone(&self.0)))
    }

    fn refuse(
        &self,
        _: Option<&request::Parts>,
        rejection: Rejection,
        _: &Peer,
    ) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::from("refused"));
        *response.status_mut() = rejection.mapping().status;
        response
    }
}

/// Responds with a description of the request; `/slow` waits first, `/early` leaves the body unread.
async fn response(
    request: Request<Incoming>,
    peer: Arc<Peer>,
    slow: Arc<Semaphore>,
) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    match path.as_str() {
        "/slow" => slow.acquire().await.unwrap().forget(),
        "/large" => return Response::new(Full::from(vec![b'x'; 32 * 1024 * 1024])),
        "/early" => return Response::new(Full::from("early")),
        _ => {}
    }
    let Ok(body) = request.into_body().collect().await else {
        let mut bad = Response::new(Full::from("bad body"));
        *bad.status_mut() = StatusCode::BAD_REQUEST;
        return bad;
    };
    let facts = peer
        .tls
        .as_ref()
        .map_or_else(String::new, |tls| format!(" tls13={}", tls.is_tls13));
    let text = format!("[{path} {}{facts}]", body.to_bytes().len());
    Response::new(Full::from(text))
}

/// A client that sends exactly the given bytes.
struct Raw(TcpStream);

impl Raw {
    async fn send(&mut self, text: impl AsRef<[u8]>) {
        // The listener may close before everything is sent.
        let _ = self.0.write_all(text.as_ref()).await;
    }

    /// Reads until `end` is received.
    async fn until(&mut self, end: &str) -> String {
        let mut text = Vec::new();
        let read = async {
            while !text.ends_with(end.as_bytes()) {
                match self.0.read_u8().await {
                    Ok(byte) => text.push(byte),
                    Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&text)),
                }
            }
        };
        timeout(TEST_TIMEOUT, read).await.unwrap();
        String::from_utf8(text).unwrap()
    }

    /// Reads until the connection closes.
    async fn rest(&mut self) -> String {
        let mut text = Vec::new();
        let read = self.0.read_to_end(&mut text);
        timeout(TEST_TIMEOUT, read).await.unwrap().unwrap();
        String::from_utf8(text).unwrap()
    }
}
