//! The bytes of an HTTP/2 connection, counted: what was never written was not processed, and what says
//! nothing for long may be dead.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connection_load::ConnectionLoad;
use crate::upstream::transport::tracked_stream::TrackedStream;

/// A connection whose bytes are counted in its load.
#[derive(Debug)]
pub(in crate::upstream) struct CountedStream {
    stream: TrackedStream,
    load: Arc<ConnectionLoad>,
    /// For messages that name the configuration key.
    upstream: Arc<str>,
}

/// The other end answers the preface of HTTP/2 in HTTP/1.
#[derive(Debug, thiserror::Error)]
#[error(
    "the other end does not speak HTTP/2 without TLS on this port: set upstream.{upstream}.http2 to \
     \"never\""
)]
struct SpeaksHttp1 {
    upstream: Arc<str>,
}

impl CountedStream {
    pub(super) fn new(
        stream: TrackedStream,
        load: &Arc<ConnectionLoad>,
        upstream: &Arc<str>,
    ) -> Self {
        Self {
            stream,
            load: Arc::clone(load),
            upstream: Arc::clone(upstream),
        }
    }

    /// Counts what was written. h2 reads nothing while a frame of its own cannot be written, so that what
    /// a peer can no longer read is dropped here: what it has sent before, and its end, are read.
    fn written(
        &self,
        outcome: Poll<io::Result<usize>>,
        offered: impl FnOnce() -> usize,
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(count)) = outcome {
            let written = &self.load.written;
            written.fetch_add(count as u64, Ordering::Relaxed);
        }
        match outcome.is_pending() && self.stream.has_write_failed() {
            true => Poll::Ready(Ok(offered())),
            false => outcome,
        }
    }
}

impl AsyncRead for CountedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let fresh = &buf.filled()[before..];
        let count = fresh.len() as u64;
        let is_first = self.load.received.fetch_add(count, Ordering::Relaxed) == 0;
        if is_first && fresh.starts_with(b"HTTP/1.") {
            let upstream = Arc::clone(&self.upstream);
            let failure = SpeaksHttp1 { upstream };
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, failure)));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for CountedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.written(outcome, || buf.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.written(outcome, || bufs.iter().map(|buf| buf.len()).sum())
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        match flushed.is_pending() && self.stream.has_write_failed() {
            true => Poll::Ready(Ok(())),
            false => flushed,
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
