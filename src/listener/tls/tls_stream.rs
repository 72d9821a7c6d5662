//! A socket whose bytes are TLS.

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
    /// The peer has said something.
    has_heard: bool,
}

/// Why there is no TLS connection.
#[derive(Debug)]
pub(in crate::listener) enum HandshakeFailure {
    /// The peer left without a word, as probes of a port do.
    Silent,
    /// It speaks HTTP without TLS; an answer can be written to it.
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
        f.debug_struct("Secured")
            .field("tcp", &self.tcp)
            .finish_non_exhaustive()
    }
}

impl ServerTlsStream {
    /// Does the handshake. Boxed at once: it lives longer than any step it goes through.
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
            has_heard: false,
        });
        match poll_fn(|cx| secured.poll_handshake(cx)).await {
            Ok(()) => Ok(secured),
            Err(error) if is_plain_http(&error) => Err(HandshakeFailure::PlainHttp(secured.tcp)),
            Err(_) if !secured.has_heard => Err(HandshakeFailure::Silent),
            Err(error) => Err(HandshakeFailure::Broken(error)),
        }
    }

    pub(in crate::listener) fn facts(&self) -> TlsFacts {
        TlsFacts {
            is_tls13: self.records.version() == Some(ProtocolVersion::TLSv1_3),
        }
    }

    /// What the two sides agreed to speak.
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
        // Tickets go with the first answer.
        self.records.defer_write();
        Poll::Ready(Ok(()))
    }

    /// Reads once and decrypts it; text that `reader` has no room for is kept.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Most questions find nothing; for those no buffer is needed.
        ready!(self.tcp.poll_read_ready(cx))?;
        let mut buffer = self.records.buffers.lend();
        let had = self.records.part.len();
        buffer[..had].copy_from_slice(&self.records.part);
        // No more than the reader has room for, but room for one record.
        let most = had + (RECORD + OVERHEAD).max(reader.remaining() + OVERHEAD);
        let mut fresh = ReadBuf::new(&mut buffer[had..most.min(SIZE)]);
        ready!(Pin::new(&mut self.tcp).poll_read(cx, &mut fresh))?;
        let count = fresh.filled().len();
        if count == 0 {
            // Anybody on the way can close a socket; only the peer can say that it is done.
            return Poll::Ready(Err(ErrorKind::UnexpectedEof.into()));
        }
        // A method is letters; the type of a TLS record never is (RFC 8446 5.1).
        if !std::mem::replace(&mut self.has_heard, true) && buffer[0].is_ascii_alphabetic() {
            return Poll::Ready(Err(io::Error::new(ErrorKind::InvalidData, PlainHttp)));
        }
        let opened = self.records.open(&mut buffer[..had + count], reader);
        if opened.is_err() {
            // An alert: worth one try.
            let _ = self.poll_send(cx);
        }
        Poll::Ready(opened)
    }

    /// Sends all records there are.
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
        match self.records.has_text() {
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
        let me = self.get_mut();
        let before = reader.filled().len();
        while !me.records.read_kept(reader) && !me.records.is_over {
            ready!(me.poll_receive(cx, reader))?;
            if reader.filled().len() > before {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ServerTlsStream {
    /// What is written goes out when it fills records, or at a flush.
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
        let me = self.get_mut();
        if me.records.is_full() {
            ready!(me.poll_send(cx))?;
        }
        let mut taken = 0;
        for piece in pieces {
            let count = me.records.take(piece)?;
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
        let me = self.get_mut();
        me.records.seal()?;
        me.poll_send(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        me.records.say_goodbye()?;
        ready!(me.poll_send(cx))?;
        match ready!(Pin::new(&mut me.tcp).poll_shutdown(cx)) {
            Err(error) if error.kind() != ErrorKind::NotConnected => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(())),
        }
    }
}
