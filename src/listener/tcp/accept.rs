//! The accept loop of one worker, and one connection from its first byte to its last.

use std::error::Error as StdError;
use std::future::poll_fn;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::task::{Poll, ready};

use arc_swap::ArcSwap;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tokio_util::sync::PollSemaphore;
use tracing::{Instrument as _, debug, debug_span, warn};

use crate::accept_backoff::AcceptBackoff;
use crate::config;
use crate::error_chain::causes;
use crate::lifecycle::TaskScope;
use crate::listener::connection::activity::{ConnectionActivity, ConnectionTimeouts};
use crate::listener::connection::client_stream::{ByteCheck, ClientStream, TransportSocket};
use crate::listener::connection::connection_limit::{ConnectionLimit, ConnectionPermit};
use crate::listener::connection::protocols::{http1, http2};
use crate::listener::connection::request_service::{RequestService, ServiceEntry};
use crate::listener::connection::watch::{ConnectionWatch, WatchEnd};
use crate::listener::http1::framing_guard::HeadLimits;
use crate::listener::http1::refusal;
use crate::listener::http2::continues::PendingContinues;
use crate::listener::tls::buffer_pool::BufferPool;
use crate::listener::tls::failed_handshakes::FailedHandshakes;
use crate::listener::tls::server_tls::ServerTls;
use crate::listener::tls::tls_stream::{HandshakeFailure, ServerTlsStream};
use crate::metrics::{ConnectionEnd, Metrics};
use crate::pipeline::{Peer, Rejection};

/// What a worker needs to serve one listener.
#[derive(Debug)]
pub struct ListenerParts<S> {
    /// A new connection uses the settings that are current when it is accepted.
    pub settings: Arc<ArcSwap<config::Listener>>,
    /// None: plain HTTP/1.
    pub tls: Option<Arc<ServerTls>>,
    pub service: S,
    /// On the worker's own runtime.
    pub scope: TaskScope,
    pub metrics: Arc<Metrics>,
    /// One for the listener, shared by all workers.
    pub connection_limit: Arc<ConnectionLimit>,
}

/// One worker's side of one listener.
pub(in crate::listener) struct WorkerListener<S> {
    parts: ListenerParts<S>,
    buffers: Arc<BufferPool>,
    failed_handshakes: FailedHandshakes,
}

/// Accepts connections until drain. Each connection runs in a task of its own and outlives this
/// call.
pub async fn serve<S: RequestService>(socket: StdListener, parts: ListenerParts<S>) {
    let worker = Arc::new(WorkerListener::new(parts));
    // A second handle on the same socket, to accept without waiting at the end.
    let opened = socket
        .try_clone()
        .and_then(|duplicate| Ok((TcpListener::from_std(socket)?, duplicate)));
    let (listener, duplicate) = match opened {
        Ok(handles) => handles,
        Err(error) => {
            worker
                .parts
                .metrics
                .connection_ends
                .add(ConnectionEnd::Accept);
            warn!(%error, "cannot serve a bound socket");
            return;
        }
    };
    tokio::select! {
        biased;
        () = worker.parts.scope.stop.draining() => {}
        () = accept_all(&worker, &listener) => {}
    }
    drop(listener);
    accept_backlog(&worker, &duplicate);
}

async fn accept_all<S: RequestService>(worker: &Arc<WorkerListener<S>>, listener: &TcpListener) {
    let limit = &worker.parts.connection_limit;
    let mut permits = PollSemaphore::new(limit.semaphore());
    let mut backoff = AcceptBackoff::new("clients");
    loop {
        let AcceptedConnection { permit, accepted } = accept(listener, &mut permits).await;
        match accepted {
            Ok((tcp, address)) => {
                backoff.succeeded();
                worker.start_connection(tcp, address, permit);
            }
            Err(error) => {
                let metrics = &worker.parts.metrics;
                metrics.connection_ends.add(ConnectionEnd::Accept);
                drop(permit);
                backoff.failed(&error).await;
            }
        }
    }
}

/// The result of one accept, with the permit that it used.
struct AcceptedConnection {
    permit: OwnedSemaphorePermit,
    accepted: io::Result<(TcpStream, SocketAddr)>,
}

