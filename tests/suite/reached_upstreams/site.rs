//! An upstream that serves any stream: it records the heads of requests, and takes each login.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::harness::upstream::login;

/// Its clones share what they have recorded.
#[derive(Clone)]
pub(super) struct Site {
    text: &'static str,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Site {
    /// Responds to each request with `text`.
    pub(super) fn saying(text: &'static str) -> Self {
        Self {
            text,
            heads: Arc::default(),
        }
    }

    pub(super) fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }

    /// Heads that begin with `line`.
    pub(super) fn count(&self, line: &str) -> usize {
        let heads = self.heads();
        heads.iter().filter(|head| head.starts_with(line)).count()
    }

    /// Serves requests until the other end closes.
    pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(self, mut stream: S) {
        while let Some(head) = read_head(&mut stream).await {
            let is_login = head.starts_with("POST /v1/users/login");
            let response = match is_login {
                true => login(),
                false => ok(self.text),
            };
            self.heads.lock().unwrap().push(head);
            if stream.write_all(&response).await.is_err() {
                return;
            }
            let _ = stream.flush().await;
        }
    }
}

fn ok(text: &str) -> Vec<u8> {
    let length = text.len();
    format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{text}").into_bytes()
}

/// The next head; its body is read too.
pub(super) async fn read_head<S: AsyncRead + Unpin>(stream: &mut S) -> Option<String> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(bytes).ok()?;
    let lower = head.to_ascii_lowercase();
    let length = lower
        .lines()
        .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).await.ok()?;
    Some(head)
}
