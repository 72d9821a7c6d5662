//! The position of the framing guard in a connection's bytes.

use super::chunk_extension::ChunkExtension;
use super::fault::FramingFault;
use super::request_line::LinePart;
use crate::config;

const CHUNKED: &[u8] = b"chunked";

/// Limits of a request head.
#[derive(Clone, Copy, Debug)]
pub(in crate::listener) struct HeadLimits {
    /// Bytes of the request line, the field lines and the empty lines.
    pub(in crate::listener) bytes: usize,
    pub(in crate::listener) fields: usize,
}

impl From<&config::Listener> for HeadLimits {
    fn from(settings: &config::Listener) -> Self {
        Self {
            bytes: settings.max_header_bytes,
            fields: settings.max_headers,
        }
    }
}

/// The kind of lines being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LineSection {
    Request,
    Fields,
    Trailers,
    ChunkSize,
}

/// Where in the message the next byte is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ParsePosition {
    LineStart,
    Line(LinePart),
    /// In a field name that has matched `LENGTH` or `CODING` so far, or is `OTHER`.
    Name {
        wanted: &'static [u8],
        matched: usize,
    },
    LengthValue(DigitState),
    CodingValue {
        matched: usize,
    },
    /// After a value, before its CR.
    Padding,
    /// In a field value without meaning for framing.
    Value,
    /// After the CR of an empty line.
    EmptyLineLf,
    LineLf,
    Body(u64),
    ChunkSize(DigitState, u64),
    Extension(ChunkExtension),
    Chunk(u64),
    ChunkCr,
    ChunkLf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DigitState {
    None,
    Some,
}

/// The byte that broke a rule, as an offset into the checked bytes, and the rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::listener) struct FramingViolation {
    pub(in crate::listener) at: usize,
    pub(in crate::listener) fault: FramingFault,
}

impl ParsePosition {
    /// The position after a byte of the value of `Transfer-Encoding`, which must be `chunked`.
    pub(super) fn coding(matched: usize, byte: u8) -> Option<Self> {
        match CHUNKED.get(matched) {
            Some(letter) if letter.eq_ignore_ascii_case(&byte) => Some(Self::CodingValue {
                matched: matched + 1,
            }),
            Some(_) => None,
            None if byte == b'\r' => Some(Self::LineLf),
            None if byte == b' ' || byte == b'\t' => Some(Self::Padding),
            None => None,
        }
    }
}
