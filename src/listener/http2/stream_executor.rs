//! The streams of one HTTP/2 connection, driven by its own task: a request and its
//! answer wake no other, and what a stream has read leaves while it is still warm.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use hyper::rt::Executor;
use parking_lot::{Mutex, MutexGuard};
use pin_project_lite::pin_project;

use crate::lifecycle::TaskSet;

/// How often streams and connection may set each other going in one turn. They do without
/// end when tokio wants the task to give way; then the runtime must have its turn.
const ROUNDS: usize = 3;

type StreamFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Where hyper puts streams that begin.
#[derive(Clone)]
pub(in crate::listener) struct StreamExecutor {
    streams: Arc<Mutex<VecDeque<StreamFuture>>>,
    tasks: TaskSet,
}

pin_project! {
    /// A connection and its streams, as one future.
    pub(in crate::listener) struct ConnectionWithStreams<C> {
        #[pin]
        connection: C,
        ring: Waker,
        streams: StreamSet,
    }
}

struct StreamSet {
    begun: StreamExecutor,
    places: Vec<StreamSlot>,
    free: Vec<usize>,
    board: Arc<ReadyQueue>,
}

/// Holds one stream after the other.
struct StreamSlot {
    work: Option<StreamFuture>,
    bell: Arc<StreamWaker>,
    ring: Waker,
}

/// One place's waker.
struct StreamWaker {
    place: usize,
    is_rung: AtomicBool,
    board: Arc<ReadyQueue>,
}

/// Who is to be polled. As a waker it is the connection's.
#[derive(Default)]
struct ReadyQueue(Mutex<WakeQueueState>);

#[derive(Default)]
struct WakeQueueState {
    streams: VecDeque<usize>,
    connection: bool,
    /// Woken only while it would not look by itself.
    task: Option<Waker>,
    is_asleep: bool,
}

impl StreamExecutor {
    pub(in crate::listener) fn new(tasks: TaskSet) -> Self {
        Self {
            streams: Arc::default(),
            tasks,
        }
    }

    fn next(&self) -> Option<StreamFuture> {
        lock(&self.streams).pop_front()
    }
}

impl fmt::Debug for StreamExecutor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Begun").finish_non_exhaustive()
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for StreamExecutor {
    fn execute(&self, stream: F) {
        let stream = Box::pin(self.tasks.watched("stream", stream));
        lock(&self.streams).push_back(stream);
    }
}

impl<C> ConnectionWithStreams<C> {
    pub(in crate::listener) fn new(connection: C, begun: StreamExecutor) -> Self {
        let board = Arc::new(ReadyQueue::default());
        Self {
            connection,
            ring: Waker::from(Arc::clone(&board)),
            streams: StreamSet {
                begun,
                places: Vec::new(),
                free: Vec::new(),
                board,
            },
        }
    }

    pub(in crate::listener) fn connection(self: Pin<&mut Self>) -> Pin<&mut C> {
        self.project().connection
    }
}

impl<C: Future> Future for ConnectionWithStreams<C> {
    type Output = C::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<C::Output> {
        let mut me = self.project();
        let board = Arc::clone(&me.streams.board);
        board.wakes_up(cx.waker());
        me.streams.poll();
        // The connection always: its socket may have woken the task itself, for a flush.
        for _ in 0..ROUNDS {
            board.answers_connection();
            let mut ring = Context::from_waker(me.ring);
            if let Poll::Ready(end) = me.connection.as_mut().poll(&mut ring) {
                return Poll::Ready(end);
            }
            me.streams.poll();
            if !board.calls_connection() {
                break;
            }
        }
        board.goes_to_sleep();
        Poll::Pending
    }
}

impl StreamSet {
    /// Polls those that have rung until now, and those that begin.
    fn poll(&mut self) {
        for _ in 0..self.board.count() {
            if let Some(place) = self.board.next() {
                self.poll_at(place);
            }
        }
        while let Some(work) = self.begun.next() {
            let place = self.free.pop().unwrap_or_else(|| self.add_place());
            self.places[place].work = Some(work);
            self.poll_at(place);
        }
    }

    fn add_place(&mut self) -> usize {
        let bell = Arc::new(StreamWaker {
            place: self.places.len(),
            is_rung: AtomicBool::new(false),
            board: Arc::clone(&self.board),
        });
        self.places.push(StreamSlot {
            work: None,
            ring: Waker::from(Arc::clone(&bell)),
            bell,
        });
        self.places.len() - 1
    }

    fn poll_at(&mut self, index: usize) {
        let place = &mut self.places[index];
        place.bell.is_rung.swap(false, Ordering::AcqRel);
        let Some(mut work) = place.work.take() else {
            return; // rung late: that stream has ended
        };
        let cx = &mut Context::from_waker(&place.ring);
        // A panic ends one request, as if it were a task; the work's own watch tells of it.
        let left = catch_unwind(AssertUnwindSafe(move || {
            work.as_mut().poll(cx).is_pending().then_some(work)
        }));
        match left {
            Ok(Some(work)) => place.work = Some(work),
            Ok(None) | Err(_) => self.free.push(index),
        }
    }
}

