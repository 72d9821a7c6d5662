//! TCP sockets of a listener: `bound` opens one per worker, `accept` is the accept loop and takes
//! each connection through the TLS handshake to HTTP. Start at `accept::serve`.

pub(super) mod accept;
pub(super) mod bound;
