//! A connection that dies at any byte of an exchange, in either direction: what the request is told,
//! and that nothing of one exchange reaches another.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::runtime::Handle;

use super::UpstreamSetup;
use super::connections::{RESPONSE_TIMEOUT, connections, post};
use crate::lifecycle::TaskSet;
use crate::upstream::{SendErrorKind, UpstreamConnections};

const RESPONSES: [&str; 3] = [
    "HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nhello world",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
    "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nhello world",
];
const REQUESTS_BEFORE: [usize; 2] = [0, 1];

fn tasks() -> TaskSet {
    TaskSet::new(Handle::current())
}

/// How a server ends a connection.
#[derive(Clone, Copy, Debug)]
enum Ending {
    /// FIN, after all that it has sent.
    Close,
    /// RST: what the other end has not read yet is lost.
    Reset,
}

/// What one exchange came to.
#[derive(Debug, PartialEq)]
enum Outcome {
    Whole(Bytes),
    BodyCut,
    Failed(SendErrorKind),
}

/// A server that serves `whole` requests of each connection, and of the next response sends `cut` bytes.
async fn server(response: &'static str, whole: usize, cut: usize, ending: Ending) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tasks().spawn("server", async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tasks().spawn("server", async move {
                let mut request = [0; 1024];
                for served in 0..=whole {
                    if stream.read(&mut request).await.unwrap_or(0) == 0 {
                        return;
                    }
                    let end = if served < whole { response.len() } else { cut };
                    let _ = stream.write_all(&response.as_bytes()[..end]).await;
                }
                if matches!(ending, Ending::Reset) {
                    let socket = socket2::SockRef::from(&stream);
                    let _ = socket.set_linger(Some(std::time::Duration::ZERO));
                }
            });
        }
    });
    address
}

async fn exchange(connections: &UpstreamConnections<Full<Bytes>>) -> Outcome {
    match connections.send(post("body"), RESPONSE_TIMEOUT).await {
        Err(error) => Outcome::Failed(error.kind),
        Ok(response) => match response.into_body().collect().await {
            Ok(body) => Outcome::Whole(body.to_bytes()),
            Err(_) => Outcome::BodyCut,
        },
    }
}

/// What an orderly end after `cut` bytes means. `before`: requests served on the connection before.
fn expected(response: &str, cut: usize, before: usize) -> Outcome {
    let head = response.find("200 OK").unwrap();
    let head = head + response[head..].find("\r\n\r\n").unwrap() + 4;
    match cut {
        0 if before == 0 => Outcome::Failed(SendErrorKind::Closed),
        0 => Outcome::Failed(SendErrorKind::DeadConnection),
        cut if cut < head => Outcome::Failed(SendErrorKind::Protocol),
        cut if cut < response.len() => Outcome::BodyCut,
        _ => Outcome::Whole(Bytes::from_static(b"hello world")),
    }
}

#[tokio::test]
async fn a_response_that_ends_at_any_byte_is_whole_or_an_error() {
    let mut deaths = 0;
    for response in RESPONSES {
        for before in REQUESTS_BEFORE {
            for cut in 0..=response.len() {
                for ending in [Ending::Close, Ending::Reset] {
                    let address = server(response, before, cut, ending).await;
                    let setup = UpstreamSetup::of(address).without_login();
                    let connections = connections(&setup);
                    for _ in 0..before {
                        let whole = Outcome::Whole(Bytes::from_static(b"hello world"));
                        assert_eq!(exchange(&connections).await, whole);
                    }
                    let outcome = exchange(&connections).await;
                    let expected = expected(response, cut, before);
                    // A reset may overtake what was sent before it, and then more is lost.
                    let is_lost =
                        matches!(ending, Ending::Reset) && !matches!(outcome, Outcome::Whole(_));
                    let what = format!("{response:?} cut at {cut} by {ending:?} after {before}");
                    assert!(outcome == expected || is_lost, "{what}: {outcome:?}");
                    deaths += 1;
                }
            }
        }
    }
    assert!(deaths > 500, "{deaths}");
}

#[tokio::test]
async fn a_server_that_reads_any_part_of_a_request_and_closes_never_had_it() {
    for read in 0..80 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tasks().spawn("server", async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut part = vec![0; read];
            let _ = stream.read_exact(&mut part).await;
        });
        let setup = UpstreamSetup::of(address).without_login();
        let outcome = exchange(&connections(&setup)).await;
        let failed = Outcome::Failed(SendErrorKind::Closed);
        assert_eq!(outcome, failed, "after {read} bytes");
    }
}

#[tokio::test]
async fn bytes_after_a_response_reach_no_other_request() {
    for surplus in [
        "x",
        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        "\r\n",
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tasks().spawn("server", async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                tasks().spawn("server", async move {
                    let mut request = [0; 1024];
                    while stream.read(&mut request).await.unwrap_or(0) > 0 {
                        let response =
                            format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi{surplus}");
                        let _ = stream.write_all(response.as_bytes()).await;
                    }
                });
            }
        });
        let setup = UpstreamSetup::of(address).without_login();
        let connections = connections(&setup);
        for _ in 0..5 {
            let whole = Outcome::Whole(Bytes::from_static(b"hi"));
            assert_eq!(exchange(&connections).await, whole, "{surplus:?}");
        }
    }
}

#[tokio::test]
async fn more_informational_responses_than_anyone_needs_end_the_exchange() {
    for (count, is_accepted) in [(64, true), (65, false)] {
        let response: &'static str = Box::leak(
            format!(
                "{}HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
                "HTTP/1.1 102 Processing\r\n\r\n".repeat(count)
            )
            .into_boxed_str(),
        );
        let address = server(response, 0, response.len(), Ending::Close).await;
        let setup = UpstreamSetup::of(address).without_login();
        let outcome = exchange(&connections(&setup)).await;
        let expected = match is_accepted {
            true => Outcome::Whole(Bytes::from_static(b"hi")),
            false => Outcome::Failed(SendErrorKind::Protocol),
        };
        assert_eq!(outcome, expected, "{count}");
    }
}
