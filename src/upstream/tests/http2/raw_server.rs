//! A server that writes the HTTP/2 frames of the test.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
pub(super) const ACK: u8 = 1;
/// `:status: 200`, of HPACK's static table.
pub(super) const OK: &[u8] = &[0x88];

#[derive(Debug)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    pub(super) payload: Vec<u8>,
}

/// A listener of which the test accepts each connection.
pub(super) struct RawServer {
    pub(super) address: SocketAddr,
    listener: TcpListener,
}

impl RawServer {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self {
            address: listener.local_addr().unwrap(),
            listener,
        }
    }

    /// The next connection, before the server's preface.
    pub(super) async fn accept_silent(&self) -> RawConnection {
        let (mut tcp, _) = self.listener.accept().await.unwrap();
        let mut preface = [0; 24];
        tcp.read_exact(&mut preface).await.unwrap();
        assert_eq!(&preface, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        RawConnection { tcp }
    }

    /// The next connection, after the server's SETTINGS (`id` and `value` pairs).
    pub(super) async fn accept(&self, settings: &[u8]) -> RawConnection {
        let mut connection = self.accept_silent().await;
        connection.send(SETTINGS, 0, 0, settings).await;
        connection
    }
}

/// `SETTINGS_MAX_CONCURRENT_STREAMS`.
pub(super) fn max_streams(value: u8) -> [u8; 6] {
    [0, 3, 0, 0, 0, value]
}

/// A field without indexing, as HPACK writes it (RFC 7541, 6.2.2).
pub(super) fn field(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name, value] {
        bytes.push(u8::try_from(text.len()).unwrap());
        assert!(text.len() < 127);
        bytes.extend_from_slice(text.as_bytes());
    }
    bytes
}

pub(super) struct RawConnection {
    tcp: TcpStream,
}

impl RawConnection {
    pub(super) async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let bytes = frame(kind, flags, stream, payload);
        // The other end may have closed already.
        let _ = self.tcp.write_all(&bytes).await;
    }

    pub(super) async fn send_raw(&mut self, bytes: &[u8]) -> bool {
        self.tcp.write_all(bytes).await.is_ok()
    }

    /// The next frame; None: the connection has ended. Acknowledges SETTINGS.
    pub(super) async fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.tcp.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        self.tcp.read_exact(&mut payload).await.ok()?;
        let frame = Frame {
            kind: head[3],
            flags: head[4],
            stream: u32::from_be_bytes([head[5], head[6], head[7], head[8]]),
            payload,
        };
        if frame.kind == SETTINGS && frame.flags & ACK == 0 {
            self.send(SETTINGS, ACK, 0, &[]).await;
        }
        Some(frame)
    }

    /// The next frame of this kind.
    pub(super) async fn expect(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.next().await.expect("the connection has ended");
            if frame.kind == kind {
                return frame;
            }
        }
    }

    /// The stream of the next request.
    pub(super) async fn request(&mut self) -> u32 {
        self.expect(HEADERS).await.stream
    }

    /// A whole response.
    pub(super) async fn respond(&mut self, stream: u32, body: &[u8]) {
        self.send(HEADERS, END_HEADERS, stream, OK).await;
        self.send(DATA, END_STREAM, stream, body).await;
    }

    pub(super) async fn until_closed(&mut self) {
        while self.next().await.is_some() {}
    }
}

pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}
