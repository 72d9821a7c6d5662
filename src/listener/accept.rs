//! The accept loop of one worker, and one connection from first byte to last.

use std::error::Error as StdError;
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{sleep, timeout};
use tokio_util::sync::PollSemaphore;
use tracing::{Instrument as _, debug, debug_span, info, warn};

use super::activity::{Activity, Timeouts};
use super::frames::Frames;
use super::http::{End, Watch, http1, http2};
use super::service::{Entry, Service};
use super::slots::{Slot, Slots};
use super::stream::{Check, Stream};
use super::tls::{self, Tls};
use super::wire::Wire;
use crate::causes::causes;
use crate::config;
use crate::lifecycle::{Stop, Tasks};
use crate::metrics::{ConnectionEnd, Gauged, Metrics};
use crate::pipeline::Peer;

const BACK_OFF: Duration = Duration::from_millis(10);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(1);

/// What a worker needs to serve one listener.
#[derive(Debug)]
pub struct Parts<S> {
    /// New connections go by what is in here when they come.
    pub settings: Arc<ArcSwap<config::Listener>>,
    /// None: plain HTTP/1.
    pub tls: Option<Arc<Tls>>,
    pub service: S,
    /// On the worker's own runtime.
    pub tasks: Tasks,
    pub stop: Stop,
    pub metrics: Arc<Metrics>,
    /// One for the listener, shared by all workers.
    pub slots: Arc<Slots>,
}

/// Accepts connections until told to drain; they go on as tasks of their own.
pub async fn serve<S: Service>(socket: StdListener, parts: Parts<S>) {
    let worker = Arc::new(parts);
    // A second handle on the same socket: at the end it is emptied without waiting.
    let opened = socket
        .try_clone()
        .and_then(|twin| Ok((TcpListener::from_std(socket)?, twin)));
    let (listener, twin) = match opened {
        Ok(both) => both,
        Err(error) => {
            worker.metrics.connection_ends.add(ConnectionEnd::Accept);
            warn!(%error, "cannot serve a bound socket");
            return;
        }
    };
    tokio::select! {
        biased;
        () = worker.stop.draining() => {}
        () = accept_all(&worker, &listener) => {}
    }
    drop(listener);
    accept_waiting(&worker, &twin);
}

async fn accept_all<S: Service>(worker: &Arc<Parts<S>>, listener: &TcpListener) {
    let mut slots = PollSemaphore::new(worker.slots.semaphore());
    let mut back_off = None;
    loop {
        let (permit, accepted) = accept(listener, &mut slots).await;
        match accepted {
            Ok((tcp, address)) => {
                if back_off.take().is_some() {
                    info!("accepting connections again");
                }
                worker.begin(tcp, address, permit);
            }
            Err(error) if is_of_one_connection(&error) => {
                worker.metrics.connection_ends.add(ConnectionEnd::Accept);
            }
            Err(error) => {
                worker.metrics.connection_ends.add(ConnectionEnd::Accept);
                drop(permit);
                let pause = match back_off {
                    Some(last) => LONGEST_BACK_OFF.min(last * 2),
                    None => {
                        warn!(
                            %error,
                            "cannot accept connections; is the limit of open files too low?"
                        );
                        BACK_OFF
                    }
                };
                back_off = Some(pause);
                sleep(pause).await;
            }
        }
    }
}

type Accepted = io::Result<(TcpStream, SocketAddr)>;

