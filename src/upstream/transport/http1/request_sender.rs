//! Sends one request: its head, then its body as fast as the client supplies it and the upstream
//! reads it.

use std::io::{self, IoSlice, Write as _};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use http_body::Body;
use tokio::io::AsyncWrite as _;
use tokio::time::Instant;

use crate::clock;
use crate::upstream::transport::outbound_request::{OutboundFields, OutboundRequest};
use crate::upstream::transport::response_error::ResponseError;
use crate::upstream::transport::tracked_stream::TrackedStream;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Smaller pieces of a body are copied behind the bytes that wait to be written, so that they go out
/// in one write; larger ones are written where they are.
const COPIED: usize = 4 * 1024;
/// Room for most heads with a small body; a buffer of this size stays with an idle connection.
const KEPT_BUFFER: usize = 2048;

/// The request of a connection. No `Debug`: the buffer has the credential.
pub(super) struct RequestSender<B> {
    /// Head, sizes of chunks, and small pieces; the first `written` bytes have been written.
    buffer: Vec<u8>,
    written: usize,
    /// Written after `buffer`.
    piece: Bytes,
    body: Upload<B>,
    has_written: bool,
    progress: UploadStep,
}

/// What is still to be read of the body.
enum Upload<B> {
    Length {
        body: B,
        left: u64,
    },
    Chunked {
        body: B,
        trailers: Vec<HeaderName>,
    },
    /// Everything is in the buffers.
    Complete,
    /// Everything is written.
    Sent,
}

/// When the upload moved last.
#[derive(Clone, Copy, Debug)]
struct UploadStep {
    at: Instant,
    /// Whether there is a body: else the head is the only step.
    has_body: bool,
    /// The client owes the next piece.
    is_starved: bool,
    has_failed: bool,
}

impl<B> RequestSender<B> {
    pub(super) fn new() -> Self {
        Self {
            buffer: Vec::new(),
            written: 0,
            piece: Bytes::new(),
            body: Upload::Sent,
            has_written: false,
            progress: UploadStep::now(false),
        }
    }

    /// Whether the request has been sent to its end.
    pub(super) fn is_sent(&self) -> bool {
        matches!(self.body, Upload::Sent)
    }

    /// Whether no byte of the request was taken by the socket.
    pub(super) fn is_unsent(&self) -> bool {
        !self.has_written
    }

    /// When the response is late, `first_byte` after the last step of the request. The time of a slow
    /// client does not count: its own deadline is enforced where its body is read.
    pub(super) fn deadline(&self, first_byte: Duration) -> Instant {
        let from = match self.is_client_owing() {
            true => clock::now(),
            false => self.progress.at,
        };
        from.checked_add(first_byte)
            .unwrap_or_else(|| from + Duration::from_secs(365 * 86_400))
    }

    /// How long the exchange has waited for the upstream; None while it waits for the client.
    pub(super) fn owed_for(&self) -> Option<Duration> {
        let is_owed = !self.is_client_owing() && !self.progress.has_failed;
        is_owed.then(|| self.progress.at.elapsed())
    }

    fn is_client_owing(&self) -> bool {
        self.progress.is_starved && !self.has_unwritten()
    }

    fn has_unwritten(&self) -> bool {
        self.written < self.buffer.len() || !self.piece.is_empty()
    }

    /// Gives back a buffer that was large.
    pub(super) fn rest(&mut self) {
        if self.buffer.capacity() > KEPT_BUFFER {
            self.buffer = Vec::new();
        }
    }
}

