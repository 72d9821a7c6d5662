//! The queue for permits under every interleaving of requests that enqueue, are cancelled or end.

#[path = "../src/upstream/fair_queue.rs"]
mod fair_queue;
#[path = "../src/identity_hasher.rs"]
#[expect(
    unreachable_pub,
    reason = "a file of the library, here a module of a test"
)]
mod identity_hasher;
#[path = "../src/shares.rs"]
#[expect(
    dead_code,
    unreachable_pub,
    reason = "the queue needs only the rule and the keys"
)]
mod shares;

mod sync {
    pub(crate) use loom::sync::{Mutex, MutexGuard};

    pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().expect("no panic in a model")
    }
}

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll, Wake, Waker};

use fair_queue::FairQueue;
use loom::sync::Arc;
use loom::thread;
use shares::ShareKey;

fn key(client: u64) -> ShareKey {
    ShareKey(client << 8)
}

/// Wakes the waiting thread.
struct Unpark(thread::Thread);

impl Wake for Unpark {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(std::sync::Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park(),
        }
    }
}

/// Waits for a permit as a request does, and releases it.
fn uses_a_permit(queue: &FairQueue, client: u64, is_monitoring: bool) {
    let slot = queue
        .try_take(key(client), is_monitoring)
        .unwrap_or_else(|| {
            let waiter = queue.enqueue(key(client), is_monitoring);
            block_on(poll_fn(|cx| queue.poll_permit(waiter, cx)))
        });
    queue.release(slot);
}

fn all_is_free(queue: &FairQueue, permits: u64) {
    assert_eq!(queue.length().waiting, 0);
    for client in 100..100 + permits {
        assert!(queue.try_take(key(client), false).is_some());
    }
    assert!(queue.try_take(key(99), false).is_none());
}

#[test]
fn a_released_permit_wakes_the_request_that_waits_for_it() {
    loom::model(|| {
        let queue = Arc::new(FairQueue::new(1, 0));
        let users: Vec<_> = (1..3)
            .map(|client| {
                let queue = Arc::clone(&queue);
                thread::spawn(move || uses_a_permit(&queue, client, client == 2))
            })
            .collect();
        for user in users {
            user.join().unwrap();
        }
        all_is_free(&queue, 1);
    });
}

#[test]
fn a_cancelled_request_loses_no_permit() {
    loom::model(|| {
        let queue = Arc::new(FairQueue::new(1, 0));
        let taken = queue.try_take(key(1), false).unwrap();
        assert_eq!(queue.key(taken), key(1));
        let (leaving, staying) = (queue.enqueue(key(2), false), queue.enqueue(key(3), false));
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(queue.poll_permit(leaving, cx).is_pending());
        let (leaving_queue, done) = (Arc::clone(&queue), Arc::clone(&queue));
        let leaver = thread::spawn(move || leaving_queue.leave(leaving));
        let releaser = thread::spawn(move || done.release(taken));
        // The permit arrives here, whether or not it was granted to the cancelled request first.
        let slot = block_on(poll_fn(|cx| queue.poll_permit(staying, cx)));
        leaver.join().unwrap();
        releaser.join().unwrap();
        queue.release(slot);
        all_is_free(&queue, 1);
    });
}

#[test]
fn two_permits_released_at_once_serve_two_waiting_requests() {
    loom::model(|| {
        let queue = Arc::new(FairQueue::new(2, 0));
        let taken: Vec<_> = (1..3)
            .map(|client| queue.try_take(key(client), false))
            .collect();
        let waiting: Vec<_> = (3..5)
            .map(|client| queue.enqueue(key(client), false))
            .collect();
        let releases: Vec<_> = taken
            .into_iter()
            .map(|slot| {
                let queue = Arc::clone(&queue);
                thread::spawn(move || queue.release(slot.unwrap()))
            })
            .collect();
        let slots: Vec<_> = waiting
            .into_iter()
            .map(|waiter| block_on(poll_fn(|cx| queue.poll_permit(waiter, cx))))
            .collect();
        for release in releases {
            release.join().unwrap();
        }
        slots.into_iter().for_each(|slot| queue.release(slot));
        all_is_free(&queue, 2);
    });
}

#[test]
fn a_request_enqueued_during_a_release_gets_the_permit() {
    loom::model(|| {
        let queue = Arc::new(FairQueue::new(1, 0));
        let taken = queue.try_take(key(1), false).unwrap();
        let done = Arc::clone(&queue);
        let releaser = thread::spawn(move || done.release(taken));
        let waiter = queue.enqueue(key(2), false);
        let mut polls = 0;
        let slot = block_on(poll_fn(|cx| {
            polls += 1;
            match queue.poll_permit(waiter, cx) {
                Poll::Pending if polls > 2 => panic!("woken without a permit"),
                other => other,
            }
        }));
        releaser.join().unwrap();
        queue.release(slot);
        all_is_free(&queue, 1);
    });
}
