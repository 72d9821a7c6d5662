//! A timer for a deadline that moves often and is seldom reached.

use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use pin_project_lite::pin_project;
use tokio::task::coop::has_budget_remaining;
use tokio::time::{Instant, Sleep, sleep_until};

pin_project! {
    /// Is moved to an earlier deadline at once, but to a later one only when it fires: a request
    /// moves its deadline with each step and costs no operation on tokio's timer wheel. The price
    /// is one wake-up too many for each period in which the deadline moved.
    #[derive(Debug)]
    pub(crate) struct LazyTimer {
        #[pin]
        sleep: Sleep,
        // The waker that `sleep` wakes; None: it must be polled to wake one.
        registered: Option<Waker>,
    }
}

impl LazyTimer {
    /// A timer that fires at `deadline` unless it is polled with an earlier one.
    pub(crate) fn new(deadline: Instant) -> Self {
        Self {
            sleep: sleep_until(deadline),
            registered: None,
        }
    }

    /// Ready once `deadline` has passed. Until then the task of `cx` is woken at the deadline, or
    /// at the one of an earlier poll if that comes first; it must poll again then.
    pub(crate) fn poll_until(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        deadline: Instant,
    ) -> Poll<()> {
        let mut this = self.project();
        if deadline < this.sleep.deadline() {
            this.sleep.as_mut().reset(deadline);
        }
        loop {
            let registered = this.registered.as_ref();
            let wakes_task = registered.is_some_and(|known| known.will_wake(cx.waker()));
            if wakes_task && !this.sleep.is_elapsed() {
                return Poll::Pending;
            }
            if !has_budget_remaining() {
                // The poll asks to be repeated at once, and registers nothing.
                *this.registered = None;
            } else if !wakes_task {
                *this.registered = Some(cx.waker().clone());
            }
            ready!(this.sleep.as_mut().poll(cx));
            if deadline <= Instant::now() {
                return Poll::Ready(());
            }
            // It has fired for an earlier deadline, and must be polled to fire again.
            this.sleep.as_mut().reset(deadline);
            *this.registered = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use tokio::task::coop::poll_proceed;
    use tokio::time::{Duration, advance, timeout};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[derive(Default)]
    struct WakeCount(AtomicUsize);

    impl Wake for WakeCount {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    impl WakeCount {
        fn get(&self) -> usize {
            self.0.load(Ordering::SeqCst)
        }
    }

    /// A task of which only the wake-ups are known.
    fn task() -> (Arc<WakeCount>, Waker) {
        let count = Arc::new(WakeCount::default());
        (Arc::clone(&count), Waker::from(count))
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_ready_at_its_deadline_and_stays_so() {
        let began = Instant::now();
        let (wakes, waker) = task();
        let mut cx = Context::from_waker(&waker);
        let mut timer = pin!(LazyTimer::new(began + 2 * SECOND));
        let mut poll = |at| timer.as_mut().poll_until(&mut cx, at);
        assert!(poll(began + 2 * SECOND).is_pending());
        advance(SECOND).await;
        assert!(poll(began + 2 * SECOND).is_pending());
        assert_eq!(wakes.get(), 0);
        advance(SECOND).await;
        assert_eq!(wakes.get(), 1);
        assert!(poll(began + 2 * SECOND).is_ready());
        assert!(poll(began + 2 * SECOND).is_ready());
        assert!(poll(began).is_ready(), "a deadline in the past");
        assert!(poll(began + 3 * SECOND).is_pending(), "it can be used on");
        let before = wakes.get();
        advance(SECOND).await;
        assert_eq!(wakes.get(), before + 1);
        assert!(poll(began + 3 * SECOND).is_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_that_moves_on_costs_one_wake_up_for_its_first_period() {
        let began = Instant::now();
        let (wakes, waker) = task();
        let mut cx = Context::from_waker(&waker);
        let mut timer = pin!(LazyTimer::new(began + 10 * SECOND));
        let mut poll = |at| timer.as_mut().poll_until(&mut cx, at);
        for _ in 0..9 {
            assert!(poll(Instant::now() + 10 * SECOND).is_pending());
            advance(SECOND).await;
        }
        assert_eq!(wakes.get(), 0);
        advance(SECOND).await;
        assert_eq!(wakes.get(), 1, "the deadline of the first poll");
        assert!(poll(began + 18 * SECOND).is_pending());
        advance(7 * SECOND).await;
        assert_eq!(wakes.get(), 1);
        advance(SECOND).await;
        assert_eq!(wakes.get(), 2);
        assert!(poll(began + 18 * SECOND).is_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn an_earlier_deadline_holds_at_once() {
        let began = Instant::now();
        let (wakes, waker) = task();
        let mut cx = Context::from_waker(&waker);
        let mut timer = pin!(LazyTimer::new(began + 86_400 * SECOND));
        let mut poll = |at| timer.as_mut().poll_until(&mut cx, at);
        assert!(poll(began + 86_400 * SECOND).is_pending());
        assert!(poll(began + 5 * SECOND).is_pending());
        assert!(poll(began + 3 * SECOND).is_pending());
        advance(3 * SECOND).await;
        assert_eq!(wakes.get(), 1);
        assert!(poll(began + 3 * SECOND).is_ready());
        // As soon as the time has passed, whether or not the task was woken.
        assert!(poll(began + 9 * SECOND).is_pending());
        assert!(poll(began + SECOND).is_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn the_task_that_polled_last_is_woken() {
        let deadline = Instant::now() + SECOND;
        let ((first, first_waker), (second, second_waker)) = (task(), task());
        let mut timer = pin!(LazyTimer::new(deadline));
        for waker in [&first_waker, &second_waker] {
            let mut cx = Context::from_waker(waker);
            assert!(timer.as_mut().poll_until(&mut cx, deadline).is_pending());
        }
        advance(SECOND).await;
        assert_eq!((first.get(), second.get()), (0, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_poll_without_cooperative_budget_loses_no_wake_up() {
        let deadline = Instant::now() + SECOND;
        let mut timer = pin!(LazyTimer::new(deadline));
        let mut polls = 0;
        let ready = poll_fn(|cx| {
            polls += 1;
            while polls == 1 && has_budget_remaining() {
                if let Poll::Ready(progress) = poll_proceed(cx) {
                    progress.made_progress();
                }
            }
            timer.as_mut().poll_until(cx, deadline)
        });
        timeout(5 * SECOND, ready).await.expect("woken");
        assert_eq!(polls, 3, "without budget, registered, fired");
    }
}
