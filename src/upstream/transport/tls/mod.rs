//! TLS to the upstream. Start at `upstream_tls.rs`, then `trust.rs`, which decides what is trusted; `handshake.rs` and
//! `certificate.rs` explain failures and name the key to set.

pub(in crate::upstream) mod certificate;
pub(in crate::upstream) mod client_certificate;
pub(in crate::upstream) mod handshake;
pub(in crate::upstream) mod trust;
pub(in crate::upstream) mod upstream_tls;
