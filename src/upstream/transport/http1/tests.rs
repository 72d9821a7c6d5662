//! The parser of responses: the same whatever the pieces they arrive in, and the same as hyper's client
//! wherever that is right.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use tokio::io::AsyncWriteExt as _;

use super::memory_reader::{ReadResponse, read};
use super::response_head::take_head;
use crate::upstream::transport::response_error::ResponseError;

/// What hyper's client makes of the same bytes.
async fn read_by_hyper(bytes: &[u8], method: &Method) -> Option<ReadResponse> {
    let (client, mut server) = tokio::io::duplex(1 << 16);
    let (mut sender, connection) = http1::handshake(TokioIo::new(client)).await.ok()?;
    let request = Request::builder()
        .method(method)
        .uri("/")
        .header("host", "a");
    let request = request.body(Empty::<Bytes>::new()).unwrap();
    let exchange = async {
        let (parts, mut body) = sender.send_request(request).await.ok()?.into_parts();
        let mut response = ReadResponse {
            status: parts.status,
            headers: parts.headers,
            body: Vec::new(),
            trailers: HeaderMap::new(),
            is_whole: true,
        };
        while let Some(frame) = body.frame().await {
            match frame.map(Frame::into_data) {
                Ok(Ok(data)) => response.body.extend_from_slice(&data),
                Ok(Err(frame)) => response.trailers = frame.into_trailers().unwrap(),
                Err(_) => response.is_whole = false,
            }
        }
        Some(response)
    };
    let serve = async {
        let mut request = [0; 256];
        let _ = tokio::io::AsyncReadExt::read(&mut server, &mut request).await;
        let _ = server.write_all(bytes).await;
        drop(server);
    };
    let drive = async {
        let _ = connection.await; // the exchange reports how it ended
        std::future::pending::<()>().await;
    };
    tokio::select! {
        (response, ()) = async { tokio::join!(exchange, serve) } => response,
        () = drive => None,
    }
}

const RESPONSES: &[&str] = &[
    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: 1\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell",
    "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.1 201 Odd reason\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n10\r\n0123456789abcdef\r\n0\r\nX-T: 1\r\nX-U: 2\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff1\r\nhello\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
    "HTTP/1.1 204 No Content\r\n\r\n",
    "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\nContent-Length: 7\r\n\r\n",
    "HTTP/1.0 200 OK\r\n\r\nuntil the end",
    "HTTP/1.1 200 OK\r\n\r\nuntil the end",
    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n folded\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nBad Name: 1\r\nContent-Length: 5\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\nhello",
    "HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello",
    "HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
    "HTTP/1.1 99 OK\r\nContent-Length: 5\r\n\r\nhello",
    "HTTP/2.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nContent-Le",
    "SSH-2.0-OpenSSH_9.9\r\n",
    "",
];

#[test]
fn the_pieces_in_which_a_response_arrives_change_nothing() {
    for text in RESPONSES {
        for method in [Method::GET, Method::HEAD] {
            let bytes = text.as_bytes();
            let whole = read(&[bytes], &method);
            for at in 0..=bytes.len() {
                let (first, second) = bytes.split_at(at);
                assert_eq!(read(&[first, second], &method), whole, "{text:?} at {at}");
            }
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            assert_eq!(read(&single, &method), whole, "{text:?} byte by byte");
        }
    }
}

#[tokio::test]
async fn hyper_reads_the_same() {
    for text in RESPONSES {
        for method in [Method::GET, Method::HEAD] {
            let own = read(&[text.as_bytes()], &method);
            let by_hyper = read_by_hyper(text.as_bytes(), &method).await;
            assert_eq!(own, by_hyper, "{method} {text:?}");
        }
    }
}