/// The next connection and a slot for it. No slot is held while none comes: it may
/// be the last one, and the connection that needs it may come to another worker.
async fn accept(
    listener: &TcpListener,
    slots: &mut PollSemaphore,
) -> (OwnedSemaphorePermit, Accepted) {
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
fn accept_waiting<S: Service>(worker: &Arc<Parts<S>>, socket: &StdListener) {
    while let Ok(permit) = worker.slots.semaphore().try_acquire_owned()
        && let Ok((tcp, address)) = socket.accept()
    {
        let tcp = tcp
            .set_nonblocking(true)
            .and_then(|()| TcpStream::from_std(tcp));
        match tcp {
            Ok(tcp) => worker.begin(tcp, address, permit),
            Err(_) => worker.metrics.connection_ends.add(ConnectionEnd::Accept),
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

impl<S: Service> Parts<S> {
    fn begin(self: &Arc<Self>, tcp: TcpStream, address: SocketAddr, permit: OwnedSemaphorePermit) {
        self.metrics.connections.inc();
        let place = (
            self.slots.take(permit),
            Gauged::enter(&self.metrics.connections_open),
        );
        let span = debug_span!("connection", peer = %address);
        let work = Arc::clone(self).run(tcp, address, place);
        self.tasks.spawn("connection", work.instrument(span));
    }

    async fn run(self: Arc<Self>, tcp: TcpStream, address: SocketAddr, place: (Slot, Gauged)) {
        let Ok(local) = tcp.local_addr() else {
            return; // gone already
        };
        // Small answers must not wait for the peer's delayed acknowledgement. A
        // socket that refuses this is about to fail by itself.
        let _ = tcp.set_nodelay(true);
        let settings = self.settings.load_full();
        let mut peer = Peer {
            address,
            local,
            tls: None,
        };
        let end = match &self.tls {
            None => Some(self.http(tcp, (peer, false), place, &settings).await),
            Some(tls) => match self.handshake(tls, tcp, &settings).await {
                None => None,
                Some(stream) => {
                    peer.tls = Some(tls::facts(&stream));
                    let is_http2 = tls::is_http2(&stream);
                    Some(self.http(stream, (peer, is_http2), place, &settings).await)
                }
            },
        };
        if let Some(end) = end {
            self.count(&end);
        }
    }

    async fn handshake(
        &self,
        tls: &Tls,
        tcp: TcpStream,
        settings: &config::Listener,
    ) -> Option<tls::Stream> {
        let end = tokio::select! {
            biased;
            () = self.stop.aborting() => ConnectionEnd::Aborted,
            shaken = timeout(settings.handshake_timeout, tls.accept(tcp)) => match shaken {
                Ok(Ok(stream)) => return Some(stream),
                Ok(Err(error)) => {
                    debug!(%error, "TLS handshake failed");
                    ConnectionEnd::Handshake
                }
                Err(_) => ConnectionEnd::HandshakeTimeout,
            },
        };
        self.metrics.connection_ends.add(end);
        None
    }

    async fn http<T>(
        &self,
        inner: T,
        (peer, is_http2): (Peer, bool),
        place: (Slot, Gauged),
        settings: &config::Listener,
    ) -> (End, Arc<Activity>)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let activity = Activity::new();
        let check = match is_http2 {
            true => Check::Frames(Frames::new()),
            false => Check::Wire(Wire::new()),
        };
        let stream = Stream::new(inner, check, Arc::clone(&activity), place);
        let entry = Entry {
            service: self.service.clone(),
            peer: Arc::new(peer),
            activity: Arc::clone(&activity),
            stop: self.stop.clone(),
            max_headers: settings.max_headers,
        };
        let watch = Watch {
            activity: Arc::clone(&activity),
            timeouts: Timeouts::from(settings),
            stop: self.stop.clone(),
        };
        let end = if is_http2 {
            http2(stream, entry, settings, (&watch, self.tasks.clone())).await
        } else {
            http1(stream, entry, settings, &watch).await
        };
        (end, activity)
    }

    fn count(&self, (end, activity): &(End, Arc<Activity>)) {
        let reason = match end {
            End::HeaderTimeout => Some(ConnectionEnd::HeaderTimeout),
            End::Idle => Some(ConnectionEnd::Idle),
            End::Aborted => Some(ConnectionEnd::Aborted),
            End::Closed(_) if activity.has_refused() => Some(ConnectionEnd::Protocol),
            End::Closed(Ok(())) => None,
            End::Closed(Err(error)) => {
                debug!(error = error as &dyn StdError, "connection ended early");
                (!has_left(error)).then_some(ConnectionEnd::Protocol)
            }
        };
        if let Some(reason) = reason {
            self.metrics.connection_ends.add(reason);
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
