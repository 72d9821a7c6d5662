//! One connection's bytes in two hands: HTTP/2 writes them frame by frame, and asks for
//! a flush after many of them; they leave when the connection's turn ends.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The hand that reads and writes. Not vectored: small frames are then put together
/// before they come here.
#[derive(Debug)]
pub(super) struct Corked<T>(Arc<Mutex<T>>);

/// The hand that flushes.
#[derive(Debug)]
pub(super) struct Cork<T>(Arc<Mutex<T>>);

pub(super) fn corked<T>(stream: T) -> (Corked<T>, Cork<T>) {
    let shared = Arc::new(Mutex::new(stream));
    (Corked(Arc::clone(&shared)), Cork(shared))
}

/// Never waited for: both hands belong to one task.
fn held<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T: AsyncWrite + Unpin> Cork<T> {
    pub(super) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *held(&self.0)).poll_flush(cx)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Corked<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *held(&self.0)).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Corked<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *held(&self.0)).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *held(&self.0)).poll_shutdown(cx)
    }
}
