//! The watch over one connection: it ends what hyper would keep.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use super::activity::{ConnectionActivity, ConnectionTimeouts, TimeoutReason};
use super::client_stream::TransportSocket;
use crate::lifecycle::ShutdownSignal;
use crate::waker::NotifyWaker;

/// A connection that was opened just before the drain may still send its request.
const FIRST_REQUEST_GRACE: Duration = Duration::from_secs(1);
/// From "this connection is closing" (GOAWAY) to its end.
const CLOSE_GRACE: Duration = Duration::from_secs(5);
/// Quiet for that long, an HTTP/1 connection gives its buffers back. Longer than the
/// pauses of a busy client: hyper's side of it must be made anew.
const REST_AFTER: Duration = Duration::from_millis(500);

/// How a connection ended.
#[derive(Debug)]
pub(in crate::listener) enum WatchEnd {
    Closed(Result<(), hyper::Error>),
    HeaderTimeout,
    Idle,
    Aborted,
}

/// Why a connection is not driven any more.
pub(in crate::listener) enum ConnectionOutcome {
    End(WatchEnd),
    /// Nothing is under way on it, and has not been for a while.
    Rest,
}

/// What the watch over one connection goes by.
pub(in crate::listener) struct ConnectionWatch {
    pub(in crate::listener) activity: Arc<ConnectionActivity>,
    pub(in crate::listener) timeouts: ConnectionTimeouts,
    pub(in crate::listener) stop: ShutdownSignal,
    pub(in crate::listener) may_rest: bool,
}

/// How far a connection is on its way out.
#[derive(Clone, Copy, PartialEq)]
enum ShutdownPhase {
    Open,
    /// Told to drain before it sent its first request.
    Awaited(Instant),
    Finishing,
    /// Idle for too long, and told so.
    Leaving(Instant),
}

enum WatchDecision {
    Stay,
    Finish(ShutdownPhase),
    End(WatchEnd),
    Rest,
}

/// The waker of the drain, the abort and the alarm: a connection that is woken by its bytes need
/// not poll these.
struct DeadlineWaker(Option<RegisteredTask>);

struct RegisteredTask {
    notify: Arc<NotifyWaker>,
    /// Of `notify`.
    waker: Waker,
    task: Waker,
}

