//! The operator's side: health, readiness, metrics, API keys, over plain HTTP on an
//! address of its own. Runs on the control runtime, apart from requests, so that it answers
//! when they do not, and goes on answering while the program drains.

mod answer;
mod keys;
#[cfg(test)]
mod tests;
mod users;

pub use keys::{KeyDesk, ListedKey};
pub use users::UserAdmin;

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

use crate::lifecycle::{ShutdownSignal, TaskSet};
use crate::metrics::Metrics;

/// A scraper, an orchestrator, a few people: more is a mistake somewhere.
const MAX_CONNECTIONS: usize = 64;
/// For a head, and between two requests; longer than the usual scrape interval.
const HEAD_TIMEOUT: Duration = Duration::from_secs(90);
/// A connection is closed politely after this, and dropped if that does not end it.
const LONGEST_CONNECTION: Duration = Duration::from_secs(600);
const CLOSE_GRACE: Duration = Duration::from_secs(30);
const BACK_OFF: Duration = Duration::from_millis(200);
const MAX_HEADERS: usize = 64;
const MAX_HEADER_BYTES: usize = 16 * 1024;

/// Why the operator's listener cannot be had.
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

/// The operator's socket.
#[derive(Debug)]
pub struct Bound {
    address: SocketAddr,
    socket: StdListener,
}

impl Bound {
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

pub fn bind(address: SocketAddr) -> Result<Bound, Error> {
    let failed = |source| Error::Bind { address, source };
    let socket = StdListener::bind(address).map_err(failed)?;
    socket.set_nonblocking(true).map_err(failed)?;
    let address = socket.local_addr().map_err(failed)?;
    Ok(Bound { address, socket })
}

/// Where the operator is answered. Until it is opened the gate is starting: it is alive and
/// has numbers, it is not ready, and nothing can be changed.
#[derive(Clone, Debug)]
pub struct AdminState {
    metrics: Arc<Metrics>,
    parts: Arc<OnceLock<Parts>>,
}

impl AdminState {
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            parts: Arc::default(),
        }
    }

    pub fn open(&self, parts: Parts) {
        let _ = self.parts.set(parts); // a gate starts once
    }
}

/// What the answers are made of.
pub struct Parts {
    /// Called before a scrape, for numbers that are only true when looked at.
    pub refresh: Arc<dyn Fn() + Send + Sync>,
    /// Why the next request would fail, one reason a line.
    pub ready: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// What is wrong while the next request would succeed all the same.
    pub notes: Arc<dyn Fn() -> Option<String> + Send + Sync>,
    pub keys: KeyDesk,
    pub users: UserAdmin,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").finish_non_exhaustive()
    }
}

/// Answers until told to abort. Draining only makes it not ready.
pub async fn serve(bound: Bound, desk: AdminState, tasks: TaskSet, stop: ShutdownSignal) {
    let listener = match TcpListener::from_std(bound.socket) {
        Ok(listener) => listener,
        Err(error) => {
            warn!(%error, "cannot serve the operator's socket");
            return;
        }
    };
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut is_failing = false;
    loop {
        let accepted = tokio::select! {
            () = stop.aborting() => return,
            accepted = accept(&listener, &slots) => accepted,
        };
        match accepted {
            Ok((tcp, slot)) => {
                is_failing = false;
                let work = connection(tcp, slot, desk.clone(), stop.clone());
                tasks.spawn("operator connection", work);
            }
            Err(error) => {
                if !std::mem::replace(&mut is_failing, true) {
                    warn!(%error, "cannot accept the operator's connections");
                }
                sleep(BACK_OFF).await;
            }
        }
    }
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots).acquire_owned().await;
    let slot = slot.expect("slots are never closed");
    let (tcp, _) = listener.accept().await?;
    Ok((tcp, slot))
}

async fn connection(
    tcp: TcpStream,
    slot: OwnedSemaphorePermit,
    desk: AdminState,
    stop: ShutdownSignal,
) {
    let _slot = slot;
    let aborting = stop.clone();
    let peer = tcp.peer_addr().ok();
    let answer = service_fn(move |request: Request<Incoming>| {
        let (desk, is_draining) = (desk.clone(), stop.is_draining());
        async move {
            let path = request.uri().path();
            let (is_of_keys, is_of_users) = (keys::is_here(path), users::is_here(path));
            let response = match desk.parts.get() {
                Some(parts) if is_of_keys => keys::answer(request, &parts.keys).await,
                Some(parts) if is_of_users => {
                    let token = (parts.keys.token)();
                    users::answer(request, &parts.users, token.as_ref(), peer).await
                }
                None if is_of_keys || is_of_users => answer::starting(),
                _ => answer::answer(&request, &desk, is_draining),
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
        .serve_connection(TokioIo::new(tcp), answer);
    let mut connection = pin!(connection);
    tokio::select! {
        () = aborting.aborting() => return,
        ended = note(connection.as_mut()) => return ended,
        () = sleep(LONGEST_CONNECTION) => connection.as_mut().graceful_shutdown(),
    }
    let ended = timeout(CLOSE_GRACE, note(connection));
    tokio::select! {
        () = aborting.aborting() => {}
        _ = ended => {}
    }
}

async fn note(connection: Pin<&mut impl Future<Output = hyper::Result<()>>>) {
    if let Err(error) = connection.await {
        debug!(%error, "operator's connection ended early");
    }
}
