//! Opens connections to one upstream, over TCP or a Unix socket.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::time::{Instant, timeout};

use super::dial_error::DialError;
use super::tcp_dialer::TcpDialer;
use super::tls::upstream_tls::UpstreamTls;
use super::tracked_stream::TrackedStream;
use super::unix_dialer::UnixDialer;
use crate::config::Http2Mode;

/// How long an alert is waited for that ends a connection after its handshake.
const LATE_ALERT_WAIT: Duration = Duration::from_millis(500);

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

    /// Opens a connection and closes it: whether the upstream can be reached as configured. Waits a moment
    /// for what TLS 1.3 says about the gate's certificate only after the handshake.
    pub(in crate::upstream) async fn reach(&self) -> Result<(), DialError> {
        let mut stream = self.dial(None).await?;
        if self.tls().is_none() {
            return Ok(());
        }
        let mut byte = [0];
        match timeout(LATE_ALERT_WAIT, stream.read(&mut byte)).await {
            Ok(Err(source)) => DialError::after_handshake(source).map_or(Ok(()), Err),
            _ => Ok(()),
        }
    }

    /// `connect_timeout`.
    pub(in crate::upstream) fn limit(&self) -> Duration {
        match self {
            Self::Tcp(tcp) => tcp.limit,
            Self::Unix(unix) => unix.limit,
        }
    }

    /// Whether a connection could be HTTP/2.
    pub(in crate::upstream) fn may_speak_http2(&self) -> bool {
        match self {
            Self::Tcp(tcp) => match &tcp.tls {
                Some(tls) => tls.http2() != Http2Mode::Never,
                None => tcp.has_prior_knowledge,
            },
            Self::Unix(unix) => unix.has_prior_knowledge,
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
