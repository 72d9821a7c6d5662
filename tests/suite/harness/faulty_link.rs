//! A faulty link to a server: slow, cut, or with replaced responses.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// The current state of the link.
#[derive(Clone, Debug)]
pub(crate) enum LinkState {
    Good,
    /// Delays each response by a number of milliseconds, any number of them at once.
    Slow(Range<u64>),
    /// Closes existing and new connections.
    Cut,
    /// Sends this in place of each response.
    Sends(Arc<[u8]>),
}

pub(crate) struct FaultyLink {
    at: u16,
    line: watch::Sender<LinkState>,
}

impl FaultyLink {
    /// A link to `port` of this host; ends with the test.
    pub(crate) async fn before(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (line, seen) = watch::channel(LinkState::Good);
        let proxy = Self {
            at: listener.local_addr().unwrap().port(),
            line,
        };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, port, seen.clone()));
            }
        });
        proxy
    }

    pub(crate) fn port(&self) -> u16 {
        self.at
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.at)
    }

    pub(crate) fn set(&self, line: LinkState) {
        self.line.send_replace(line);
    }
}

async fn carry(client: TcpStream, port: u16, mut line: watch::Receiver<LinkState>) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else {
        return;
    };
    let (mut from_client, to_client) = client.into_split();
    let (from_server, mut to_server) = server.into_split();
    let responses = responses(from_server, to_client, line.clone());
    tokio::select! {
        _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
        () = responses => {}
        _ = line.wait_for(|line| matches!(line, LinkState::Cut)) => {}
    }
}

async fn responses(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    line: watch::Receiver<LinkState>,
) {
    let (send, mut under_way) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let read = async move {
        let mut piece = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = from.read(&mut piece).await {
            let mut response = piece[..length].to_vec();
            let mut late = 0;
            match &*line.borrow() {
                LinkState::Slow(millis) => late = rand::random_range(millis.clone()),
                LinkState::Sends(other) => response = other.to_vec(),
                LinkState::Good | LinkState::Cut => {}
            }
            let due = Instant::now() + Duration::from_millis(late);
            if send.send((due, response)).is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((due, response)) = under_way.recv().await {
            tokio::time::sleep_until(due).await;
            if to.write_all(&response).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(read, write);
}
