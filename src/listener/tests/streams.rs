//! HTTP/2: limits, floods, idle time, drain.

use h2::client::{Connection, SendRequest};
use tokio_rustls::client::TlsStream;

use super::secured::{Client, Folder, secured};
use super::*;

type Wire = TlsStream<TcpStream>;

fn start(folder: &Folder, change: impl FnOnce(&mut config::Listener)) -> (Gate, Client) {
    let files = folder.pair("a", &["one.test"]);
    let client = Client::trusting(&[&files], &["h2"]);
    let mut settings = secured(vec![files]);
    change(&mut settings);
    (Gate::start(settings), client)
}

async fn open(gate: &Gate, client: &Client) -> (SendRequest<Bytes>, Connection<Wire>) {
    let tls = client.connect(gate, "one.test").await.unwrap();
    h2::client::handshake(tls).await.unwrap()
}

/// Drives the connection; returns how it ended.
fn drive(gate: &Gate, connection: Connection<Wire>) -> tokio::sync::oneshot::Receiver<String> {
    let (end_sender, end_receiver) = tokio::sync::oneshot::channel();
    gate.scope.tasks.spawn("client", async move {
        let end = match connection.await {
            Ok(()) => "ok".to_owned(),
            Err(error) => format!("{error} {:?}", error.reason()),
        };
        let _ = end_sender.send(end);
    });
    end_receiver
}

fn get(path: &str) -> Request<()> {
    let uri = format!("https://one.test{path}");
    Request::get(uri).body(()).unwrap()
}

async fn text(response: h2::client::ResponseFuture) -> Result<(StatusCode, String), h2::Error> {
    let read = async {
        let mut response = response.await?;
        let mut text = Vec::new();
        while let Some(piece) = response.body_mut().data().await {
            text.extend(piece?);
        }
        Ok((response.status(), String::from_utf8(text).unwrap()))
    };
    timeout(TEST_TIMEOUT, read).await.unwrap()
}

#[tokio::test]
async fn streams_get_responses_and_a_second_host_is_refused() {
    let folder = Folder::new();
    let (gate, client) = start(&folder, |_| {});
    let (mut send, connection) = open(&gate, &client).await;
    let _end = drive(&gate, connection);
    let (response, _) = send.send_request(get("/x"), true).unwrap();
    let (status, body) = text(response).await.unwrap();
    assert_eq!((status.as_u16(), body.as_str()), (200, "[/x 0 tls13=true]"));
    let mut two_hosts = get("/x");
    two_hosts
        .headers_mut()
        .insert("host", "other.test".parse().unwrap());
    let (response, _) = send.send_request(two_hosts, true).unwrap();
    assert_eq!(text(response).await.unwrap().0, StatusCode::BAD_REQUEST);
    let mut many = get("/x");
    for n in 0..51 {
        let name = ::http::HeaderName::from_bytes(format!("x-{n}").as_bytes()).unwrap();
        many.headers_mut().insert(name, "y".parse().unwrap());
    }
    let (response, _) = send.send_request(many, true).unwrap();
    assert_eq!(
        text(response).await.unwrap().0,
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
    );
}

