//! How a response's body is framed, and which framing fields the client gets: one decision, from the
//! fields as received, before any is removed. hyper reads the body by more lenient rules; what it
//! would read differently is rejected here.
//! `docs/FRAMING.md` has the table.

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version};

/// What determines the framing of a response.
#[derive(Clone, Copy, Debug)]
pub struct ResponseHead<'a> {
    pub version: Version,
    pub status: StatusCode,
    pub request_method: &'a Method,
    pub headers: &'a HeaderMap,
}

/// The framing of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseFraming {
    pub body: BodyFraming,
    pub length_field: LengthField,
    /// The connection is not used again: the upstream may see the end of this response elsewhere, or it
    /// speaks HTTP/1.0.
    pub is_last: bool,
}

/// Where a body ends (RFC 9112, 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFraming {
    /// There is no body, whatever the fields say.
    Empty,
    /// After this many bytes.
    Length(u64),
    /// After its last chunk.
    Chunked,
    /// At the end of the connection.
    UntilClose,
}

/// What happens to the `Content-Length` lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LengthField {
    Keep,
    Remove,
    /// One line, in plain digits.
    Replace(u64),
}

/// Why a response cannot be forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FramingError {
    Version,
    /// RFC 9110 7.8: no forwarded request asks for another protocol.
    SwitchingProtocols,
    /// RFC 9112 6.1: chunked once, at the end; the gate decodes no other coding.
    TransferCoding,
    /// RFC 9112 6.1: faulty in HTTP/1.0.
    TransferEncodingInHttp10,
    /// RFC 9112 6.3: not a number, or several different ones.
    ContentLength,
}

impl FramingError {
    pub fn text(self) -> &'static str {
        match self {
            Self::Version => "upstream's response is neither HTTP/1.0 nor HTTP/1.1",
            Self::SwitchingProtocols => "upstream switched protocols unasked",
            Self::TransferCoding => {
                "upstream's response has a Transfer-Encoding other than chunked"
            }
            Self::TransferEncodingInHttp10 => {
                "upstream's response is HTTP/1.0 with Transfer-Encoding"
            }
            Self::ContentLength => "upstream's response has no single valid Content-Length",
        }
    }
}

/// Decides; changes nothing.
pub fn response_framing(head: ResponseHead<'_>) -> Result<ResponseFraming, FramingError> {
    if head.version != Version::HTTP_11 && head.version != Version::HTTP_10 {
        return Err(FramingError::Version);
    }
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(FramingError::SwitchingProtocols);
    }
    let length = content_length(head.headers)?;
    let has_coding = head.headers.contains_key(TRANSFER_ENCODING);
    let is_http10 = head.version == Version::HTTP_10;
    if head.status == StatusCode::NO_CONTENT {
        // RFC 9110 8.6: it has no length. A given length means that content may follow.
        let claims_content = has_coding || length.is_some_and(|length| length.value > 0);
        return Ok(ResponseFraming {
            body: BodyFraming::Empty,
            length_field: LengthField::Remove,
            is_last: is_http10 || claims_content,
        });
    }
    if head.status == StatusCode::NOT_MODIFIED {
        // RFC 9110 15.4.5: of the fields about the content only the ETag is needed.
        return Ok(ResponseFraming {
            body: BodyFraming::Empty,
            length_field: LengthField::Remove,
            is_last: is_http10,
        });
    }
    if *head.request_method == Method::HEAD {
        // The fields describe the response to a GET (RFC 9110 8.6, RFC 9112 6.1).
        return Ok(ResponseFraming {
            body: BodyFraming::Empty,
            length_field: match length {
                Some(length) if !has_coding => length.field(),
                _ => LengthField::Remove,
            },
            is_last: is_http10,
        });
    }
    if has_coding {
        return chunked(head, length.is_some());
    }
    Ok(ResponseFraming {
        body: length.map_or(BodyFraming::UntilClose, |length| {
            BodyFraming::Length(length.value)
        }),
        length_field: length.map_or(LengthField::Keep, DeclaredLength::field),
        is_last: is_http10 || length.is_none(),
    })
}

fn chunked(head: ResponseHead<'_>, has_length: bool) -> Result<ResponseFraming, FramingError> {
    if head.version == Version::HTTP_10 {
        return Err(FramingError::TransferEncodingInHttp10);
    }
    let mut codings = head.headers.get_all(TRANSFER_ENCODING).iter();
    let is_chunked = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"chunked");
    if !codings.next().is_some_and(is_chunked) || codings.next().is_some() {
        return Err(FramingError::TransferCoding);
    }
    Ok(ResponseFraming {
        body: BodyFraming::Chunked,
        // RFC 9112 6.3: the coding overrides the length, which must not be forwarded.
        length_field: LengthField::Remove,
        is_last: has_length,
    })
}

/// The equal lengths of a response.
#[derive(Clone, Copy, Debug)]
struct DeclaredLength {
    value: u64,
    /// There is one line, in plain digits.
    is_plain: bool,
}

impl DeclaredLength {
    fn field(self) -> LengthField {
        match self.is_plain {
            true => LengthField::Keep,
            false => LengthField::Replace(self.value),
        }
    }
}

fn content_length(headers: &HeaderMap) -> Result<Option<DeclaredLength>, FramingError> {
    let mut length: Option<DeclaredLength> = None;
    for line in headers.get_all(CONTENT_LENGTH) {
        for item in line.as_bytes().split(|byte| *byte == b',') {
            let digits = item.trim_ascii();
            let value = number(digits).ok_or(FramingError::ContentLength)?;
            let is_plain = digits.len() == line.len() && (digits[0] != b'0' || digits.len() == 1);
            length = Some(match length {
                None => DeclaredLength { value, is_plain },
                Some(before) if before.value == value => DeclaredLength {
                    value,
                    is_plain: false,
                },
                Some(_) => return Err(FramingError::ContentLength),
            });
        }
    }
    Ok(length)
}

/// Parses digits only: no sign, no space.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, digit| {
        let digit = digit.is_ascii_digit().then(|| digit - b'0')?;
        number.checked_mul(10)?.checked_add(digit.into())
    })
}

/// Decides, and rewrites the head accordingly: the gateway's own version, and at most one length.
pub(in crate::upstream) fn reframe<B>(
    response: &mut Response<B>,
    request_method: &Method,
) -> Result<ResponseFraming, FramingError> {
    let framing = response_framing(ResponseHead {
        version: response.version(),
        status: response.status(),
        request_method,
        headers: response.headers(),
    })?;
    match framing.length_field {
        LengthField::Keep => {}
        LengthField::Remove => {
            response.headers_mut().remove(CONTENT_LENGTH);
        }
        LengthField::Replace(length) => {
            let headers = response.headers_mut();
            headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
    }
    // RFC 9110 2.5: an intermediary sends its own version.
    *response.version_mut() = Version::HTTP_11;
    Ok(framing)
}
