//! TLS records of one connection. rustls does the protocol and keeps the keys; the
//! bytes lie in buffers that the worker lends, so that an idle connection holds none.
//!
//! Only this file uses rustls' unbuffered API. tokio-rustls was measured in its place on
//! 2026-11-30, by the guard, by 10,000 connections at rest and by CPU time under `h2load`: an
//! idle connection holds 11.5 KiB instead of 7.5, and a POST of 64 KiB takes 417,000
//! instructions instead of 382,000 and 70 µs instead of 63. Downloads get cheaper, by a tenth
//! of their time; all figures are in docs/PERFORMANCE-NOTES.md.

use std::io::{self, ErrorKind};
use std::sync::Arc;

use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeTlsData, UnbufferedStatus, WriteTraffic};
use rustls::{ProtocolVersion, ServerConfig};
use tokio::io::ReadBuf;

use super::buffer_pool::{BufferPool, OVERHEAD, PooledBuffer, RECORD, SIZE};

/// Records to be sent lie below, the text of the next one above.
const DRAFT: usize = SIZE - RECORD;
/// More than that is no record, and no handshake message that anybody needs.
const LARGEST_PART: usize = 64 * 1024;

/// One connection's state between its bytes and its text.
pub(super) struct RecordLayer {
    tls: UnbufferedServerConnection,
    pub(super) buffers: Arc<BufferPool>,
    /// The beginning of a record whose end has not come.
    pub(in crate::listener) part: Vec<u8>,
    /// Text that the reader had no room for, from `taken` on.
    text: Vec<u8>,
    taken: usize,
    out: Option<WriteBuffer>,
    /// A few bytes that may wait for the next record: not worth a buffer.
    late: Vec<u8>,
    /// The peer has said that nothing more comes.
    pub(in crate::listener) is_over: bool,
    has_said_goodbye: bool,
}

/// What is to be done as soon as the protocol allows it.
#[derive(Clone, Copy)]
enum WriteOp<'w> {
    Nothing,
    Seal(&'w [u8]),
    SealDraft,
    Goodbye,
}

/// Records on their way to the socket.
struct WriteBuffer {
    buffer: PooledBuffer,
    sent: usize,
    end: usize,
    /// Bytes of text from `DRAFT` on.
    draft: usize,
}

impl RecordLayer {
    pub(in crate::listener) fn new(
        config: Arc<ServerConfig>,
        buffers: Arc<BufferPool>,
    ) -> io::Result<Self> {
        Ok(Self {
            tls: UnbufferedServerConnection::new(config).map_err(broken)?,
            buffers,
            part: Vec::new(),
            text: Vec::new(),
            taken: 0,
            out: None,
            late: Vec::new(),
            is_over: false,
            has_said_goodbye: false,
        })
    }

    pub(super) fn is_handshaking(&self) -> bool {
        self.tls.is_handshaking()
    }

    pub(super) fn version(&self) -> Option<ProtocolVersion> {
        self.tls.protocol_version()
    }

    /// What the two sides agreed to speak (RFC 7301).
    pub(super) fn alpn(&self) -> Option<&[u8]> {
        self.tls.alpn_protocol()
    }

    /// Decrypts `bytes`: the part that was kept, and what came after it. Their text goes
    /// to `reader`, as far as it fits.
    pub(in crate::listener) fn open(
        &mut self,
        bytes: &mut [u8],
        reader: &mut ReadBuf<'_>,
    ) -> io::Result<()> {
        let done = self.drive(bytes, WriteOp::Nothing, reader)?;
        let part = if self.is_over { &[] } else { &bytes[done..] };
        if part.len() > LARGEST_PART {
            return Err(broken("a TLS message of more than 64 KiB"));
        }
        self.part = part.to_vec();
        Ok(())
    }

    /// Gives `reader` text that was kept for it; false if there was none.
    pub(super) fn read_kept(&mut self, reader: &mut ReadBuf<'_>) -> bool {
        let kept = &self.text[self.taken..];
        if kept.is_empty() {
            return false;
        }
        let count = kept.len().min(reader.remaining());
        reader.put_slice(&kept[..count]);
        self.taken += count;
        if self.taken == self.text.len() {
            (self.text, self.taken) = (Vec::new(), 0);
        }
        true
    }

    pub(super) fn has_text(&self) -> bool {
        self.taken < self.text.len()
    }

    /// Takes text to be sent; gives how much of it, 0 when records must leave first.
    pub(in crate::listener) fn take(&mut self, mut piece: &[u8]) -> io::Result<usize> {
        let whole = piece.len();
        while !piece.is_empty() && !self.is_full() {
            let draft = self.out().draft;
            let count = (RECORD - draft).min(piece.len());
            let (now, later) = piece.split_at(count);
            if count == RECORD {
                self.wish(WriteOp::Seal(now))?;
            } else {
                let out = self.out();
                out.buffer[DRAFT + draft..][..count].copy_from_slice(now);
                out.draft += count;
                if out.draft == RECORD {
                    self.seal()?;
                }
            }
            piece = later;
        }
        Ok(whole - piece.len())
    }

    /// No room for another record.
    pub(super) fn is_full(&self) -> bool {
        self.out
            .as_ref()
            .is_some_and(|out| DRAFT - out.end < RECORD + 2 * OVERHEAD)
    }

