//! Reads a response from pieces of memory, for tests and fuzz targets.

use bytes::BytesMut;
use http::{HeaderMap, Method, StatusCode};

use super::body_decoder::{BodyDecoder, DecodedPart};
use super::response_head::take_head;
use crate::upstream::transport::framing::{ResponseHead, response_framing};

/// A response as far as it was read.
#[derive(Debug, PartialEq)]
pub(in crate::upstream) struct ReadResponse {
    pub(in crate::upstream) status: StatusCode,
    pub(in crate::upstream) headers: HeaderMap,
    pub(in crate::upstream) body: Vec<u8>,
    pub(in crate::upstream) trailers: HeaderMap,
    /// Nothing was wrong with it, and its end was seen.
    pub(in crate::upstream) is_whole: bool,
}

/// Reads `pieces`, after which the connection ends; None: no head.
pub(in crate::upstream) fn read(pieces: &[&[u8]], method: &Method) -> Option<ReadResponse> {
    let mut received = BytesMut::new();
    let mut pieces = pieces.iter();
    let head = loop {
        if !received.is_empty() {
            match take_head(&mut received) {
                Ok(Some(head)) if head.status().is_informational() => continue,
                Ok(Some(head)) => break head,
                Ok(None) => {}
                Err(_) => return None,
            }
        }
        received.extend_from_slice(pieces.next()?);
    };
    let framing = response_framing(ResponseHead {
        version: head.version(),
        status: head.status(),
        request_method: method,
        headers: head.headers(),
    });
    let mut body = BodyDecoder::new(framing.ok()?.body);
    let (parts, ()) = head.into_parts();
    let mut response = ReadResponse {
        status: parts.status,
        headers: parts.headers,
        body: Vec::new(),
        trailers: HeaderMap::new(),
        is_whole: false,
    };
    response.is_whole = loop {
        match body.decode(&mut received) {
            Ok(DecodedPart::Data(data)) => response.body.extend_from_slice(&data),
            Ok(DecodedPart::Trailers(trailers)) => response.trailers = trailers,
            Ok(DecodedPart::End) => break true,
            Ok(DecodedPart::Incomplete) => match pieces.next() {
                Some(piece) => received.extend_from_slice(piece),
                None if body.close().is_err() => break false,
                None => {}
            },
            Err(_) => break false,
        }
    };
    Some(response)
}
