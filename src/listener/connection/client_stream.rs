//! The byte stream of one client connection between TLS and hyper: checks what comes in, and
//! records progress in the connection's activity.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::activity::ConnectionActivity;
use super::connection_limit::ConnectionPermit;
use crate::listener::http1::framing_guard::{
    FramingRefusal, FramingViolation, HeadLimits, Http1FramingGuard,
};
use crate::listener::http2::continues::PendingContinues;
use crate::listener::http2::flood_guard::Http2FloodGuard;

/// Given to hyper in place of a head that is refused at its first byte. While hyper holds the
/// start of a head it does not treat a read error as the end of the connection, which would cut
/// off the response to the request before it.
const HEAD_BEGINS: &[u8] = b"X";

/// Smaller writes on an HTTP/2 connection may be PING or other control guard, which do not count
/// as progress of a response.
const MIN_RESPONSE_WRITE: usize = 256;

/// The transport below a [`ClientStream`]: a TCP socket or a TLS stream.
pub(in crate::listener) trait TransportSocket:
    AsyncRead + AsyncWrite + Unpin + Send + 'static
{
    /// Ready when a read would return at once, with data, end of stream or an error.
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()>;

    /// Whether the peer has taken bytes since the last call. Without a write buffer, that is so
    /// if the last write was ready.
    fn has_sent(&mut self, was_ready: bool) -> bool {
        was_ready
    }

    /// Makes the connection close with a reset, which no peer takes for the end of a response.
    fn break_off(&self) {}

    /// Sends buffered bytes that waited for the next write, which may not happen for long.
    fn poll_flush_deferred(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl TransportSocket for TcpStream {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_read_ready(cx).map(drop)
    }

    fn break_off(&self) {
        // Fails only if the peer has closed the connection already.
        let _ = self.set_zero_linger();
    }
}

/// The byte stream of one client connection. It holds the connection's permit.
#[derive(Debug)]
pub(in crate::listener) struct ClientStream<T> {
    inner: T,
    check: ByteCheck,
    activity: Arc<ConnectionActivity>,
    is_shut: bool,
    _permit: ConnectionPermit,
}

/// The check that incoming bytes go through.
#[derive(Debug)]
pub(in crate::listener) enum ByteCheck {
    Http1(Http1FramingGuard),
    Http2(Http2FloodGuard),
    Refused(FramingRefusal),
}

impl ByteCheck {
    pub(in crate::listener) fn http1(limits: HeadLimits) -> Self {
        Self::Http1(Http1FramingGuard::new(limits))
    }

    pub(in crate::listener) fn http2(continues: &Arc<PendingContinues>) -> Self {
        Self::Http2(Http2FloodGuard::new(Arc::clone(continues)))
    }
}

impl<T> ClientStream<T> {
    pub(in crate::listener) fn new(inner: T, check: ByteCheck, permit: ConnectionPermit) -> Self {
        Self {
            inner,
            check,
            activity: ConnectionActivity::new(),
            is_shut: false,
            _permit: permit,
        }
    }

    pub(in crate::listener) fn activity(&self) -> &Arc<ConnectionActivity> {
        &self.activity
    }

    /// Checks what was read into `buf` after its first `before` bytes.
    fn inspect(&mut self, buf: &mut ReadBuf<'_>, before: usize) -> io::Result<()> {
        let received = &buf.filled()[before..];
        match &mut self.check {
            ByteCheck::Http2(guard) => guard.check(received).map_err(|flood| {
                self.activity.set_refused();
                io::Error::new(io::ErrorKind::InvalidData, flood)
            }),
            ByteCheck::Http1(guard) => {
                let heads = guard.heads();
                let checked = guard.check(received);
                note_head(&self.activity, guard, heads);
                if let Err(FramingViolation { at, fault }) = checked {
                    self.activity.set_refused();
                    buf.set_filled(before + at);
                    let is_head = !guard.is_in_content();
                    if is_head && !guard.is_in_head() {
                        // It takes the place of the refused byte, so there is room.
                        buf.put_slice(HEAD_BEGINS);
                    }
                    self.check = ByteCheck::Refused(FramingRefusal { fault, is_head });
                }
                Ok(())
            }
            ByteCheck::Refused(_) => Ok(()),
        }
    }

    fn is_http1(&self) -> bool {
        !matches!(self.check, ByteCheck::Http2(_))
    }
}

/// Records when the head that is being read began.
fn note_head(activity: &ConnectionActivity, guard: &Http1FramingGuard, heads_before: u64) {
    activity.set_between_requests(guard.is_between_requests());
    if !guard.is_in_head() {
        activity.head_ended();
    } else if !activity.is_in_head() || guard.heads() != heads_before {
        activity.head_started();
    }
}

impl<T: TransportSocket> TransportSocket for ClientStream<T> {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.inner.poll_readable(cx)
    }

    fn break_off(&self) {
        self.inner.break_off();
    }

    fn poll_flush_deferred(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.poll_flush_deferred(cx)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for ClientStream<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        if !matches!(this.check, ByteCheck::Refused(_)) {
            ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
            this.inspect(buf, before)?;
        }
        let ByteCheck::Refused(refused) = this.check else {
            return Poll::Ready(Ok(()));
        };
        if buf.filled().len() > before {
            return Poll::Ready(Ok(())); // the bytes before the refused one
        }
        // hyper first writes what it holds of the response before, then polls again.
        if this.activity.is_write_blocked() {
            return Poll::Pending;
        }
        Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, refused)))
    }
}

impl<T: TransportSocket> ClientStream<T> {
    fn note(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = written {
            if self.is_http1() || bytes >= MIN_RESPONSE_WRITE {
                self.activity.wrote_response();
            }
            if let ByteCheck::Http2(guard) = &mut self.check {
                guard.wrote(bytes);
            }
        }
        self.note_progress(written.is_pending());
        written
    }

    /// Written bytes may still be in the TLS write buffer; only those the peer took count.
    fn note_progress(&mut self, is_blocked: bool) {
        let was_blocked = self.inner.has_sent(!is_blocked) && self.activity.write_progressed();
        if is_blocked {
            self.activity.set_write_blocked();
        } else if was_blocked {
            self.activity.wake_blocked_bodies();
        }
    }

    /// Reads and discards input until the peer closes too, or the linger timeout expires.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut discarded = [0; 8 * 1024];
        loop {
            let mut buf = ReadBuf::new(&mut discarded);
            let read = ready!(Pin::new(&mut self.inner).poll_read(cx, &mut buf));
            if read.is_err() || buf.filled().is_empty() {
                return Poll::Ready(());
            }
            self.activity.received_while_closing();
        }
    }
}

impl<T: TransportSocket> AsyncWrite for ClientStream<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.inner).poll_write(cx, bytes);
        this.note(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.inner).poll_write_vectored(cx, pieces);
        this.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.inner).poll_flush(cx);
        this.note_progress(flushed.is_pending());
        if flushed.is_ready() && this.activity.write_progressed() {
            this.activity.wake_blocked_bodies();
        }
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.activity.set_closing();
        if !this.is_shut {
            ready!(Pin::new(&mut this.inner).poll_shutdown(cx))?;
            this.is_shut = true;
        }
        if this.is_http1() {
            ready!(this.poll_linger(cx));
        }
        Poll::Ready(Ok(()))
    }
}
