//! The TLS records of one connection. rustls implements the protocol and holds the keys; the bytes
//! are in buffers borrowed from the worker's pool, so that an idle connection holds none.
//!
//! Only this file uses the unbuffered API of rustls. tokio-rustls was measured in its place on
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

/// Offset in a write buffer: encrypted records are below, the plaintext of the next record above.
const DRAFT: usize = SIZE - RECORD;
/// Largest incomplete record or handshake message that is accepted.
const MAX_PART: usize = 64 * 1024;

/// One connection's state between encrypted bytes and plaintext.
pub(super) struct RecordLayer {
    tls: UnbufferedServerConnection,
    pub(super) buffers: Arc<BufferPool>,
    /// The beginning of an incomplete record.
    pub(super) part: Vec<u8>,
    /// Plaintext that the reader has not taken yet, from `consumed` on.
    plaintext: Vec<u8>,
    consumed: usize,
    out: Option<WriteBuffer>,
    /// Encrypted bytes that wait for the next record, without holding a pool buffer.
    deferred: Vec<u8>,
    /// The peer has sent close_notify.
    pub(super) is_over: bool,
    has_sent_close: bool,
}

/// A write to be done as soon as the protocol state allows it.
#[derive(Clone, Copy)]
enum WriteOp<'w> {
    Nothing,
    Encrypt(&'w [u8]),
    EncryptDraft,
    CloseNotify,
}

/// Encrypted records on their way to the socket, and the plaintext of the next one.
struct WriteBuffer {
    buffer: PooledBuffer,
    sent: usize,
    end: usize,
    /// Plaintext bytes from offset `DRAFT` on.
    draft: usize,
}

impl RecordLayer {
    pub(super) fn new(config: Arc<ServerConfig>, buffers: Arc<BufferPool>) -> io::Result<Self> {
        Ok(Self {
            tls: UnbufferedServerConnection::new(config).map_err(broken)?,
            buffers,
            part: Vec::new(),
            plaintext: Vec::new(),
            consumed: 0,
            out: None,
            deferred: Vec::new(),
            is_over: false,
            has_sent_close: false,
        })
    }

    pub(super) fn is_handshaking(&self) -> bool {
        self.tls.is_handshaking()
    }

    pub(super) fn version(&self) -> Option<ProtocolVersion> {
        self.tls.protocol_version()
    }

    /// The protocol both sides agreed on (RFC 7301).
    pub(super) fn alpn(&self) -> Option<&[u8]> {
        self.tls.alpn_protocol()
    }

    /// Decrypts `bytes`: the incomplete part and what was received after it. The plaintext goes to
    /// `reader`, and what does not fit is buffered.
    pub(super) fn open(&mut self, bytes: &mut [u8], reader: &mut ReadBuf<'_>) -> io::Result<()> {
        let done = self.drive(bytes, WriteOp::Nothing, reader)?;
        let part = if self.is_over { &[] } else { &bytes[done..] };
        if part.len() > MAX_PART {
            return Err(broken("a TLS message of more than 64 KiB"));
        }
        self.part = part.to_vec();
        Ok(())
    }

    /// Moves buffered plaintext to `reader`; false if there is none.
    pub(super) fn read_buffered(&mut self, reader: &mut ReadBuf<'_>) -> bool {
        let buffered = &self.plaintext[self.consumed..];
        if buffered.is_empty() {
            return false;
        }
        let count = buffered.len().min(reader.remaining());
        reader.put_slice(&buffered[..count]);
        self.consumed += count;
        if self.consumed == self.plaintext.len() {
            (self.plaintext, self.consumed) = (Vec::new(), 0);
        }
        true
    }

    pub(super) fn has_buffered(&self) -> bool {
        self.consumed < self.plaintext.len()
    }

    /// Takes plaintext to be sent. Returns how many bytes; 0 if records must be sent first.
    pub(super) fn write(&mut self, mut piece: &[u8]) -> io::Result<usize> {
        let whole = piece.len();
        while !piece.is_empty() && !self.is_full() {
            let draft = self.out().draft;
            let count = (RECORD - draft).min(piece.len());
            let (now, later) = piece.split_at(count);
            if count == RECORD {
                self.run(WriteOp::Encrypt(now))?;
            } else {
                let out = self.out();
                out.buffer[DRAFT + draft..][..count].copy_from_slice(now);
                out.draft += count;
                if out.draft == RECORD {
                    self.encrypt_draft()?;
                }
            }
            piece = later;
        }
        Ok(whole - piece.len())
    }

    /// Whether there is no room for another record.
    pub(super) fn is_full(&self) -> bool {
        self.out
            .as_ref()
            .is_some_and(|out| DRAFT - out.end < RECORD + 2 * OVERHEAD)
    }

