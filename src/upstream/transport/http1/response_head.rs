//! The head of a response (RFC 9112, 4), parsed in place: its fields share the memory they were read
//! into.

use std::mem::MaybeUninit;
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Version};
use httparse::{ParserConfig, Status};
use hyper::ext::ReasonPhrase;

use crate::upstream::transport::response_error::ResponseError;

/// Fields of a head, or of trailers.
pub(in crate::upstream) const MAX_FIELDS: usize = 100;
/// Bytes of a head.
pub(in crate::upstream) const MAX_HEAD: usize = 28 * 1024;

/// Takes the head off `received`; None: it is not complete yet.
pub(super) fn take_head(received: &mut BytesMut) -> Result<Option<Response<()>>, ResponseError> {
    let mut room = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut head = httparse::Response::new(&mut []);
    let parsed =
        ParserConfig::default().parse_response_with_uninit_headers(&mut head, received, &mut room);
    let length = match parsed.map_err(ResponseError::Head)? {
        Status::Complete(length) if length <= MAX_HEAD => length,
        Status::Partial if received.len() < MAX_HEAD => return Ok(None),
        _ => return Err(ResponseError::HeadTooLarge(MAX_HEAD)),
    };
    let version = match head.version {
        Some(0) => Version::HTTP_10,
        _ => Version::HTTP_11,
    };
    let status = StatusCode::from_u16(head.code.unwrap_or_default());
    let status = status.map_err(|_| ResponseError::HeadField)?;
    let reason = head.reason.unwrap_or_default();
    let own_reason = (status.canonical_reason() != Some(reason) && !reason.is_empty())
        .then(|| FieldRange::range(received, reason.as_bytes()));
    let mut ranges = [FieldRange::default(); MAX_FIELDS];
    let count = head.headers.len();
    for (range, field) in ranges.iter_mut().zip(&*head.headers) {
        *range = FieldRange::of(received, field);
    }
    let bytes = received.split_to(length).freeze();
    let mut response = Response::new(());
    *response.version_mut() = version;
    *response.status_mut() = status;
    *response.headers_mut() = fields(&bytes, &ranges[..count])?;
    if let Some(reason) = own_reason
        && let Ok(reason) = ReasonPhrase::try_from(bytes.slice(reason))
    {
        response.extensions_mut().insert(reason);
    }
    Ok(Some(response))
}

/// The trailer section that `received` begins with, and its length in bytes; None: it is not complete
/// yet.
pub(super) fn trailers(received: &[u8]) -> Result<Option<ParsedTrailers>, ResponseError> {
    let mut room = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let parsed = httparse::parse_headers(received, &mut room);
    let (length, parsed) = match parsed.map_err(|_| ResponseError::Trailers)? {
        Status::Complete(complete) => complete,
        Status::Partial => return Ok(None),
    };
    let mut fields = HeaderMap::with_capacity(parsed.len());
    for field in parsed {
        let name = HeaderName::from_bytes(field.name.as_bytes());
        let value = HeaderValue::from_bytes(field.value);
        let (Ok(name), Ok(value)) = (name, value) else {
            return Err(ResponseError::Trailers);
        };
        fields.append(name, value);
    }
    Ok(Some(ParsedTrailers { fields, length }))
}

/// A trailer section.
#[derive(Debug)]
pub(super) struct ParsedTrailers {
    pub(super) fields: HeaderMap,
    /// Bytes that it took, the empty line included.
    pub(super) length: usize,
}

/// Where a field lies in the head. A head has fewer than 65,536 bytes.
#[derive(Clone, Copy, Default)]
struct FieldRange {
    name: (u16, u16),
    value: (u16, u16),
}

impl FieldRange {
    fn of(head: &[u8], field: &httparse::Header<'_>) -> Self {
        Self {
            name: Self::short(Self::range(head, field.name.as_bytes())),
            value: Self::short(Self::range(head, field.value)),
        }
    }

    /// `part` is a part of `head`.
    fn range(head: &[u8], part: &[u8]) -> Range<usize> {
        let start = part.as_ptr() as usize - head.as_ptr() as usize;
        start..start + part.len()
    }

    fn short(range: Range<usize>) -> (u16, u16) {
        let short = |number| u16::try_from(number).unwrap_or(u16::MAX);
        (short(range.start), short(range.end))
    }
}

fn fields(head: &Bytes, ranges: &[FieldRange]) -> Result<HeaderMap, ResponseError> {
    let mut fields = HeaderMap::with_capacity(ranges.len());
    let range = |(start, end): (u16, u16)| usize::from(start)..usize::from(end);
    for field in ranges {
        let name = HeaderName::from_bytes(&head[range(field.name)]);
        let value = HeaderValue::from_maybe_shared(head.slice(range(field.value)));
        let (Ok(name), Ok(value)) = (name, value) else {
            return Err(ResponseError::HeadField);
        };
        fields.append(name, value);
    }
    Ok(fields)
}