/// Waits for the next connection and a permit for it. No permit is held while no connection
/// arrives: it may be the last one, and the connection that needs it may reach another worker.
async fn accept(listener: &TcpListener, permits: &mut PollSemaphore) -> AcceptedConnection {
    poll_fn(|cx| {
        let permit = ready!(permits.poll_acquire(cx)).expect("the semaphore is never closed");
        match listener.poll_accept(cx) {
            Poll::Ready(accepted) => Poll::Ready(AcceptedConnection { permit, accepted }),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Accepts the connections left in the kernel's backlog, which would be reset when the socket
/// closes. Each is served one request.
fn accept_backlog<S: RequestService>(worker: &Arc<WorkerListener<S>>, socket: &StdListener) {
    let parts = &worker.parts;
    while let Ok(permit) = parts.connection_limit.semaphore().try_acquire_owned()
        && let Ok((tcp, address)) = socket.accept()
    {
        let tcp = tcp
            .set_nonblocking(true)
            .and_then(|()| TcpStream::from_std(tcp));
        match tcp {
            Ok(tcp) => worker.start_connection(tcp, address, permit),
            Err(_) => parts.metrics.connection_ends.add(ConnectionEnd::Accept),
        }
    }
}

impl<S: RequestService> WorkerListener<S> {
    pub(in crate::listener) fn new(parts: ListenerParts<S>) -> Self {
        Self {
            parts,
            buffers: Arc::default(),
            failed_handshakes: FailedHandshakes::default(),
        }
    }

    fn start_connection(
        self: &Arc<Self>,
        tcp: TcpStream,
        address: SocketAddr,
        permit: OwnedSemaphorePermit,
    ) {
        let ListenerParts {
            connection_limit,
            metrics,
            ..
        } = &self.parts;
        metrics.connections.inc();
        let open = &metrics.connections_open;
        let Some(permit) = connection_limit.take(permit, address.ip(), open) else {
            // Closed at once: other peers need the permits that are left.
            metrics.connection_ends.add(ConnectionEnd::PeerShare);
            return;
        };
        let span = debug_span!("connection", peer = %address);
        let work = Arc::clone(self).run(tcp, address, permit);
        self.parts.scope.spawn("connection", work.instrument(span));
    }

    pub(in crate::listener) async fn run(
        self: Arc<Self>,
        tcp: TcpStream,
        address: SocketAddr,
        permit: ConnectionPermit,
    ) {
        let Ok(local) = tcp.local_addr() else {
            return; // the peer has closed it already
        };
        let settings = self.parts.settings.load_full();
        // Shared from the start: on the heap it does not add to the size of this task.
        let mut peer = Arc::new(Peer {
            address,
            local,
            tls: None,
            last_token: crate::pipeline::LastToken::default(),
        });
        let Some(tls) = &self.parts.tls else {
            let stream =
                ClientStream::new(tcp, ByteCheck::http1(HeadLimits::from(&*settings)), permit);
            let entry = self.entry(&stream, peer, &settings);
            return self.http1(stream, entry, &settings).await;
        };
        // Boxed because it is rare and large: a task is as large as its largest step.
        let Some(secured) = Box::pin(self.handshake(tls, tcp, &peer, &settings)).await else {
            return;
        };
        if let Some(peer) = Arc::get_mut(&mut peer) {
            peer.tls = Some(secured.facts());
        }
        if secured.is_http2() {
            let continues = Arc::<PendingContinues>::default();
            let stream = ClientStream::new(secured, ByteCheck::http2(&continues), permit);
            let mut entry = self.entry(&stream, peer, &settings);
            entry.continues = Some(continues);
            Box::pin(self.http2(stream, entry, &settings)).await;
        } else {
            let stream = ClientStream::new(
                secured,
                ByteCheck::http1(HeadLimits::from(&*settings)),
                permit,
            );
            let entry = self.entry(&stream, peer, &settings);
            self.http1(stream, entry, &settings).await;
        }
    }

    async fn handshake(
        &self,
        tls: &ServerTls,
        tcp: TcpStream,
        peer: &Peer,
        settings: &config::Listener,
    ) -> Option<Box<ServerTlsStream>> {
        let accept = ServerTlsStream::accept(tcp, tls.current(), Arc::clone(&self.buffers));
        let outcome = tokio::select! {
            biased;
            () = self.parts.scope.stop.aborting() => {
                self.parts.metrics.connection_ends.add(ConnectionEnd::Aborted);
                return None;
            }
            outcome = timeout(settings.handshake_timeout, accept) => outcome,
        };
        let mut end = ConnectionEnd::Handshake;
        match outcome {
            Ok(Ok(stream)) => return Some(stream),
            Ok(Err(HandshakeFailure::Silent)) => debug!("peer closed before the TLS handshake"),
            Ok(Err(HandshakeFailure::Broken(error))) => {
                self.failed_handshakes.log(peer.address, &error);
            }
            Ok(Err(HandshakeFailure::PlainHttp(tcp))) => self.refuse_plain_http(tcp, peer).await,
            Err(_) => {
                let cause = "not complete within handshake_timeout";
                self.failed_handshakes.log(peer.address, &cause);
                end = ConnectionEnd::HandshakeTimeout;
            }
        }
        self.parts.metrics.connection_ends.add(end);
        None
    }

    /// Answers a client that speaks plain HTTP to a TLS port, in plain HTTP.
    async fn refuse_plain_http(&self, tcp: TcpStream, peer: &Peer) {
        let rejection = Rejection::BadRequest("this port speaks https");
        let response = self.parts.service.refuse(None, rejection, peer);
        tokio::select! {
            biased;
            () = self.parts.scope.stop.aborting() => {}
            () = refusal::write(tcp, response) => {}
        }
    }

    fn entry<T>(
        &self,
        stream: &ClientStream<T>,
        peer: Arc<Peer>,
        settings: &config::Listener,
    ) -> ServiceEntry<S> {
        ServiceEntry {
            service: self.parts.service.clone(),
            peer,
            activity: Arc::clone(stream.activity()),
            limits: HeadLimits::from(settings),
            tasks: self.parts.scope.tasks.clone(),
            continues: None,
        }
    }

    fn watch(
        &self,
        entry: &ServiceEntry<S>,
        settings: &config::Listener,
        may_rest: bool,
    ) -> ConnectionWatch {
        ConnectionWatch {
            may_rest,
            activity: Arc::clone(&entry.activity),
            timeouts: ConnectionTimeouts::from(settings),
            stop: self.parts.scope.stop.clone(),
        }
    }

    async fn http1<T: TransportSocket>(
        &self,
        stream: ClientStream<T>,
        entry: ServiceEntry<S>,
        settings: &config::Listener,
    ) {
        let watch = self.watch(&entry, settings, true);
        let end = http1(stream, Arc::new(entry), settings, &watch).await;
        self.count(&end, &watch.activity);
    }

    async fn http2<T: TransportSocket>(
        &self,
        stream: ClientStream<T>,
        entry: ServiceEntry<S>,
        settings: &config::Listener,
    ) {
        let watch = self.watch(&entry, settings, false);
        let tasks = self.parts.scope.tasks.clone();
        let end = http2(stream, Arc::new(entry), settings, &watch, tasks).await;
        self.count(&end, &watch.activity);
    }

    fn count(&self, end: &WatchEnd, activity: &ConnectionActivity) {
        let reason = match end {
            WatchEnd::HeaderTimeout => Some(ConnectionEnd::HeaderTimeout),
            WatchEnd::Idle => Some(ConnectionEnd::Idle),
            WatchEnd::Aborted => Some(ConnectionEnd::Aborted),
            WatchEnd::Closed(_) if activity.has_refused() => Some(ConnectionEnd::Protocol),
            WatchEnd::Closed(Ok(())) => None,
            WatchEnd::Closed(Err(error)) => {
                debug!(error = error as &dyn StdError, "connection ended early");
                (!is_disconnect(error)).then_some(ConnectionEnd::Protocol)
            }
        };
        if let Some(reason) = reason {
            self.parts.metrics.connection_ends.add(reason);
        }
    }
}

/// Whether the peer closed the connection, which breaks no rule of the protocol.
fn is_disconnect(error: &hyper::Error) -> bool {
    error.is_incomplete_message()
        || error.is_canceled()
        || error.is_closed()
        || error.is_body_write_aborted()
        || causes(error).any(|cause| cause.is::<io::Error>())
}
