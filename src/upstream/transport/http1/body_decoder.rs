//! Cuts the body of a response from the bytes received, as its framing says (RFC 9112, 6.3 and 7.1).

use bytes::{Buf as _, Bytes, BytesMut};
use http::HeaderMap;
use httparse::Status;

use super::response_head;
use crate::upstream::transport::framing::BodyFraming;
use crate::upstream::transport::response_error::ResponseError;

/// Bytes of a line with a chunk's size, extensions included.
const MAX_SIZE_LINE: usize = 4 * 1024;
/// Bytes of all such lines of a body beyond 16 for each: extensions say nothing to anyone, so a body
/// made of them is an attack.
const MAX_EXTENSIONS: usize = 16 * 1024;
/// Bytes of a trailer section.
const MAX_TRAILERS: usize = 16 * 1024;
/// What follows the data of the last chunk when there are no trailers.
const LAST_CHUNK: &[u8] = b"\r\n0\r\n\r\n";

/// The rest of a body.
#[derive(Debug)]
pub(super) enum BodyDecoder {
    /// This many bytes.
    Length(u64),
    Chunked(ChunkDecoder),
    UntilClose,
    Ended,
}

/// What the received bytes hold next.
#[derive(Debug)]
pub(super) enum DecodedPart {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
    /// Not enough bytes yet.
    Incomplete,
}

#[derive(Debug)]
pub(super) struct ChunkDecoder {
    next: ChunkPart,
    extension_bytes: usize,
}

#[derive(Clone, Copy, Debug)]
enum ChunkPart {
    Size,
    /// Bytes of data that are left.
    Data(u64),
    /// The line end after the data.
    DataEnd,
    Trailers,
}

impl BodyDecoder {
    pub(super) fn new(framing: BodyFraming) -> Self {
        match framing {
            BodyFraming::Empty | BodyFraming::Length(0) => Self::Ended,
            BodyFraming::Length(length) => Self::Length(length),
            BodyFraming::Chunked => Self::Chunked(ChunkDecoder {
                next: ChunkPart::Size,
                extension_bytes: 0,
            }),
            BodyFraming::UntilClose => Self::UntilClose,
        }
    }

    pub(super) fn is_ended(&self) -> bool {
        matches!(self, Self::Ended)
    }

    /// Bytes that are left; None: not known.
    pub(super) fn remaining(&self) -> Option<u64> {
        match self {
            Self::Ended => Some(0),
            Self::Length(length) => Some(*length),
            Self::Chunked(_) | Self::UntilClose => None,
        }
    }

    /// Takes the next part off `received`.
    pub(super) fn decode(&mut self, received: &mut BytesMut) -> Result<DecodedPart, ResponseError> {
        let part = match self {
            Self::Ended => return Ok(DecodedPart::End),
            _ if received.is_empty() => return Ok(DecodedPart::Incomplete),
            Self::UntilClose => return Ok(DecodedPart::Data(received.split().freeze())),
            Self::Length(left) => {
                let data = take_data(received, left);
                if *left == 0 {
                    *self = Self::Ended;
                }
                return Ok(DecodedPart::Data(data));
            }
            Self::Chunked(chunks) => chunks.decode(received)?,
        };
        if matches!(part, ChunkOutcome::LastData(_) | ChunkOutcome::Trailers(_)) {
            *self = Self::Ended;
        }
        Ok(match part {
            ChunkOutcome::Data(data) | ChunkOutcome::LastData(data) => DecodedPart::Data(data),
            ChunkOutcome::Trailers(fields) if fields.is_empty() => DecodedPart::End,
            ChunkOutcome::Trailers(fields) => DecodedPart::Trailers(fields),
            ChunkOutcome::Incomplete => DecodedPart::Incomplete,
        })
    }

    /// The connection has ended: whether the body has ended with it.
    pub(super) fn close(&mut self) -> Result<(), ResponseError> {
        match self {
            Self::UntilClose | Self::Ended => {
                *self = Self::Ended;
                Ok(())
            }
            Self::Length(_) | Self::Chunked(_) => Err(ResponseError::BodyCut),
        }
    }
}

enum ChunkOutcome {
    Data(Bytes),
    /// The body has ended with it.
    LastData(Bytes),
    /// The body has ended; empty if there were none.
    Trailers(HeaderMap),
    Incomplete,
}

impl ChunkDecoder {
    fn decode(&mut self, received: &mut BytesMut) -> Result<ChunkOutcome, ResponseError> {
        loop {
            let is_complete = match &mut self.next {
                ChunkPart::Size => self.take_size(received)?,
                ChunkPart::Data(_) if received.is_empty() => false,
                ChunkPart::Data(left) => {
                    let data = take_data(received, left);
                    if *left > 0 {
                        return Ok(ChunkOutcome::Data(data));
                    }
                    self.next = ChunkPart::DataEnd;
                    // Mostly it is there already, and the connection is free at once.
                    if received.starts_with(LAST_CHUNK) {
                        received.advance(LAST_CHUNK.len());
                        return Ok(ChunkOutcome::LastData(data));
                    }
                    return Ok(ChunkOutcome::Data(data));
                }
                ChunkPart::DataEnd => self.take_data_end(received)?,
                ChunkPart::Trailers => match response_head::trailers(received)? {
                    Some(trailers) if trailers.length <= MAX_TRAILERS => {
                        received.advance(trailers.length);
                        return Ok(ChunkOutcome::Trailers(trailers.fields));
                    }
                    None if received.len() < MAX_TRAILERS => false,
                    _ => return Err(ResponseError::Trailers),
                },
            };
            if !is_complete {
                return Ok(ChunkOutcome::Incomplete);
            }
        }
    }

    /// False: the line is not complete yet.
    fn take_size(&mut self, received: &mut BytesMut) -> Result<bool, ResponseError> {
        match httparse::parse_chunk_size(received) {
            Ok(Status::Complete((length, size))) if length <= MAX_SIZE_LINE => {
                self.extension_bytes += length.saturating_sub(16);
                if self.extension_bytes > MAX_EXTENSIONS {
                    return Err(ResponseError::Chunk);
                }
                received.advance(length);
                self.next = match size {
                    0 => ChunkPart::Trailers,
                    size => ChunkPart::Data(size),
                };
                Ok(true)
            }
            Ok(Status::Partial) if received.len() < MAX_SIZE_LINE => Ok(false),
            _ => Err(ResponseError::Chunk),
        }
    }

    fn take_data_end(&mut self, received: &mut BytesMut) -> Result<bool, ResponseError> {
        match received.get(..2) {
            Some(b"\r\n") => {
                received.advance(2);
                self.next = ChunkPart::Size;
                Ok(true)
            }
            None if received.is_empty() || received[0] == b'\r' => Ok(false),
            _ => Err(ResponseError::Chunk),
        }
    }
}

/// Takes at most `left` bytes, and counts them.
fn take_data(received: &mut BytesMut, left: &mut u64) -> Bytes {
    let length = usize::try_from(*left).map_or(received.len(), |left| left.min(received.len()));
    *left -= length as u64;
    received.split_to(length).freeze()
}
