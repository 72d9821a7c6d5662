//! The life cycle of everything that runs: named tasks, drain and abort, readiness.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::error;

/// Every background task of the program. Clones share one set.
#[derive(Clone, Debug)]
pub struct TaskSet {
    tracker: TaskTracker,
    runtime: Handle,
    failed: Arc<AtomicUsize>,
}

impl TaskSet {
    /// Tasks that run on `runtime`.
    pub fn new(runtime: Handle) -> Self {
        Self {
            tracker: TaskTracker::new(),
            runtime,
            failed: Arc::new(AtomicUsize::new(0)),
        }
    }

    /// The same set, whose tasks run on another runtime.
    pub fn on(&self, runtime: Handle) -> Self {
        Self {
            runtime,
            ..self.clone()
        }
    }

    /// A separate set on another runtime, which can be waited for separately. Its panics are counted
    /// in both.
    pub fn apart(&self, runtime: Handle) -> Self {
        Self {
            tracker: TaskTracker::new(),
            runtime,
            failed: Arc::clone(&self.failed),
        }
    }

    /// Starts a named task. A panic in it is logged and counted.
    pub fn spawn<F>(&self, name: &'static str, work: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let watched = self.watched(name, work);
        self.runtime.spawn(self.tracker.track_future(watched));
    }

    /// Wraps work that runs as part of another task. A panic in it is logged and counted like that of
    /// a task.
    pub fn watched<F>(&self, name: &'static str, work: F) -> impl Future<Output = ()> + use<F>
    where
        F: Future<Output = ()>,
    {
        let watch = PanicWatch {
            name,
            failed: Arc::clone(&self.failed),
        };
        SupervisedTask { work, watch }
    }

    /// Number of tasks that panicked, separate sets included.
    pub fn failed(&self) -> usize {
        self.failed.load(Ordering::Relaxed)
    }

    /// Waits until all tasks have ended.
    pub async fn wait(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}

pin_project! {
    /// The work of a task with its panic watch. Not an async block, which would hold the work twice
    /// (captured and awaited); every connection is such a task.
    struct SupervisedTask<F> {
        #[pin]
        work: F,
        watch: PanicWatch,
    }
}

impl<F: Future<Output = ()>> Future for SupervisedTask<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.project().work.poll(cx)
    }
}

/// Detects a panic that unwinds its task.
struct PanicWatch {
    name: &'static str,
    failed: Arc<AtomicUsize>,
}

impl Drop for PanicWatch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.failed.fetch_add(1, Ordering::Relaxed);
            error!(
                task = self.name,
                "task panicked; this is a defect, please report it"
            );
        }
    }
}

/// The two ways to stop. `drain`: accept no new work and finish what is in progress. `abort`: drop it
/// now. Abort implies drain.
#[derive(Clone, Debug, Default)]
pub struct ShutdownSignal {
    drain: CancellationToken,
    abort: CancellationToken,
}

impl ShutdownSignal {
    pub fn drain(&self) {
        self.drain.cancel();
    }

    pub fn abort(&self) {
        self.drain.cancel();
        self.abort.cancel();
    }

    pub fn is_draining(&self) -> bool {
        self.drain.is_cancelled()
    }

    pub async fn draining(&self) {
        self.drain.cancelled().await;
    }

    pub async fn aborting(&self) {
        self.abort.cancelled().await;
    }

    /// A signal that this one triggers too, and that can be triggered separately.
    pub fn child(&self) -> Self {
        Self {
            drain: self.drain.child_token(),
            abort: self.abort.child_token(),
        }
    }
}

/// Where background tasks run, and the signal that stops them.
#[derive(Clone, Debug)]
pub struct TaskScope {
    pub tasks: TaskSet,
    pub stop: ShutdownSignal,
}

impl TaskScope {
    /// A new task set on `runtime`, with a signal of its own.
    pub fn new(runtime: Handle) -> Self {
        Self {
            tasks: TaskSet::new(runtime),
            stop: ShutdownSignal::default(),
        }
    }

    /// Starts a named task; see [`TaskSet::spawn`].
    pub fn spawn<F>(&self, name: &'static str, work: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tasks.spawn(name, work);
    }

    /// The same task set, with a signal that this one triggers too.
    pub fn child(&self) -> Self {
        Self {
            tasks: self.tasks.clone(),
            stop: self.stop.child(),
        }
    }
}

/// The program is ready when all guards have been dropped, until drain.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    pending: Arc<AtomicUsize>,
}

/// Holds back readiness until dropped.
#[derive(Debug)]
pub struct ReadinessGuard(Arc<AtomicUsize>);

impl Readiness {
    pub fn not_yet(&self) -> ReadinessGuard {
        self.pending.fetch_add(1, Ordering::AcqRel);
        ReadinessGuard(Arc::clone(&self.pending))
    }

    pub fn is_ready(&self) -> bool {
        self.pending.load(Ordering::Acquire) == 0
    }
}

impl Drop for ReadinessGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_holds_its_work_once() {
        assert!(size_of::<SupervisedTask<[u8; 1000]>>() < 1100);
    }

    #[tokio::test]
    async fn a_panic_ends_only_its_task_and_is_counted_in_the_parent_set() {
        let tasks = TaskSet::new(Handle::current());
        let apart = tasks.apart(Handle::current());
        apart.spawn("broken", async { panic!("on purpose") });
        let (sender, receiver) = tokio::sync::oneshot::channel();
        apart.spawn("whole", async move {
            let _ = sender.send(7);
        });
        assert_eq!(receiver.await, Ok(7));
        apart.wait().await;
        assert_eq!(tasks.failed(), 1);
        tasks.wait().await;
    }
}
