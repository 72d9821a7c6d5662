//! TODO

pub(super) mod buffer_pool;
pub(super) mod certificates;
pub(super) mod failed_handshakes;
pub(super) mod record_layer;
pub(super) mod server_tls;
pub(super) mod sni;
pub(super) mod tls_stream;
