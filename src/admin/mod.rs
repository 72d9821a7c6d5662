//! The operator's listener: health, readiness, metrics (`status_pages`), API keys (`key_admin`),
//! users (`user_admin`) and endpoints (`endpoint_admin`), over plain HTTP on an address of its own. It runs on the control runtime,
//! apart from clients' requests, so that it responds when they cannot, and during the drain. Start
//! at `serve`.

mod endpoint_admin;
mod key_admin;
mod status_pages;
#[cfg(test)]
mod tests;
mod user_admin;

pub use endpoint_admin::EndpointAdmin;
pub use key_admin::KeyAdmin;
pub use user_admin::UserAdmin;

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::pin::{Pin, pin};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use crate::accept_backoff::AcceptBackoff;
use crate::lifecycle::{ShutdownSignal, TaskScope};
use crate::metrics::Metrics;

/// Enough for scrapers, an orchestrator and a few people.
const MAX_CONNECTIONS: usize = 64;
/// For a request head, and between two requests; longer than the usual scrape interval.
const HEAD_TIMEOUT: Duration = Duration::from_secs(90);
/// A connection is shut down gracefully after this, and dropped `CLOSE_GRACE` later.
const MAX_CONNECTION_AGE: Duration = Duration::from_secs(600);
const CLOSE_GRACE: Duration = Duration::from_secs(30);
const MAX_HEADERS: usize = 64;
const MAX_HEADER_BYTES: usize = 16 * 1024;

/// Why the operator's listener cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "cannot listen on {address} for the operator; is it in use? choose another [operator] address"
    )]
    Bind {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
}

/// The bound socket of the operator's listener.
#[derive(Debug)]
pub struct BoundAdmin {
    address: SocketAddr,
    socket: StdListener,
}

impl BoundAdmin {
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

pub fn bind(address: SocketAddr) -> Result<BoundAdmin, Error> {
    let failed = |source| Error::Bind { address, source };
    let socket = StdListener::bind(address).map_err(failed)?;
    socket.set_nonblocking(true).map_err(failed)?;
    let address = socket.local_addr().map_err(failed)?;
    Ok(BoundAdmin { address, socket })
}

/// State of the operator's listener. Until it is opened the gateway is starting: it is alive and
/// has metrics, it is not ready, and nothing can be changed.
#[derive(Clone, Debug)]
pub struct AdminState {
    metrics: Arc<Metrics>,
    parts: Arc<OnceLock<AdminParts>>,
}

impl AdminState {
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            parts: Arc::default(),
        }
    }

    pub fn open(&self, parts: AdminParts) {
        let _ = self.parts.set(parts); // called once, when the start is complete
    }
}

/// The parts of the running gateway that the operator can see and change.
pub struct AdminParts {
    /// Called before a scrape, to update gauges that are computed on demand.
    pub refresh: Arc<dyn Fn() + Send + Sync>,
    /// Err: why the next request would fail, one reason per line.
    pub ready: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// Problems that do not make the next request fail, one per line.
    pub notes: Arc<dyn Fn() -> Option<String> + Send + Sync>,
    pub keys: KeyAdmin,
    pub users: UserAdmin,
    pub endpoints: EndpointAdmin,
}

impl fmt::Debug for AdminParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminParts").finish_non_exhaustive()
    }
}

/// Serves until abort; the drain only makes the gateway not ready.
pub async fn serve(bound: BoundAdmin, state: AdminState, scope: TaskScope) {
    let listener = match TcpListener::from_std(bound.socket) {
        Ok(listener) => listener,
        Err(error) => {
            warn!(%error, "cannot serve the operator's socket");
            return;
        }
    };
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut backoff = AcceptBackoff::new("operator");
    loop {
        let accepted = tokio::select! {
            () = scope.stop.aborting() => return,
            accepted = accept(&listener, &permits) => accepted,
        };
        match accepted {
            Ok((tcp, permit)) => {
                backoff.succeeded();
                let work = connection(tcp, permit, state.clone(), scope.stop.clone());
                scope.spawn("operator connection", work);
            }
            Err(error) => backoff.failed(&error).await,
        }
    }
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits).acquire_owned().await;
    let permit = permit.expect("the semaphore is never closed");
    let (tcp, _) = listener.accept().await?;
    Ok((tcp, permit))
}

async fn connection(
    tcp: TcpStream,
    permit: OwnedSemaphorePermit,
    state: AdminState,
    stop: ShutdownSignal,
) {
    let _permit = permit;
    let aborting = stop.clone();
    let peer = tcp.peer_addr().ok();
    let service = service_fn(move |request: Request<Incoming>| {
        let (state, is_draining) = (state.clone(), stop.is_draining());
        async move {
            let path = request.uri().path();
            let is_of_keys = key_admin::is_key_path(path);
            let is_of_users = user_admin::is_user_path(path);
            let is_of_endpoints = endpoint_admin::is_endpoint_path(path);
            let response = match state.parts.get() {
                Some(parts) if is_of_keys => key_admin::respond(request, &parts.keys).await,
                Some(parts) if is_of_users => {
                    let token = (parts.keys.token)();
                    user_admin::respond(request, &parts.users, token.as_ref(), peer).await
                }
                Some(parts) if is_of_endpoints => {
                    let token = (parts.keys.token)();
                    endpoint_admin::respond(request, &parts.endpoints, token.as_ref()).await
                }
                None if is_of_keys || is_of_users || is_of_endpoints => status_pages::starting(),
                _ => status_pages::respond(&request, &state, is_draining),
            };
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(MAX_HEADERS)
        .max_header_size(MAX_HEADER_BYTES)
        .max_buf_size(MAX_HEADER_BYTES)
        .serve_connection(TokioIo::new(tcp), service);
    let mut connection = pin!(connection);
    tokio::select! {
        () = aborting.aborting() => return,
        ended = log_end(connection.as_mut()) => return ended,
        () = sleep(MAX_CONNECTION_AGE) => connection.as_mut().graceful_shutdown(),
    }
    let ended = timeout(CLOSE_GRACE, log_end(connection));
    tokio::select! {
        () = aborting.aborting() => {}
        _ = ended => {}
    }
}

async fn log_end(connection: Pin<&mut impl Future<Output = hyper::Result<()>>>) {
    if let Err(error) = connection.await {
        debug!(%error, "connection of the operator ended early");
    }
}
