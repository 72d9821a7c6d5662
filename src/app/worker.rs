//! The request threads: one current-thread runtime each, with its own sockets,
//! upstream connections and tasks. Nothing slow runs here.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::request::Parts;
use http::{Request, Response};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

use super::Error;
use crate::config;
use crate::lifecycle::{ShutdownSignal, TaskScope};
use crate::listener::{self, ConnectionLimit, ServerTls};
use crate::metrics::Metrics;
use crate::pipeline::{
    AppState, LoggedResponseBody, Peer, Pipeline, Rejection, SlowStreamWatchdog,
};

/// One listener: a socket per worker, and what the workers share.
#[derive(Debug)]
pub(super) struct BoundListener {
    address: SocketAddr,
    sockets: Mutex<Vec<std::net::TcpListener>>,
    tls: Option<Arc<ServerTls>>,
    /// Replaced by a reload.
    pub(super) settings: Arc<ArcSwap<config::Listener>>,
    connection_limit: Arc<ConnectionLimit>,
}

impl BoundListener {
    pub(super) fn open(
        settings: &config::Listener,
        workers: usize,
        tls: Option<Arc<ServerTls>>,
    ) -> Result<Self, listener::Error> {
        let bound = listener::bind(settings, workers)?;
        Ok(Self {
            address: bound.address(),
            sockets: Mutex::new(bound.into_sockets()),
            tls,
            settings: Arc::new(ArcSwap::from_pointee(settings.clone())),
            connection_limit: ConnectionLimit::new(settings.max_connections),
        })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn tls(&self) -> Option<&Arc<ServerTls>> {
        self.tls.as_ref()
    }

    pub(super) fn connection_limit(&self) -> &ConnectionLimit {
        &self.connection_limit
    }

    /// One worker's share: a socket, and what all of them share.
    fn share(&self, metrics: &Arc<Metrics>) -> Option<ListenerShare> {
        let mut sockets = self.sockets.lock();
        Some(ListenerShare {
            socket: sockets.pop()?,
            settings: Arc::clone(&self.settings),
            tls: self.tls.clone(),
            connection_limit: Arc::clone(&self.connection_limit),
            metrics: Arc::clone(metrics),
        })
    }
}

/// What one worker opens of one listener.
#[derive(Debug)]
struct ListenerShare {
    socket: std::net::TcpListener,
    settings: Arc<ArcSwap<config::Listener>>,
    tls: Option<Arc<ServerTls>>,
    connection_limit: Arc<ConnectionLimit>,
    metrics: Arc<Metrics>,
}

/// The running threads.
#[derive(Debug)]
pub(super) struct WorkerThreads {
    ends: Vec<oneshot::Receiver<()>>,
}

impl WorkerThreads {
    /// Waits until every worker has ended; false if one of them ended by a panic.
    pub(super) async fn ended(self) -> bool {
        let mut all_ended = true;
        for end in self.ends {
            all_ended &= end.await.is_ok();
        }
        all_ended
    }
}

/// Starts the threads; each takes one socket of every listener.
pub(super) fn start(
    listeners: &[BoundListener],
    shared: &Arc<AppState>,
    scope: &TaskScope,
) -> Result<WorkerThreads, Error> {
    let count = shared.live.load().config.workers;
    let mut ends = Vec::with_capacity(count);
    for index in 0..count {
        let shares = listeners
            .iter()
            .filter_map(|listener| listener.share(&shared.metrics))
            .collect();
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(Error::Worker)?;
        let scope = TaskScope {
            tasks: scope.tasks.apart(runtime.handle().clone()),
            stop: scope.stop.clone(),
        };
        let shared = Arc::clone(shared);
        let (ended, end) = oneshot::channel();
        std::thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || {
                run(&runtime, shares, shared, &scope);
                // Drops the requests that are left: they write their access lines now.
                runtime.shutdown_background();
                let _ = ended.send(()); // fails only when the program no longer waits for its workers
            })
            .map_err(Error::Worker)?;
        ends.push(end);
    }
    Ok(WorkerThreads { ends })
}

/// Makes a future inside a box: hyper moves futures, and this one is large. `Box::pin` would make
/// it on the stack and copy it, kilobytes per request.
#[inline]
fn boxed<F>(make: impl FnOnce() -> F) -> Pin<Box<F>> {
    let uninit = Box::new_uninit();
    Box::into_pin(Box::write(uninit, make()))
}

/// One worker's pipeline, as the service of its listeners.
#[derive(Clone, Debug)]
struct PipelineService(Arc<Pipeline>);

impl listener::RequestService for PipelineService {
    type Body = LoggedResponseBody;
    type Future = Pin<Box<dyn Future<Output = Response<LoggedResponseBody>> + Send>>;

    fn handle(&self, request: Request<Incoming>, peer: Arc<Peer>) -> Self::Future {
        let pipeline = Arc::clone(&self.0);
        // The head is stored once, in this future; the stages borrow it.
        let (head, body) = request.into_parts();
        boxed(|| async move { pipeline.handle(&head, body, &peer).await })
    }

    fn refuse(
        &self,
        head: Option<&Parts>,
        rejection: Rejection,
        peer: &Peer,
    ) -> Response<LoggedResponseBody> {
        self.0.refuse(head, rejection, peer)
    }
}

fn run(runtime: &Runtime, shares: Vec<ListenerShare>, shared: Arc<AppState>, scope: &TaskScope) {
    runtime.block_on(async {
        let watchdog = SlowStreamWatchdog::default();
        // Its own stop: the watchdog must outlive the drain, and end with the last exchange.
        let watchdog_stop = ShutdownSignal::default();
        let watch = watchdog.clone().watch(watchdog_stop.clone());
        let apart = scope.tasks.apart(runtime.handle().clone());
        apart.spawn("slow answers", watch);
        let pipeline = Arc::new(Pipeline::new(shared, scope.tasks.clone(), watchdog));
        for share in shares {
            let service = PipelineService(Arc::clone(&pipeline));
            let parts = listener::ListenerParts {
                settings: share.settings,
                tls: share.tls,
                service,
                scope: scope.clone(),
                metrics: share.metrics,
                connection_limit: share.connection_limit,
            };
            scope.spawn("listener", listener::serve(share.socket, parts));
        }
        drop(pipeline);
        scope.stop.draining().await;
        scope.tasks.wait().await;
        watchdog_stop.abort();
    });
}
