//! Opens a tunnel through an HTTP proxy (CONNECT, RFC 9110 9.3.6). The proxy looks up the upstream's
//! name, and its login goes to the proxy only: everything after its response belongs to the upstream.

use std::fmt;
use std::io;
use std::sync::Arc;

use httparse::{EMPTY_HEADER, Response, Status};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::proxy_credentials::ProxyCredentials;

/// The most bytes of the proxy's response, interim ones included.
const MAX_HEAD: usize = 16 << 10;
const MAX_FIELDS: usize = 100;
/// The most characters of a reason phrase that are shown.
const MAX_REASON: usize = 60;
/// A head this short is parsed before its end, so that what is no HTTP is found at once.
const FIRST_LINE: usize = 64;

/// The proxy between the gate and one upstream.
#[derive(Debug)]
pub(in crate::upstream) struct ConnectProxy {
    /// Host and port of the upstream.
    pub(in crate::upstream) target: String,
    /// None: the proxy is used without one.
    pub(in crate::upstream) login: Option<Arc<ProxyCredentials>>,
    /// For messages that name the configuration key.
    pub(in crate::upstream) upstream: Arc<str>,
}

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    #[error("it asks for a login ({answer}): set upstream.{upstream}.proxy_login")]
    LoginMissing {
        upstream: Arc<str>,
        answer: ProxyAnswer,
    },
    #[error("it refuses the login in upstream.{upstream}.proxy_login ({answer})")]
    LoginRefused {
        upstream: Arc<str>,
        answer: ProxyAnswer,
    },
    #[error("it does not allow CONNECT to {target} ({answer}): allow host and port in the proxy")]
    Forbidden { target: String, answer: ProxyAnswer },
    #[error("it cannot reach {target} ({answer})")]
    TargetUnreachable { target: String, answer: ProxyAnswer },
    #[error("it cannot reach {target} in time ({answer})")]
    TargetTimeout { target: String, answer: ProxyAnswer },
    #[error("it does not open a tunnel to {target} ({answer})")]
    Refused { target: String, answer: ProxyAnswer },
    #[error(
        "it does not speak plain HTTP: upstream.{upstream}.proxy must be an HTTP proxy without TLS"
    )]
    NotHttp {
        upstream: Arc<str>,
        #[source]
        source: httparse::Error,
    },
    #[error("its response to CONNECT is longer than {MAX_HEAD} bytes or {MAX_FIELDS} fields")]
    HeadTooLarge,
    #[error("it sent {bytes} bytes after its response, before any went through the tunnel")]
    UnaskedBytes { bytes: usize },
    #[error("it closed the connection before its response to CONNECT was complete")]
    Closed,
    #[error("the connection to it broke")]
    Broken(#[from] io::Error),
}

/// Status and reason of the proxy's response. The reason comes from the network: it is escaped and
/// truncated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyAnswer {
    pub status: u16,
    reason: String,
}

impl fmt::Display for ProxyAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason.is_empty() {
            true => write!(f, "{}", self.status),
            false => write!(f, "{} {}", self.status, self.reason),
        }
    }
}

impl ProxyError {
    /// Whether the proxy itself says that the upstream took too long.
    pub(super) fn is_timeout(&self) -> bool {
        matches!(self, Self::TargetTimeout { .. })
    }

    /// Whether the login of the gate at the proxy is the cause.
    pub(super) fn is_about_login(&self) -> bool {
        matches!(self, Self::LoginMissing { .. } | Self::LoginRefused { .. })
    }
}

impl ConnectProxy {
    /// Makes `tcp`, a connection to the proxy, one to the upstream.
    pub(super) async fn open_tunnel(&self, tcp: &mut TcpStream) -> Result<(), ProxyError> {
        self.ask(tcp).await?;
        let mut read = Vec::with_capacity(1024);
        loop {
            let seen = read.len();
            if seen >= MAX_HEAD {
                return Err(ProxyError::HeadTooLarge);
            }
            let mut room = (&mut *tcp).take((MAX_HEAD - seen) as u64);
            if room.read_buf(&mut read).await? == 0 {
                return Err(ProxyError::Closed);
            }
            if seen >= FIRST_LINE && !has_head_end(&read, seen) {
                continue;
            }
            if let Some(answer) = self.take_answer(&mut read)? {
                return self.judge(answer, &read);
            }
        }
    }

