//! Bytes in: sockets, connection cap, TLS, HTTP/1 and HTTP/2 framing, timeouts,
//! drain. Gives each request, with the facts about its peer, to one service; knows
//! nothing of what is in it. Parsing is hyper's; `wire` refuses what hyper would forgive
//! or answer itself, and the service says how a refusal looks. A request that gets past here has one framing and one host.
//!
//! The surprise: a slot is taken before a connection is accepted, so that those
//! over the cap wait in the kernel's backlog and not in our memory.

mod connection;
#[cfg(any(test, fuzzing))]
pub mod fuzz_api;
mod http1;
mod http2;
mod service;
mod tcp;
#[cfg(test)]
mod tests;
mod tls;

pub use service::RequestService;
pub use tcp::accept::{ListenerParts, serve};
pub use tcp::bound::{BoundSockets, bind};
pub use tcp::connection_limit::ConnectionLimit;
pub use tls::server_tls::ServerTls;

use std::net::SocketAddr;
use std::path::PathBuf;

/// Why a listener cannot be had as configured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{address} is in use by another program; stop it, or choose another address")]
    Busy { address: SocketAddr },
    #[error("cannot listen on {address}")]
    Socket {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot read {}; check the path and that this program may read it", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} is not well-formed PEM; write it again", path.display())]
    NotPem {
        path: PathBuf,
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    #[error("no certificate in {}; it needs the chain in PEM, the server's own first", path.display())]
    NoCertificate { path: PathBuf },
    #[error("no private key in {}; it needs one in PEM, not encrypted", path.display())]
    NoKey { path: PathBuf },
    #[error("the first certificate in {} cannot be parsed", path.display())]
    BadCertificate {
        path: PathBuf,
        #[source]
        source: x509_parser::nom::Err<x509_parser::error::X509Error>,
    },
    #[error("the private key in {} cannot be used; RSA, ECDSA and Ed25519 can", path.display())]
    UnusableKey {
        path: PathBuf,
        #[source]
        source: rustls::Error,
    },
    #[error(
        "the key in {} does not belong to the certificate in {}; give the two that were made together",
        key.display(), certificate.display()
    )]
    Mismatch { certificate: PathBuf, key: PathBuf },
    #[error("no certificate is configured")]
    NoPairs,
    #[error("cannot set up TLS")]
    Setup(#[source] rustls::Error),
}