    /// Encrypts the buffered plaintext into a TLS record.
    pub(super) fn encrypt_draft(&mut self) -> io::Result<()> {
        match &self.out {
            Some(out) if out.draft > 0 => self.run(WriteOp::EncryptDraft),
            _ => Ok(()),
        }
    }

    /// Keeps unsent records for the next write, and returns the buffer to the pool.
    pub(super) fn defer_write(&mut self) {
        if let Some(out) = self.out.take() {
            self.deferred = out.buffer[out.sent..out.end].to_vec();
        }
    }

    /// Makes the deferred records available to `unsent` again.
    pub(super) fn resume_write(&mut self) {
        if !self.deferred.is_empty() {
            self.out();
        }
    }

    /// Queues close_notify, after which nothing more is sent.
    pub(super) fn close_notify(&mut self) -> io::Result<()> {
        if self.has_sent_close {
            return Ok(());
        }
        self.has_sent_close = true;
        self.encrypt_draft()?;
        self.run(WriteOp::CloseNotify)
    }

    /// Encrypted bytes for the socket.
    pub(super) fn unsent(&self) -> &[u8] {
        self.out
            .as_ref()
            .map_or(&[], |out| &out.buffer[out.sent..out.end])
    }

    /// Notes that the socket took `count` bytes of `unsent`.
    pub(super) fn sent(&mut self, count: usize) {
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
            .get_or_insert_with(|| WriteBuffer::new(&self.buffers, &mut self.deferred))
    }

    fn run(&mut self, op: WriteOp<'_>) -> io::Result<()> {
        // rustls needs the incomplete part again that it has seen before.
        let mut part = std::mem::take(&mut self.part);
        let done = self.drive(&mut part, op, &mut ReadBuf::new(&mut []))?;
        part.drain(..done);
        self.part = part;
        Ok(())
    }

    /// Lets rustls process `bytes` until it needs more, and then do `op`. Returns how many of `bytes`
    /// have been consumed.
    fn drive(
        &mut self,
        bytes: &mut [u8],
        op: WriteOp<'_>,
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
                        self.plaintext.extend_from_slice(later);
                    }
                }
                Ok(ConnectionState::EncodeTlsData(message)) => {
                    let out = self
                        .out
                        .get_or_insert_with(|| WriteBuffer::new(&self.buffers, &mut self.deferred));
                    out.encode(message)?;
                }
                Ok(ConnectionState::TransmitTlsData(message)) => message.done(),
                Ok(ConnectionState::PeerClosed) => self.is_over = true,
                Ok(ConnectionState::WriteTraffic(traffic)) => {
                    if !matches!(op, WriteOp::Nothing) {
                        let out = self.out.get_or_insert_with(|| {
                            WriteBuffer::new(&self.buffers, &mut self.deferred)
                        });
                        out.apply(op, traffic)?;
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

    /// Queues the alert for a peer that broke the protocol.
    fn alert(&mut self, rest: &mut [u8]) {
        let next = self.tls.process_tls_records(rest);
        if let Ok(ConnectionState::EncodeTlsData(message)) = next.state {
            let out = self
                .out
                .get_or_insert_with(|| WriteBuffer::new(&self.buffers, &mut self.deferred));
            // Without room the peer does not read, and the alert is dropped.
            let _ = out.encode(message);
        }
    }
}

impl WriteBuffer {
    fn new(buffers: &Arc<BufferPool>, deferred: &mut Vec<u8>) -> Self {
        let mut buffer = buffers.acquire();
        let end = deferred.len();
        buffer[..end].copy_from_slice(&std::mem::take(deferred));
        Self {
            buffer,
            sent: 0,
            end,
            draft: 0,
        }
    }

    fn encode<D>(&mut self, mut message: EncodeTlsData<'_, D>) -> io::Result<()> {
        let count = message.encode(&mut self.buffer[self.end..DRAFT]);
        self.end += count.map_err(broken)?;
        Ok(())
    }

    fn apply<D>(&mut self, op: WriteOp<'_>, mut traffic: WriteTraffic<'_, D>) -> io::Result<()> {
        let (records, text) = self.buffer.split_at_mut(DRAFT);
        let records = &mut records[self.end..];
        let count = match op {
            WriteOp::Nothing => return Ok(()),
            WriteOp::Encrypt(text) => traffic.encrypt(text, records),
            WriteOp::EncryptDraft => {
                let draft = std::mem::take(&mut self.draft);
                traffic.encrypt(&text[..draft], records)
            }
            WriteOp::CloseNotify => traffic.queue_close_notify(records),
        };
        self.end += count.map_err(broken)?;
        Ok(())
    }
}

/// The error of a broken TLS protocol.
fn broken(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, error)
}
