//! One HTTP/2 connection as requests see it: how many streams it has and may have, and a stream for one
//! of them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Waker};

use bytes::Bytes;
use h2::client::{Builder, Connection, SendRequest};
use tokio::sync::Notify;

use super::connection_load::{ConnectionLoad, MAX_STREAMS};
use super::counted_stream::CountedStream;
use crate::clock;
use crate::upstream::transport::http1::response_head::{MAX_FIELDS, MAX_HEAD};
use crate::upstream::transport::in_flight_count::InFlightRequest;
use crate::upstream::transport::retire_flag::RetireFlag;
use crate::upstream::transport::tracked_stream::TrackedStream;

/// The same until the peer's first SETTINGS frame has said how many it allows.
pub(in crate::upstream) const FIRST_STREAMS: usize = 10;
/// Bytes of a response that are kept while its client does not read: the window of its stream. The
/// connection's window has room for all streams, so that those of slow clients do not stop the others.
const STREAM_WINDOW: u32 = 128 * 1024;
/// Bytes of a request's body that are kept while the peer does not read.
const SEND_BUFFER: usize = 64 * 1024;
/// What RFC 9113 6.5.2 adds to the size of each field of a head.
const FIELD_OVERHEAD: usize = 32;

/// One connection. Dropping it lets it end with the last of its streams.
pub(in crate::upstream) struct Http2Connection {
    sender: SendRequest<Bytes>,
    load: Arc<ConnectionLoad>,
    /// None: nothing that it was made with can be replaced.
    retire: Option<RetireFlag>,
}

impl Http2Connection {
    pub(in crate::upstream) fn is(&self, load: &Arc<ConnectionLoad>) -> bool {
        Arc::ptr_eq(&self.load, load)
    }

    pub(in crate::upstream) fn active(&self) -> usize {
        self.load.active()
    }

    /// Whether it can be used at all, now or when a stream has ended.
    pub(in crate::upstream) fn is_usable(&self) -> bool {
        if self.load.is_closed.load(Ordering::Relaxed)
            || self.retire.as_ref().is_some_and(RetireFlag::is_set)
        {
            return false;
        }
        // A new handle waits for nothing: it only reports how the connection has ended.
        let mut cx = Context::from_waker(Waker::noop());
        !matches!(
            self.sender.clone().poll_ready(&mut cx),
            std::task::Poll::Ready(Err(_))
        )
    }

    /// How many streams it may have now.
    pub(in crate::upstream) fn limit(&self) -> usize {
        let accepted = self.load.accepted.load(Ordering::Relaxed);
        let allowed = self.sender.current_max_send_streams();
        allowed.min(accepted).min(MAX_STREAMS)
    }
}

impl fmt::Debug for Http2Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http2Connection")
            .field("load", &self.load)
            .finish_non_exhaustive()
    }
}

/// A place for one stream on a connection. The place is free again when this is dropped.
#[derive(Debug)]
pub(in crate::upstream) struct StreamLease {
    connection: Arc<Http2Connection>,
    /// Told that the place is free.
    changed: Arc<Notify>,
    /// The connection has served a request before.
    pub(in crate::upstream) is_reused: bool,
    received_before: u64,
    written_before: u64,
    /// Counts the request until its response has ended.
    pub(in crate::upstream) in_flight: Option<InFlightRequest>,
}

impl StreamLease {
    pub(in crate::upstream) fn new(
        connection: &Arc<Http2Connection>,
        changed: &Arc<Notify>,
    ) -> Self {
        let load = &connection.load;
        load.active.fetch_add(1, Ordering::Relaxed);
        Self {
            connection: Arc::clone(connection),
            changed: Arc::clone(changed),
            is_reused: load.has_served.load(Ordering::Relaxed),
            received_before: load.received.load(Ordering::Relaxed),
            written_before: load.written.load(Ordering::Relaxed),
            in_flight: None,
        }
    }

    pub(in crate::upstream) fn sender(&self) -> SendRequest<Bytes> {
        self.connection.sender.clone()
    }

    /// Whether nothing at all was written since the request began.
    pub(in crate::upstream) fn is_unwritten(&self) -> bool {
        self.connection.load.written.load(Ordering::Relaxed) == self.written_before
    }

    /// A response has come: the peer can take one stream more than it has taken so far.
    pub(in crate::upstream) fn responded(&self) {
        let load = &self.connection.load;
        load.has_served.store(true, Ordering::Relaxed);
        let accepted = load.accepted.load(Ordering::Relaxed);
        load.accepted
            .store((accepted + 1).min(MAX_STREAMS), Ordering::Relaxed);
    }

    /// The peer has refused this stream: it takes no more than the others.
    pub(in crate::upstream) fn refused(&self) {
        let load = &self.connection.load;
        let others = load.active().saturating_sub(1);
        let accepted = load.accepted.load(Ordering::Relaxed);
        load.accepted
            .store(others.min(accepted).max(1), Ordering::Relaxed);
    }

    /// The response is late. If nothing else has come either, the connection may be dead: no further
    /// request is sent on it.
    pub(in crate::upstream) fn is_late(&self) {
        if self.connection.load.received.load(Ordering::Relaxed) == self.received_before {
            self.close();
        }
    }

    /// No further request is sent on the connection.
    pub(in crate::upstream) fn close(&self) {
        self.connection.load.close();
    }
}

impl Drop for StreamLease {
    fn drop(&mut self) {
        let load = &self.connection.load;
        if load.active.fetch_sub(1, Ordering::Relaxed) == 1 {
            *load.idle_since.lock() = clock::now();
        }
        self.changed.notify_waiters();
    }
}

/// A connection that was just opened, and what its driver polls.
pub(in crate::upstream) struct OpenedConnection {
    pub(in crate::upstream) connection: Arc<Http2Connection>,
    pub(in crate::upstream) load: Arc<ConnectionLoad>,
    pub(in crate::upstream) driven: Connection<CountedStream, Bytes>,
}

/// Begins HTTP/2 on `stream`. Waits for nothing from the peer.
pub(in crate::upstream) async fn open(
    stream: TrackedStream,
    upstream: &Arc<str>,
) -> Result<OpenedConnection, h2::Error> {
    let load = Arc::new(ConnectionLoad::new());
    let retire = stream.retire_flag();
    let stream = CountedStream::new(stream, &load, upstream);
    let streams = u32::try_from(MAX_STREAMS).unwrap_or(u32::MAX);
    let head_list = u32::try_from(MAX_HEAD + MAX_FIELDS * FIELD_OVERHEAD).unwrap_or(u32::MAX);
    let mut builder = Builder::new();
    builder
        .enable_push(false)
        .initial_max_send_streams(FIRST_STREAMS)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(STREAM_WINDOW * streams)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(head_list);
    let (sender, driven) = builder.handshake(stream).await?;
    let connection = Arc::new(Http2Connection {
        sender,
        load: Arc::clone(&load),
        retire,
    });
    Ok(OpenedConnection {
        connection,
        load,
        driven,
    })
}
