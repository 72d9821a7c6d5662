//! A proxy that says exactly what the test says.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::time::sleep;

use crate::lifecycle::TaskSet;

/// What the proxy does after a CONNECT.
#[derive(Clone)]
pub(super) enum ProxyReply {
    /// Writes these bytes, each piece apart, and connects to the address.
    Tunnel(Vec<Vec<u8>>, SocketAddr),
    /// Writes these bytes and closes.
    Close(Vec<u8>),
    /// Writes these bytes and keeps the connection open.
    Hang(Vec<u8>),
}

/// A proxy that says exactly what the test says.
pub(super) struct RawProxy {
    pub(super) address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
}

impl RawProxy {
    pub(super) async fn start(reply: ProxyReply) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Self {
            address: listener.local_addr().unwrap(),
            heads: Arc::default(),
        };
        let tasks = TaskSet::new(Handle::current());
        let (on, heads) = (tasks.clone(), Arc::clone(&proxy.heads));
        tasks.spawn("raw proxy", async move {
            while let Ok((tcp, _)) = listener.accept().await {
                on.spawn("proxied", serve(tcp, reply.clone(), Arc::clone(&heads)));
            }
        });
        proxy
    }

    /// A proxy that connects every name to `to`.
    pub(super) async fn to(to: SocketAddr) -> Self {
        let answer = b"HTTP/1.1 200 Connection established\r\n\r\n".to_vec();
        Self::start(ProxyReply::Tunnel(vec![answer], to)).await
    }

    pub(super) fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

async fn serve(mut tcp: TcpStream, reply: ProxyReply, heads: Arc<Mutex<Vec<String>>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match tcp.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    heads.lock().unwrap().push(String::from_utf8(head).unwrap());
    match reply {
        ProxyReply::Tunnel(pieces, to) => {
            tcp.set_nodelay(true).unwrap();
            for piece in pieces {
                tcp.write_all(&piece).await.unwrap();
                sleep(Duration::from_millis(2)).await;
            }
            let mut upstream = TcpStream::connect(to).await.unwrap();
            let _ = copy_bidirectional(&mut tcp, &mut upstream).await;
        }
        ProxyReply::Close(bytes) => {
            let _ = tcp.write_all(&bytes).await;
            let _ = tcp.shutdown().await;
            // Closing with unread bytes would reset what was written.
            let _ = tcp.read(&mut [0; 16]).await;
        }
        ProxyReply::Hang(bytes) => {
            let _ = tcp.write_all(&bytes).await;
            std::future::pending::<()>().await;
        }
    }
}
