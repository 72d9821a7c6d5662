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
use super::wire::{Violation, Wire};
use crate::metrics::Gauged;

/// Put in place of the first bad byte. NUL is wrong wherever a bad byte can be, so
/// that hyper's own parser answers 400; the two line ends make it look at once.
const POISON: &[u8] = b"\0\r\n\r\n";

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

    /// Sends what was to go with the next bytes: there may be none for long.
    fn poll_settle(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Socket for TcpStream {
    fn poll_stirs(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_read_ready(cx).map(drop)
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
    /// What remains to be said of `POISON`; after it, nothing.
    Refused(&'static [u8]),
}

impl Check {
    pub(super) fn wire() -> Self {
        Self::Wire(Wire::new())
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
                if let Err(Violation(at)) = checked {
                    self.activity.refuses();
                    buf.set_filled(before + at);
                    self.check = Check::Refused(say(POISON, buf));
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

/// Puts as much of `words` into `buf` as it takes; gives the rest.
fn say(words: &'static [u8], buf: &mut ReadBuf<'_>) -> &'static [u8] {
    let (now, later) = words.split_at(words.len().min(buf.remaining()));
    buf.put_slice(now);
    later
}

impl<T: Socket> Socket for Stream<T> {
    fn poll_stirs(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.inner.poll_stirs(cx)
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
        if let Check::Refused(words) = me.check {
            me.check = Check::Refused(say(words, buf));
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut me.inner).poll_read(cx, buf))?;
        Poll::Ready(me.look(buf, before))
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
        let mut bin = [0; 2048];
        loop {
            let mut buf = ReadBuf::new(&mut bin);
            let read = ready!(Pin::new(&mut self.inner).poll_read(cx, &mut buf));
            if read.is_err() || buf.filled().is_empty() {
                return Poll::Ready(());
            }
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