    /// Makes a record of the text that was taken and lies about.
    pub(super) fn seal(&mut self) -> io::Result<()> {
        match &self.out {
            Some(out) if out.draft > 0 => self.wish(WriteOp::SealDraft),
            _ => Ok(()),
        }
    }

    /// What is to be sent may wait for the next record.
    pub(super) fn defer_write(&mut self) {
        if let Some(out) = self.out.take() {
            self.late = out.buffer[out.sent..out.end].to_vec();
        }
    }

    /// It has waited for long enough.
    pub(super) fn resume_write(&mut self) {
        if !self.late.is_empty() {
            self.out();
        }
    }

    /// The last record: nothing more comes from here.
    pub(super) fn say_goodbye(&mut self) -> io::Result<()> {
        if self.has_said_goodbye {
            return Ok(());
        }
        self.has_said_goodbye = true;
        self.seal()?;
        self.wish(WriteOp::Goodbye)
    }

    /// Bytes for the socket.
    pub(in crate::listener) fn unsent(&self) -> &[u8] {
        self.out
            .as_ref()
            .map_or(&[], |out| &out.buffer[out.sent..out.end])
    }

    /// The socket took `count` of them.
    pub(in crate::listener) fn sent(&mut self, count: usize) {
        if let Some(out) = &mut self.out {
            out.sent += count;
            if out.sent == out.end {
                (out.sent, out.end) = (0, 0);
                if out.draft == 0 {
                    self.out = None;
                }
            }
        }
    }

    fn out(&mut self) -> &mut WriteBuffer {
        self.out
            .get_or_insert_with(|| WriteBuffer::new(&self.buffers, &mut self.late))
    }

    fn wish(&mut self, wish: WriteOp<'_>) -> io::Result<()> {
        // rustls must see the part that it has seen before.
        let mut part = std::mem::take(&mut self.part);
        let done = self.drive(&mut part, wish, &mut ReadBuf::new(&mut []))?;
        part.drain(..done);
        self.part = part;
        Ok(())
    }

    /// Lets rustls work on `bytes` until it needs more, and then do `wish`. Gives how
    /// many of `bytes` are done with.
    fn drive(
        &mut self,
        bytes: &mut [u8],
        wish: WriteOp<'_>,
        reader: &mut ReadBuf<'_>,
    ) -> io::Result<usize> {
        let mut done = 0;
        loop {
            let UnbufferedStatus { mut discard, state } =
                self.tls.process_tls_records(&mut bytes[done..]);
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.map_err(broken)?;
                        discard += record.discard;
                        let count = record.payload.len().min(reader.remaining());
                        let (now, later) = record.payload.split_at(count);
                        reader.put_slice(now);
                        self.text.extend_from_slice(later);
                    }
                }
                Ok(ConnectionState::EncodeTlsData(words)) => {
                    let out = self
                        .out
                        .get_or_insert_with(|| WriteBuffer::new(&self.buffers, &mut self.late));
                    out.put(words)?;
                }
                Ok(ConnectionState::TransmitTlsData(words)) => words.done(),
                Ok(ConnectionState::PeerClosed) => self.is_over = true,
                Ok(ConnectionState::WriteTraffic(traffic)) => {
                    if !matches!(wish, WriteOp::Nothing) {
                        let out = self
                            .out
                            .get_or_insert_with(|| WriteBuffer::new(&self.buffers, &mut self.late));
                        out.fulfil(wish, traffic)?;
                    }
                    return Ok(done + discard);
                }
                Ok(_) => return Ok(done + discard), // in the handshake, or after the end
                Err(error) => {
                    self.alert(&mut bytes[done + discard..]);
                    return Err(broken(error));
                }
            }
            done += discard;
        }
    }

    /// The words for the peer about what it did wrong.
    fn alert(&mut self, rest: &mut [u8]) {
        let next = self.tls.process_tls_records(rest);
        if let Ok(ConnectionState::EncodeTlsData(words)) = next.state {
            let out = self
                .out
                .get_or_insert_with(|| WriteBuffer::new(&self.buffers, &mut self.late));
            // No room: the peer does not read them anyway.
            let _ = out.put(words);
        }
    }
}

impl WriteBuffer {
    fn new(buffers: &Arc<BufferPool>, late: &mut Vec<u8>) -> Self {
        let mut buffer = buffers.lend();
        let end = late.len();
        buffer[..end].copy_from_slice(&std::mem::take(late));
        Self {
            buffer,
            sent: 0,
            end,
            draft: 0,
        }
    }

    fn put<D>(&mut self, mut words: EncodeTlsData<'_, D>) -> io::Result<()> {
        let count = words.encode(&mut self.buffer[self.end..DRAFT]);
        self.end += count.map_err(broken)?;
        Ok(())
    }

    fn fulfil<D>(&mut self, wish: WriteOp<'_>, mut traffic: WriteTraffic<'_, D>) -> io::Result<()> {
        let (records, text) = self.buffer.split_at_mut(DRAFT);
        let records = &mut records[self.end..];
        let count = match wish {
            WriteOp::Nothing => return Ok(()),
            WriteOp::Seal(text) => traffic.encrypt(text, records),
            WriteOp::SealDraft => {
                let draft = std::mem::take(&mut self.draft);
                traffic.encrypt(&text[..draft], records)
            }
            WriteOp::Goodbye => traffic.queue_close_notify(records),
        };
        self.end += count.map_err(broken)?;
        Ok(())
    }
}

/// The peer, or the two of us together, broke the protocol.
fn broken(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, error)
}
