//! Why there is no connection to the upstream, with the configuration key to look at.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::connect_proxy::ProxyError;
use super::tls::handshake::HandshakeError;
use crate::dns::NameError;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("cannot find the address of {host}")]
    Resolve {
        host: String,
        #[source]
        source: Arc<NameError>,
    },
    #[error("{host} has no address")]
    NoAddress { host: String },
    #[error("cannot connect to {address}{}", others(*.failed))]
    Connect {
        address: SocketAddr,
        /// How many addresses failed.
        failed: usize,
        #[source]
        source: io::Error,
    },
    #[error("TLS handshake with {host} at {address} failed")]
    Handshake {
        host: String,
        address: SocketAddr,
        #[source]
        source: HandshakeError,
    },
    #[error("cannot connect to the proxy in upstream.{upstream}.proxy")]
    ProxyUnreachable {
        upstream: Arc<str>,
        #[source]
        source: Box<Self>,
    },
    #[error("no tunnel through the proxy at {address}")]
    Proxy {
        address: SocketAddr,
        #[source]
        source: ProxyError,
    },
    #[error("the connection was ended after the TLS handshake")]
    AfterHandshake(#[source] HandshakeError),
    #[error("cannot connect to the socket {}: {fault}", path.display())]
    Socket {
        path: PathBuf,
        fault: SocketFault,
        #[source]
        source: io::Error,
    },
    #[error(
        "no endpoint of upstream {upstream} is in use: all are drained, or no address is known"
    )]
    NoEndpoint { upstream: Arc<str> },
    #[error("no connection to {host} within {limit:?}: {waiting}")]
    TimedOut {
        host: String,
        limit: Duration,
        waiting: WaitingFor,
    },
}

/// Which step was in progress at the timeout.
#[derive(Clone, Debug)]
pub enum WaitingFor {
    Names {
        file: PathBuf,
    },
    Answer {
        address: SocketAddr,
        asked: usize,
    },
    Handshake {
        address: SocketAddr,
    },
    /// The proxy's response to CONNECT.
    Tunnel {
        address: SocketAddr,
    },
    /// Room in the queue of a Unix socket.
    SocketQueue,
}

impl fmt::Display for WaitingFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Names { file } => {
                let file = file.display();
                write!(f, "the name servers in {file} have not answered yet")
            }
            Self::Answer { address, asked } => {
                write!(f, "{address} does not answer{}", others(*asked))
            }
            Self::Tunnel { address } => write!(
                f,
                "the proxy at {address} accepts the connection and does not answer CONNECT"
            ),
            Self::SocketQueue => {
                f.write_str("its server accepts no connections; its queue is full")
            }
            Self::Handshake { address } => write!(
                f,
                "{address} accepts the connection and does not answer the TLS handshake"
            ),
        }
    }
}

fn others(all: usize) -> String {
    match all {
        0 | 1 => String::new(),
        2 => ", nor to its other address".to_owned(),
        more => format!(", nor to its {} other addresses", more - 1),
    }
}

/// Why a Unix socket cannot be connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SocketFault {
    #[error("there is no such file; it is used as soon as the upstream's server has made it")]
    Missing,
    #[error("the file is no socket of a server that accepts streams")]
    NotStream,
    #[error(
        "no server listens on it: the server that made the file has ended, and must be started again"
    )]
    Stale,
    #[error(
        "user {user} of this gate may not: it needs write permission on the socket, and search \
         permission (x) on its folders"
    )]
    Denied { user: u32 },
    #[error("this host refuses it")]
    Other,
}

impl DialError {
    /// Whether the time was up, as opposed to a failure.
    pub fn is_timeout(&self) -> bool {
        match self {
            Self::Proxy { source, .. } => source.is_timeout(),
            other => other.is_deadline(),
        }
    }

    /// Whether the gate itself stopped waiting.
    pub(in crate::upstream) fn is_deadline(&self) -> bool {
        match self {
            Self::TimedOut { .. } => true,
            Self::ProxyUnreachable { source, .. } => source.is_deadline(),
            _ => false,
        }
    }

    /// The key to look at, within the upstream's section.
    pub fn key(&self) -> &'static str {
        match self {
            Self::AfterHandshake(source) | Self::Handshake { source, .. }
                if source.is_about_own_certificate() =>
            {
                "client_certificate"
            }
            Self::Proxy { source, .. } if source.is_about_login() => "proxy_login",
            Self::Proxy { .. } | Self::ProxyUnreachable { .. } => "proxy",
            Self::TimedOut {
                waiting: WaitingFor::Tunnel { .. },
                ..
            } => "proxy",
            _ => "url",
        }
    }

    /// The error of a connection that ended after its handshake; none if that says nothing about the
    /// gate's certificate.
    pub(super) fn after_handshake(source: io::Error) -> Option<Self> {
        let inner = source.into_inner()?;
        let source = inner.downcast::<HandshakeError>().ok()?;
        Some(Self::AfterHandshake(*source))
    }
}