    async fn ask(&self, tcp: &mut TcpStream) -> io::Result<()> {
        let target = &self.target;
        let start = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
        match &self.login {
            None => tcp.write_all(format!("{start}\r\n").as_bytes()).await,
            Some(login) => {
                let fields = login.field(&start);
                tcp.write_all(fields.expose().as_bytes()).await
            }
        }
    }

    /// The final response once its head is complete; it is removed from `read`, with interim responses.
    fn take_answer(&self, read: &mut Vec<u8>) -> Result<Option<ProxyAnswer>, ProxyError> {
        loop {
            let mut fields = [EMPTY_HEADER; MAX_FIELDS];
            let mut response = Response::new(&mut fields);
            let length = match response.parse(read) {
                Ok(Status::Complete(length)) => length,
                Ok(Status::Partial) => return Ok(None),
                Err(httparse::Error::TooManyHeaders) => return Err(ProxyError::HeadTooLarge),
                Err(source) => {
                    let upstream = Arc::clone(&self.upstream);
                    return Err(ProxyError::NotHttp { upstream, source });
                }
            };
            let status = response.code.unwrap_or_default();
            let reason = response.reason.unwrap_or_default().escape_debug();
            let reason = reason.take(MAX_REASON).collect();
            read.drain(..length);
            if !(100..200).contains(&status) {
                return Ok(Some(ProxyAnswer { status, reason }));
            }
        }
    }

    /// `rest`: what came after the head. A tunnel has no content, whatever the fields say (RFC 9110
    /// 9.3.6), and an upstream does not speak first: bytes there are no part of it.
    fn judge(&self, answer: ProxyAnswer, rest: &[u8]) -> Result<(), ProxyError> {
        let target = self.target.clone();
        let upstream = Arc::clone(&self.upstream);
        let bytes = rest.len();
        Err(match answer.status {
            200..300 if bytes == 0 => return Ok(()),
            200..300 => ProxyError::UnaskedBytes { bytes },
            // tinyproxy answers 401 to a wrong password.
            401 | 407 if self.login.is_none() => ProxyError::LoginMissing { upstream, answer },
            401 | 407 => ProxyError::LoginRefused { upstream, answer },
            403 | 405 => ProxyError::Forbidden { target, answer },
            502 | 503 => ProxyError::TargetUnreachable { target, answer },
            504 => ProxyError::TargetTimeout { target, answer },
            _ => ProxyError::Refused { target, answer },
        })
    }
}

/// Whether an empty line ends in the bytes from `seen` on.
fn has_head_end(read: &[u8], seen: usize) -> bool {
    let from = seen.saturating_sub(3);
    let mut windows = read[from..].windows(2);
    windows.any(|two| two == b"\n\n")
        || read[from..].windows(4).any(|four| four == b"\r\n\r\n")
        || read[from..].windows(3).any(|three| three == b"\n\r\n")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn proxy() -> ConnectProxy {
        ConnectProxy {
            target: "service:443".to_owned(),
            login: None,
            upstream: "main".into(),
        }
    }

    proptest! {
        /// Bytes of the network: no panic, and one line without control characters.
        #[test]
        fn any_answer_is_judged_in_one_line(
            start in prop_oneof![Just("HTTP/1.1 "), Just("HTTP/1.1 200 "), Just("")],
            rest in prop::collection::vec(any::<u8>(), 0..200),
            has_end in any::<bool>(),
        ) {
            let end: &[u8] = if has_end { b"\r\n\r\n" } else { b"" };
            let mut read = [start.as_bytes(), &rest, end].concat();
            let proxy = proxy();
            let judged = match proxy.take_answer(&mut read) {
                Ok(Some(answer)) => proxy.judge(answer, &read),
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = judged {
                let text = crate::error_chain::chain(&error);
                prop_assert!(!text.contains(char::is_control) && text.len() < 500, "{text}");
            }
        }
    }
}
