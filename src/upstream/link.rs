//! The bytes of a connection to the upstream, plain or TLS.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// A connection, and whether a byte has come from it since it was last asked.
#[derive(Debug)]
pub(super) struct Link {
    wire: Wire,
    heard: Arc<AtomicBool>,
    /// Not a byte has come yet.
    is_fresh: bool,
    upstream: Arc<str>,
}

#[derive(Debug)]
pub(super) enum Wire {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// The answer to a request in plain HTTP is a TLS record.
#[derive(Debug, thiserror::Error)]
#[error("the other end speaks TLS on this port: upstream.{upstream}.url must begin with https://")]
struct SpeaksTls {
    upstream: Arc<str>,
}

impl Link {
    pub(super) fn new(wire: Wire, upstream: &Arc<str>) -> Self {
        Self {
            wire,
            heard: Arc::default(),
            is_fresh: true,
            upstream: Arc::clone(upstream),
        }
    }

    /// Set on every byte that comes; whoever sends a request clears it first.
    pub(super) fn heard(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.heard)
    }
}

impl AsyncRead for Link {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let outcome = match &mut self.wire {
            Wire::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Wire::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        };
        if buf.filled().len() > before {
            self.heard.store(true, Ordering::Release);
            if self.is_fresh {
                self.is_fresh = false;
                if matches!(self.wire, Wire::Plain(_)) && is_tls_record(&buf.filled()[before..]) {
                    let upstream = Arc::clone(&self.upstream);
                    let failure = SpeaksTls { upstream };
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, failure)));
                }
            }
        }
        outcome
    }
}

impl AsyncWrite for Link {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.wire {
            Wire::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Wire::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.wire {
            Wire::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Wire::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.wire {
            Wire::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Wire::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.wire {
            // Most requests are one piece, for which the plain call is the cheaper one.
            Wire::Plain(tcp) => match bufs {
                [only] => Pin::new(tcp).poll_write(cx, only),
                _ => Pin::new(tcp).poll_write_vectored(cx, bufs),
            },
            Wire::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.wire {
            Wire::Plain(tcp) => tcp.is_write_vectored(),
            Wire::Tls(tls) => tls.is_write_vectored(),
        }
    }
}

/// An alert or a handshake message, of any version of TLS.
fn is_tls_record(bytes: &[u8]) -> bool {
    matches!(bytes, [0x15 | 0x16, 3, ..])
}
