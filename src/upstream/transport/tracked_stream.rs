//! The bytes of a connection to the upstream, plain or TLS.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

use super::retire_flag::RetireFlag;
use super::tls::client_certificate::OfferedCertificate;
use super::tls::handshake::HandshakeError;
use super::tls::upstream_tls::TlsGeneration;

/// A connection that records whether bytes were received.
#[derive(Debug)]
pub(in crate::upstream) struct TrackedStream {
    wire: Transport,
    /// A byte was received since `forget_received`.
    has_received: bool,
    /// No byte was received yet.
    is_fresh: bool,
    /// The error of the last write; nothing is written after it.
    write_failure: Option<io::Error>,
    upstream: Arc<str>,
    /// None: nothing that it was made with can be replaced.
    retire: Option<RetireFlag>,
    /// What the handshake could show; None: there was none.
    offered: Option<Arc<OfferedCertificate>>,
    is_http2: bool,
}

#[derive(Debug)]
pub(in crate::upstream) enum Transport {
    Plain(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Transport {
    /// Whether the server has chosen HTTP/2 by ALPN (RFC 7301).
    fn has_chosen_http2(&self) -> bool {
        match self {
            Self::Tls(tls) => tls.get_ref().1.alpn_protocol() == Some(b"h2"),
            Self::Plain(_) | Self::Unix(_) => false,
        }
    }
}

/// The response to a request in plain HTTP is a TLS record.
#[derive(Debug, thiserror::Error)]
#[error("the other end speaks TLS on this port: upstream.{upstream}.url must begin with https://")]
struct SpeaksTls {
    upstream: Arc<str>,
}

impl TrackedStream {
    pub(in crate::upstream) fn new(wire: Transport, upstream: &Arc<str>) -> Self {
        Self {
            is_http2: wire.has_chosen_http2(),
            wire,
            has_received: false,
            is_fresh: true,
            write_failure: None,
            upstream: Arc::clone(upstream),
            retire: None,
            offered: None,
        }
    }

    /// Is not used for another request once `flag` is set.
    pub(super) fn retired_by(self, flag: RetireFlag) -> Self {
        Self {
            retire: Some(flag),
            ..self
        }
    }

    /// The same for a TLS connection and the settings of its handshake.
    pub(super) fn made_with(self, tls: &TlsGeneration) -> Self {
        Self {
            offered: Some(Arc::clone(&tls.offered)),
            ..self.retired_by(tls.retire.clone())
        }
    }

    /// Says that HTTP/2 is spoken on a connection without ALPN.
    pub(super) fn with_prior_knowledge(self, is_http2: bool) -> Self {
        Self {
            is_http2: self.is_http2 || is_http2,
            ..self
        }
    }

    /// Whether HTTP/2 is spoken: chosen by ALPN, or known before.
    pub(in crate::upstream) fn is_http2(&self) -> bool {
        self.is_http2
    }

    /// The flag that ends the use of this connection; None: nothing can.
    pub(super) fn retire_flag(&self) -> Option<RetireFlag> {
        self.retire.clone()
    }

    /// Whether the peer reads no more: writes stay pending.
    pub(super) fn has_write_failed(&self) -> bool {
        self.write_failure.is_some()
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retire.as_ref().is_some_and(RetireFlag::is_set)
    }

    /// Whether a byte was received since `forget_received`.
    pub(super) fn has_received(&self) -> bool {
        self.has_received
    }

    pub(super) fn forget_received(&mut self) {
        self.has_received = false;
    }

    /// Whether the socket has reported that there is something to read. Asks neither the socket nor for
    /// a wake-up.
    pub(super) fn is_readable(&self) -> bool {
        let ready = || Ok(());
        let outcome = match &self.wire {
            Transport::Plain(tcp) => tcp.try_io(Interest::READABLE, ready),
            Transport::Unix(unix) => unix.try_io(Interest::READABLE, ready),
            Transport::Tls(tls) => tls.get_ref().0.try_io(Interest::READABLE, ready),
        };
        outcome.is_ok()
    }

    /// Whether a read could find anything: bytes or the end. A TLS connection may hold bytes that it
    /// has taken from its socket.
    pub(super) fn may_have_input(&self) -> bool {
        matches!(self.wire, Transport::Tls(_)) || self.is_readable()
    }
}

impl TrackedStream {
    /// A server that responds early and closes makes the next write fail while its response is
    /// unread in the socket; the exchange would end at that failure. So the failure is held back
    /// until everything is read, and writes stay pending.
    fn written<T>(
        &mut self,
        cx: &mut Context<'_>,
        outcome: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match outcome {
            Poll::Ready(Err(failure)) if is_end(failure.kind()) => {
                self.write_failure = Some(failure);
                // From here on only reads continue; this one might not have been tried yet.
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            other => other,
        }
    }

    /// The meaning of an end of file after a failed write. Without a reset the peer closed the connection
    /// itself: Linux reports EPIPE for a peer that closed before (`tcp_reset`).
    fn read_end(&mut self) -> io::Result<()> {
        match self.write_failure.take() {
            Some(failure) if failure.kind() != io::ErrorKind::BrokenPipe => Err(failure),
            other => {
                self.write_failure = other;
                Ok(())
            }
        }
    }

    #[cold]
    fn explained(&self, failure: io::Error) -> io::Error {
        match &self.offered {
            Some(offered) => HandshakeError::explain_late(failure, &self.upstream, offered),
            None => failure,
        }
    }

    fn note_first_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.is_fresh = false;
        if matches!(self.wire, Transport::Plain(_)) && is_tls_record(bytes) {
            let upstream = Arc::clone(&self.upstream);
            let failure = SpeaksTls { upstream };
            return Err(io::Error::new(io::ErrorKind::InvalidData, failure));
        }
        Ok(())
    }
}

impl AsyncRead for TrackedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let room = buf.remaining();
        let outcome = match &mut self.wire {
            Transport::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Transport::Unix(unix) => Pin::new(unix).poll_read(cx, buf),
            Transport::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        };
        if let Poll::Ready(Err(failure)) = outcome {
            return Poll::Ready(Err(self.explained(failure)));
        }
        let fresh = &buf.filled()[before..];
        if !fresh.is_empty() {
            self.has_received = true;
            if self.is_fresh {
                self.note_first_bytes(fresh)?;
            }
        } else if room > 0 && matches!(outcome, Poll::Ready(Ok(()))) {
            self.read_end()?;
        }
        outcome
    }
}

