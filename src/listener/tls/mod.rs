//! TLS of a listener: its certificates and their reload (`server_tls`, `loaded_certificate`, `sni`), and
//! the stream of one connection (`tls_stream`, on `record_layer` and `buffer_pool`). Start at
//! `server_tls.rs`.

pub(super) mod buffer_pool;
pub(super) mod failed_handshakes;
pub(super) mod loaded_certificate;
pub(super) mod record_layer;
pub(super) mod server_tls;
pub(super) mod sni;
pub(super) mod tls_stream;
