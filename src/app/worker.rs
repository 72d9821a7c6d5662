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
use crate::lifecycle::{ShutdownSignal, TaskSet};
use crate::listener::{self, ConnectionLimit, ServerTls};
use crate::metrics::Metrics;
use crate::pipeline::{
    AppState, LoggedResponseBody, Peer, Pipeline, Rejection, SlowStreamWatchdog,
};

/// One listener: its sockets, one per worker, and what they share.
#[derive(Debug)]
pub(super) struct BoundListener {
    address: SocketAddr,
    sockets: Mutex<Vec<std::net::TcpListener>>,
    tls: Option<Arc<ServerTls>>,
    /// Replaced by a reload.
    pub(super) settings: Arc<ArcSwap<config::Listener>>,
    slots: Arc<ConnectionLimit>,
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
            slots: ConnectionLimit::new(settings.max_connections),
        })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn tls(&self) -> Option<&Arc<ServerTls>> {
        self.tls.as_ref()
    }

    pub(super) fn slots(&self) -> &ConnectionLimit {
        &self.slots
    }

    /// One worker's share: a socket, and what all of them share.
    fn door(&self, metrics: &Arc<Metrics>) -> Option<ListenerShare> {
        let mut sockets = self.sockets.lock();
        Some(ListenerShare {
            socket: sockets.pop()?,
            settings: Arc::clone(&self.settings),
            tls: self.tls.clone(),
            slots: Arc::clone(&self.slots),
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
    slots: Arc<ConnectionLimit>,
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
        let mut is_well = true;
        for end in self.ends {
            is_well &= end.await.is_ok();
        }
        is_well
    }
}

/// Starts the threads; each takes one socket of every gate.
pub(super) fn start(
    gates: &[BoundListener],
    shared: &Arc<AppState>,
    (tasks, stop): (&TaskSet, &ShutdownSignal),
) -> Result<WorkerThreads, Error> {
    let count = shared.live.load().config.workers;
    let mut ends = Vec::with_capacity(count);
    for index in 0..count {
        let doors = gates
            .iter()
            .filter_map(|gate| gate.door(&shared.metrics))
            .collect();
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(Error::Worker)?;
        let tasks = tasks.apart(runtime.handle().clone());
        let (shared, stop) = (Arc::clone(shared), stop.clone());
        let (ended, end) = oneshot::channel();
        std::thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || {
                run(&runtime, doors, shared, (tasks, &stop));
                // Drops what is left: requests in it write their access lines now.
                runtime.shutdown_background();
                let _ = ended.send(()); // nobody waits any more: nothing to tell
            })
            .map_err(Error::Worker)?;
        ends.push(end);
    }
    Ok(WorkerThreads { ends })
}

/// In a box, since hyper moves it about and it is large; and made there: `Box::pin` makes
/// it on the stack and copies all of it, kilobytes a request.
#[inline]
fn boxed<F>(make: impl FnOnce() -> F) -> Pin<Box<F>> {
    let place = Box::new_uninit();
    Box::into_pin(Box::write(place, make()))
}

/// One worker's pipeline as what its listeners give requests to.
#[derive(Clone, Debug)]
struct PipelineService(Arc<Pipeline>);

impl listener::RequestService for PipelineService {
    type Body = LoggedResponseBody;
    type Future = Pin<Box<dyn Future<Output = Response<LoggedResponseBody>> + Send>>;

    fn answer(&self, request: Request<Incoming>, peer: Arc<Peer>) -> Self::Future {
        let pipeline = Arc::clone(&self.0);
        // Kept here, once: what comes after only looks at it.
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

fn run(
    runtime: &Runtime,
    doors: Vec<ListenerShare>,
    shared: Arc<AppState>,
    (tasks, stop): (TaskSet, &ShutdownSignal),
) {
    runtime.block_on(async {
        let flows = SlowStreamWatchdog::default();
        // Its own stop: the watch must outlive the drain, and end with the last exchange.
        let watching = ShutdownSignal::default();
        let watch = flows.clone().watch(watching.clone());
        let apart = tasks.apart(runtime.handle().clone());
        apart.spawn("slow answers", watch);
        let pipeline = Arc::new(Pipeline::new(shared, tasks.clone(), flows));
        for door in doors {
            let service = PipelineService(Arc::clone(&pipeline));
            let parts = listener::ListenerParts {
                settings: door.settings,
                tls: door.tls,
                service,
                tasks: tasks.clone(),
                stop: stop.clone(),
                metrics: door.metrics,
                slots: door.slots,
            };
            tasks.spawn("listener", listener::serve(door.socket, parts));
        }
        drop(pipeline);
        stop.draining().await;
        tasks.wait().await;
        watching.abort();
    });
}
