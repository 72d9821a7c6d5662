//! TODO

pub(super) mod client_body;
pub(super) mod permit_state;
pub(super) mod rate_guard;
pub(super) mod redact;
pub(super) mod request_body;
pub(super) mod response_body;
pub(super) mod stream_watchdog;
pub(super) mod streaming;
pub(super) mod upload;
