//! The TLS stream of one connection: a socket and its record layer.

use std::fmt;
use std::future::poll_fn;
use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::{ProtocolVersion, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::buffer_pool::{BufferPool, OVERHEAD, RECORD, SIZE};
use super::record_layer::RecordLayer;
use crate::listener::connection::client_stream::TransportSocket;
use crate::pipeline::TlsFacts;

/// One TLS connection on one socket.
pub(in crate::listener) struct ServerTlsStream {
    tcp: TcpStream,
    records: RecordLayer,
    has_sent: bool,
    /// Bytes have been received.
    has_received: bool,
}

/// Why a TLS handshake failed.
#[derive(Debug)]
pub(in crate::listener) enum HandshakeFailure {
    /// The peer closed the connection without sending anything, as port probes do.
    Silent,
    /// The peer speaks HTTP without TLS, so a response can be written to it.
    PlainHttp(TcpStream),
    Broken(io::Error),
}

#[derive(Debug, thiserror::Error)]
#[error("the client speaks plain HTTP")]
struct PlainHttp;

fn is_plain_http(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<PlainHttp>())
}

impl fmt::Debug for ServerTlsStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTlsStream")
            .field("tcp", &self.tcp)
            .finish_non_exhaustive()
    }
}

impl ServerTlsStream {
    /// Performs the handshake. Boxed at once, because the stream outlives all its steps.
    pub(in crate::listener) async fn accept(
        tcp: TcpStream,
        config: Arc<ServerConfig>,
        buffers: Arc<BufferPool>,
    ) -> Result<Box<Self>, HandshakeFailure> {
        let records = RecordLayer::new(config, buffers).map_err(HandshakeFailure::Broken)?;
        let mut secured = Box::new(Self {
            tcp,
            records,
            has_sent: false,
            has_received: false,
        });
        match poll_fn(|cx| secured.poll_handshake(cx)).await {
            Ok(()) => Ok(secured),
            Err(error) if is_plain_http(&error) => Err(HandshakeFailure::PlainHttp(secured.tcp)),
            Err(_) if !secured.has_received => Err(HandshakeFailure::Silent),
            Err(error) => Err(HandshakeFailure::Broken(error)),
        }
    }

    pub(in crate::listener) fn facts(&self) -> TlsFacts {
        TlsFacts {
            is_tls13: self.records.version() == Some(ProtocolVersion::TLSv1_3),
        }
    }

    /// Whether both sides agreed on HTTP/2 (ALPN).
    pub(in crate::listener) fn is_http2(&self) -> bool {
        self.records.alpn() == Some(b"h2")
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.records.is_handshaking() {
            ready!(self.poll_send(cx))?;
            ready!(self.poll_receive(cx, &mut ReadBuf::new(&mut [])))?;
            if self.records.is_over {
                return Poll::Ready(Err(ErrorKind::UnexpectedEof.into()));
            }
        }
        // Session tickets are sent with the first response.
        self.records.defer_write();
        Poll::Ready(Ok(()))
    }

    /// Reads once and decrypts. Plaintext beyond the capacity of `reader` is buffered.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Most polls find no data, so a buffer is borrowed only once the socket is readable.
        ready!(self.tcp.poll_read_ready(cx))?;
        let mut buffer = self.records.buffers.acquire();
        let pending = self.records.part.len();
        buffer[..pending].copy_from_slice(&self.records.part);
        // As much as the reader can take, but at least one record.
        let max = pending + (RECORD + OVERHEAD).max(reader.remaining() + OVERHEAD);
        let mut fresh = ReadBuf::new(&mut buffer[pending..max.min(SIZE)]);
        ready!(Pin::new(&mut self.tcp).poll_read(cx, &mut fresh))?;
        let count = fresh.filled().len();
        if count == 0 {
            // Anyone on the path can close a TCP connection; only the peer can send close_notify.
            return Poll::Ready(Err(ErrorKind::UnexpectedEof.into()));
        }
        // A method is letters; the type of a TLS record never is (RFC 8446 5.1).
        if !std::mem::replace(&mut self.has_received, true) && buffer[0].is_ascii_alphabetic() {
            return Poll::Ready(Err(io::Error::new(ErrorKind::InvalidData, PlainHttp)));
        }
        let opened = self.records.open(&mut buffer[..pending + count], reader);
        if opened.is_err() {
            // Tries to send the alert once.
            let _ = self.poll_send(cx);
        }
        Poll::Ready(opened)
    }

    /// Sends all encrypted records.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.records.unsent().is_empty() {
            let unsent = self.records.unsent();
            let count = ready!(Pin::new(&mut self.tcp).poll_write(cx, unsent))?;
            if count == 0 {
                return Poll::Ready(Err(ErrorKind::WriteZero.into()));
            }
            self.has_sent = true;
            self.records.sent(count);
        }
        Poll::Ready(Ok(()))
    }
}

impl TransportSocket for Box<ServerTlsStream> {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self.records.has_buffered() {
            true => Poll::Ready(()),
            false => self.tcp.poll_readable(cx),
        }
    }

    fn has_sent(&mut self, _: bool) -> bool {
        std::mem::take(&mut self.has_sent)
    }

    fn poll_flush_deferred(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.records.resume_write();
        self.poll_send(cx)
    }
}

impl AsyncRead for ServerTlsStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        reader: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = reader.filled().len();
        while !this.records.read_buffered(reader) && !this.records.is_over {
            ready!(this.poll_receive(cx, reader))?;
            if reader.filled().len() > before {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ServerTlsStream {
    /// Written bytes are sent when they fill records, or at a flush.
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.records.is_full() {
            ready!(this.poll_send(cx))?;
        }
        let mut taken = 0;
        for piece in pieces {
            let count = this.records.write(piece)?;
            taken += count;
            if count < piece.len() {
                break;
            }
        }
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.records.encrypt_draft()?;
        this.poll_send(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.records.close_notify()?;
        ready!(this.poll_send(cx))?;
        match ready!(Pin::new(&mut this.tcp).poll_shutdown(cx)) {
            Err(error) if error.kind() != ErrorKind::NotConnected => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(())),
        }
    }
}
