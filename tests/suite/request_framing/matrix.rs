//! Every combination of version, `Content-Length`, `Transfer-Encoding`, trailers and an early
//! end, sent byte by byte and compared with the table of docs/FRAMING.md: the upstream gets
//! the one message that the table names, or nothing.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::recorder::{Framing, Message, Recorder};
use super::{PLAIN, gate};
use crate::harness::Gateway;
use crate::harness::raw::connected;

const CONTENT: &str = "hello";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    Http10,
    Http11,
    Http2,
}

/// Values of `Content-Length`, one per field.
const LENGTHS: [&[&str]; 9] = [
    &[],
    &["5"],
    &["5", "5"],
    &["5", "6"],
    &["abc"],
    &["+5"],
    &["5, 5"],
    &[""],
    &["99999999999999999999"],
];

/// Values of `Transfer-Encoding`, one per field.
const CODINGS: [&[&str]; 9] = [
    &[],
    &["chunked"],
    &["ChunKED"],
    &["gzip, chunked"],
    &["chunked", "chunked"],
    &["chunked, chunked"],
    &["identity"],
    &["xchunked"],
    &["\"chunked\""],
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Whole,
    /// With the trailer `x-sum: 1`, announced.
    Trailers,
    /// The connection, or the stream, ends before the message.
    Early,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) version: Version,
    lengths: &'static [&'static str],
    codings: &'static [&'static str],
    ending: Ending,
}

pub(super) fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for version in [Version::Http10, Version::Http11, Version::Http2] {
        for lengths in LENGTHS {
            for codings in CODINGS {
                for ending in [Ending::Whole, Ending::Trailers, Ending::Early] {
                    // HTTP/1 has trailers only after chunks.
                    if ending == Ending::Trailers && codings.is_empty() && version != Version::Http2
                    {
                        continue;
                    }
                    all.push(Case {
                        version,
                        lengths,
                        codings,
                        ending,
                    });
                }
            }
        }
    }
    all
}

/// The table: content and trailers that are sent to the upstream, or None.
pub(super) fn goes_up(case: Case) -> Option<(&'static str, bool)> {
    let is_chunked = matches!(case.codings, ["chunked" | "ChunKED"]);
    let has_length = case.lengths == ["5"];
    let is_good = match case.version {
        // RFC 9112 6.1: chunked alone, not in HTTP/1.0, not beside a length.
        Version::Http10 | Version::Http11 if !case.codings.is_empty() => {
            is_chunked && case.version == Version::Http11 && case.lengths.is_empty()
        }
        // RFC 9113 8.2.2: no such field in HTTP/2.
        Version::Http2 if !case.codings.is_empty() => false,
        // RFC 9112 6.3, RFC 9113 8.1.1: one length, or none.
        _ => has_length || case.lengths.is_empty(),
    };
    if !is_good || case.ending == Ending::Early {
        return None;
    }
    // Without length and coding an HTTP/1 request has no content.
    let is_empty = case.version != Version::Http2 && !is_chunked && !has_length;
    let content = if is_empty { "" } else { CONTENT };
    Some((content, case.ending == Ending::Trailers))
}

impl Case {
    /// Field lines of the framing, and all others.
    fn fields(&self) -> Vec<(&'static str, &'static str)> {
        let lengths = self.lengths.iter().map(|value| ("content-length", *value));
        let codings = self
            .codings
            .iter()
            .map(|value| ("transfer-encoding", *value));
        let trailer = (self.ending == Ending::Trailers).then_some(("trailer", "x-sum"));
        lengths.chain(codings).chain(trailer).collect()
    }

