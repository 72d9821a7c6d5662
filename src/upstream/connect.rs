//! A connection to the upstream: name, TCP, TLS, within one time limit.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::trust::Tls;
use crate::names::{NameError, Names};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("cannot find the address of {host}")]
    Resolve {
        host: String,
        #[source]
        source: NameError,
    },
    #[error("{host} has no address")]
    NoAddress { host: String },
    #[error("cannot connect to {address}")]
    Connect {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("TLS handshake with {host} failed")]
    Handshake {
        host: String,
        #[source]
        source: io::Error,
    },
    #[error("no connection to {host} within {limit:?}")]
    TimedOut { host: String, limit: Duration },
}

/// Opens connections to one upstream.
#[derive(Debug)]
pub(super) struct Dialer {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) names: Names,
    pub(super) tls: Option<Tls>,
    /// For everything from the name to the end of the handshake.
    pub(super) limit: Duration,
}

impl Dialer {
    /// Gives up at `end` if that comes before the limit.
    pub(super) async fn dial(&self, end: Option<Instant>) -> Result<Link, DialError> {
        let limit = Instant::now() + self.limit;
        let until = end.map_or(limit, |end| end.min(limit));
        let Ok(link) = timeout_at(until, Box::pin(self.open(until))).await else {
            return Err(self.timed_out());
        };
        link
    }

    async fn open(&self, until: Instant) -> Result<Link, DialError> {
        let tcp = self.connect(until).await?;
        // Requests are small and answered one by one: waiting to fill a packet only delays them.
        let _ = tcp.set_nodelay(true);
        let wire = match &self.tls {
            None => Wire::Plain(tcp),
            Some(tls) => {
                let (config, name) = tls.current();
                let stream = TlsConnector::from(config).connect(name, tcp).await;
                let stream = stream.map_err(|source| DialError::Handshake {
                    host: self.host.clone(),
                    source,
                })?;
                Wire::Tls(Box::new(stream))
            }
        };
        Ok(Link {
            wire,
            heard: Arc::default(),
        })
    }

    async fn connect(&self, until: Instant) -> Result<TcpStream, DialError> {
        let addresses = self.addresses().await?;
        let mut failure = DialError::NoAddress {
            host: self.host.clone(),
        };
        for (tried, &address) in addresses.iter().enumerate() {
            // An address that swallows packets must leave time for the others.
            let left = until.saturating_duration_since(Instant::now());
            let others = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
            let share = Instant::now() + left / others;
            failure = match timeout_at(share, TcpStream::connect(address)).await {
                Ok(Ok(tcp)) => return Ok(tcp),
                Ok(Err(source)) => DialError::Connect { address, source },
                Err(_) => self.timed_out(),
            };
        }
        Err(failure)
    }

    async fn addresses(&self) -> Result<Vec<SocketAddr>, DialError> {
        let found = self.names.find(&self.host).await;
        let found = found.map_err(|source| DialError::Resolve {
            host: self.host.clone(),
            source,
        })?;
        let at_port = |ip| SocketAddr::new(ip, self.port);
        Ok(found.into_iter().map(at_port).collect())
    }

    fn timed_out(&self) -> DialError {
        DialError::TimedOut {
            host: self.host.clone(),
            limit: self.limit,
        }
    }
}

/// A connection, and whether a byte has come from it since somebody asked.
#[derive(Debug)]
pub(super) struct Link {
    wire: Wire,
    heard: Arc<AtomicBool>,
}

#[derive(Debug)]
enum Wire {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Link {
    /// Set on every byte that comes; whoever sends a request clears it first.
    pub(super) fn heard(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.heard)
    }
}

impl AsyncRead for Link {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let outcome = match &mut self.wire {
            Wire::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Wire::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        };
        if buf.filled().len() > before {
            self.heard.store(true, Ordering::Release);
        }
        outcome
    }
}

impl AsyncWrite for Link {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.wire {
            Wire::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Wire::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.wire {
            Wire::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Wire::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.wire {
            Wire::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Wire::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.wire {
            // Most requests are one piece, for which the plain call is the cheaper one.
            Wire::Plain(tcp) => match bufs {
                [only] => Pin::new(tcp).poll_write(cx, only),
                _ => Pin::new(tcp).poll_write_vectored(cx, bufs),
            },
            Wire::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.wire {
            Wire::Plain(tcp) => tcp.is_write_vectored(),
            Wire::Tls(tls) => tls.is_write_vectored(),
        }
    }
}