impl DeadlineWaker {
    /// Whether a deadline woke `task` since the last call; true at the first call of a task.
    fn is_woken(&mut self, task: &Waker) -> bool {
        match &self.0 {
            Some(registered) if registered.task.will_wake(task) => {
                let is_woken = registered.notify.take_woken();
                if is_woken {
                    // What comes before this is seen by the polls that follow.
                    registered.notify.listen(task);
                }
                is_woken
            }
            _ => {
                let notify = Arc::new(NotifyWaker::default());
                notify.listen(task);
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
        let registered = self.0.as_ref();
        registered.map_or(Waker::noop(), |registered| &registered.waker)
    }
}

impl ConnectionWatch {
    /// Drives `connection` until its end, the end of its time, or a rest. `flush` comes
    /// at the end of each turn.
    pub(in crate::listener) async fn run<C, F>(
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
        let mut alarm = pin!(sleep_until(first));
        let mut abort = pin!(self.stop.aborting());
        let mut drain = pin!(self.stop.draining());
        let mut deadlines = DeadlineWaker(None);
        let mut phase = ShutdownPhase::Open;
        poll_fn(move |cx| {
            let mut heard = deadlines.is_woken(cx.waker());
            let mut bell = Context::from_waker(deadlines.waker());
            loop {
                if heard && abort.as_mut().poll(&mut bell).is_ready() {
                    return Poll::Ready(ConnectionOutcome::End(WatchEnd::Aborted));
                }
                if let Poll::Ready(end) = connection.as_mut().poll(cx) {
                    let _ = flush(cx); // last words, if there is room for them
                    return Poll::Ready(ConnectionOutcome::End(match phase {
                        ShutdownPhase::Leaving(_) => WatchEnd::Idle,
                        _ => WatchEnd::Closed(end),
                    }));
                }
                if let Poll::Ready(Err(_)) = flush(cx) {
                    // The peer has left; hyper would notice at its next read.
                    return Poll::Ready(ConnectionOutcome::End(WatchEnd::Closed(Ok(()))));
                }
                if heard
                    && !self.activity.is_draining()
                    && drain.as_mut().poll(&mut bell).is_ready()
                {
                    self.activity.drains();
                    let grace = Instant::now() + FIRST_REQUEST_GRACE;
                    phase = match phase {
                        ShutdownPhase::Open => ShutdownPhase::Awaited(grace),
                        other => other,
                    };
                }
                match self.next(phase, alarm.as_mut(), (&mut bell, heard)) {
                    WatchDecision::Stay => return Poll::Pending,
                    WatchDecision::End(end) => return Poll::Ready(ConnectionOutcome::End(end)),
                    WatchDecision::Rest => return Poll::Ready(ConnectionOutcome::Rest),
                    WatchDecision::Finish(then) => {
                        finish(connection.as_mut());
                        phase = then;
                        heard = true;
                    }
                }
            }
        })
        .await
    }

    /// Waits until there is something to read, or the connection must be told something.
    pub(in crate::listener) async fn rest<T: TransportSocket>(&self, stream: &mut T) {
        // A failure is seen by whoever reads next, and so is a peer that takes nothing.
        let _ = poll_fn(|cx| Poll::Ready(stream.poll_flush_deferred(cx))).await;
        let idle = self.activity.due(self.timeouts).map(|(at, _)| at);
        tokio::select! {
            biased;
            () = self.stop.aborting() => {}
            () = self.stop.draining() => {}
            () = poll_fn(|cx| stream.poll_readable(cx)) => {}
            () = sleep_until(idle.unwrap_or_else(Instant::now)) => {}
        }
    }

    fn next(
        &self,
        phase: ShutdownPhase,
        mut alarm: Pin<&mut Sleep>,
        (bell, mut heard): (&mut Context<'_>, bool),
    ) -> WatchDecision {
        if matches!(phase, ShutdownPhase::Awaited(_)) && self.activity.has_served() {
            return WatchDecision::Finish(ShutdownPhase::Finishing);
        }
        loop {
            // Idle was said already; what counts now is the grace.
            let is_said = matches!(phase, ShutdownPhase::Leaving(_));
            let due = self.activity.due(self.timeouts);
            let due = due.filter(|(_, why)| !(is_said && *why == TimeoutReason::Idle));
            let end_of_phase = match phase {
                ShutdownPhase::Awaited(until) | ShutdownPhase::Leaving(until) => Some(until),
                ShutdownPhase::Open | ShutdownPhase::Finishing => None,
            };
            let rest = match phase {
                ShutdownPhase::Open if self.may_rest => {
                    self.activity.rests().map(|at| at + REST_AFTER)
                }
                _ => None,
            };
            let earliest = [due.map(|(at, _)| at), end_of_phase, rest];
            let target = earliest.into_iter().flatten().min();
            // The alarm is brought forward at once, but put off only when it rings: most
            // connections move their deadline with each request and never meet it.
            match target {
                Some(target) if target < alarm.deadline() => alarm.as_mut().reset(target),
                _ if !heard => return WatchDecision::Stay,
                _ => {}
            }
            heard = true;
            if alarm.as_mut().poll(bell).is_pending() {
                return WatchDecision::Stay;
            }
            let now = Instant::now();
            if let Some((at, why)) = due
                && at <= now
            {
                return overdue(why, phase);
            }
            if rest.is_some_and(|at| at <= now) {
                return WatchDecision::Rest;
            }
            match phase {
                ShutdownPhase::Awaited(until) if until <= now => {
                    return WatchDecision::Finish(ShutdownPhase::Finishing);
                }
                // A request that crossed our goodbye on the way is still answered.
                ShutdownPhase::Leaving(until) if until <= now && self.activity.is_busy() => {
                    return WatchDecision::Finish(ShutdownPhase::Finishing);
                }
                ShutdownPhase::Leaving(until) if until <= now => {
                    return WatchDecision::End(WatchEnd::Idle);
                }
                _ => {
                    let target = target.unwrap_or(now + self.timeouts.idle);
                    let soonest = now + Duration::from_millis(1);
                    alarm.as_mut().reset(target.max(soonest));
                }
            }
        }
    }
}

fn overdue(why: TimeoutReason, phase: ShutdownPhase) -> WatchDecision {
    match (why, phase) {
        (TimeoutReason::Header, _) => WatchDecision::End(WatchEnd::HeaderTimeout),
        (TimeoutReason::Linger, ShutdownPhase::Leaving(_)) => WatchDecision::End(WatchEnd::Idle),
        (TimeoutReason::Linger, _) => WatchDecision::End(WatchEnd::Closed(Ok(()))),
        (TimeoutReason::Idle, ShutdownPhase::Open | ShutdownPhase::Awaited(_)) => {
            WatchDecision::Finish(ShutdownPhase::Leaving(Instant::now() + CLOSE_GRACE))
        }
        (TimeoutReason::Idle | TimeoutReason::Stalled, _) => WatchDecision::End(WatchEnd::Idle),
    }
}
