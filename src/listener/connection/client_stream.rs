//! The bytes of one connection, watched on their way between TLS and hyper.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::activity::ConnectionActivity;
use crate::listener::http1::framing_guard::{
    FramingRefusal, FramingViolation, HeadLimits, Http1FramingGuard,
};
use crate::listener::http2::continues::PendingContinues;
use crate::listener::http2::flood_guard::Http2FloodGuard;
use crate::listener::tcp::connection_limit::ConnectionPermit;
use crate::metrics::GaugeGuard;

/// Put before a head that is refused at its first byte. While hyper has the beginning of a
/// head, it does not look for the end of the connection: that would end the request before.
const HEAD_BEGINS: &[u8] = b"X";

/// HTTP/2 writes below this may be PING and the like, which are no progress.
const LEAST_ANSWER: usize = 256;

/// What a stream's bytes come from and go to.
pub(in crate::listener) trait TransportSocket:
    AsyncRead + AsyncWrite + Unpin + Send + 'static
{
    /// Ready when a read would give something, be it an end or an error.
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()>;

    /// The peer took bytes since this was last asked. Without a buffer in between, that
    /// is so when the write before was ready.
    fn has_sent(&mut self, was_ready: bool) -> bool {
        was_ready
    }

    /// Makes the end of the connection one that no peer takes for the end of an answer.
    fn break_off(&self) {}

    /// Sends what was to go with the next bytes: there may be none for long.
    fn poll_flush_deferred(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl TransportSocket for TcpStream {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_read_ready(cx).map(drop)
    }

    fn break_off(&self) {
        // It closes with a reset. Should this fail, the peer has gone already.
        let _ = self.set_zero_linger();
    }
}

/// One connection's bytes. Holds the connection's slot, also as a tunnel, when
/// hyper has given it away.
#[derive(Debug)]
pub(in crate::listener) struct ClientStream<T> {
    inner: T,
    check: ByteCheck,
    activity: Arc<ConnectionActivity>,
    is_shut: bool,
    _slot: ConnectionPermit,
    _open: GaugeGuard,
}

/// What is looked at in the bytes that come in.
#[derive(Debug)]
pub(in crate::listener) enum ByteCheck {
    Wire(Http1FramingGuard),
    Frames(Http2FloodGuard),
    Refused(FramingRefusal),
}

impl ByteCheck {
    pub(in crate::listener) fn wire(limits: HeadLimits) -> Self {
        Self::Wire(Http1FramingGuard::new(limits))
    }

    pub(in crate::listener) fn frames(continues: &Arc<PendingContinues>) -> Self {
        Self::Frames(Http2FloodGuard::new(Arc::clone(continues)))
    }
}

impl<T> ClientStream<T> {
    pub(in crate::listener) fn new(
        inner: T,
        check: ByteCheck,
        activity: Arc<ConnectionActivity>,
        place: (ConnectionPermit, GaugeGuard),
    ) -> Self {
        Self {
            inner,
            check,
            activity,
            is_shut: false,
            _slot: place.0,
            _open: place.1,
        }
    }

    /// Looks at what was read into `buf` after its first `before` bytes.
    fn inspect(&mut self, buf: &mut ReadBuf<'_>, before: usize) -> io::Result<()> {
        if self.activity.is_tunnel() {
            return Ok(());
        }
        let fresh = &buf.filled()[before..];
        match &mut self.check {
            ByteCheck::Frames(frames) => frames.check(fresh).map_err(|flood| {
                self.activity.refuses();
                io::Error::new(io::ErrorKind::InvalidData, flood)
            }),
            ByteCheck::Wire(wire) => {
                let heads = wire.heads();
                let checked = wire.check(fresh);
                note_head(&self.activity, wire, heads);
                if let Err(FramingViolation { at, fault }) = checked {
                    self.activity.refuses();
                    buf.set_filled(before + at);
                    let is_head = !wire.is_in_content();
                    if is_head && !wire.is_in_head() {
                        // In the place of the bad byte: there is room.
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
        !matches!(self.check, ByteCheck::Frames(_))
    }
}

/// Keeps the time at which the head that is being read began.
fn note_head(activity: &ConnectionActivity, wire: &Http1FramingGuard, heads_before: u64) {
    activity.is_between_requests(wire.is_between_requests());
    if !wire.is_in_head() {
        activity.head_ends();
    } else if !activity.is_in_head() || wire.heads() != heads_before {
        activity.head_begins();
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
        let me = self.get_mut();
        let before = buf.filled().len();
        if !matches!(me.check, ByteCheck::Refused(_)) {
            ready!(Pin::new(&mut me.inner).poll_read(cx, buf))?;
            me.inspect(buf, before)?;
        }
        let ByteCheck::Refused(refused) = me.check else {
            return Poll::Ready(Ok(()));
        };
        if buf.filled().len() > before {
            return Poll::Ready(Ok(())); // what came before the bad byte
        }
        // What hyper holds of the answer before goes out first; it asks again then.
        if me.activity.is_write_blocked() {
            return Poll::Pending;
        }
        Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, refused)))
    }
}

impl<T: TransportSocket> ClientStream<T> {
    fn note(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = written {
            if self.is_http1() || bytes >= LEAST_ANSWER {
                self.activity.answers();
            }
            if let ByteCheck::Frames(frames) = &mut self.check {
                frames.wrote(bytes);
            }
        }
        self.note_progress(written.is_pending());
        written
    }

    /// What was written may lie in a buffer of ours; only what the peer took counts.
    fn note_progress(&mut self, is_blocked: bool) {
        let was_blocked = self.inner.has_sent(!is_blocked) && self.activity.moves();
        if is_blocked {
            self.activity.write_blocked();
        } else if was_blocked {
            self.activity.has_room();
        }
    }

    /// Reads what is still coming and forgets it, until the peer closes too. The
    /// activity's deadline ends it otherwise.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut bin = [0; 8 * 1024];
        loop {
            let mut buf = ReadBuf::new(&mut bin);
            let read = ready!(Pin::new(&mut self.inner).poll_read(cx, &mut buf));
            if read.is_err() || buf.filled().is_empty() {
                return Poll::Ready(());
            }
            self.activity.lingers();
        }
    }
}

impl<T: TransportSocket> AsyncWrite for ClientStream<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let written = Pin::new(&mut me.inner).poll_write(cx, bytes);
        me.note(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let written = Pin::new(&mut me.inner).poll_write_vectored(cx, pieces);
        me.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        let flushed = Pin::new(&mut me.inner).poll_flush(cx);
        me.note_progress(flushed.is_pending());
        if flushed.is_ready() && me.activity.moves() {
            me.activity.has_room();
        }
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        me.activity.closes();
        if !me.is_shut {
            ready!(Pin::new(&mut me.inner).poll_shutdown(cx))?;
            me.is_shut = true;
        }
        if me.is_http1() && !me.activity.is_tunnel() {
            ready!(me.poll_linger(cx));
        }
        Poll::Ready(Ok(()))
    }
}
