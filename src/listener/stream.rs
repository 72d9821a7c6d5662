//! The bytes of one connection, watched on their way between TLS and hyper.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::activity::Activity;
use super::continues::Continues;
use super::frames::Frames;
use super::slots::Slot;
use super::wire::{HeadLimits, Refused, Violation, Wire};
use crate::metrics::Gauged;

/// Put before a head that is refused at its first byte. While hyper has the beginning of a
/// head, it does not look for the end of the connection: that would end the request before.
const HEAD_BEGINS: &[u8] = b"X";

/// HTTP/2 writes below this may be PING and the like, which are no progress.
const LEAST_ANSWER: usize = 256;

/// What a stream's bytes come from and go to.
pub(super) trait Socket: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Ready when a read would give something, be it an end or an error.
    fn poll_stirs(&self, cx: &mut Context<'_>) -> Poll<()>;

    /// The peer took bytes since this was last asked. Without a buffer in between, that
    /// is so when the write before was ready.
    fn has_sent(&mut self, was_ready: bool) -> bool {
        was_ready
    }

    /// Makes the end of the connection one that no peer takes for the end of an answer.
    fn break_off(&self) {}

    /// Sends what was to go with the next bytes: there may be none for long.
    fn poll_settle(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Socket for TcpStream {
    fn poll_stirs(&self, cx: &mut Context<'_>) -> Poll<()> {
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
pub(super) struct Stream<T> {
    inner: T,
    check: Check,
    activity: Arc<Activity>,
    is_shut: bool,
    _slot: Slot,
    _open: Gauged,
}

/// What is looked at in the bytes that come in.
#[derive(Debug)]
pub(super) enum Check {
    Wire(Wire),
    Frames(Frames),
    Refused(Refused),
}

impl Check {
    pub(super) fn wire(limits: HeadLimits) -> Self {
        Self::Wire(Wire::new(limits))
    }

    pub(super) fn frames(continues: &Arc<Continues>) -> Self {
        Self::Frames(Frames::new(Arc::clone(continues)))
    }
}

impl<T> Stream<T> {
    pub(super) fn new(
        inner: T,
        check: Check,
        activity: Arc<Activity>,
        place: (Slot, Gauged),
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
    fn look(&mut self, buf: &mut ReadBuf<'_>, before: usize) -> io::Result<()> {
        if self.activity.is_tunnel() {
            return Ok(());
        }
        let fresh = &buf.filled()[before..];
        match &mut self.check {
            Check::Frames(frames) => frames.check(fresh).map_err(|flood| {
                self.activity.refuses();
                io::Error::new(io::ErrorKind::InvalidData, flood)
            }),
            Check::Wire(wire) => {
                let heads = wire.heads();
                let checked = wire.check(fresh);
                note_head(&self.activity, wire, heads);
                if let Err(Violation { at, fault }) = checked {
                    self.activity.refuses();
                    buf.set_filled(before + at);
                    let is_head = !wire.is_in_content();
                    if is_head && !wire.is_in_head() {
                        // In the place of the bad byte: there is room.
                        buf.put_slice(HEAD_BEGINS);
                    }
                    self.check = Check::Refused(Refused { fault, is_head });
                }
                Ok(())
            }
            Check::Refused(_) => Ok(()),
        }
    }

    fn is_http1(&self) -> bool {
        !matches!(self.check, Check::Frames(_))
    }
}

/// Keeps the time at which the head that is being read began.
fn note_head(activity: &Activity, wire: &Wire, heads_before: u64) {
    activity.is_between_requests(wire.is_between_requests());
    if !wire.is_in_head() {
        activity.head_ends();
    } else if !activity.is_in_head() || wire.heads() != heads_before {
        activity.head_begins();
    }
}

impl<T: Socket> Socket for Stream<T> {
    fn poll_stirs(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.inner.poll_stirs(cx)
    }

    fn break_off(&self) {
        self.inner.break_off();
    }

    fn poll_settle(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.poll_settle(cx)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Stream<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        let before = buf.filled().len();
        if !matches!(me.check, Check::Refused(_)) {
            ready!(Pin::new(&mut me.inner).poll_read(cx, buf))?;
            me.look(buf, before)?;
        }
        let Check::Refused(refused) = me.check else {
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

impl<T: Socket> Stream<T> {
    fn note(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = written {
            if self.is_http1() || bytes >= LEAST_ANSWER {
                self.activity.answers();
            }
            if let Check::Frames(frames) = &mut self.check {
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

impl<T: Socket> AsyncWrite for Stream<T> {
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
