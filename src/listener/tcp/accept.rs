//! The accept loop of one worker, and one connection from first byte to last.

use std::error::Error as StdError;
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{sleep, timeout};
use tokio_util::sync::PollSemaphore;
use tracing::{Instrument as _, debug, debug_span, info, warn};

use super::connection_limit::{ConnectionLimit, ConnectionPermit};
use crate::backoff::Backoff;
use crate::config;
use crate::error_chain::causes;
use crate::lifecycle::{ShutdownSignal, TaskSet};
use crate::listener::connection::activity::{ConnectionActivity, ConnectionTimeouts};
use crate::listener::connection::client_stream::{ByteCheck, ClientStream, TransportSocket};
use crate::listener::connection::protocols::{http1, http2};
use crate::listener::connection::watch::{ConnectionWatch, WatchEnd};
use crate::listener::http1::framing_guard::HeadLimits;
use crate::listener::http1::refusal;
use crate::listener::http2::continues::PendingContinues;
use crate::listener::service::{RequestService, ServiceEntry};
use crate::listener::tls::buffer_pool::BufferPool;
use crate::listener::tls::failed_handshakes::FailedHandshakes;
use crate::listener::tls::server_tls::ServerTls;
use crate::listener::tls::tls_stream::{HandshakeFailure, ServerTlsStream};
use crate::metrics::{ConnectionEnd, GaugeGuard, Metrics};
use crate::pipeline::{Peer, Rejection};

const ACCEPT_BACKOFF: Backoff = Backoff {
    first: Duration::from_millis(10),
    max: Duration::from_secs(1),
    jitter: 0.0,
};

/// What a worker needs to serve one listener.
#[derive(Debug)]
pub struct ListenerParts<S> {
    /// New connections go by what is in here when they come.
    pub settings: Arc<ArcSwap<config::Listener>>,
    /// None: plain HTTP/1.
    pub tls: Option<Arc<ServerTls>>,
    pub service: S,
    /// On the worker's own runtime.
    pub tasks: TaskSet,
    pub stop: ShutdownSignal,
    pub metrics: Arc<Metrics>,
    /// One for the listener, shared by all workers.
    pub slots: Arc<ConnectionLimit>,
}

/// One worker's side of one listener.
pub(in crate::listener) struct WorkerListener<S> {
    parts: ListenerParts<S>,
    buffers: Arc<BufferPool>,
    failed_handshakes: FailedHandshakes,
}

/// Accepts connections until told to drain; they go on as tasks of their own.
pub async fn serve<S: RequestService>(socket: StdListener, parts: ListenerParts<S>) {
    let worker = Arc::new(WorkerListener::new(parts));
    // A second handle on the same socket: at the end it is emptied without waiting.
    let opened = socket
        .try_clone()
        .and_then(|twin| Ok((TcpListener::from_std(socket)?, twin)));
    let (listener, twin) = match opened {
        Ok(both) => both,
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
        () = worker.parts.stop.draining() => {}
        () = accept_all(&worker, &listener) => {}
    }
    drop(listener);
    accept_waiting(&worker, &twin);
}

async fn accept_all<S: RequestService>(worker: &Arc<WorkerListener<S>>, listener: &TcpListener) {
    let metrics = &worker.parts.metrics;
    let mut slots = PollSemaphore::new(worker.parts.slots.semaphore());
    let mut failures = 0_u32;
    loop {
        let (permit, accepted) = accept(listener, &mut slots).await;
        match accepted {
            Ok((tcp, address)) => {
                if std::mem::take(&mut failures) > 0 {
                    info!("accepting connections again");
                }
                worker.begin(tcp, address, permit);
            }
            Err(error) if is_of_one_connection(&error) => {
                metrics.connection_ends.add(ConnectionEnd::Accept);
            }
            Err(error) => {
                metrics.connection_ends.add(ConnectionEnd::Accept);
                drop(permit);
                if failures == 0 {
                    warn!(
                        %error,
                        "cannot accept connections; is the limit of open files too low?"
                    );
                }
                failures = failures.saturating_add(1);
                sleep(ACCEPT_BACKOFF.pause(failures)).await;
            }
        }
    }
}

type AcceptedSocket = io::Result<(TcpStream, SocketAddr)>;

