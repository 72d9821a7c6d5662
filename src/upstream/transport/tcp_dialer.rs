//! Opens a TCP connection to the upstream: name look-up, TCP and TLS within one timeout. All addresses
//! are tried in a staggered race (RFC 8305) that ends with a TLS handshake.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::address_book::{AddressBook, AddressCandidates};
use super::address_memory::AddressMemory;
use super::connect_proxy::{ConnectProxy, ProxyError};
use super::dial_error::{DialError, WaitingFor};
use super::tls::handshake::HandshakeError;
use super::tls::upstream_tls::UpstreamTls;
use super::tracked_stream::{TrackedStream, Transport};
use crate::config::Http2Mode;
use crate::staggered::{HalfWay, RaceLost, StaggerDelays, UnfinishedAttempt, race};

/// When the next address is tried (RFC 8305, section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// The same while one is connected and in its TLS handshake.
const HANDSHAKE_DELAY: Duration = Duration::from_secs(1);
/// Why an address could not be connected to.
#[derive(Debug)]
enum AttemptError {
    Connect(io::Error),
    Proxy(ProxyError),
    Handshake(HandshakeError),
}

/// Opens connections to one upstream over TCP.
#[derive(Debug)]
pub(in crate::upstream) struct TcpDialer {
    pub(in crate::upstream) port: u16,
    pub(in crate::upstream) book: AddressBook,
    pub(in crate::upstream) memory: AddressMemory,
    /// Port, names and addresses are the proxy's if there is one.
    pub(in crate::upstream) proxy: Option<Arc<ConnectProxy>>,
    pub(in crate::upstream) tls: Option<Arc<UpstreamTls>>,
    /// The name that is asked for, and that the certificate must have; None: plain HTTP.
    pub(in crate::upstream) server_name: Option<ServerName<'static>>,
    /// Without TLS: whether HTTP/2 is spoken.
    pub(in crate::upstream) has_prior_knowledge: bool,
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
        let tunnel = self.proxy.clone().map(Tunnel::through);
        let attempt =
            |ip, half_way| self.attempt(SocketAddr::new(ip, self.port), half_way, tunnel.clone());
        match race(&mut addresses, stagger, attempt).await {
            Ok(won) => {
                let failed = won.failed.into_iter();
                let failed = failed.filter(|(_, failure)| !failure.is_ours());
                failed.for_each(|(ip, _)| self.memory.failed(ip));
                won.overtaken.iter().for_each(|&ip| self.memory.failed(ip));
                self.memory.worked(won.candidate);
                Ok(won.value)
            }
            Err(lost) => Err(self.failure(lost, &addresses, tunnel.as_ref())),
        }
    }

    /// One address: TCP and, if configured, TLS. An address that accepts connections but fails the TLS
    /// handshake counts as failed.
    fn attempt(
        &self,
        address: SocketAddr,
        half_way: HalfWay,
        tunnel: Option<Tunnel>,
    ) -> impl Future<Output = Result<TrackedStream, AttemptError>> + Send + use<> {
        let tls = self.tls.as_deref();
        let tls = tls.map(UpstreamTls::current).zip(self.server_name.clone());
        let upstream = Arc::clone(&self.upstream);
        let has_prior_knowledge = self.has_prior_knowledge;
        let must_be_http2 = self
            .tls
            .as_ref()
            .is_some_and(|tls| tls.http2() == Http2Mode::Always);
        async move {
            let tcp = TcpStream::connect(address).await;
            let mut tcp = tcp.map_err(AttemptError::Connect)?;
            half_way.reached();
            // Requests are small: Nagle's algorithm would only delay them.
            let _ = tcp.set_nodelay(true);
            if let Some(tunnel) = tunnel {
                tunnel.open(&mut tcp).await.map_err(AttemptError::Proxy)?;
            }
            let Some((tls, name)) = tls else {
                let stream = TrackedStream::new(Transport::Plain(tcp), &upstream);
                return Ok(stream.with_prior_knowledge(has_prior_knowledge));
            };
            let connector = TlsConnector::from(Arc::clone(&tls.config));
            let stream = connector.connect(name, tcp).await;
            let explained = |failure| HandshakeError::explain(failure, &upstream, &tls.offered);
            let stream = stream.map_err(|failure| AttemptError::Handshake(explained(failure)))?;
            let stream = TrackedStream::new(Transport::Tls(Box::new(stream)), &upstream);
            if must_be_http2 && !stream.is_http2() {
                let failure = HandshakeError::NotHttp2 { upstream };
                return Err(AttemptError::Handshake(failure));
            }
            Ok(stream.made_with(&tls))
        }
    }

    fn failure(
        &self,
        lost: RaceLost<IpAddr, AttemptError>,
        addresses: &AddressCandidates<'_>,
        tunnel: Option<&Tunnel>,
    ) -> DialError {
        let failed = lost.failed.iter().filter(|(_, failure)| !failure.is_ours());
        failed.for_each(|(ip, _)| self.memory.failed(*ip));
        let slow = lost.unfinished.iter().filter(|one| one.was_delayed);
        slow.for_each(|one| self.memory.failed(one.candidate));
        if !addresses.is_empty() {
            self.book.doubt();
        }
        let failure = self.first_failure(lost, addresses, tunnel);
        match (&failure, tunnel) {
            (
                DialError::Resolve { .. }
                | DialError::NoAddress { .. }
                | DialError::Connect { .. }
                | DialError::TimedOut {
                    waiting: WaitingFor::Names { .. } | WaitingFor::Answer { .. },
                    ..
                },
                Some(_),
            ) => DialError::ProxyUnreachable {
                upstream: Arc::clone(&self.upstream),
                source: Box::new(failure),
            },
            _ => failure,
        }
    }

    /// The failure that tells most.
    fn first_failure(
        &self,
        lost: RaceLost<IpAddr, AttemptError>,
        addresses: &AddressCandidates<'_>,
        tunnel: Option<&Tunnel>,
    ) -> DialError {
        let host = || self.book.host().to_owned();
        let at = |ip| SocketAddr::new(ip, self.port);
        let asked = lost.failed.len() + lost.unfinished.len();
        let mut failed = lost.failed;
        // An error from an address tells more than a timeout.
        failed.sort_by_key(|(_, failure)| matches!(failure, AttemptError::Connect(_)));
        match failed.into_iter().next() {
            Some((ip, AttemptError::Handshake(source))) => DialError::Handshake {
                host: tunnel.map_or_else(host, Tunnel::to_string),
                address: at(ip),
                source,
            },
            Some((ip, AttemptError::Proxy(source))) => DialError::Proxy {
                address: at(ip),
                source,
            },
            Some((ip, AttemptError::Connect(source))) if !lost.is_late => DialError::Connect {
                address: at(ip),
                failed: asked,
                source,
            },
            _ if lost.is_late => DialError::TimedOut {
                host: tunnel.map_or_else(host, Tunnel::to_string),
                limit: self.limit,
                waiting: self.waiting(&lost.unfinished, asked, tunnel),
            },
            _ => match addresses.failure() {
                Some(source) => DialError::Resolve {
                    host: host(),
                    source,
                },
                None => DialError::NoAddress { host: host() },
            },
        }
    }

    /// What was waited for at the timeout.
    fn waiting(
        &self,
        unfinished: &[UnfinishedAttempt<IpAddr>],
        asked: usize,
        tunnel: Option<&Tunnel>,
    ) -> WaitingFor {
        let at = |one: &UnfinishedAttempt<IpAddr>| SocketAddr::new(one.candidate, self.port);
        let half_way = unfinished.iter().find(|one| one.is_half_way);
        match (half_way, unfinished.first()) {
            (Some(one), _) if tunnel.is_some_and(|tunnel| !tunnel.is_open()) => {
                WaitingFor::Tunnel { address: at(one) }
            }
            (Some(one), _) => WaitingFor::Handshake { address: at(one) },
            (None, Some(one)) => WaitingFor::Answer {
                address: at(one),
                asked,
            },
            (None, None) => WaitingFor::Names {
                file: self.book.names().servers_file().to_owned(),
            },
        }
    }
}

/// The tunnel that the attempts of one race ask for.
#[derive(Clone, Debug)]
struct Tunnel {
    proxy: Arc<ConnectProxy>,
    /// One of them has got it.
    is_open: Arc<AtomicBool>,
}

impl Tunnel {
    fn through(proxy: Arc<ConnectProxy>) -> Self {
        Self {
            proxy,
            is_open: Arc::default(),
        }
    }

    async fn open(&self, tcp: &mut TcpStream) -> Result<(), ProxyError> {
        self.proxy.open_tunnel(tcp).await?;
        self.is_open.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Relaxed)
    }
}

impl fmt::Display for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} through the proxy", self.proxy.target)
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