impl<B> RequestSender<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    /// Takes the next request; the one before it was sent.
    pub(super) fn begin(&mut self, request: OutboundRequest<'_, B>) {
        self.buffer.clear();
        self.buffer.reserve(KEPT_BUFFER);
        self.written = 0;
        self.has_written = false;
        let OutboundRequest {
            method,
            target,
            fields,
            body,
        } = request;
        for part in [method.as_str(), " ", target, " HTTP/1.1\r\n"] {
            self.buffer.extend_from_slice(part.as_bytes());
        }
        for (name, value) in fields.iter() {
            put_field(&mut self.buffer, name, value.as_bytes());
        }
        self.body = self.frame(&fields, body);
        self.progress = UploadStep::now(!matches!(self.body, Upload::Complete));
        self.buffer.extend_from_slice(b"\r\n");
    }

    /// Decides how the body is framed: by the fields of the request, or where it has none, by what the
    /// body says of its length.
    fn frame(&mut self, fields: &OutboundFields<'_>, body: B) -> Upload<B> {
        let is_chunked = fields.contains("transfer-encoding");
        let length = fields
            .get("content-length")
            .and_then(|length| length.to_str().ok());
        let declared = length.and_then(|length| length.parse().ok());
        let left = match (is_chunked, declared, body.size_hint().exact()) {
            (false, Some(declared), _) => declared,
            (false, None, Some(0)) => 0,
            (false, None, Some(exact)) => {
                let _ = write!(self.buffer, "content-length: {exact}\r\n");
                exact
            }
            _ => {
                if !is_chunked {
                    put_field(&mut self.buffer, "transfer-encoding", b"chunked");
                }
                let trailers = announced_trailers(fields);
                return Upload::Chunked { body, trailers };
            }
        };
        match left {
            0 => Upload::Complete,
            left => Upload::Length { body, left },
        }
    }

    /// Ready when everything is written. A failed write is not reported: `TrackedStream` holds it back
    /// until all of the response has been read.
    pub(super) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut TrackedStream,
    ) -> Poll<Result<(), ResponseError>> {
        while !self.is_sent() {
            self.take_pieces(cx)?;
            if self.has_unwritten() {
                let count = ready!(self.poll_write(cx, stream)).map_err(ResponseError::Write)?;
                self.note_written(count);
                continue;
            }
            ready!(Pin::new(&mut *stream).poll_flush(cx)).map_err(ResponseError::Write)?;
            if !matches!(self.body, Upload::Complete) {
                return Poll::Pending; // the client owes a piece
            }
            self.body = Upload::Sent;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads the body until a large piece, or enough small ones, wait to be written.
    fn take_pieces(&mut self, cx: &mut Context<'_>) -> Result<(), ResponseError> {
        while self.piece.is_empty() && self.buffer.len() - self.written < COPIED {
            let body = match &mut self.body {
                Upload::Length { body, .. } | Upload::Chunked { body, .. } => body,
                Upload::Complete | Upload::Sent => return Ok(()),
            };
            let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) else {
                self.progress.is_starved = true;
                return Ok(());
            };
            self.progress = UploadStep::now(true);
            let taken = match frame {
                None => self.end_body(None),
                Some(Err(error)) => Err(ResponseError::RequestBody(error.into())),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.take_data(data),
                    Err(frame) => self.end_body(frame.trailers_ref()),
                },
            };
            self.progress.has_failed = taken.is_err();
            taken?;
        }
        Ok(())
    }

    fn take_data(&mut self, data: Bytes) -> Result<(), ResponseError> {
        let is_chunked = match &mut self.body {
            Upload::Length { left, .. } => {
                let length = data.len() as u64;
                *left = left
                    .checked_sub(length)
                    .ok_or(ResponseError::RequestLength)?;
                if *left == 0 {
                    self.body = Upload::Complete;
                }
                false
            }
            _ => true,
        };
        if data.is_empty() {
            return Ok(());
        }
        if is_chunked {
            let _ = write!(self.buffer, "{:x}\r\n", data.len());
        }
        if data.len() > COPIED {
            self.piece = data;
            return Ok(());
        }
        self.buffer.extend_from_slice(&data);
        if is_chunked {
            self.buffer.extend_from_slice(b"\r\n");
        }
        Ok(())
    }

    fn end_body(&mut self, trailers: Option<&HeaderMap>) -> Result<(), ResponseError> {
        match std::mem::replace(&mut self.body, Upload::Complete) {
            Upload::Length { .. } => return Err(ResponseError::RequestLength),
            Upload::Chunked {
                trailers: announced,
                ..
            } => {
                self.buffer.extend_from_slice(b"0\r\n");
                for (name, value) in trailers.into_iter().flatten() {
                    if announced.contains(name) {
                        put_field(&mut self.buffer, name.as_str(), value.as_bytes());
                    }
                }
                self.buffer.extend_from_slice(b"\r\n");
            }
            Upload::Complete | Upload::Sent => {}
        }
        Ok(())
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut TrackedStream,
    ) -> Poll<io::Result<usize>> {
        let both = [
            IoSlice::new(&self.buffer[self.written..]),
            IoSlice::new(&self.piece),
        ];
        let filled = match (both[0].is_empty(), both[1].is_empty()) {
            (false, true) => &both[..1],
            (true, false) => &both[1..],
            _ => &both[..],
        };
        match ready!(Pin::new(stream).poll_write_vectored(cx, filled))? {
            0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            count => Poll::Ready(Ok(count)),
        }
    }

    fn note_written(&mut self, count: usize) {
        self.has_written = true;
        if self.progress.has_body {
            self.progress.at = clock::now();
        }
        let of_buffer = count.min(self.buffer.len() - self.written);
        self.written += of_buffer;
        if self.written == self.buffer.len() {
            self.buffer.clear();
            self.written = 0;
        }
        if count == of_buffer {
            return;
        }
        let _ = self.piece.split_to(count - of_buffer);
        if self.piece.is_empty() {
            self.piece = Bytes::new();
            if matches!(self.body, Upload::Chunked { .. }) {
                self.buffer.extend_from_slice(b"\r\n");
            }
        }
    }
}

impl UploadStep {
    fn now(has_body: bool) -> Self {
        Self {
            at: clock::now(),
            has_body,
            is_starved: false,
            has_failed: false,
        }
    }
}

fn put_field(head: &mut Vec<u8>, name: &str, value: &[u8]) {
    head.extend_from_slice(name.as_bytes());
    head.extend_from_slice(b": ");
    head.extend_from_slice(value);
    head.extend_from_slice(b"\r\n");
}

/// The names in `Trailer`: other trailers are not sent (RFC 9110, 6.5.1).
fn announced_trailers(fields: &OutboundFields<'_>) -> Vec<HeaderName> {
    let lines = fields.get_all("trailer");
    let names = lines.filter_map(|line| line.to_str().ok());
    let names = names.flat_map(|line| line.split(','));
    names.filter_map(|name| name.trim().parse().ok()).collect()
}
