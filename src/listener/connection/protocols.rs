//! HTTP/1 and HTTP/2 on one connection, as hyper speaks them with our settings.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};

use super::client_stream::{ClientStream, TransportSocket};
use super::watch::{ConnectionOutcome, ConnectionWatch, WatchEnd};
use crate::config;
use crate::lifecycle::TaskSet;
use crate::listener::http1::refusal;
use crate::listener::http2::coalescing::corked;
use crate::listener::http2::stream_executor::{ConnectionWithStreams, StreamExecutor};
use crate::listener::service::{RequestService, ServiceEntry};
use crate::pipeline::Rejection;

/// An HTTP/1 answer waits in here for the peer; also the smallest read buffer.
const BUFFER: usize = 64 * 1024;
/// What one HTTP/2 stream may send of its body before we read it: memory that a request
/// can take while nobody wants its body.
const STREAM_WINDOW: u32 = 128 * 1024;
/// The largest window (RFC 9113, 6.9.1).
const LARGEST_WINDOW: u32 = (1 << 31) - 1;
/// Streams reset before we looked at them: beyond these it is a rapid-reset flood.
const PENDING_RESETS: usize = 20;
/// Over a connection's whole life, and not only malformed frames count: so does each
/// body still on its way when its request is refused. A busy client must not run out.
const LOCAL_RESETS: usize = 100_000;
/// A peer that is gone without a word is noticed after their sum.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

pub(in crate::listener) async fn http1<S: RequestService, T: TransportSocket>(
    mut stream: ClientStream<T>,
    entry: Arc<ServiceEntry<S>>,
    settings: &config::Listener,
    watch: &ConnectionWatch,
) -> WatchEnd {
    loop {
        let service = Arc::clone(&entry);
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            // hyper's starts too early: it would be an idle timeout. The watch has both.
            .header_read_timeout(None)
            .max_headers(settings.max_headers)
            // The guard counts the same bytes, and is the one that refuses.
            .max_header_size(settings.max_header_bytes)
            .max_buf_size(BUFFER.max(settings.max_header_bytes))
            .serve_connection(
                TokioIo::new(stream),
                service_fn(move |request| service.answer(request)),
            )
            .with_upgrades();
        let turn = watch
            .run(
                Pin::new(&mut connection),
                |c| c.graceful_shutdown(),
                |_| Poll::Ready(Ok(())),
            )
            .await;
        match turn {
            // hyper's buffers go; it has nothing else, or the stream is not to be trusted.
            ConnectionOutcome::Rest => match connection.into_parts() {
                Some(parts) if parts.read_buf.is_empty() => stream = parts.io.into_inner(),
                _ => return WatchEnd::Closed(Ok(())),
            },
            ConnectionOutcome::End(end) => {
                let is_whole = matches!(end, WatchEnd::Closed(Ok(())));
                if let Some(rejection) = unanswered(&end) {
                    // Has its line in the log also when the peer takes no answer.
                    let answer = entry.service.refuse(None, rejection, &entry.peer);
                    if !watch.activity.is_write_blocked()
                        && let Some(parts) = connection.into_parts()
                    {
                        // Boxed, as all that is rare.
                        Box::pin(refusal::write(parts.io.into_inner(), answer)).await;
                    }
                } else if watch.activity.is_http10()
                    && !is_whole
                    && let Some(parts) = connection.into_parts()
                {
                    parts.io.into_inner().break_off();
                }
                return end;
            }
        }
        watch.rest(&mut stream).await;
    }
}

/// The refusal of a head that hyper has never seen whole.
fn unanswered(end: &WatchEnd) -> Option<Rejection> {
    match end {
        WatchEnd::HeaderTimeout => Some(Rejection::HeadTooSlow),
        WatchEnd::Closed(Err(error)) => refusal::refused_head(error),
        WatchEnd::Closed(Ok(())) | WatchEnd::Idle | WatchEnd::Aborted => None,
    }
}

/// Room for what all streams of a connection may send, and for one more: were they all
/// to stall, the connection's window alone would still stop none. Memory is bounded all
/// the same, by the requests inside the gate.
fn connection_window(max_streams: u32) -> u32 {
    let streams = max_streams.saturating_add(1);
    streams.saturating_mul(STREAM_WINDOW).min(LARGEST_WINDOW)
}

pub(in crate::listener) async fn http2<S: RequestService, T: TransportSocket>(
    stream: ClientStream<T>,
    entry: Arc<ServiceEntry<S>>,
    settings: &config::Listener,
    (watch, tasks): (&ConnectionWatch, TaskSet),
) -> WatchEnd {
    // Twice what is taken: h2 would refuse the rest with a bare 431, so that a client that
    // goes over the limit mostly gets the gate's own.
    let list_bytes = settings.max_header_bytes.saturating_mul(2);
    let list_bytes = u32::try_from(list_bytes).unwrap_or(u32::MAX);
    let (stream, cork) = corked(stream, entry.continues.clone());
    let begun = StreamExecutor::new(tasks);
    let connection = http2::Builder::new(begun.clone())
        .timer(TokioTimer::new())
        .max_concurrent_streams(settings.max_streams)
        .max_header_list_size(list_bytes)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(LOCAL_RESETS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(connection_window(settings.max_streams))
        .max_send_buf_size(BUFFER)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .serve_connection(
            TokioIo::new(stream),
            service_fn(move |request| entry.answer(request)),
        );
    let turn = watch
        .run(
            pin!(ConnectionWithStreams::new(connection, begun)),
            |c| c.connection().graceful_shutdown(),
            |cx| cork.poll_flush(cx),
        )
        .await;
    match turn {
        ConnectionOutcome::End(end) => end,
        ConnectionOutcome::Rest => WatchEnd::Closed(Ok(())),
    }
}
