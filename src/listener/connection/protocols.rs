//! Serves HTTP/1 or HTTP/2 on one connection: hyper with the gateway's settings.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};

use super::client_stream::{ClientStream, TransportSocket};
use super::request_service::{RequestService, ServiceEntry};
use super::watch::{ConnectionOutcome, ConnectionWatch, WatchEnd};
use crate::config;
use crate::lifecycle::TaskSet;
use crate::listener::http1::refusal;
use crate::listener::http2::coalescing::coalescing;
use crate::listener::http2::stream_executor::{ConnectionWithStreams, StreamExecutor};
use crate::pipeline::Rejection;

/// Size of the write buffer of an HTTP/1 connection, and minimum of its read buffer.
const BUFFER: usize = 64 * 1024;
/// Receive window of an HTTP/2 stream: the memory that a request body can take before it is read.
const STREAM_WINDOW: u32 = 128 * 1024;
/// The largest window (RFC 9113, 6.9.1).
const LARGEST_WINDOW: u32 = (1 << 31) - 1;
/// Streams that the peer reset before they were accepted; more of them are a rapid-reset flood.
const PENDING_RESETS: usize = 20;
/// Streams that the gateway may reset over the life of a connection. Not only malformed frames
/// count, but also each body still being sent when its request is refused; a busy client must not
/// reach it.
const LOCAL_RESETS: usize = 100_000;
/// A peer that disappeared without closing is noticed after the sum of both.
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
            // hyper's timeout starts before the first byte, as an idle timeout would. The watch
            // applies both.
            .header_read_timeout(None)
            .max_headers(settings.max_headers)
            // The framing guard counts the same bytes and refuses first.
            .max_header_size(settings.max_header_bytes)
            .max_buf_size(BUFFER.max(settings.max_header_bytes))
            .serve_connection(
                TokioIo::new(stream),
                service_fn(move |request| service.handle(request)),
            );
        let outcome = watch
            .run(
                Pin::new(&mut connection),
                |c| c.graceful_shutdown(),
                |_| Poll::Ready(Ok(())),
            )
            .await;
        match outcome {
            // Drops hyper's buffers. If hyper had read ahead, the stream cannot be used again.
            ConnectionOutcome::Rest => {
                let parts = connection.into_parts();
                if !parts.read_buf.is_empty() {
                    return WatchEnd::Closed(Ok(()));
                }
                stream = parts.io.into_inner();
            }
            ConnectionOutcome::End(end) => {
                let is_whole = matches!(end, WatchEnd::Closed(Ok(())));
                if let Some(rejection) = head_refusal(&end) {
                    // Made even if the peer takes no bytes, so that the access log has a line.
                    let response = entry.service.refuse(None, rejection, &entry.peer);
                    if !watch.activity.is_write_blocked() {
                        let stream = connection.into_parts().io.into_inner();
                        // Boxed because it is rare: a task is as large as its largest step.
                        Box::pin(refusal::write(stream, response)).await;
                    }
                } else if watch.activity.is_http10() && !is_whole {
                    connection.into_parts().io.into_inner().break_off();
                }
                return end;
            }
        }
        watch.rest(&mut stream).await;
    }
}

/// The refusal of a request whose head hyper has never seen completely.
fn head_refusal(end: &WatchEnd) -> Option<Rejection> {
    match end {
        WatchEnd::HeaderTimeout => Some(Rejection::HeadTooSlow),
        WatchEnd::Closed(Err(error)) => refusal::refused_head(error),
        WatchEnd::Closed(Ok(())) | WatchEnd::Idle | WatchEnd::Aborted => None,
    }
}

/// The receive window of a connection: enough for all its streams and one more, so that stalled
/// streams never block the others. Memory is still bounded, by the limit of requests in flight.
fn connection_window(max_streams: u32) -> u32 {
    let streams = max_streams.saturating_add(1);
    streams.saturating_mul(STREAM_WINDOW).min(LARGEST_WINDOW)
}

pub(in crate::listener) async fn http2<S: RequestService, T: TransportSocket>(
    stream: ClientStream<T>,
    entry: Arc<ServiceEntry<S>>,
    settings: &config::Listener,
    watch: &ConnectionWatch,
    tasks: TaskSet,
) -> WatchEnd {
    // Twice the limit: above this h2 refuses with a 431 without a body, below it the client gets
    // the gateway's own response.
    let list_bytes = settings.max_header_bytes.saturating_mul(2);
    let list_bytes = u32::try_from(list_bytes).unwrap_or(u32::MAX);
    let (stream, flush) = coalescing(stream, entry.continues.clone());
    let executor = StreamExecutor::new(tasks);
    let connection = http2::Builder::new(executor.clone())
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
            service_fn(move |request| entry.handle(request)),
        );
    let outcome = watch
        .run(
            pin!(ConnectionWithStreams::new(connection, executor)),
            |c| c.connection().graceful_shutdown(),
            |cx| flush.poll_flush(cx),
        )
        .await;
    match outcome {
        ConnectionOutcome::End(end) => end,
        ConnectionOutcome::Rest => WatchEnd::Closed(Ok(())),
    }
}
