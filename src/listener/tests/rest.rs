//! Idle connections: they release their buffers, and serve the next request.

use super::secured::{Client, Folder, secured};
use super::*;
use crate::listener::tcp::accept::WorkerListener;

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
/// Longer than it takes a connection to release its buffers.
const LONG: Duration = Duration::from_millis(800);

#[tokio::test]
async fn a_connection_without_buffers_serves_the_next_request() {
    let gate = Gate::start(settings());
    let mut raw = gate.connect().await;
    for _ in 0..3 {
        sleep(LONG).await;
        raw.send(GET).await;
        raw.until("[/ 0]").await;
    }
    sleep(LONG).await;
    raw.send([GET, GET].concat()).await;
    raw.until("[/ 0]").await;
    raw.until("[/ 0]").await;
}

#[tokio::test]
async fn a_tls_connection_without_buffers_serves_the_next_request() {
    let folder = Folder::new();
    let files = folder.pair("a", &["one.test"]);
    let client = Client::trusting(&[&files], &["http/1.1"]);
    let gate = Gate::start(secured(vec![files]));
    let mut tls = client.connect(&gate, "one.test").await.unwrap();
    for _ in 0..2 {
        tls.write_all(GET.as_bytes()).await.unwrap();
        let mut text = String::new();
        while !text.ends_with("tls13=true]") {
            let byte = timeout(TEST_TIMEOUT, tls.read_u8()).await.unwrap().unwrap();
            text.push(char::from(byte));
        }
        sleep(LONG).await;
    }
}

#[tokio::test]
async fn the_unread_body_after_an_early_response_is_never_read_as_a_request() {
    let gate = Gate::start(settings());
    let mut raw = gate.connect().await;
    raw.send(format!(
        "POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n",
        GET.len()
    ))
    .await;
    raw.until("early").await;
    sleep(LONG).await;
    raw.send(GET).await;
    raw.send("GET /second HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .await;
    // The connection may continue or be closed.
    let responses = timeout(TEST_TIMEOUT, async {
        let mut text = Vec::new();
        let _ = raw.0.read_to_end(&mut text).await;
        String::from_utf8(text).unwrap()
    });
    let responses = responses.await.unwrap();
    assert!(!responses.contains("[/ 0]"), "{responses}");
}

#[tokio::test]
async fn a_connection_with_an_incomplete_head_keeps_its_buffers() {
    let gate = Gate::start(settings());
    let mut raw = gate.connect().await;
    for piece in ["GET / HT", "TP/1.1\r\nHo", "st: a\r\n", "\r\n"] {
        raw.send(piece).await;
        sleep(LONG).await;
    }
    raw.until("[/ 0]").await;
}

#[tokio::test]
async fn an_idle_connection_without_buffers_ends_with_the_drain() {
    let gate = Gate::start(settings());
    let mut raw = gate.connect().await;
    raw.send(GET).await;
    raw.until("[/ 0]").await;
    sleep(LONG).await;
    gate.scope.stop.drain();
    assert_eq!(raw.rest().await, "");
    gate.ended().await;
}

#[tokio::test]
async fn an_idle_connection_without_buffers_ends_when_its_client_leaves_or_times_out() {
    let gate = Gate::start(config::Listener {
        idle_timeout: LONG * 2,
        ..settings()
    });
    let (left, mut away) = (gate.connect().await, gate.connect().await);
    sleep(LONG).await;
    drop(left);
    eventually("the connection is closed", || {
        gate.metrics.connections_open.get() == 1
    })
    .await;
    assert_eq!(away.rest().await, "");
    eventually("the end is counted", || gate.ends(ConnectionEnd::Idle) == 1).await;
}

/// A connection's task is as large as its largest await point; a gateway may hold 10,000 of them.
#[tokio::test]
async fn the_task_of_a_connection_is_small() {
    let settings = settings();
    let slow = Arc::new(Semaphore::new(0));
    let parts = ListenerParts {
        settings: Arc::new(ArcSwap::from_pointee(settings.clone())),
        tls: None,
        service: SmallService(slow),
        scope: TaskScope::new(Handle::current()),
        metrics: Metrics::new(),
        connection_limit: ConnectionLimit::new(1),
    };
    let limit = &parts.connection_limit;
    let permit = limit.semaphore().try_acquire_owned().unwrap();
    let open = &parts.metrics.connections_open;
    let permit = limit.take(permit, [127, 0, 0, 1].into(), open).unwrap();
    let socket = bind(&settings, 1).unwrap();
    let tcp = TcpStream::connect(socket.address()).await.unwrap();
    let address = tcp.peer_addr().unwrap();
    let worker = Arc::new(WorkerListener::new(parts));
    let size = std::mem::size_of_val(&worker.run(tcp, address, permit));
    assert!(size <= 3 * 1024, "{size} bytes");
    let size = std::mem::size_of::<crate::listener::tls::tls_stream::ServerTlsStream>();
    assert!(size <= 2 * 1024, "{size} bytes");
}
