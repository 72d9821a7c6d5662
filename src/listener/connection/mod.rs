//! TODO

pub(super) mod activity;
pub(super) mod client_stream;
pub(super) mod protocols;
pub(super) mod watch;
