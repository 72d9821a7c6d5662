//! Write coalescing for HTTP/2. hyper writes frame by frame and flushes often; the bytes leave only
//! at the end of each poll of the connection, in one TLS record and one system call.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::continues::PendingContinues;

/// The side that hyper reads and writes; its flush is deferred. Not vectored, so that hyper joins
/// small frames before it writes them.
#[derive(Debug)]
pub(in crate::listener) struct CoalescingWriter<T>(Arc<Mutex<CoalescedStream<T>>>);

/// The side that flushes.
#[derive(Debug)]
pub(in crate::listener) struct FlushHandle<T>(Arc<Mutex<CoalescedStream<T>>>);

/// The stream that both sides share. Its lock is never contended: both belong to one task.
#[derive(Debug)]
struct CoalescedStream<T> {
    stream: T,
    /// 100 (Continue) frames to be sent between frames of hyper.
    continues: Option<Arc<PendingContinues>>,
    /// The frames being written; nothing else is written before their end.
    own_frames: Vec<u8>,
    /// Nothing was written since hyper last asked for a flush, which it does after whole frames.
    is_whole: bool,
}

/// Splits `stream` into the side that hyper writes and the side that flushes.
pub(in crate::listener) fn coalescing<T>(
    stream: T,
    continues: Option<Arc<PendingContinues>>,
) -> (CoalescingWriter<T>, FlushHandle<T>) {
    let shared = Arc::new(Mutex::new(CoalescedStream {
        stream,
        continues,
        own_frames: Vec::new(),
        is_whole: false,
    }));
    (CoalescingWriter(Arc::clone(&shared)), FlushHandle(shared))
}

impl<T: AsyncWrite + Unpin> CoalescedStream<T> {
    /// Writes pending 100 (Continue) frames, if that does not cut a frame of hyper in two.
    fn poll_own_frames(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_whole {
            return Poll::Ready(Ok(()));
        }
        if let Some(continues) = self.continues.as_ref().filter(|due| due.has_due()) {
            continues.append_due(&mut self.own_frames);
        }
        while !self.own_frames.is_empty() {
            let stream = Pin::new(&mut self.stream);
            let written = ready!(stream.poll_write(cx, &self.own_frames))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.own_frames.drain(..written);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> FlushHandle<T> {
    pub(in crate::listener) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut shared = self.0.lock();
        ready!(shared.poll_own_frames(cx))?;
        Pin::new(&mut shared.stream).poll_flush(cx)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for CoalescingWriter<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.lock().stream).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for CoalescingWriter<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut shared = self.0.lock();
        ready!(shared.poll_own_frames(cx))?;
        shared.is_whole = false;
        Pin::new(&mut shared.stream).poll_write(cx, bytes)
    }

    /// Writes the 100 (Continue) frames before hyper polls the streams that have just begun, so
    /// that a 100 precedes the response even if that is a refusal. Otherwise Java 17 waits forever
    /// (JDK-8286171).
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut shared = self.0.lock();
        shared.is_whole = true;
        match shared.poll_own_frames(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            // The rest is written first at the next write or flush.
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.lock().stream).poll_shutdown(cx)
    }
}
