//! The waker of connections under every interleaving of the task and what wakes it.

#[path = "../src/waker.rs"]
mod waker;

mod sync {
    pub(crate) use loom::sync::atomic::{AtomicBool, Ordering};
}

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Wake, Waker};

use loom::sync::Notify;
use loom::thread;
use waker::NotifyWaker;

/// Wakes the thread in the role of the task, and counts. Not `thread::park`: loom loses an
/// `unpark` that meets a thread waiting for a lock.
struct Task {
    wake_up: Notify,
    wake_ups: AtomicUsize,
}

impl Task {
    fn current() -> Arc<Self> {
        Arc::new(Self {
            wake_up: Notify::new(),
            wake_ups: AtomicUsize::new(0),
        })
    }
}

/// All interleavings with at most three preemptions: with more, two sources take minutes.
fn model(test: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(test);
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.wake_ups.fetch_add(1, Ordering::Relaxed);
        self.wake_up.notify();
    }
}

#[test]
fn a_wake_up_is_never_lost() {
    model(|| {
        let task = Task::current();
        let notify = Arc::new(NotifyWaker::new(Waker::from(Arc::clone(&task))));
        let source = Waker::from(Arc::clone(&notify));
        let other = thread::spawn(move || source.wake());
        while !notify.take_woken() {
            task.wake_up.wait();
        }
        other.join().unwrap();
        assert!(!notify.take_woken(), "one wake-up is taken once");
        assert_eq!(task.wake_ups.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn two_sources_wake_the_task_until_it_has_handled_both() {
    use loom::sync::atomic::AtomicUsize as Count;
    model(|| {
        let task = Task::current();
        let notify = Arc::new(NotifyWaker::new(Waker::from(Arc::clone(&task))));
        let done = loom::sync::Arc::new(Count::new(0));
        let others = [(); 2].map(|()| {
            let (source, done) = (Waker::from(Arc::clone(&notify)), done.clone());
            thread::spawn(move || {
                done.fetch_add(1, Ordering::AcqRel);
                source.wake();
            })
        });
        let mut is_woken = false;
        while !(is_woken && done.load(Ordering::Acquire) == 2) {
            task.wake_up.wait();
            is_woken = notify.take_woken();
        }
        for other in others {
            other.join().unwrap();
        }
    });
}

/// The watch over a client's connection is woken each time: its task is also woken by other sources,
/// and then looks without finding anything. (loom's `Notify` returns early once, too.)
#[test]
fn a_task_that_always_listens_misses_no_wake_up() {
    use loom::sync::atomic::AtomicBool as Flag;
    model(|| {
        let task = Task::current();
        let waker = Waker::from(Arc::clone(&task));
        let notify = Arc::new(NotifyWaker::new(waker));
        let is_due = loom::sync::Arc::new(Flag::new(false));
        let (source, due) = (Waker::from(Arc::clone(&notify)), is_due.clone());
        let timer = thread::spawn(move || {
            source.wake_by_ref();
            due.store(true, Ordering::Release);
            source.wake();
        });
        let mut is_woken = true;
        while !(is_woken && is_due.load(Ordering::Acquire)) {
            task.wake_up.wait();
            is_woken = notify.take_woken();
        }
        timer.join().unwrap();
    });
}
