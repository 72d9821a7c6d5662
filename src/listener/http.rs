//! HTTP/1 and HTTP/2 on one connection: hyper's settings, and the watch that ends
//! what hyper would keep.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use super::activity::{Activity, Overdue, Timeouts};
use super::service::{Entry, Service};
use super::stream::Stream;
use crate::config;
use crate::lifecycle::{Stop, Tasks};

/// An HTTP/1 answer waits in here for the peer; also the smallest read buffer.
const BUFFER: usize = 64 * 1024;
/// Request bodies that we have not read yet, per stream and per connection (h2).
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Streams reset before we looked at them: beyond these it is a rapid-reset flood.
const PENDING_RESETS: usize = 20;
/// Over a connection's whole life, and not only malformed frames count: so does each
/// body still on its way when its request is refused. A busy client must not run out.
const LOCAL_RESETS: usize = 100_000;
/// A peer that is gone without a word is noticed after their sum.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// A connection that was opened just before the drain may still send its request.
const FIRST_REQUEST_GRACE: Duration = Duration::from_secs(1);
/// From "this connection is closing" (GOAWAY) to its end.
const CLOSE_GRACE: Duration = Duration::from_secs(5);

/// How a connection ended.
#[derive(Debug)]
pub(super) enum End {
    Closed(Result<(), hyper::Error>),
    HeaderTimeout,
    Idle,
    Aborted,
}

/// What the watch over one connection goes by.
pub(super) struct Watch {
    pub(super) activity: Arc<Activity>,
    pub(super) timeouts: Timeouts,
    pub(super) stop: Stop,
}

/// Streams of an h2 connection are tasks of their own.
#[derive(Clone, Debug)]
struct Streams(Tasks);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        self.0.spawn("stream", stream);
    }
}

pub(super) async fn http1<S, T>(
    stream: Stream<T>,
    entry: Entry<S>,
    settings: &config::Listener,
    watch: &Watch,
) -> End
where
    S: Service,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // hyper's starts too early: it would be an idle timeout. The watch has both.
        .header_read_timeout(None)
        .max_headers(settings.max_headers)
        .max_header_size(settings.max_header_bytes)
        .max_buf_size(BUFFER.max(settings.max_header_bytes))
        .serve_connection(
            TokioIo::new(stream),
            service_fn(move |request| entry.answer(request)),
        )
        .with_upgrades();
    let end = watch
        .run(Pin::new(&mut connection), |c| c.graceful_shutdown())
        .await;
    if matches!(end, End::HeaderTimeout)
        && !watch.activity.is_write_blocked()
        && let Some(parts) = connection.into_parts()
    {
        say_timeout(parts.io.into_inner()).await;
    }
    end
}

/// RFC 9110 15.5.9. hyper has no words for it.
async fn say_timeout<T: AsyncRead + AsyncWrite + Unpin>(mut stream: Stream<T>) {
    let answer = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    let said = timeout(Duration::from_secs(1), async {
        stream.write_all(answer).await?;
        stream.shutdown().await
    });
    // The peer is slow or gone; that is known already.
    let _ = said.await;
}

pub(super) async fn http2<S, T>(
    stream: Stream<T>,
    entry: Entry<S>,
    settings: &config::Listener,
    (watch, tasks): (&Watch, Tasks),
) -> End
where
    S: Service,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let list_bytes = u32::try_from(settings.max_header_bytes).unwrap_or(u32::MAX);
    let connection = http2::Builder::new(Streams(tasks))
        .timer(TokioTimer::new())
        .max_concurrent_streams(settings.max_streams)
        .max_header_list_size(list_bytes)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(LOCAL_RESETS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(BUFFER)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .serve_connection(
            TokioIo::new(stream),
            service_fn(move |request| entry.answer(request)),
        );
    watch.run(pin!(connection), |c| c.graceful_shutdown()).await
}

/// How far a connection is on its way out.
#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Open,
    /// Told to drain before it sent its first request.
    Awaited(Instant),
    Finishing,
    /// Idle for too long, and told so.
    Leaving(Instant),
}