    fn http1(&self) -> String {
        let version = if self.version == Version::Http10 {
            "1.0"
        } else {
            "1.1"
        };
        let lines = self
            .fields()
            .into_iter()
            .map(|(name, value)| format!("{name}: {value}\r\n"));
        let lines: String = lines.collect();
        let trailers = if self.ending == Ending::Trailers {
            "x-sum: 1\r\n"
        } else {
            ""
        };
        let content = match (self.codings, self.lengths) {
            ([], []) => String::new(),
            ([], _) => CONTENT.to_owned(),
            _ => format!("5\r\n{CONTENT}\r\n0\r\n{trailers}\r\n"),
        };
        let mut text = format!("POST /open/x HTTP/{version}\r\nHost: a\r\n{lines}\r\n{content}");
        if self.ending == Ending::Early {
            text.truncate(text.len() - 3);
        } else {
            // A parser that reads the first message as shorter or longer misreads this one.
            text.push_str("GET /open/next HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        }
        text
    }

    /// Preface, settings, and the frames of stream 1.
    fn http2(&self) -> Vec<u8> {
        let mut block = vec![0x83, 0x87]; // :method POST, :scheme https
        literal(&mut block, ":path", "/open/x");
        literal(&mut block, ":authority", "a");
        for (name, value) in self.fields() {
            literal(&mut block, name, value);
        }
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        frame(&mut bytes, 4, 0, 0, &[]);
        frame(&mut bytes, 1, 4, 1, &block);
        match self.ending {
            Ending::Whole => frame(&mut bytes, 0, 1, 1, CONTENT.as_bytes()),
            Ending::Trailers => {
                frame(&mut bytes, 0, 0, 1, CONTENT.as_bytes());
                let mut block = Vec::new();
                literal(&mut block, "x-sum", "1");
                frame(&mut bytes, 1, 5, 1, &block);
            }
            // With a length the stream ends before it; without, it is reset.
            Ending::Early if self.lengths == ["5"] => frame(&mut bytes, 0, 1, 1, b"he"),
            Ending::Early => {
                frame(&mut bytes, 0, 0, 1, b"he");
                frame(&mut bytes, 3, 0, 1, &8_u32.to_be_bytes());
            }
        }
        bytes
    }
}

/// A field without indexing and without Huffman's code (RFC 7541 6.2.2).
fn literal(block: &mut Vec<u8>, name: &str, value: &str) {
    block.push(0);
    for text in [name, value] {
        block.push(u8::try_from(text.len()).unwrap());
        block.extend_from_slice(text.as_bytes());
    }
}

fn frame(bytes: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    bytes.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes()[1..]);
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
}

/// Sends an HTTP/1 case and waits for the end of the connection.
pub(super) async fn send_http1(address: std::net::SocketAddr, case: Case) {
    let mut tcp = TcpStream::connect(address).await.unwrap();
    let _ = tcp.write_all(case.http1().as_bytes()).await;
    if case.ending == Ending::Early {
        let _ = tcp.shutdown().await;
    }
    let mut rest = Vec::new();
    let read = tcp.read_to_end(&mut rest);
    let _ = tokio::time::timeout(Duration::from_secs(5), read).await;
}

/// Sends an HTTP/2 case and waits for the end of its stream.
async fn send_http2(gateway: &Gateway, case: Case) {
    let mut tls = connected(gateway, &["h2"]).await;
    tls.write_all(&case.http2()).await.unwrap();
    tls.flush().await.unwrap();
    let ended = async {
        let mut header = [0; 9];
        while tls.read_exact(&mut header).await.is_ok() {
            let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
            let mut payload = vec![0; length as usize];
            if tls.read_exact(&mut payload).await.is_err() {
                return;
            }
            let (kind, ends) = (header[3], header[4] & 1 != 0);
            if matches!(kind, 3 | 7) || (matches!(kind, 0 | 1) && ends) {
                return;
            }
            if kind == 4 && !ends {
                let mut ours = Vec::new();
                frame(&mut ours, 4, 1, 0, &[]);
                let _ = tls.write_all(&ours).await;
                if case.ending == Ending::Early && case.lengths != ["5"] {
                    return; // the stream is reset: no frame comes on it
                }
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(5), ended).await;
}

fn is_right(case: Case, seen: &[Message]) -> bool {
    let (next, seen): (Vec<_>, Vec<_>) = seen
        .iter()
        .partition(|message| message.line == "GET /open/next");
    match (goes_up(case), seen.as_slice()) {
        (None, []) => next.is_empty(),
        (Some((content, has_trailers)), [message]) => {
            let framing_fits = match message.framing {
                Framing::Chunked => true,
                Framing::Length(length) => length == content.len() && !has_trailers,
                Framing::None => false,
            };
            let trailers: &[(String, String)] = &message.trailers;
            let trailers_fit = match has_trailers {
                true => trailers == [("x-sum".to_owned(), "1".to_owned())],
                false => trailers.is_empty(),
            };
            message.line == "POST /open/x"
                && message.content == content.as_bytes()
                && framing_fits
                && trailers_fit
                && next.len() == usize::from(case.version == Version::Http11)
        }
        _ => false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_the_message_of_the_table_is_sent_or_none() {
    let upstream = Recorder::start().await;
    let gateway = gate(&upstream, "", "").await;
    let all = cases();
    assert!(all.len() >= 180, "{}", all.len());
    let mut wrong = Vec::new();
    let mut good = 0;
    for case in &all {
        match case.version {
            Version::Http2 => send_http2(&gateway, *case).await,
            _ => send_http1(gateway.addresses.listeners[PLAIN], *case).await,
        }
        let seen = upstream.take();
        good += usize::from(goes_up(*case).is_some());
        if !is_right(*case, &seen) {
            wrong.push(format!("{case:?} sent {seen:#?}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {}: {wrong:#?}",
        wrong.len(),
        all.len()
    );
    assert!(good >= 12, "only {good} of the cases are valid");
    assert!(
        upstream.malformed().is_empty(),
        "{:?}",
        upstream.malformed()
    );
}
