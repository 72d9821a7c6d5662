//! The HTTP/2 connections of one worker to an endpoint. Streams are spread over them; when all are full a
//! further one is opened, up to `MAX_CONNECTIONS`. Requests that find no stream share the dial.

use std::error::Error;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::timeout_at;

use super::dial_watch::dial_watched;
use crate::clock;
use crate::lifecycle::TaskSet;
use crate::metrics::{ConnectResult, GaugeGuard};
use crate::upstream::Upstream;
use crate::upstream::endpoints::Endpoint;
use crate::upstream::transport::dial_error::DialError;
use crate::upstream::transport::http1::connection::ResponseTimeout;
use crate::upstream::transport::http2::connection_load::ConnectionLoad;
use crate::upstream::transport::http2::driver::{ConnectionDriver, ConnectionOwner};
use crate::upstream::transport::http2::http2_connection::{
    FIRST_STREAMS, Http2Connection, StreamLease, open,
};
use crate::upstream::transport::send_error::{SendError, SendErrorKind};
use crate::upstream::transport::tracked_stream::TrackedStream;

/// Connections of one worker to one endpoint. With all of them full, requests wait for a stream.
const MAX_CONNECTIONS: usize = 8;

/// The connections of one worker. Dropping it closes those without streams; the others end with the last
/// of theirs.
#[derive(Debug)]
pub(in crate::upstream) struct Http2ConnectionSet {
    upstream: Arc<Upstream>,
    endpoint: Arc<Endpoint>,
    tasks: TaskSet,
    /// Its lock is never contended: one worker uses it.
    state: Mutex<SetState>,
    /// A stream may be free, or a dial has ended.
    changed: Arc<Notify>,
}

#[derive(Debug, Default)]
struct SetState {
    connections: Vec<Arc<Http2Connection>>,
    dialing: usize,
    waiting: usize,
    /// What ALPN chose last; None: nothing was dialed yet.
    is_http2_spoken: Option<bool>,
    /// Connections on which the upstream chose HTTP/1.1.
    http1_streams: Vec<TrackedStream>,
    /// Dials that have failed so far.
    failures: u64,
    last_failure: Option<DialFailure>,
}

/// What a request is sent on.
#[derive(Debug)]
pub(in crate::upstream) enum AcquiredStream {
    Http2(StreamLease),
    /// The upstream chose HTTP/1.1.
    Http1(Option<Box<TrackedStream>>),
}

/// There was no room for a stream in time.
#[derive(Debug, thiserror::Error)]
#[error("no stream on an HTTP/2 connection was free in time")]
struct NoStreamInTime;

impl Http2ConnectionSet {
    /// `tasks`: those of the worker's own runtime.
    pub(super) fn new(
        upstream: &Arc<Upstream>,
        endpoint: &Arc<Endpoint>,
        tasks: &TaskSet,
    ) -> Arc<Self> {
        Arc::new(Self {
            upstream: Arc::clone(upstream),
            endpoint: Arc::clone(endpoint),
            tasks: tasks.clone(),
            state: Mutex::default(),
            changed: Arc::default(),
        })
    }

    /// Whether the upstream is known to choose HTTP/1.1.
    pub(in crate::upstream) fn is_http1_chosen(&self) -> bool {
        self.state.lock().is_http2_spoken == Some(false)
    }

    /// A stream. `is_fresh`: on a connection without streams, or on a new one, if that can be.
    pub(in crate::upstream) async fn acquire(
        self: &Arc<Self>,
        timeout: ResponseTimeout,
        is_fresh: bool,
    ) -> Result<AcquiredStream, SendError> {
        let latest = clock::now() + timeout.first_byte;
        let until = timeout.until.map_or(latest, |until| until.min(latest));
        let known_failures = self.state.lock().failures;
        let mut waiting: Option<WaitingRequest<'_>> = None;
        loop {
            let changed = {
                let mut state = self.state.lock();
                if let Some(acquired) = self.pick(&mut state, is_fresh && waiting.is_none()) {
                    return Ok(acquired);
                }
                let is_lost = state.connections.is_empty() && state.dialing == 0;
                if is_lost
                    && state.failures != known_failures
                    && let Some(failure) = state.last_failure.clone()
                {
                    return Err(failure.into_error());
                }
                if waiting.is_none() {
                    state.waiting += 1;
                    waiting = Some(WaitingRequest(self));
                }
                self.dial_if_needed(&mut state);
                self.changed.notified()
            };
            if timeout_at(until, changed).await.is_err() {
                let late = NoStreamInTime.into();
                return Err(SendError::unsent(SendErrorKind::ConnectTimeout, late));
            }
        }
    }

    fn pick(self: &Arc<Self>, state: &mut SetState, is_fresh: bool) -> Option<AcquiredStream> {
        if let Some(stream) = state.http1_streams.pop() {
            return Some(AcquiredStream::Http1(Some(Box::new(stream))));
        }
        if state.is_http2_spoken == Some(false) {
            return Some(AcquiredStream::Http1(None));
        }
        state
            .connections
            .retain(|connection| connection.is_usable());
        let may_dial = state.connections.len() + state.dialing < MAX_CONNECTIONS;
        let has_room = |connection: &&Arc<Http2Connection>| {
            let is_right = !is_fresh || !may_dial;
            is_right && connection.active() < connection.limit()
        };
        let candidates = state.connections.iter().filter(has_room);
        let connection = candidates.min_by_key(|connection| connection.active())?;
        let lease = StreamLease::new(connection, &self.changed);
        if lease.is_reused {
            self.upstream
                .metrics
                .upstream_connects
                .add(ConnectResult::Reused);
        }
        Some(AcquiredStream::Http2(lease))
    }