impl Watch {
    /// Drives `connection` to its end, or to that of its time.
    async fn run<C>(&self, mut connection: Pin<&mut C>, finish: fn(Pin<&mut C>)) -> End
    where
        C: Future<Output = hyper::Result<()>>,
    {
        let first = self.activity.opened() + self.timeouts.idle;
        let mut alarm = pin!(sleep_until(first));
        let mut abort = pin!(self.stop.aborting());
        let mut drain = pin!(self.stop.draining());
        let mut is_draining = false;
        let mut phase = Phase::Open;
        poll_fn(move |cx| {
            loop {
                if abort.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(End::Aborted);
                }
                if let Poll::Ready(end) = connection.as_mut().poll(cx) {
                    return Poll::Ready(match phase {
                        Phase::Leaving(_) => End::Idle,
                        _ => End::Closed(end),
                    });
                }
                if !is_draining && drain.as_mut().poll(cx).is_ready() {
                    is_draining = true;
                    let grace = Instant::now() + FIRST_REQUEST_GRACE;
                    phase = match phase {
                        Phase::Open => Phase::Awaited(grace),
                        other => other,
                    };
                }
                match self.next(phase, cx, alarm.as_mut()) {
                    Next::Stay => return Poll::Pending,
                    Next::End(end) => return Poll::Ready(end),
                    Next::Finish(then) => {
                        finish(connection.as_mut());
                        phase = then;
                    }
                }
            }
        })
        .await
    }

    fn next(&self, phase: Phase, cx: &mut Context<'_>, mut alarm: Pin<&mut Sleep>) -> Next {
        if matches!(phase, Phase::Awaited(_)) && self.activity.has_served() {
            return Next::Finish(Phase::Finishing);
        }
        loop {
            // Idle was said already; what counts now is the grace.
            let is_said = matches!(phase, Phase::Leaving(_));
            let due = self.activity.due(self.timeouts);
            let due = due.filter(|(_, why)| !(is_said && *why == Overdue::Idle));
            let end_of_phase = match phase {
                Phase::Awaited(until) | Phase::Leaving(until) => Some(until),
                Phase::Open | Phase::Finishing => None,
            };
            let earliest = [due.map(|(at, _)| at), end_of_phase];
            let target = earliest.into_iter().flatten().min();
            let target = target.unwrap_or_else(|| Instant::now() + self.timeouts.idle);
            // The alarm is brought forward at once, but put off only when it rings: most
            // connections move their deadline with each request and never meet it.
            if target < alarm.deadline() {
                alarm.as_mut().reset(target);
            }
            if alarm.as_mut().poll(cx).is_pending() {
                return Next::Stay;
            }
            let now = Instant::now();
            if let Some((at, why)) = due
                && at <= now
            {
                return overdue(why, phase);
            }
            match phase {
                Phase::Awaited(until) if until <= now => return Next::Finish(Phase::Finishing),
                // A request that crossed our goodbye on the way is still answered.
                Phase::Leaving(until) if until <= now && self.activity.is_busy() => {
                    return Next::Finish(Phase::Finishing);
                }
                Phase::Leaving(until) if until <= now => return Next::End(End::Idle),
                _ => alarm
                    .as_mut()
                    .reset(target.max(now + Duration::from_millis(1))),
            }
        }
    }
}

enum Next {
    Stay,
    Finish(Phase),
    End(End),
}

fn overdue(why: Overdue, phase: Phase) -> Next {
    match (why, phase) {
        (Overdue::Header, _) => Next::End(End::HeaderTimeout),
        (Overdue::Linger, Phase::Leaving(_)) => Next::End(End::Idle),
        (Overdue::Linger, _) => Next::End(End::Closed(Ok(()))),
        (Overdue::Idle, Phase::Open | Phase::Awaited(_)) => {
            Next::Finish(Phase::Leaving(Instant::now() + CLOSE_GRACE))
        }
        (Overdue::Idle | Overdue::Stalled, _) => Next::End(End::Idle),
    }
}
