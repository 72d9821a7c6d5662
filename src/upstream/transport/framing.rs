//! How an answer's body is framed, and what of that the next hop is told: one decision, from
//! the fields as they came, before anything is taken from them. hyper reads the body by
//! rules of its own, which forgive more; what it would read otherwise is refused here.
//! `docs/FRAMING.md` has the table.

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version};

/// What decides about an answer's framing.
#[derive(Clone, Copy, Debug)]
pub struct ResponseHead<'a> {
    pub version: Version,
    pub status: StatusCode,
    pub request_method: &'a Method,
    pub headers: &'a HeaderMap,
}

/// How an answer is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseFraming {
    pub body: BodyFraming,
    pub length_field: LengthField,
    /// Its connection takes no further request: where this answer ends may be seen otherwise
    /// at the other end, or that end speaks HTTP/1.0.
    pub is_last: bool,
}

/// Where a body ends (RFC 9112, 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFraming {
    /// There is none, whatever the fields say.
    Empty,
    /// After so many bytes.
    Length(u64),
    /// After its last chunk.
    Chunked,
    /// At the end of the connection.
    UntilClose,
}

/// What becomes of the `Content-Length` lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LengthField {
    Keep,
    Remove,
    /// One line, in plain digits.
    Replace(u64),
}

/// Why an answer cannot be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FramingError {
    Version,
    /// RFC 9112 6.1: chunked once, at the end; the gate decodes no other coding.
    TransferCoding,
    /// RFC 9112 6.1: faulty in HTTP/1.0.
    TransferEncodingInHttp10,
    /// RFC 9112 6.3: no number, or several.
    ContentLength,
}

impl FramingError {
    pub fn text(self) -> &'static str {
        match self {
            Self::Version => "upstream's answer is neither HTTP/1.0 nor HTTP/1.1",
            Self::TransferCoding => "upstream's answer has a Transfer-Encoding other than chunked",
            Self::TransferEncodingInHttp10 => {
                "upstream's answer is HTTP/1.0 with Transfer-Encoding"
            }
            Self::ContentLength => "upstream's answer has no single valid Content-Length",
        }
    }
}

/// The decision. It changes nothing.
pub fn response_framing(head: ResponseHead<'_>) -> Result<ResponseFraming, FramingError> {
    if head.version != Version::HTTP_11 && head.version != Version::HTTP_10 {
        return Err(FramingError::Version);
    }
    let length = content_length(head.headers)?;
    let has_coding = head.headers.contains_key(TRANSFER_ENCODING);
    let is_http10 = head.version == Version::HTTP_10;
    if head.status == StatusCode::NO_CONTENT {
        // RFC 9110 8.6: it has no length. One that is given means content that may follow.
        let claims_content = has_coding || length.is_some_and(|length| length.value > 0);
        return Ok(ResponseFraming {
            body: BodyFraming::Empty,
            length_field: LengthField::Remove,
            is_last: is_http10 || claims_content,
        });
    }
    if head.status == StatusCode::NOT_MODIFIED {
        // RFC 9110 15.4.5: of the fields that describe the content it needs none but the ETag.
        return Ok(ResponseFraming {
            body: BodyFraming::Empty,
            length_field: LengthField::Remove,
            is_last: is_http10,
        });
    }
    if *head.request_method == Method::HEAD {
        // The fields speak of the answer to a GET (RFC 9110 8.6, RFC 9112 6.1).
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
        // RFC 9112 6.3: the coding overrides the length, which must not be passed on.
        length_field: LengthField::Remove,
        is_last: has_length,
    })
}

/// The lengths of an answer, which all say the same.
#[derive(Clone, Copy, Debug)]
struct DeclaredLength {
    value: u64,
    /// It stands there once, in plain digits.
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

/// Digits and nothing else: no sign, no space.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, digit| {
        let digit = digit.is_ascii_digit().then(|| digit - b'0')?;
        number.checked_mul(10)?.checked_add(digit.into())
    })
}

/// Decides, and makes the head say so: it is of the gate's own version, and has one length or
/// none.
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
    // RFC 9110 2.5: an intermediary speaks of its own version.
    *response.version_mut() = Version::HTTP_11;
    Ok(framing)
}