    /// Opens a further connection if those that are being opened will not have room for all that wait.
    fn dial_if_needed(self: &Arc<Self>, state: &mut SetState) {
        let is_enough = state.waiting <= state.dialing * FIRST_STREAMS;
        if is_enough || state.connections.len() + state.dialing >= MAX_CONNECTIONS {
            return;
        }
        // Until it is known that HTTP/2 is spoken, one connection finds out.
        if state.dialing > 0 && state.is_http2_spoken.is_none() {
            return;
        }
        state.dialing += 1;
        let dial = UnfinishedDial {
            set: Arc::clone(self),
            outcome: None,
        };
        self.tasks.spawn("upstream http2 dial", async move {
            let set = &dial.set;
            let outcome = match dial_watched(&set.upstream, &set.endpoint, None).await {
                Ok(stream) if stream.is_http2() => dial.set.begin(stream).await,
                Ok(stream) => Ok(Some(stream)),
                Err(failure) => Err(DialFailure::new(failure)),
            };
            dial.end(outcome);
        });
    }

    /// Uses a connection that was opened for one request, on which the upstream chose HTTP/2.
    pub(in crate::upstream) async fn adopt(
        self: &Arc<Self>,
        stream: TrackedStream,
    ) -> Result<(), SendError> {
        let begun = self.begin(stream).await;
        begun.map(|_| ()).map_err(DialFailure::into_error)
    }

    /// The connection is in use from now on.
    async fn begin(
        self: &Arc<Self>,
        stream: TrackedStream,
    ) -> Result<Option<TrackedStream>, DialFailure> {
        let gauge = GaugeGuard::enter(&self.upstream.metrics.upstream_connections_open);
        let opened = open(stream, &self.upstream.name).await;
        let opened = opened.map_err(|failure| DialFailure {
            kind: SendErrorKind::ConnectFailed,
            source: Arc::new(failure),
        })?;
        let owner: Weak<Self> = Arc::downgrade(self);
        let driver = ConnectionDriver::new(
            opened.driven,
            opened.load,
            owner,
            self.upstream.idle_timeout,
            gauge,
        );
        let mut state = self.state.lock();
        state.is_http2_spoken = Some(true);
        state.connections.push(opened.connection);
        drop(state);
        self.tasks.spawn("upstream http2 connection", driver.run());
        self.changed.notify_waiters();
        Ok(None)
    }

    fn dialed(self: &Arc<Self>, outcome: Option<DialOutcome>) {
        let mut state = self.state.lock();
        state.dialing -= 1;
        match outcome {
            Some(Ok(None)) => {}
            Some(Ok(Some(stream))) => {
                state.is_http2_spoken = Some(false);
                if state.waiting > 0 {
                    state.http1_streams.push(stream);
                }
            }
            Some(Err(failure)) => {
                state.failures += 1;
                state.last_failure = Some(failure);
            }
            None => state.failures += 1,
        }
        drop(state);
        self.changed.notify_waiters();
    }
}

impl ConnectionOwner for Http2ConnectionSet {
    /// One that has been idle for long, or cannot be used, is taken out.
    fn needs(&self, load: &Arc<ConnectionLoad>) -> bool {
        let mut state = self.state.lock();
        let is_over = load.is_idle_for(self.upstream.idle_timeout);
        let is_kept = |connection: &Arc<Http2Connection>| match connection.is(load) {
            true => !is_over && connection.is_usable(),
            false => true,
        };
        state.connections.retain(is_kept);
        state
            .connections
            .iter()
            .any(|connection| connection.is(load))
    }

    fn connection_ended(&self, load: &Arc<ConnectionLoad>) {
        let mut state = self.state.lock();
        state.connections.retain(|connection| !connection.is(load));
        drop(state);
        self.changed.notify_waiters();
    }

    fn limit_changed(&self) {
        self.changed.notify_waiters();
    }
}

/// What a dial came to: HTTP/2, which is in use already, or a connection of HTTP/1.1.
type DialOutcome = Result<Option<TrackedStream>, DialFailure>;

/// Why there is no connection; shared by the requests that waited for it.
#[derive(Clone, Debug)]
struct DialFailure {
    kind: SendErrorKind,
    source: Arc<dyn Error + Send + Sync>,
}

impl DialFailure {
    fn new(failure: DialError) -> Self {
        let kind = match failure.is_timeout() {
            true => SendErrorKind::ConnectTimeout,
            false => SendErrorKind::ConnectFailed,
        };
        Self {
            kind,
            source: Arc::new(failure),
        }
    }

    fn into_error(self) -> SendError {
        SendError::unsent(self.kind, Box::new(self.source))
    }
}

/// A request that waits for a stream; counted until it is dropped.
struct WaitingRequest<'a>(&'a Http2ConnectionSet);

impl Drop for WaitingRequest<'_> {
    fn drop(&mut self) {
        self.0.state.lock().waiting -= 1;
    }
}

/// A dial, whose end is noted however it ends.
struct UnfinishedDial {
    set: Arc<Http2ConnectionSet>,
    outcome: Option<DialOutcome>,
}

impl UnfinishedDial {
    fn end(mut self, outcome: DialOutcome) {
        self.outcome = Some(outcome);
    }
}

impl Drop for UnfinishedDial {
    fn drop(&mut self) {
        let outcome = self.outcome.take();
        self.set.dialed(outcome);
    }
}