impl ReadyQueue {
    fn wakes_up(&self, waker: &Waker) {
        let mut rung = lock(&self.0);
        rung.is_asleep = false;
        match &rung.task {
            Some(task) if task.will_wake(waker) => {}
            _ => rung.task = Some(waker.clone()),
        }
    }

    fn goes_to_sleep(&self) {
        let mut rung = lock(&self.0);
        rung.is_asleep = true;
        if rung.connection || !rung.streams.is_empty() {
            rung.wake_woken();
        }
    }

    fn count(&self) -> usize {
        lock(&self.0).streams.len()
    }

    fn next(&self) -> Option<usize> {
        lock(&self.0).streams.pop_front()
    }

    fn answers_connection(&self) {
        lock(&self.0).connection = false;
    }

    fn calls_connection(&self) -> bool {
        lock(&self.0).connection
    }
}

impl WakeQueueState {
    fn wake_woken(&mut self) {
        if std::mem::take(&mut self.is_asleep)
            && let Some(task) = &self.task
        {
            task.wake_by_ref();
        }
    }
}

impl Wake for ReadyQueue {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut rung = lock(&self.0);
        rung.connection = true;
        rung.wake_woken();
    }
}

impl Wake for StreamWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.is_rung.swap(true, Ordering::AcqRel) {
            let mut rung = lock(&self.board.0);
            rung.streams.push_back(self.place);
            rung.wake_woken();
        }
    }
}

/// Held for a few instructions at a time.
fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock()
}

#[cfg(test)]
mod tests {
    use std::future::{pending, poll_fn};
    use std::sync::atomic::AtomicUsize;

    use tokio::runtime::Handle;
    use tokio::sync::mpsc::unbounded_channel;
    use tokio::task::yield_now;

    use super::*;

    /// Its connection begins `streams` and ends when `is_over` says so.
    fn together(
        begun: &StreamExecutor,
        streams: Vec<StreamFuture>,
        is_over: impl Fn() -> bool,
    ) -> impl Future<Output = ()> {
        let mut streams = Some(streams);
        let begin = begun.clone();
        let connection = poll_fn(move |cx| {
            for stream in streams.take().into_iter().flatten() {
                begin.execute(stream);
            }
            if is_over() {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        });
        ConnectionWithStreams::new(connection, begun.clone())
    }

    #[tokio::test]
    async fn a_panic_ends_one_stream_only_and_is_counted() {
        let tasks = TaskSet::new(Handle::current());
        let (begun, done) = (
            StreamExecutor::new(tasks.clone()),
            Arc::new(AtomicUsize::new(0)),
        );
        let tell = Arc::clone(&done);
        let streams: Vec<StreamFuture> = vec![
            Box::pin(async { panic!("on purpose") }),
            Box::pin(async move {
                yield_now().await;
                tell.fetch_add(1, Ordering::Relaxed);
            }),
        ];
        together(&begun, streams, || done.load(Ordering::Relaxed) == 1).await;
        assert_eq!(tasks.failed(), 1);
    }

    #[tokio::test]
    async fn streams_and_connection_that_always_ring_leave_others_their_turn() {
        let begun = StreamExecutor::new(TaskSet::new(Handle::current()));
        let (turns, most) = (Arc::new(AtomicUsize::new(0)), 100);
        let seen = Arc::clone(&turns);
        let restless = poll_fn(|cx| {
            cx.waker().wake_by_ref();
            Poll::Pending
        });
        let streams: Vec<StreamFuture> = vec![Box::pin(restless), Box::pin(pending())];
        let other = async {
            for _ in 0..most {
                turns.fetch_add(1, Ordering::Relaxed);
                yield_now().await;
            }
        };
        let both = together(&begun, streams, || seen.load(Ordering::Relaxed) == most);
        tokio::join!(both, other);
    }

    #[tokio::test]
    async fn no_ring_from_another_thread_is_lost_and_a_place_is_used_again() {
        const RINGS: usize = 20_000;
        let begun = StreamExecutor::new(TaskSet::new(Handle::current()));
        let (send, mut receive) = unbounded_channel();
        let (tell, told) = tokio::sync::oneshot::channel();
        let late = Arc::new(Mutex::new(None));
        let kept = Arc::clone(&late);
        begun.execute(poll_fn(move |cx| {
            *lock(&kept) = Some(cx.waker().clone());
            Poll::Ready(())
        }));
        begun.execute(async move {
            for _ in 0..RINGS {
                receive.recv().await.unwrap();
            }
            tell.send(()).unwrap();
        });
        let rings = std::thread::spawn(move || {
            for _ in 0..RINGS {
                send.send(()).unwrap();
                late.lock().iter().for_each(Waker::wake_by_ref);
            }
        });
        let mut both = ConnectionWithStreams::new(told, begun);
        (&mut both).await.unwrap();
        assert_eq!(both.streams.places.len(), 1);
        rings.join().unwrap();
    }
}