/// Bytes near those of a response: its lines in any order and number, with single bytes changed.
fn any_response() -> impl Strategy<Value = Vec<u8>> {
    let line = prop::sample::select(vec![
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.0 200 OK\r\n",
        "HTTP/1.1 204 No Content\r\n",
        "HTTP/1.1 100 Continue\r\n\r\n",
        "Content-Length: 5\r\n",
        "Content-Length: 0\r\n",
        "Content-Length: +5\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: gzip\r\n",
        "Connection: close\r\n",
        "X-Field: some, value\r\n",
        " folded\r\n",
        "\r\n",
        "5\r\nhello\r\n",
        "5;ext=\"a\r\n",
        "0\r\n",
        "0\r\n\r\n",
        "0\r\nTrailer: x\r\n\r\n",
        "hello",
    ]);
    let lines = prop::collection::vec(line, 1..9);
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..2);
    (any::<bool>(), lines, changes).prop_map(|(begins_well, lines, changes)| {
        let start = if begins_well {
            "HTTP/1.1 200 OK\r\n"
        } else {
            ""
        };
        let mut bytes = format!("{start}{}", lines.concat()).into_bytes();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    /// Where both read a whole response it is the same one. The gate refuses more than hyper does
    /// (`response_framing`), and never reads to an end where hyper sees none.
    #[test]
    fn no_generated_response_is_read_otherwise_than_by_hyper(
        bytes in any_response(),
        cut in any::<prop::sample::Index>(),
    ) {
        let at = cut.index(bytes.len());
        let own = read(&[&bytes[..at], &bytes[at..]], &Method::GET);
        prop_assert_eq!(&own, &read(&[&bytes], &Method::GET), "pieces");
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let by_hyper = runtime.block_on(read_by_hyper(&bytes, &Method::GET));
        let (Some(own), Some(by_hyper)) = (own, by_hyper) else { return Ok(()) };
        if own.is_whole {
            prop_assert_eq!(own, by_hyper);
        }
    }
}

#[test]
fn sizes_are_bounded() {
    let head = |field: usize| format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(field));
    let take = |text: String| take_head(&mut BytesMut::from(text.as_bytes()));
    assert!(take(head(28_000)).unwrap().is_some());
    assert!(matches!(
        take(head(29_000)),
        Err(ResponseError::HeadTooLarge(_))
    ));
    let unended = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(29_000));
    assert!(matches!(take(unended), Err(ResponseError::HeadTooLarge(_))));
    let fields = |count| format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(count));
    assert!(take(fields(100)).unwrap().is_some());
    assert!(matches!(take(fields(101)), Err(ResponseError::Head(_))));

    let chunked = |body: String| {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let response = read(&[format!("{head}{body}").as_bytes()], &Method::GET);
        response.unwrap().is_whole
    };
    let extended = |length: usize| format!("1;{}\r\nx\r\n", "e".repeat(length));
    assert!(chunked(format!("{}0\r\n\r\n", extended(2000).repeat(8))));
    assert!(!chunked(format!("{}0\r\n\r\n", extended(2000).repeat(9))));
    assert!(!chunked(format!("{}0\r\n\r\n", extended(5000))));
    let trailers = |length: usize| format!("0\r\nX: {}\r\n\r\n", "x".repeat(length));
    assert!(chunked(trailers(16_000)));
    assert!(!chunked(trailers(17_000)));
}

#[test]
fn a_reason_of_the_upstreams_own_is_kept() {
    let reason = |text: &str| {
        let mut received = BytesMut::from(text.as_bytes());
        let head: Response<()> = take_head(&mut received).unwrap().unwrap();
        let reason = head.extensions().get::<hyper::ext::ReasonPhrase>();
        reason.map(|reason| String::from_utf8_lossy(reason.as_bytes()).into_owned())
    };
    assert_eq!(reason("HTTP/1.1 200 OK\r\n\r\n"), None);
    assert_eq!(reason("HTTP/1.1 200 Fine\r\n\r\n").as_deref(), Some("Fine"));
    assert_eq!(reason("HTTP/1.1 200\r\n\r\n"), None);
}
