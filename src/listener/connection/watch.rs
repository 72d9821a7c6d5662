//! Drives one connection and applies its timeouts, the drain and the abort, which hyper does not.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::activity::{ConnectionActivity, ConnectionTimeouts, TimeoutReason};
use super::client_stream::TransportSocket;
use crate::clock::SharedReadings;
use crate::lazy_timer::LazyTimer;
use crate::lifecycle::ShutdownSignal;
use crate::waker::NotifyWaker;

/// How long a connection that was opened just before the drain may take to send its request.
const FIRST_REQUEST_GRACE: Duration = Duration::from_secs(1);
/// From the announcement that the connection closes (GOAWAY) to its end.
const CLOSE_GRACE: Duration = Duration::from_secs(5);
/// An HTTP/1 connection that is idle for this long releases its buffers. It is longer than the
/// pauses of a busy client, because hyper's connection must be created again afterwards.
const REST_AFTER: Duration = Duration::from_millis(500);

/// How a connection ended.
#[derive(Debug)]
pub(in crate::listener) enum WatchEnd {
    Closed(Result<(), hyper::Error>),
    HeaderTimeout,
    Idle,
    Aborted,
}

/// Why [`ConnectionWatch::run`] returned.
pub(super) enum ConnectionOutcome {
    End(WatchEnd),
    /// The connection has been idle for a while and can release its buffers.
    Rest,
}

/// The watch over one connection.
pub(in crate::listener) struct ConnectionWatch {
    pub(in crate::listener) activity: Arc<ConnectionActivity>,
    pub(in crate::listener) timeouts: ConnectionTimeouts,
    pub(in crate::listener) stop: ShutdownSignal,
    pub(in crate::listener) may_rest: bool,
}

/// How far the shutdown of a connection has got.
#[derive(Clone, Copy, PartialEq)]
enum ShutdownPhase {
    Open,
    /// The drain began before the first request, which may still arrive until then.
    Awaited(Instant),
    Finishing,
    /// Idle for too long; the peer has been told, and the connection ends at that time.
    Leaving(Instant),
}

enum WatchDecision {
    Stay,
    Finish(ShutdownPhase),
    End(WatchEnd),
    Rest,
}

/// The waker of the drain, the abort and the timer. It records that one of them fired, so that a
/// task woken by the socket need not poll them. None before the first poll.
struct DeadlineWaker(Option<RegisteredTask>);

struct RegisteredTask {
    notify: Arc<NotifyWaker>,
    /// Of `notify`.
    waker: Waker,
    task: Waker,
}

impl DeadlineWaker {
    /// Whether a deadline has fired since the last call. True too for a task that is new here,
    /// since nothing has been polled with its waker yet.
    fn take_fired(&mut self, task: &Waker) -> bool {
        match &self.0 {
            Some(current) if current.task.will_wake(task) => {
                // The polls that follow see everything that fired before this.
                current.notify.take_woken()
            }
            _ => {
                let notify = Arc::new(NotifyWaker::new(task.clone()));
                self.0 = Some(RegisteredTask {
                    waker: Waker::from(Arc::clone(&notify)),
                    notify,
                    task: task.clone(),
                });
                true
            }
        }
    }

    fn waker(&self) -> &Waker {
        let current = self.0.as_ref();
        current.map_or(Waker::noop(), |current| &current.waker)
    }
}

