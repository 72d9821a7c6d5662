//! Opens connections to one upstream, over TCP or a Unix socket.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::dial_error::DialError;
use super::tcp_dialer::TcpDialer;
use super::tls::trust::UpstreamTls;
use super::tracked_stream::TrackedStream;
use super::unix_dialer::UnixDialer;

/// The way to one upstream. Requests, logins and probes share it.
#[derive(Debug)]
pub(in crate::upstream) enum Dialer {
    Tcp(TcpDialer),
    Unix(UnixDialer),
}

impl Dialer {
    /// Stops at `end` if that is before `connect_timeout`.
    pub(in crate::upstream) async fn dial(
        &self,
        end: Option<Instant>,
    ) -> Result<TrackedStream, DialError> {
        match self {
            Self::Tcp(tcp) => tcp.dial(end).await,
            Self::Unix(unix) => unix.dial(end).await,
        }
    }

    /// `connect_timeout`.
    pub(in crate::upstream) fn limit(&self) -> Duration {
        match self {
            Self::Tcp(tcp) => tcp.limit,
            Self::Unix(unix) => unix.limit,
        }
    }

    /// None: plain HTTP.
    pub(in crate::upstream) fn tls(&self) -> Option<&Arc<UpstreamTls>> {
        match self {
            Self::Tcp(tcp) => tcp.tls.as_ref(),
            Self::Unix(_) => None,
        }
    }
}
