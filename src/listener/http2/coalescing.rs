//! One connection's bytes in two hands: HTTP/2 writes them frame by frame, and asks for
//! a flush after many of them; they leave when the connection's turn ends.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use parking_lot::{Mutex, MutexGuard};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::continues::PendingContinues;

/// The hand that reads and writes. Not vectored: small frames are then put together
/// before they come here.
#[derive(Debug)]
pub(in crate::listener) struct CoalescingWriter<T>(Arc<Mutex<CoalescedStream<T>>>);

/// The hand that flushes.
#[derive(Debug)]
pub(in crate::listener) struct FlushHandle<T>(Arc<Mutex<CoalescedStream<T>>>);

/// What both hands hold.
#[derive(Debug)]
struct CoalescedStream<T> {
    stream: T,
    /// Frames of our own that are due.
    continues: Option<Arc<PendingContinues>>,
    /// Those on their way out; nothing else is written before their end.
    own_frames: Vec<u8>,
    /// HTTP/2 has written whole frames, and none since: it says so by asking for a flush.
    is_whole: bool,
}

pub(in crate::listener) fn corked<T>(
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

/// Never waited for: both hands belong to one task.
fn held<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock()
}

impl<T: AsyncWrite + Unpin> CoalescedStream<T> {
    /// Writes what is due of our own, where it cannot cut a frame in two.
    fn poll_own_frames(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_whole {
            return Poll::Ready(Ok(()));
        }
        if let Some(continues) = self.continues.as_ref().filter(|due| due.has_due()) {
            continues.put_due(&mut self.own_frames);
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
        let mut outlet = held(&self.0);
        ready!(outlet.poll_own_frames(cx))?;
        Pin::new(&mut outlet.stream).poll_flush(cx)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for CoalescingWriter<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut held(&self.0).stream).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for CoalescingWriter<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut outlet = held(&self.0);
        ready!(outlet.poll_own_frames(cx))?;
        outlet.is_whole = false;
        Pin::new(&mut outlet.stream).poll_write(cx, bytes)
    }

    /// Our own frames go before the streams that have just begun are worked on: a 100 comes
    /// before an answer even if that is a refusal. Java 17 waits for ever otherwise
    /// (JDK-8286171).
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut outlet = held(&self.0);
        outlet.is_whole = true;
        match outlet.poll_own_frames(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            // What the socket did not take goes first at the next chance.
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut held(&self.0).stream).poll_shutdown(cx)
    }
}