impl ConnectionWatch {
    /// Drives `connection` until it ends, a timeout expires, or it has been idle for a while.
    /// `finish` starts its graceful shutdown; `flush` is called after each poll.
    pub(super) async fn run<C, F>(
        &self,
        mut connection: Pin<&mut C>,
        finish: fn(Pin<&mut C>),
        flush: F,
    ) -> ConnectionOutcome
    where
        C: Future<Output = hyper::Result<()>>,
        F: Fn(&mut Context<'_>) -> Poll<io::Result<()>>,
    {
        let first = self.activity.opened() + self.timeouts.idle;
        let mut timer = pin!(LazyTimer::new(first));
        let mut abort = pin!(self.stop.aborting());
        let mut drain = pin!(self.stop.draining());
        let mut slot = DeadlineWaker(None);
        let mut phase = ShutdownPhase::Open;
        poll_fn(move |cx| {
            let _readings = SharedReadings::begin();
            let mut has_fired = slot.take_fired(cx.waker());
            let mut deadline_cx = Context::from_waker(slot.waker());
            loop {
                if has_fired && abort.as_mut().poll(&mut deadline_cx).is_ready() {
                    return Poll::Ready(ConnectionOutcome::End(WatchEnd::Aborted));
                }
                if let Poll::Ready(end) = connection.as_mut().poll(cx) {
                    let _ = flush(cx); // what the socket still takes
                    return Poll::Ready(ConnectionOutcome::End(match phase {
                        ShutdownPhase::Leaving(_) => WatchEnd::Idle,
                        _ => WatchEnd::Closed(end),
                    }));
                }
                if let Poll::Ready(Err(_)) = flush(cx) {
                    // The peer has disconnected; hyper would notice at its next read.
                    return Poll::Ready(ConnectionOutcome::End(WatchEnd::Closed(Ok(()))));
                }
                if has_fired
                    && !self.activity.is_draining()
                    && drain.as_mut().poll(&mut deadline_cx).is_ready()
                {
                    self.activity.set_draining();
                    let grace = Instant::now() + FIRST_REQUEST_GRACE;
                    phase = match phase {
                        ShutdownPhase::Open => ShutdownPhase::Awaited(grace),
                        other => other,
                    };
                }
                match self.decide(phase, timer.as_mut(), &mut deadline_cx) {
                    WatchDecision::Stay => return Poll::Pending,
                    WatchDecision::End(end) => return Poll::Ready(ConnectionOutcome::End(end)),
                    WatchDecision::Rest => return Poll::Ready(ConnectionOutcome::Rest),
                    WatchDecision::Finish(then) => {
                        finish(connection.as_mut());
                        phase = then;
                        has_fired = true;
                    }
                }
            }
        })
        .await
    }

    /// Waits until there is something to read, the idle timeout expires, or a stop is requested.
    pub(super) async fn rest<T: TransportSocket>(&self, stream: &mut T) {
        // The next read reports a failure; a peer that takes no bytes is noticed then too.
        let _ = poll_fn(|cx| Poll::Ready(stream.poll_flush_deferred(cx))).await;
        let idle = self.activity.next_timeout(self.timeouts).map(|(at, _)| at);
        tokio::select! {
            biased;
            () = self.stop.aborting() => {}
            () = self.stop.draining() => {}
            () = poll_fn(|cx| stream.poll_readable(cx)) => {}
            () = sleep_until(idle.unwrap_or_else(Instant::now)) => {}
        }
    }

    fn decide(
        &self,
        phase: ShutdownPhase,
        timer: Pin<&mut LazyTimer>,
        deadline_cx: &mut Context<'_>,
    ) -> WatchDecision {
        if matches!(phase, ShutdownPhase::Awaited(_)) && self.activity.has_served() {
            return WatchDecision::Finish(ShutdownPhase::Finishing);
        }
        // The idle timeout has been announced already; now the grace period counts.
        let is_announced = matches!(phase, ShutdownPhase::Leaving(_));
        let timeout = self.activity.next_timeout(self.timeouts);
        let timeout =
            timeout.filter(|(_, reason)| !(is_announced && *reason == TimeoutReason::Idle));
        let end_of_phase = match phase {
            ShutdownPhase::Awaited(until) | ShutdownPhase::Leaving(until) => Some(until),
            ShutdownPhase::Open | ShutdownPhase::Finishing => None,
        };
        let rest = match phase {
            ShutdownPhase::Open if self.may_rest => {
                self.activity.idle_since().map(|at| at + REST_AFTER)
            }
            _ => None,
        };
        let earliest = [timeout.map(|(at, _)| at), end_of_phase, rest];
        // Without a deadline, the connection's next poll decides again.
        let Some(earliest) = earliest.into_iter().flatten().min() else {
            return WatchDecision::Stay;
        };
        if timer.poll_until(deadline_cx, earliest).is_pending() {
            return WatchDecision::Stay;
        }
        let now = Instant::now();
        if let Some((at, reason)) = timeout
            && at <= now
        {
            return on_timeout(reason, phase);
        }
        if rest.is_some_and(|at| at <= now) {
            return WatchDecision::Rest;
        }
        match phase {
            ShutdownPhase::Awaited(_) => WatchDecision::Finish(ShutdownPhase::Finishing),
            // A request that crossed the GOAWAY is still answered.
            ShutdownPhase::Leaving(_) if self.activity.is_busy() => {
                WatchDecision::Finish(ShutdownPhase::Finishing)
            }
            ShutdownPhase::Leaving(_) => WatchDecision::End(WatchEnd::Idle),
            ShutdownPhase::Open | ShutdownPhase::Finishing => WatchDecision::Stay,
        }
    }
}

fn on_timeout(reason: TimeoutReason, phase: ShutdownPhase) -> WatchDecision {
    match (reason, phase) {
        (TimeoutReason::Header, _) => WatchDecision::End(WatchEnd::HeaderTimeout),
        (TimeoutReason::Linger, ShutdownPhase::Leaving(_)) => WatchDecision::End(WatchEnd::Idle),
        (TimeoutReason::Linger, _) => WatchDecision::End(WatchEnd::Closed(Ok(()))),
        (TimeoutReason::Idle, ShutdownPhase::Open | ShutdownPhase::Awaited(_)) => {
            WatchDecision::Finish(ShutdownPhase::Leaving(Instant::now() + CLOSE_GRACE))
        }
        (TimeoutReason::Idle | TimeoutReason::Stalled, _) => WatchDecision::End(WatchEnd::Idle),
    }
}
