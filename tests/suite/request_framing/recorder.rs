//! An upstream that records every message, read by its own strict parser. Plain HTTP/1.1; the
//! gate's logins get responses and are not recorded.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::upstream::login;

/// How a message marks the end of its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// Neither length nor coding.
    None,
    Length(usize),
    Chunked,
}

/// One message as it arrived.
#[derive(Clone, Debug)]
pub(super) struct Message {
    /// Method and target.
    pub(super) line: String,
    /// Names in lower case.
    pub(super) fields: Vec<(String, String)>,
    pub(super) framing: Framing,
    pub(super) content: Vec<u8>,
    pub(super) trailers: Vec<(String, String)>,
}

impl Message {
    /// Every value under `name`.
    pub(super) fn all(&self, name: &str) -> Vec<&str> {
        let of_name = self.fields.iter().filter(|(field, _)| field == name);
        of_name.map(|(_, value)| value.as_str()).collect()
    }
}

#[derive(Default)]
struct RecordedMessages {
    messages: Vec<Message>,
    logins: Vec<Message>,
    /// Bytes that are not an HTTP/1.1 message.
    malformed: Vec<String>,
}

/// Lives until the test's runtime ends.
#[derive(Clone)]
pub(super) struct Recorder {
    pub(super) address: SocketAddr,
    recorded: Arc<Mutex<RecordedMessages>>,
}

impl Recorder {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let recorder = Self {
            address: listener.local_addr().unwrap(),
            recorded: Arc::default(),
        };
        let serving = recorder.clone();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let serving = serving.clone();
                tokio::spawn(async move { serving.serve(tcp).await });
            }
        });
        recorder
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The messages since the last call.
    pub(super) fn take(&self) -> Vec<Message> {
        std::mem::take(&mut self.recorded.lock().unwrap().messages)
    }

    /// The one message that arrived.
    pub(super) fn one(&self) -> Message {
        let mut all = self.take();
        assert_eq!(all.len(), 1, "{all:#?}");
        all.remove(0)
    }

    pub(super) fn logins(&self) -> Vec<Message> {
        self.recorded.lock().unwrap().logins.clone()
    }

    /// Received bytes that are not a message.
    pub(super) fn malformed(&self) -> Vec<String> {
        self.recorded.lock().unwrap().malformed.clone()
    }

    fn keep(&self, message: Message, is_login: bool) {
        let mut recorded = self.recorded.lock().unwrap();
        match is_login {
            true => recorded.logins.push(message),
            false => recorded.messages.push(message),
        }
    }

    async fn serve(&self, mut tcp: TcpStream) {
        let mut bytes = Vec::new();
        let mut piece = vec![0; 16 * 1024];
        loop {
            match read(&bytes) {
                ParsedMessage::Whole(message, length) => {
                    bytes.drain(..length);
                    let is_login = message.line.starts_with("POST /v1/users/login");
                    let response = match is_login && message.framing == Framing::None {
                        true => {
                            b"HTTP/1.1 411 Length Required\r\nContent-Length: 0\r\n\r\n".to_vec()
                        }
                        false if is_login => login(),
                        false => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec(),
                    };
                    self.keep(message, is_login);
                    if tcp.write_all(&response).await.is_err() {
                        return;
                    }
                    continue;
                }
                ParsedMessage::Malformed(problem) => {
                    let text = String::from_utf8_lossy(&bytes).into_owned();
                    self.recorded
                        .lock()
                        .unwrap()
                        .malformed
                        .push(format!("{problem}: {text}"));
                    return;
                }
                ParsedMessage::Part => {}
            }
            match tcp.read(&mut piece).await {
                Ok(count @ 1..) => bytes.extend_from_slice(&piece[..count]),
                // An incomplete message: the gate has aborted it, and no server acts on it.
                _ => return,
            }
        }
    }
}

enum ParsedMessage {
    Whole(Message, usize),
    Part,
    Malformed(&'static str),
}

/// The first message in `bytes`.
fn read(bytes: &[u8]) -> ParsedMessage {
    let Some(end) = find(bytes, b"\r\n\r\n") else {
        return ParsedMessage::Part;
    };
    let Ok(head) = std::str::from_utf8(&bytes[..end]) else {
        return ParsedMessage::Malformed("head is not text");
    };
    let mut lines = head.split("\r\n");
    let Some(line) = lines.next().and_then(|line| line.strip_suffix(" HTTP/1.1")) else {
        return ParsedMessage::Malformed("request line");
    };
    let Some(fields) = lines.map(field).collect::<Option<Vec<_>>>() else {
        return ParsedMessage::Malformed("field line");
    };
    let mut message = Message {
        line: line.to_owned(),
        fields,
        framing: Framing::None,
        content: Vec::new(),
        trailers: Vec::new(),
    };
    let body = &bytes[end + 4..];
    let (lengths, codings) = (
        message.all("content-length"),
        message.all("transfer-encoding"),
    );
    match (lengths.as_slice(), codings.as_slice()) {
        ([], []) => ParsedMessage::Whole(message, end + 4),
        ([length], []) => match length.parse() {
            Ok(length) if body.len() >= length => {
                message.framing = Framing::Length(length);
                message.content = body[..length].to_vec();
                ParsedMessage::Whole(message, end + 4 + length)
            }
            Ok(_) => ParsedMessage::Part,
            Err(_) => ParsedMessage::Malformed("length"),
        },
        ([], ["chunked"]) => {
            message.framing = Framing::Chunked;
            chunks(message, body, end + 4)
        }
        _ => ParsedMessage::Malformed("framing fields"),
    }
}

fn chunks(mut message: Message, mut body: &[u8], mut taken: usize) -> ParsedMessage {
    loop {
        let Some(end) = find(body, b"\r\n") else {
            return ParsedMessage::Part;
        };
        let size = std::str::from_utf8(&body[..end]).ok();
        let Some(size) = size.and_then(|text| usize::from_str_radix(text, 16).ok()) else {
            return ParsedMessage::Malformed("chunk size");
        };
        if size == 0 {
            break;
        }
        let Some(chunk) = body.get(end + 2..end + 4 + size) else {
            return ParsedMessage::Part;
        };
        if !chunk.ends_with(b"\r\n") {
            return ParsedMessage::Malformed("chunk end");
        }
        message.content.extend_from_slice(&chunk[..size]);
        body = &body[end + 4 + size..];
        taken += end + 4 + size;
    }
    // The last chunk's line and the lines after it, up to an empty one.
    let Some(end) = find(body, b"\r\n\r\n") else {
        return ParsedMessage::Part;
    };
    let text = String::from_utf8_lossy(&body[..end]).into_owned();
    let lines = text.split("\r\n").skip(1).filter(|line| !line.is_empty());
    match lines.map(field).collect() {
        Some(trailers) => message.trailers = trailers,
        None => return ParsedMessage::Malformed("trailer"),
    }
    ParsedMessage::Whole(message, taken + end + 4)
}

fn field(line: &str) -> Option<(String, String)> {
    let (name, value) = line.split_once(':')?;
    let is_name = !name.is_empty() && !name.contains(|c: char| c.is_ascii_whitespace());
    let is_value = !value.contains(|c: char| c.is_ascii_control() && c != '\t');
    (is_name && is_value).then(|| (name.to_ascii_lowercase(), value.trim().to_owned()))
}

fn find(bytes: &[u8], text: &[u8]) -> Option<usize> {
    bytes.windows(text.len()).position(|window| window == text)
}
