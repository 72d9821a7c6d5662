//! From sockets to requests: connection limit, TLS, HTTP/1 and HTTP/2, timeouts, drain. Each
//! request goes, with the facts about its peer, to one service; the listener does not look at
//! its content. hyper parses; `http1/framing_guard` refuses what hyper would tolerate or answer
//! itself. A request that passes has one framing and one host. Start at `tcp/accept.rs`.
//!
//! A permit is acquired before a connection is accepted, so that connections above the limit
//! wait in the kernel's backlog and not in memory.

mod connection;
#[cfg(any(test, fuzzing))]
pub mod framing_fuzz;
mod http1;
mod http2;
mod tcp;
#[cfg(test)]
mod tests;
mod tls;

pub use connection::connection_limit::ConnectionLimit;
pub use connection::request_service::RequestService;
pub use tcp::accept::{ListenerParts, serve};
pub use tcp::bound::{BoundSockets, bind};
pub use tls::server_tls::ServerTls;

use std::net::SocketAddr;
use std::path::PathBuf;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a listener cannot be opened as configured.
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
    NoCertificates,
    #[error("cannot set up TLS")]
    Setup(#[source] rustls::Error),
}