impl AsyncWrite for TrackedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.write_failure.is_some() {
            return Poll::Pending;
        }
        let outcome = match &mut self.wire {
            Transport::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Transport::Unix(unix) => Pin::new(unix).poll_write(cx, buf),
            Transport::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        };
        self.written(cx, outcome)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.write_failure.is_some() {
            return Poll::Pending;
        }
        let outcome = match &mut self.wire {
            Transport::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Transport::Unix(unix) => Pin::new(unix).poll_flush(cx),
            Transport::Tls(tls) => Pin::new(tls).poll_flush(cx),
        };
        self.written(cx, outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.write_failure.is_some() {
            return Poll::Ready(Ok(()));
        }
        match &mut self.wire {
            Transport::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Transport::Unix(unix) => Pin::new(unix).poll_shutdown(cx),
            Transport::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.write_failure.is_some() {
            return Poll::Pending;
        }
        let outcome = match &mut self.wire {
            // Most requests are one piece, for which a plain write is cheaper.
            Transport::Plain(tcp) => match bufs {
                [only] => Pin::new(tcp).poll_write(cx, only),
                _ => Pin::new(tcp).poll_write_vectored(cx, bufs),
            },
            Transport::Unix(unix) => Pin::new(unix).poll_write_vectored(cx, bufs),
            Transport::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
        };
        self.written(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.wire {
            Transport::Plain(tcp) => tcp.is_write_vectored(),
            Transport::Unix(unix) => unix.is_write_vectored(),
            Transport::Tls(tls) => tls.is_write_vectored(),
        }
    }
}

/// Whether the error means that the peer reads no more.
fn is_end(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
    matches!(kind, BrokenPipe | ConnectionReset | ConnectionAborted)
}

/// Whether the bytes begin a TLS alert or handshake record, of any version.
fn is_tls_record(bytes: &[u8]) -> bool {
    matches!(bytes, [0x15 | 0x16, 3, ..])
}
