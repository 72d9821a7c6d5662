//! Requests over HTTP/2: one after the other on one connection, or all at once.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;

type Sender = h2::client::SendRequest<bytes::Bytes>;

const BURST_CONNECTIONS: usize = 40;

/// `count` GETs of (path, token), each after a pause.
pub(crate) fn gets(
    (port, client): (u16, Arc<ClientConfig>),
    (path, token): (&str, &str),
    count: usize,
    pause: Duration,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut sender = open(port, client).await;
        for _ in 0..count {
            tokio::time::sleep(pause).await;
            assert_eq!(get(&mut sender, path, token).await, 200);
        }
    });
}

/// `count` GETs of (path, token) at once over some connections; how many were answered 200.
pub(crate) async fn burst(
    (port, client): (u16, Arc<ClientConfig>),
    (path, token): (&str, &str),
    count: usize,
) -> usize {
    let mut senders = Vec::new();
    for _ in 0..BURST_CONNECTIONS {
        senders.push(open(port, Arc::clone(&client)).await);
    }
    let one = async |index: usize| {
        let mut sender = senders[index % senders.len()].clone();
        get(&mut sender, path, token).await
    };
    let all = futures_util::future::join_all((0..count).map(one)).await;
    all.iter().filter(|status| **status == 200).count()
}

/// `count` POSTs of `size` bytes at once over some connections; how many were answered 200.
pub(crate) async fn posts(
    (port, client): (u16, Arc<ClientConfig>),
    (path, token): (&str, &str),
    size: usize,
    count: usize,
) -> usize {
    let mut senders = Vec::new();
    for _ in 0..BURST_CONNECTIONS {
        senders.push(open(port, Arc::clone(&client)).await);
    }
    let body = bytes::Bytes::from(vec![b'x'; size]);
    let one = async |index: usize| {
        let mut sender = senders[index % senders.len()].clone();
        exchange(&mut sender, http::Method::POST, (path, token), body.clone()).await
    };
    let all = futures_util::future::join_all((0..count).map(one)).await;
    all.iter().filter(|status| **status == 200).count()
}

async fn open(port: u16, client: Arc<ClientConfig>) -> Sender {
    let tcp = TcpStream::connect((Ipv4Addr::LOCALHOST, port))
        .await
        .unwrap();
    tcp.set_nodelay(true).unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let tls = tokio_rustls::TlsConnector::from(client);
    let tls = tls.connect(name, tcp).await.unwrap();
    let (sender, connection) = h2::client::Builder::new()
        .initial_window_size(1 << 20)
        .initial_connection_window_size(1 << 24)
        .handshake::<_, bytes::Bytes>(tls)
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

async fn get(sender: &mut Sender, path: &str, token: &str) -> u16 {
    let nothing = bytes::Bytes::new();
    exchange(sender, http::Method::GET, (path, token), nothing).await
}

/// The status of the response, whose body is read to the end; 0 if there was none.
async fn exchange(
    sender: &mut Sender,
    method: http::Method,
    (path, token): (&str, &str),
    body: bytes::Bytes,
) -> u16 {
    let request = http::Request::builder()
        .method(method)
        .uri(format!("https://localhost{path}"))
        .header("authorization", format!("Bearer {token}"))
        .header("user-agent", "bench/1")
        .header("accept", "application/json")
        .header("accept-encoding", "gzip, br")
        .body(())
        .unwrap();
    let ready = std::future::poll_fn(|context| sender.poll_ready(context)).await;
    let is_empty = body.is_empty();
    let sent = ready.and_then(|()| sender.send_request(request, is_empty));
    let Ok((answer, mut stream)) = sent else {
        return 0;
    };
    if !is_empty && stream.send_data(body, true).is_err() {
        return 0;
    }
    let Ok(answer) = answer.await else {
        return 0;
    };
    let status = answer.status().as_u16();
    let mut body = answer.into_body();
    while let Some(piece) = body.data().await {
        let Ok(piece) = piece else {
            return 0;
        };
        let _ = body.flow_control().release_capacity(piece.len()); // the stream may have ended
    }
    status
}