/// The next connection and a slot for it. No slot is held while none comes: it may
/// be the last one, and the connection that needs it may come to another worker.
async fn accept(
    listener: &TcpListener,
    slots: &mut PollSemaphore,
) -> (OwnedSemaphorePermit, AcceptedSocket) {
    poll_fn(|cx| {
        let permit = ready!(slots.poll_acquire(cx)).expect("slots are never closed");
        match listener.poll_accept(cx) {
            Poll::Ready(accepted) => Poll::Ready((permit, accepted)),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Connections that the kernel has completed would be reset when the socket closes;
/// their clients did nothing wrong, and are served one request each.
fn accept_waiting<S: RequestService>(worker: &Arc<WorkerListener<S>>, socket: &StdListener) {
    let ListenerParts { slots, metrics, .. } = &worker.parts;
    while let Ok(permit) = slots.semaphore().try_acquire_owned()
        && let Ok((tcp, address)) = socket.accept()
    {
        let tcp = tcp
            .set_nonblocking(true)
            .and_then(|()| TcpStream::from_std(tcp));
        match tcp {
            Ok(tcp) => worker.begin(tcp, address, permit),
            Err(_) => metrics.connection_ends.add(ConnectionEnd::Accept),
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionRefused
            | ErrorKind::Interrupted
    )
}

impl<S: RequestService> WorkerListener<S> {
    pub(in crate::listener) fn new(parts: ListenerParts<S>) -> Self {
        Self {
            parts,
            buffers: Arc::default(),
            failed_handshakes: FailedHandshakes::default(),
        }
    }

    fn begin(self: &Arc<Self>, tcp: TcpStream, address: SocketAddr, permit: OwnedSemaphorePermit) {
        let ListenerParts { slots, metrics, .. } = &self.parts;
        metrics.connections.inc();
        let Some(slot) = slots.take(permit, address.ip()) else {
            // Closed at once: others need the slots that are left.
            metrics.connection_ends.add(ConnectionEnd::PeerShare);
            return;
        };
        let place = (slot, GaugeGuard::enter(&metrics.connections_open));
        let span = debug_span!("connection", peer = %address);
        let work = Arc::clone(self).run(tcp, address, place);
        self.parts.tasks.spawn("connection", work.instrument(span));
    }

    pub(in crate::listener) async fn run(
        self: Arc<Self>,
        tcp: TcpStream,
        address: SocketAddr,
        place: (ConnectionPermit, GaugeGuard),
    ) {
        let Ok(local) = tcp.local_addr() else {
            return; // gone already
        };
        let settings = self.parts.settings.load_full();
        let limits = HeadLimits::from(&*settings);
        let mut peer = Peer {
            address,
            local,
            tls: None,
            last_token: crate::pipeline::LastToken::default(),
        };
        let Some(tls) = &self.parts.tls else {
            let (stream, entry) = self.open(tcp, (peer, place), ByteCheck::wire(limits), &settings);
            return self.http1(stream, entry, &settings).await;
        };
        // Boxed, as all that is rare and large: the task is as large as its largest step.
        let Some(secured) = Box::pin(self.handshake(tls, tcp, &peer, &settings)).await else {
            return;
        };
        peer.tls = Some(secured.facts());
        if secured.is_http2() {
            let continues = Arc::<PendingContinues>::default();
            let check = ByteCheck::frames(&continues);
            let (stream, mut entry) = self.open(secured, (peer, place), check, &settings);
            entry.continues = Some(continues);
            Box::pin(self.http2(stream, entry, &settings)).await;
        } else {
            let (stream, entry) =
                self.open(secured, (peer, place), ByteCheck::wire(limits), &settings);
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
        let shaken = tokio::select! {
            biased;
            () = self.parts.stop.aborting() => {
                self.parts.metrics.connection_ends.add(ConnectionEnd::Aborted);
                return None;
            }
            shaken = timeout(settings.handshake_timeout, accept) => shaken,
        };
        let mut end = ConnectionEnd::Handshake;
        match shaken {
            Ok(Ok(stream)) => return Some(stream),
            Ok(Err(HandshakeFailure::Silent)) => debug!("left before the TLS handshake"),
            Ok(Err(HandshakeFailure::Broken(error))) => {
                self.failed_handshakes.tell(peer.address, &error);
            }
            Ok(Err(HandshakeFailure::PlainHttp(tcp))) => self.answer_plain(tcp, peer).await,
            Err(_) => {
                let why = "it was not over in time (handshake_timeout)";
                self.failed_handshakes.tell(peer.address, &why);
                end = ConnectionEnd::HandshakeTimeout;
            }
        }
        self.parts.metrics.connection_ends.add(end);
        None
    }

    /// A client that speaks plain HTTP to a TLS port can read an answer.
    async fn answer_plain(&self, tcp: TcpStream, peer: &Peer) {
        let rejection = Rejection::BadRequest("this port speaks https");
        let answer = self.parts.service.refuse(None, rejection, peer);
        tokio::select! {
            biased;
            () = self.parts.stop.aborting() => {}
            () = refusal::write(tcp, answer) => {}
        }
    }

    fn open<T: TransportSocket>(
        &self,
        socket: T,
        (peer, place): (Peer, (ConnectionPermit, GaugeGuard)),
        check: ByteCheck,
        settings: &config::Listener,
    ) -> (ClientStream<T>, ServiceEntry<S>) {
        let activity = ConnectionActivity::new();
        let entry = ServiceEntry {
            service: self.parts.service.clone(),
            peer: Arc::new(peer),
            activity: Arc::clone(&activity),
            limits: HeadLimits::from(settings),
            tasks: self.parts.tasks.clone(),
            continues: None,
        };
        (ClientStream::new(socket, check, activity, place), entry)
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
            stop: self.parts.stop.clone(),
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
        let tasks = self.parts.tasks.clone();
        let end = http2(stream, Arc::new(entry), settings, (&watch, tasks)).await;
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
                (!has_left(error)).then_some(ConnectionEnd::Protocol)
            }
        };
        if let Some(reason) = reason {
            self.parts.metrics.connection_ends.add(reason);
        }
    }
}

/// The peer went away, as peers do; it broke no rule.
fn has_left(error: &hyper::Error) -> bool {
    error.is_incomplete_message()
        || error.is_canceled()
        || error.is_closed()
        || error.is_body_write_aborted()
        || causes(error).any(|cause| cause.is::<io::Error>())
}
