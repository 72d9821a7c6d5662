//! Why an exchange ended without a complete response.

use std::io;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A response that did not arrive completely.
#[derive(Debug, thiserror::Error)]
pub enum ResponseError {
    #[error("the request's body broke off")]
    RequestBody(#[source] BoxError),
    /// A body with another length than its `Content-Length`.
    #[error("the request's body does not have its declared length")]
    RequestLength,
    #[error("cannot write to the upstream")]
    Write(#[source] io::Error),
    #[error("cannot read from the upstream")]
    Read(#[source] io::Error),
    #[error("the upstream closed the connection before its response")]
    NoResponse,
    #[error("the upstream sent bytes that no request asked for")]
    Unasked,
    #[error("the upstream closed the connection within the head of its response")]
    HeadCut,
    #[error("the head of the response is not HTTP/1.1")]
    Head(#[source] httparse::Error),
    #[error("the head of the response has a status or a field that HTTP does not know")]
    HeadField,
    #[error("the head of the response is larger than {0} bytes")]
    HeadTooLarge(usize),
    #[error("more than {0} informational responses")]
    TooManyInformational(u32),
    #[error("the upstream closed the connection within the body of its response")]
    BodyCut,
    #[error("the body of the response has a malformed chunk")]
    Chunk,
    #[error("the body of the response does not have its declared length")]
    BodyLength,
    #[error("the upstream reset the stream of this request ({0})")]
    Reset(h2::Reason),
    #[error("the HTTP/2 connection to the upstream failed, or broke a rule")]
    Http2(#[source] h2::Error),
    #[error("the trailers of the response are malformed or too large")]
    Trailers,
}

impl ResponseError {
    /// Whether the client caused it.
    pub(in crate::upstream) fn is_request_body(&self) -> bool {
        matches!(self, Self::RequestBody(_) | Self::RequestLength)
    }
}
