//! Requests that the upstream has not processed are sent again: by GOAWAY, or by a refused stream.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::config;
use crate::harness::{Client, Gateway};

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;

/// A connection whose preface has been read, and SETTINGS sent.
struct Served {
    tcp: TcpStream,
}

impl Served {
    async fn accept(listener: &TcpListener) -> Self {
        let (mut tcp, _) = listener.accept().await.unwrap();
        tcp.read_exact(&mut [0; 24]).await.unwrap();
        let mut served = Self { tcp };
        // SETTINGS_MAX_CONCURRENT_STREAMS
        served.send(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]).await;
        served
    }

    async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut bytes = vec![length[1], length[2], length[3], kind, flags];
        bytes.extend_from_slice(&stream.to_be_bytes());
        bytes.extend_from_slice(payload);
        let _ = self.tcp.write_all(&bytes).await;
    }

    /// The stream of the next request; None: the connection has ended.
    async fn request(&mut self) -> Option<u32> {
        loop {
            let mut head = [0; 9];
            self.tcp.read_exact(&mut head).await.ok()?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; usize::try_from(length).unwrap()];
            self.tcp.read_exact(&mut payload).await.ok()?;
            match (head[3], head[4]) {
                (HEADERS, _) => {
                    return Some(u32::from_be_bytes([head[5], head[6], head[7], head[8]]));
                }
                (SETTINGS, 0) => self.send(SETTINGS, 1, 0, &[]).await,
                _ => {}
            }
        }
    }

    /// 200 without content.
    async fn respond(&mut self, stream: u32) {
        self.send(HEADERS, 5, stream, &[0x88]).await;
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Refusal {
    GoAway,
    RefusedStreams,
}

/// Takes a first request and ten of the next twenty, and refuses the other ten; then takes all on
/// further connections, whose requests are counted.
async fn serve(listener: TcpListener, refusal: Refusal, counted: mpsc::UnboundedSender<()>) {
    let mut first = Served::accept(&listener).await;
    let stream = first.request().await.unwrap();
    first.respond(stream).await;
    let mut streams = Vec::new();
    while streams.len() < 20 {
        streams.push(first.request().await.unwrap());
    }
    let (taken, refused) = streams.split_at(10);
    if refusal == Refusal::GoAway {
        let last = u8::try_from(taken[9]).unwrap();
        first.send(GOAWAY, 0, 0, &[0, 0, 0, last, 0, 0, 0, 0]).await;
    }
    for stream in taken {
        first.respond(*stream).await;
    }
    if refusal == Refusal::RefusedStreams {
        for stream in refused {
            first.send(RST_STREAM, 0, *stream, &[0, 0, 0, 7]).await;
        }
    }
    // A connection that refused streams may get some again.
    tokio::spawn(count_requests(first, counted.clone()));
    loop {
        let next = Served::accept(&listener).await;
        tokio::spawn(count_requests(next, counted.clone()));
    }
}

async fn count_requests(mut served: Served, counted: mpsc::UnboundedSender<()>) {
    while let Some(stream) = served.request().await {
        let _ = counted.send(());
        served.respond(stream).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_processed_is_sent_again_and_nothing_else_is() {
    for refusal in [Refusal::GoAway, Refusal::RefusedStreams] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (counted, mut count) = mpsc::unbounded_channel();
        tokio::spawn(serve(listener, refusal, counted));
        let gateway = Gateway::of_text(&config(&format!(
            "[upstream.site]\nurl = \"http://127.0.0.1:{port}\"\nhttp2 = \"always\"\nidle_timeout = \"30s\"\n\
             [upstream.other]\nurl = \"http://127.0.0.1:1\"\nrequired = false\n\
             login = {{ username = \"gate\", password = {{ file = \"webapp-password\" }} }}\n\
             [[route]]\nname = \"other\"\npath = \"/other\"\nupstream = \"other\"\n\
             [[route]]\nname = \"all\"\nupstream = \"site\"\npath = \"/*\"\naccess = \"open\"\n"
        )))
        .await;
        let client = Client::new(&gateway);
        let post = async || {
            let request = client.request(reqwest::Method::POST, "/any");
            let request = request.body("content");
            request.send().await.unwrap().status().as_u16()
        };
        assert_eq!(post().await, 200);
        let statuses = futures_util::future::join_all((0..20).map(|_| post())).await;
        assert_eq!(statuses, [200; 20], "{refusal:?}");
        let mut repeated = 0;
        while count.try_recv().is_ok() {
            repeated += 1;
        }
        assert_eq!(repeated, 10, "{refusal:?}");
    }
}
