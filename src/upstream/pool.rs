//! One worker's kept-alive connections, and the task that drives each. The last
//! one used is used again first, so that those in excess grow idle and close.

use std::fmt;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use http_body::Body;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};
use tracing::debug;

use super::body::Sent;
use super::connect::Link;
use crate::causes::chain;
use crate::metrics::Gauged;

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Idle connections. Its lock is never contended: one worker uses it.
pub(super) struct Pool<B> {
    idle: Mutex<Vec<Idle<B>>>,
    idle_timeout: Duration,
    next: AtomicU64,
}

struct Idle<B> {
    connection: Held<B>,
    since: Instant,
}

/// A connection in somebody's hands. Dropping it closes the connection at once,
/// whatever is under way on it.
pub(super) struct Held<B> {
    id: u64,
    pub(super) sender: http1::SendRequest<Sent<B>>,
    /// Whether a byte has come since the last request.
    pub(super) heard: Arc<AtomicBool>,
    /// Sent: let it run on by itself. Dropped: close it.
    release: oneshot::Sender<()>,
}

impl<B> Held<B> {
    /// The connection has changed protocol (101): its end is not ours to decide.
    pub(super) fn let_go(self) {
        let _ = self.release.send(());
    }
}

impl<B> Pool<B> {
    pub(super) fn new(idle_timeout: Duration) -> Arc<Self> {
        Arc::new(Self {
            idle: Mutex::default(),
            idle_timeout,
            next: AtomicU64::new(0),
        })
    }

    /// A connection that can take a request now.
    pub(super) fn take(&self) -> Option<Held<B>> {
        let mut idle = self.lock();
        let at = idle
            .iter()
            .rposition(|idle| idle.connection.sender.is_ready())?;
        let found = idle.remove(at);
        (found.since.elapsed() < self.idle_timeout).then_some(found.connection)
    }

    pub(super) fn give_back(&self, connection: Held<B>) {
        if !connection.sender.is_closed() {
            self.lock().push(Idle {
                connection,
                since: Instant::now(),
            });
        }
    }

    /// Closes every connection that is not in use.
    pub(super) fn close_idle(&self) {
        let idle = std::mem::take(&mut *self.lock());
        drop(idle); // outside the lock: closing wakes their drivers
    }

    fn forget(&self, id: u64) {
        self.lock().retain(|idle| idle.connection.id != id);
    }

    /// How long until connection `id` has been idle too long; zero: it has.
    fn patience(&self, id: u64) -> Duration {
        let idle = self.lock();
        let entry = idle.iter().find(|idle| idle.connection.id == id);
        // In use: it cannot be due before a whole timeout from now.
        entry.map_or(self.idle_timeout, |idle| {
            self.idle_timeout.saturating_sub(idle.since.elapsed())
        })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Idle<B>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B> Pool<B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Cause>,
{
    /// Makes `link` an HTTP connection and gives the work of driving it.
    pub(super) async fn adopt(
        self: &Arc<Self>,
        link: Link,
        open: Gauged,
    ) -> Result<(Held<B>, impl Future<Output = ()> + Send + 'static), hyper::Error> {
        let heard = link.heard();
        let (sender, connection) = http1::handshake(TokioIo::new(link)).await?;
        let (release, released) = oneshot::channel();
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let held = Held {
            id,
            sender,
            heard,
            release,
        };
        let driver = Driver {
            connection,
            released,
            pool: Arc::downgrade(self),
            id,
            idle_timeout: self.idle_timeout,
            _open: open,
        };
        Ok((held, driver.run()))
    }
}

struct Driver<B: Body<Data = Bytes> + Unpin + 'static> {
    connection: http1::Connection<TokioIo<Link>, Sent<B>>,
    released: oneshot::Receiver<()>,
    pool: Weak<Pool<B>>,
    id: u64,
    idle_timeout: Duration,
    _open: Gauged,
}

impl<B> Driver<B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Cause>,
{
    /// Runs until the connection ends, its holder drops it, or it was idle too long.
    async fn run(self) {
        let mut connection = pin!(self.connection.with_upgrades());
        let mut released = pin!(self.released);
        let mut is_released = false;
        let mut idle = pin!(sleep(self.idle_timeout));
        loop {
            tokio::select! {
                biased;
                end = &mut connection => {
                    if let Err(failure) = end {
                        debug!(error = %chain(&failure), "upstream connection ended");
                    }
                    break;
                }
                release = &mut released, if !is_released => match release {
                    Ok(()) => is_released = true,
                    Err(_) => break,
                },
                () = &mut idle, if !is_released => {
                    let Some(pool) = self.pool.upgrade() else { break };
                    match pool.patience(self.id) {
                        Duration::ZERO => break,
                        patience => idle.as_mut().reset(Instant::now() + patience),
                    }
                }
            }
        }
        if let Some(pool) = self.pool.upgrade() {
            pool.forget(self.id);
        }
    }
}

impl<B> fmt::Debug for Pool<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("idle", &self.lock().len())
            .finish_non_exhaustive()
    }
}
