//! Opens a TCP connection to the upstream: name look-up, TCP and TLS within one timeout. All addresses
//! are tried in a staggered race (RFC 8305) that ends with a TLS handshake.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::address_book::{AddressBook, AddressCandidates};
use super::address_memory::AddressMemory;
use super::dial_error::{DialError, WaitingFor};
use super::tls::handshake::HandshakeError;
use super::tls::upstream_tls::UpstreamTls;
use super::tracked_stream::{TrackedStream, Transport};
use crate::staggered::{HalfWay, RaceLost, StaggerDelays, UnfinishedAttempt, race};

/// When the next address is tried (RFC 8305, section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// The same while one is connected and in its TLS handshake.
const HANDSHAKE_DELAY: Duration = Duration::from_secs(1);
/// Why an address could not be connected to.
#[derive(Debug)]
enum AttemptError {
    Connect(io::Error),
    Handshake(HandshakeError),
}

/// Opens connections to one upstream over TCP.
#[derive(Debug)]
pub(in crate::upstream) struct TcpDialer {
    pub(in crate::upstream) port: u16,
    pub(in crate::upstream) book: AddressBook,
    pub(in crate::upstream) memory: AddressMemory,
    pub(in crate::upstream) tls: Option<Arc<UpstreamTls>>,
    /// For everything from the name to the end of the handshake.
    pub(in crate::upstream) limit: Duration,
    /// For error messages that name the configuration key.
    pub(in crate::upstream) upstream: Arc<str>,
}

impl TcpDialer {
    /// Stops at `end` if that is before `connect_timeout`.
    pub(in crate::upstream) async fn dial(
        &self,
        end: Option<Instant>,
    ) -> Result<TrackedStream, DialError> {
        let limit = Instant::now() + self.limit;
        let until = end.map_or(limit, |end| end.min(limit));
        Box::pin(self.race(until)).await
    }

    async fn race(&self, until: Instant) -> Result<TrackedStream, DialError> {
        let mut addresses = self.book.addresses(&self.memory);
        let stagger = StaggerDelays {
            delay: ATTEMPT_DELAY,
            delay_half_way: HANDSHAKE_DELAY,
            until: Some(until),
        };
        let attempt = |ip, half_way| self.attempt(SocketAddr::new(ip, self.port), half_way);
        match race(&mut addresses, stagger, attempt).await {
            Ok(won) => {
                let failed = won.failed.into_iter();
                let failed = failed.filter(|(_, failure)| !failure.is_ours());
                failed.for_each(|(ip, _)| self.memory.failed(ip));
                won.overtaken.iter().for_each(|&ip| self.memory.failed(ip));
                self.memory.worked(won.candidate);
                Ok(won.value)
            }
            Err(lost) => Err(self.failure(lost, &addresses)),
        }
    }

    /// One address: TCP and, if configured, TLS. An address that accepts connections but fails the TLS
    /// handshake counts as failed.
    fn attempt(
        &self,
        address: SocketAddr,
        half_way: HalfWay,
    ) -> impl Future<Output = Result<TrackedStream, AttemptError>> + Send + use<> {
        let tls = self.tls.as_deref();
        let tls = tls.map(|tls| (tls.current(), tls.server_name()));
        let upstream = Arc::clone(&self.upstream);
        async move {
            let tcp = TcpStream::connect(address).await;
            let tcp = tcp.map_err(AttemptError::Connect)?;
            half_way.reached();
            // Requests are small: Nagle's algorithm would only delay them.
            let _ = tcp.set_nodelay(true);
            let Some((tls, name)) = tls else {
                return Ok(TrackedStream::new(Transport::Plain(tcp), &upstream));
            };
            let connector = TlsConnector::from(Arc::clone(&tls.config));
            let stream = connector.connect(name, tcp).await;
            let explained = |failure| HandshakeError::explain(failure, &upstream, &tls.offered);
            let stream = stream.map_err(|failure| AttemptError::Handshake(explained(failure)))?;
            let stream = TrackedStream::new(Transport::Tls(Box::new(stream)), &upstream);
            Ok(stream.made_with(&tls))
        }
    }

    fn failure(
        &self,
        lost: RaceLost<IpAddr, AttemptError>,
        addresses: &AddressCandidates<'_>,
    ) -> DialError {
        let host = || self.book.host().to_owned();
        let at = |ip| SocketAddr::new(ip, self.port);
        let failed = lost.failed.iter().filter(|(_, failure)| !failure.is_ours());
        failed.for_each(|(ip, _)| self.memory.failed(*ip));
        let slow = lost.unfinished.iter().filter(|one| one.was_delayed);
        slow.for_each(|one| self.memory.failed(one.candidate));
        if !addresses.is_empty() {
            self.book.doubt();
        }
        let asked = lost.failed.len() + lost.unfinished.len();
        let mut failed = lost.failed;
        // An error from an address tells more than a timeout.
        failed.sort_by_key(|(_, failure)| matches!(failure, AttemptError::Connect(_)));
        let is_late = lost.is_late;
        match failed.into_iter().next() {
            Some((ip, AttemptError::Handshake(source))) => DialError::Handshake {
                host: host(),
                address: at(ip),
                source,
            },
            Some((ip, AttemptError::Connect(source))) if !is_late => DialError::Connect {
                address: at(ip),
                failed: asked,
                source,
            },
            _ if is_late => {
                let handshakes = |one: &&UnfinishedAttempt<IpAddr>| one.is_half_way;
                let handshake = lost.unfinished.iter().find(handshakes);
                let waiting = match (handshake, lost.unfinished.first()) {
                    (Some(one), _) => WaitingFor::Handshake {
                        address: at(one.candidate),
                    },
                    (None, Some(one)) => WaitingFor::Answer {
                        address: at(one.candidate),
                        asked,
                    },
                    (None, None) => WaitingFor::Names {
                        file: self.book.names().servers_file().to_owned(),
                    },
                };
                DialError::TimedOut {
                    host: host(),
                    limit: self.limit,
                    waiting,
                }
            }
            _ => match addresses.failure() {
                Some(source) => DialError::Resolve {
                    host: host(),
                    source,
                },
                None => DialError::NoAddress { host: host() },
            },
        }
    }
}

impl AttemptError {
    /// An error of this host, which says nothing about the address.
    fn is_ours(&self) -> bool {
        let Self::Connect(failure) = self else {
            return false;
        };
        let errno = failure.raw_os_error().map(Errno::from_raw_os_error);
        matches!(
            errno,
            Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)
        )
    }
}
