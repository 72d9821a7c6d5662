//! Bodies in both directions. `request_body` is the body on its way to the upstream, bounded, timed
//! and kept for a repeat; `response_stream` and `streaming_body` are the body on its way to the
//! client; `stream_watchdog` samples both and cuts the ones that stall. Start with `request_body`.

pub(super) mod client_body;
pub(super) mod client_response_body;
mod grpc_messages;
pub(super) mod permit_state;
pub(super) mod rate_guard;
pub(super) mod redact;
pub(super) mod request_body;
pub(super) mod response_stream;
pub(super) mod stream_watchdog;
pub(super) mod streaming_body;
pub(super) mod upload;
