//! One client connection once it is accepted: its state and timeouts (`activity`), the byte stream
//! between TLS and hyper (`client_stream`), the limit it counts towards (`connection_limit`), and
//! the way of its requests into the service (`request_service`). Start at `protocols.rs`, which
//! runs HTTP/1 or HTTP/2 under the `watch`.

pub(super) mod activity;
pub(super) mod client_stream;
pub(super) mod connection_limit;
pub(super) mod protocols;
pub(super) mod request_service;
pub(super) mod watch;
