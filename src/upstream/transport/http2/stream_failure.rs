//! What an error on a stream says about its request.

use h2::Reason;

use super::http2_connection::StreamLease;
use crate::upstream::transport::http1::response_head::MAX_HEAD;
use crate::upstream::transport::response_error::ResponseError;
use crate::upstream::transport::send_error::{SendError, SendErrorKind};

/// Whether the peer says that it has not processed the request (RFC 9113, 8.7): its stream is above the
/// last one in GOAWAY, or was refused. h2 fails a stream with the peer's GOAWAY only if it is above.
fn is_unprocessed(error: &h2::Error) -> bool {
    let is_refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
    error.is_remote() && (error.is_go_away() || is_refused)
}

/// The error of a response, in words.
pub(super) fn response_error(error: h2::Error) -> ResponseError {
    // h2 refuses a head over the limit in this way.
    let is_too_large = error.is_library() && error.reason() == Some(Reason::REFUSED_STREAM);
    match error.reason() {
        _ if is_too_large => ResponseError::HeadTooLarge(MAX_HEAD),
        Some(reason) if error.is_reset() && error.is_remote() => ResponseError::Reset(reason),
        _ => ResponseError::Http2(error),
    }
}

/// The error of a request that has no response.
pub(super) fn send_error(error: h2::Error, lease: &StreamLease) -> SendError {
    let is_connection_lost = error.is_io();
    if is_unprocessed(&error) {
        match error.is_go_away() {
            true => lease.close(),
            false => lease.refused(),
        }
        return SendError::new(SendErrorKind::NotProcessed, true, response_error(error));
    }
    let is_unsent = lease.is_unwritten();
    let kind = match is_connection_lost {
        true if lease.is_reused || is_unsent => SendErrorKind::DeadConnection,
        true => SendErrorKind::Closed,
        false => SendErrorKind::Protocol,
    };
    SendError::new(kind, is_unsent, response_error(error))
}