#[tokio::test]
async fn a_header_list_over_the_limit_does_not_reach_the_service() {
    let folder = Folder::new();
    let (gate, client) = start(&folder, |_| {});
    for bytes in [17_000, 2_000_000] {
        let (mut send, connection) = open(&gate, &client).await;
        let end = drive(&gate, connection);
        let mut large = get("/x");
        let value = "v".repeat(bytes);
        large
            .headers_mut()
            .insert("x-large", value.parse().unwrap());
        let refused = match send.send_request(large, true) {
            Ok((response, _)) => text(response).await.map(|(status, _)| status),
            Err(error) => Err(error),
        };
        match refused {
            Ok(status) => assert_eq!(status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
            Err(error) => assert!(!error.is_io() || end.await.is_ok(), "{error}"),
        }
    }
}

#[tokio::test]
async fn a_flood_of_resets_ends_the_connection() {
    let folder = Folder::new();
    let (gate, client) = start(&folder, |_| {});
    let (mut send, connection) = open(&gate, &client).await;
    let mut end = drive(&gate, connection);
    let flood = async {
        loop {
            send = match send.clone().ready().await {
                Ok(send) => send,
                Err(_) => return (&mut end).await.unwrap(),
            };
            let Ok((response, mut body)) = send.send_request(get("/slow"), false) else {
                return (&mut end).await.unwrap();
            };
            // Let the request be sent first; if it is reset before, the listener does not see it.
            tokio::task::yield_now().await;
            body.send_reset(h2::Reason::CANCEL);
            drop(response);
        }
    };
    timeout(TEST_TIMEOUT, flood).await.unwrap();
    eventually("the end is counted", || {
        gate.ends(ConnectionEnd::Protocol) == 1
    })
    .await;
    eventually("the connection is closed", || {
        gate.metrics.connections_open.get() == 0
    })
    .await;
}

#[tokio::test]
async fn a_flood_of_pings_or_settings_ends_the_connection() {
    let folder = Folder::new();
    let (gate, client) = start(&folder, |_| {});
    let ping = [&[0, 0, 8, 6, 0, 0, 0, 0, 0][..], &[7; 8]].concat();
    let settings = vec![0, 0, 0, 4, 0, 0, 0, 0, 0];
    for frame in [ping, settings] {
        let mut tls = client.connect(&gate, "one.test").await.unwrap();
        tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
            .await
            .unwrap();
        let (mut from, mut to) = tokio::io::split(tls);
        let flood =
            async { while to.write_all(&frame).await.is_ok() && to.flush().await.is_ok() {} };
        let mut bin = Vec::new();
        let read = from.read_to_end(&mut bin);
        let both = async {
            tokio::select! { () = flood => {} _ = read => {} }
        };
        timeout(TEST_TIMEOUT, both).await.unwrap();
    }
    eventually("both ends are counted", || {
        gate.ends(ConnectionEnd::Protocol) == 2
    })
    .await;
}

#[tokio::test]
async fn a_drain_lets_streams_finish_and_sends_goaway() {
    let folder = Folder::new();
    let (gate, client) = start(&folder, |_| {});
    let (mut send, connection) = open(&gate, &client).await;
    let end = drive(&gate, connection);
    let (slow, _) = send.send_request(get("/slow"), true).unwrap();
    let (quick, _) = send.send_request(get("/quick"), true).unwrap();
    text(quick).await.unwrap();
    gate.scope.stop.drain();
    let closed = async {
        while send.clone().ready().await.is_ok() {
            tokio::task::yield_now().await
        }
    };
    timeout(TEST_TIMEOUT, closed)
        .await
        .expect("GOAWAY was sent");
    gate.slow.add_permits(1);
    assert!(text(slow).await.unwrap().1.starts_with("[/slow"));
    assert_eq!(timeout(TEST_TIMEOUT, end).await.unwrap().unwrap(), "ok");
    drop(send);
    gate.ended().await;
    assert_eq!(gate.ends(ConnectionEnd::Protocol), 0);
}

#[tokio::test]
async fn an_idle_connection_gets_goaway_and_a_busy_one_does_not() {
    let folder = Folder::new();
    let (gate, client) = start(&folder, |s| s.idle_timeout = Duration::from_millis(300));
    let (mut send, connection) = open(&gate, &client).await;
    let end = drive(&gate, connection);
    let (slow, _) = send.send_request(get("/slow"), true).unwrap();
    sleep(Duration::from_millis(1000)).await;
    gate.slow.add_permits(1);
    text(slow).await.unwrap();
    assert_eq!(timeout(TEST_TIMEOUT, end).await.unwrap().unwrap(), "ok");
    eventually("the end is counted", || gate.ends(ConnectionEnd::Idle) == 1).await;
}

#[tokio::test]
async fn a_large_body_is_forwarded_in_pieces() {
    let folder = Folder::new();
    let (gate, client) = start(&folder, |_| {});
    let (mut send, connection) = open(&gate, &client).await;
    let _end = drive(&gate, connection);
    let post = Request::post("https://one.test/up").body(()).unwrap();
    let (response, mut body) = send.send_request(post, false).unwrap();
    let total = 8 * 1024 * 1024;
    let mut left = total;
    while left > 0 {
        body.reserve_capacity(left.min(100_000));
        let granted = std::future::poll_fn(|cx| body.poll_capacity(cx));
        let room = timeout(TEST_TIMEOUT, granted)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        let room = room.min(left);
        body.send_data(Bytes::from(vec![0; room]), left == room)
            .unwrap();
        left -= room;
    }
    let (_, seen) = text(response).await.unwrap();
    assert!(seen.starts_with(&format!("[/up {total} ")), "{seen}");
}

#[tokio::test]
async fn a_client_that_opens_no_window_is_disconnected() {
    let folder = Folder::new();
    let (gate, client) = start(&folder, |s| s.idle_timeout = Duration::from_millis(300));
    let (mut send, connection) = open(&gate, &client).await;
    let end = drive(&gate, connection);
    let (large, _) = send.send_request(get("/large"), true).unwrap();
    let response = timeout(TEST_TIMEOUT, large).await.unwrap().unwrap();
    timeout(TEST_TIMEOUT, end).await.unwrap().unwrap();
    eventually("the end is counted", || gate.ends(ConnectionEnd::Idle) == 1).await;
    drop(response);
}
