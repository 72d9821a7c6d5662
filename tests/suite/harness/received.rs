//! Responses as they arrive: how they are framed, and whether they are complete.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Gateway;
use super::login_upstream::KEY;
use super::raw::connected;

/// The limit for a response that never ends.
const LONGEST: Duration = Duration::from_secs(20);

/// The client's protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientProtocol {
    /// Over plain TCP.
    Http10,
    /// Over plain TCP.
    Http11,
    /// HTTP/1.1 over TLS.
    Tls11,
    Http2,
}

/// A response, as its client sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Received {
    /// Empty over HTTP/2.
    pub(crate) version: String,
    /// 0 if there was no response.
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Whether the client can tell that the response is complete.
    pub(crate) is_whole: bool,
}

impl Received {
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        let named = self.fields.iter().filter(|(have, _)| have == name);
        named.map(|(_, value)| value.as_str()).collect()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// The response to one request without a body.
pub(crate) async fn send_request(
    gateway: &Gateway,
    send_request: ClientProtocol,
    method: &Method,
    path: &str,
) -> Received {
    let version = if send_request == ClientProtocol::Http10 {
        "1.0"
    } else {
        "1.1"
    };
    let request = format!(
        "{method} {path} HTTP/{version}\r\nHost: localhost\r\nAuthorization: Apikey {KEY}\r\n\r\n"
    );
    let is_head = *method == Method::HEAD;
    match send_request {
        ClientProtocol::Http10 | ClientProtocol::Http11 => {
            let tcp = TcpStream::connect(gateway.addresses.listeners[1]).await;
            exchange(tcp.unwrap(), request.as_bytes(), is_head).await
        }
        ClientProtocol::Tls11 => {
            let tls = connected(gateway, &["http/1.1"]).await;
            exchange(tls, request.as_bytes(), is_head).await
        }
        ClientProtocol::Http2 => http2(gateway, method, path).await,
    }
}

/// Sends `request` and reads one response.
pub(crate) async fn exchange(
    mut line: impl AsyncRead + AsyncWrite + Unpin,
    request: &[u8],
    is_head: bool,
) -> Received {
    line.write_all(request).await.unwrap();
    line.flush().await.unwrap();
    read_response(&mut line, is_head).await
}

/// Reads one response (RFC 9112 6.3).
pub(crate) async fn read_response(line: &mut (impl AsyncRead + Unpin), is_head: bool) -> Received {
    let mut received = Received::default();
    let reading = async {
        let Some(head) = read_until(line, b"\r\n\r\n").await else {
            return;
        };
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let first = lines.next().unwrap();
        received.version = first.split(' ').next().unwrap().to_owned();
        received.status = first.split(' ').nth(1).unwrap().parse().unwrap();
        received.fields = lines
            .map(|line| {
                let (name, value) = line.split_once(':').unwrap();
                (name.to_ascii_lowercase(), value.trim().to_owned())
            })
            .collect();
        received.is_whole = read_body(line, &mut received, is_head).await;
    };
    let _ = timeout(LONGEST, reading).await;
    received
}

async fn read_body(
    line: &mut (impl AsyncRead + Unpin),
    received: &mut Received,
    is_head: bool,
) -> bool {
    if is_head || matches!(received.status, 204 | 304) {
        return true;
    }
    let lengths = received.all("content-length").join("|");
    match received.all("transfer-encoding")[..] {
        [] if lengths.is_empty() => {
            let read = line.read_to_end(&mut received.body).await;
            return read.is_ok();
        }
        [] => {
            let length: usize = lengths.parse().expect("one length");
            while received.body.len() < length {
                let mut piece = vec![0; length - received.body.len()];
                match line.read(&mut piece).await {
                    Ok(0) | Err(_) => return false,
                    Ok(count) => received.body.extend_from_slice(&piece[..count]),
                }
            }
            return true;
        }
        ["chunked"] => {}
        ref other => panic!("unexpected body framing: {other:?}"),
    }
    assert!(lengths.is_empty(), "length {lengths} and chunked");
    loop {
        let Some(size) = read_until(line, b"\r\n").await else {
            return false;
        };
        let size = std::str::from_utf8(&size).unwrap().trim_end();
        let size = usize::from_str_radix(size.split(';').next().unwrap(), 16).unwrap();
        if size == 0 {
            while let Some(trailer) = read_until(line, b"\r\n").await {
                if trailer == b"\r\n" {
                    return true;
                }
            }
            return false;
        }
        let mut chunk = vec![0; size + 2];
        if line.read_exact(&mut chunk).await.is_err() {
            return false;
        }
        received.body.extend_from_slice(&chunk[..size]);
    }
}

async fn read_until(line: &mut (impl AsyncRead + Unpin), end: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(end) {
        bytes.push(line.read_u8().await.ok()?);
    }
    Some(bytes)
}

async fn http2(gateway: &Gateway, method: &Method, path: &str) -> Received {
    let request = Request::builder()
        .method(method)
        .uri(format!("https://localhost{path}"))
        .header("authorization", format!("Apikey {KEY}"))
        .body(())
        .unwrap();
    exchange_http2(gateway, request).await
}

/// Sends `request`, which has no content, over HTTP/2 and reads its response.
pub(crate) async fn exchange_http2(gateway: &Gateway, request: Request<()>) -> Received {
    let tls = connected(gateway, &["h2"]).await;
    let (mut send, connection) = h2::client::handshake(tls).await.unwrap();
    tokio::spawn(connection);
    let (response, _) = send.send_request(request, true).unwrap();
    let mut received = Received::default();
    let reading = async {
        let Ok(response) = response.await else { return };
        received.status = response.status().as_u16();
        let fields = response.headers().iter();
        received.fields = fields
            .map(|(name, value)| {
                let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
                (name.as_str().to_owned(), value)
            })
            .collect();
        let mut body = response.into_body();
        while let Some(piece) = body.data().await {
            let Ok(piece): Result<Bytes, _> = piece else {
                return;
            };
            let _ = body.flow_control().release_capacity(piece.len());
            received.body.extend_from_slice(&piece);
        }
        received.is_whole = body.trailers().await.is_ok();
    };
    let _ = timeout(LONGEST, reading).await;
    received
}
