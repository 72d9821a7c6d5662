//! The faults that the framing guard finds.

use crate::pipeline::Rejection;

/// The rule of HTTP/1 that a byte broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::listener) enum FramingFault {
    Tls,
    Method,
    Target,
    TargetTooLong,
    Version,
    LineEnd,
    Folding,
    Control,
    FieldName,
    Length,
    Coding,
    CodingOfHttp10,
    TwoFramings,
    TrailerFraming,
    Chunk,
    ChunkExtension,
    TooManyFields,
    HeadTooLarge,
}

impl FramingFault {
    /// The rejection of a request whose head has this fault.
    pub(in crate::listener) fn rejection(self) -> Rejection {
        Rejection::BadRequest(match self {
            Self::Tls => "this port speaks http, the client began with TLS",
            Self::Method => "the method is not a token",
            Self::Target => "the request target is malformed",
            Self::Version => "the version is not HTTP/1.1 or HTTP/1.0",
            Self::LineEnd => "a line does not end with CR LF",
            Self::Folding => "a field line begins with white space",
            Self::Control => "a field value has a control character",
            Self::FieldName => "a field name is not a token",
            Self::Length => "Content-Length is not one decimal number",
            Self::Coding => "Transfer-Encoding is not chunked alone",
            Self::CodingOfHttp10 => "HTTP/1.0 has no Transfer-Encoding",
            Self::TwoFramings => "the content is framed twice",
            Self::TrailerFraming => "a trailer field frames the content",
            Self::Chunk => "a chunk is malformed",
            Self::ChunkExtension => "a chunk extension is not name=value",
            Self::TargetTooLong => return Rejection::TargetTooLong,
            Self::TooManyFields | Self::HeadTooLarge => return Rejection::HeadTooLarge,
        })
    }
}

/// The peer broke a rule of HTTP/1. hyper receives this as a read error, so that it does not write a
/// response of its own.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the client broke HTTP/1: {fault:?}")]
pub(in crate::listener) struct FramingRefusal {
    pub(in crate::listener) fault: FramingFault,
    /// The fault is in a head, so the request has no response yet; otherwise it is in the content.
    pub(in crate::listener) is_head: bool,
}
