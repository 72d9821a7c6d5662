//! The task of one HTTP/2 connection: moves its bytes, closes it when it has been idle for long, and finds
//! out whether a silent peer is still there.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::client::Connection;
use h2::{Ping, PingPong};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};
use tracing::debug;

use super::connection_load::ConnectionLoad;
use super::counted_stream::CountedStream;
use crate::error_chain::chain;
use crate::metrics::GaugeGuard;

/// A peer that has sent nothing for so long while streams are open is asked whether it is there.
const FIRST_PING: Duration = Duration::from_secs(20);
/// Between two such questions while it sends nothing else: servers of gRPC end a connection for several
/// within five minutes.
const NEXT_PING: Duration = Duration::from_secs(310);
/// A peer that answers no PING within this time is dead.
const PONG_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of control frames that a peer may send without having sent a response.
const CONTROL_BYTES: u64 = 256;
/// How long a connection that is no longer needed may take to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// What a driver tells and asks of the set that its connection belongs to.
pub(in crate::upstream) trait ConnectionOwner: Send + Sync {
    /// Whether requests may still be sent on the connection.
    fn needs(&self, load: &Arc<ConnectionLoad>) -> bool;

    /// The connection is over.
    fn connection_ended(&self, load: &Arc<ConnectionLoad>);

    /// The peer allows another number of streams.
    fn limit_changed(&self);
}

/// Polls one connection until it ends.
pub(in crate::upstream) struct ConnectionDriver {
    connection: Connection<CountedStream, Bytes>,
    pings: Option<PingPong>,
    load: Arc<ConnectionLoad>,
    set: Weak<dyn ConnectionOwner>,
    tick: Interval,
    stream_limit: usize,
    received: u64,
    /// When something was received last, or no stream was open.
    heard_at: Instant,
    last_ping: Option<SentPing>,
    unneeded_since: Option<Instant>,
    _open: GaugeGuard,
}

impl ConnectionDriver {
    pub(in crate::upstream) fn new(
        mut connection: Connection<CountedStream, Bytes>,
        load: Arc<ConnectionLoad>,
        set: Weak<dyn ConnectionOwner>,
        idle_timeout: Duration,
        open: GaugeGuard,
    ) -> Self {
        let often = (idle_timeout / 4).clamp(Duration::from_millis(10), Duration::from_secs(1));
        let mut tick = interval(often);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        Self {
            pings: connection.ping_pong(),
            stream_limit: connection.max_concurrent_send_streams(),
            connection,
            load,
            set,
            tick,
            received: 0,
            heard_at: Instant::now(),
            last_ping: None,
            unneeded_since: None,
            _open: open,
        }
    }

    /// Runs until the connection has ended, or has to. Streams that are open then fail.
    pub(in crate::upstream) async fn run(mut self) {
        std::future::poll_fn(|cx| self.poll(cx)).await;
        self.load.close();
        if let Some(set) = self.set.upgrade() {
            set.connection_ended(&self.load);
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let ended = std::pin::Pin::new(&mut self.connection).poll(cx);
        if let Poll::Ready(outcome) = ended {
            if let Err(failure) = outcome {
                debug!(error = %chain(&failure), "an HTTP/2 connection to the upstream ended");
            }
            return Poll::Ready(());
        }
        self.note_limit();
        if let (Some(ping), Some(pings)) = (&mut self.last_ping, &mut self.pings)
            && ping.is_open
            && pings.poll_pong(cx).is_ready()
        {
            ping.is_open = false;
        }
        while self.tick.poll_tick(cx).is_ready() {
            if self.must_end() {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }

    /// A raised limit is room for requests that wait.
    fn note_limit(&mut self) {
        let limit = self.connection.max_concurrent_send_streams();
        if limit != self.stream_limit {
            self.stream_limit = limit;
            if let Some(set) = self.set.upgrade() {
                set.limit_changed();
            }
        }
    }

    fn must_end(&mut self) -> bool {
        let now = Instant::now();
        let set = self.set.upgrade();
        match &set {
            Some(set) if set.needs(&self.load) => self.unneeded_since = None,
            _ if self.load.active() > 0 => self.unneeded_since = None,
            _ => {
                // It closes by itself once nothing refers to it, if the peer reads.
                let since = *self.unneeded_since.get_or_insert(now);
                return now - since >= CLOSE_TIMEOUT;
            }
        }
        self.is_dead(now)
    }

    /// Asks a silent peer whether it is there; true when it has not said so in time.
    fn is_dead(&mut self, now: Instant) -> bool {
        let received = self.load.received.load(Ordering::Relaxed);
        if received != self.received || self.load.active() == 0 {
            self.received = received;
            self.heard_at = now;
            return false;
        }
        let silence = now - self.heard_at;
        match &self.last_ping {
            Some(ping) if ping.is_open => silence.min(now - ping.at) >= PONG_TIMEOUT,
            last if silence >= FIRST_PING
                && last.as_ref().is_none_or(|last| last.is_past(now, received)) =>
            {
                self.ping(now, received);
                false
            }
            _ => false,
        }
    }

    fn ping(&mut self, now: Instant, received: u64) {
        if let Some(pings) = &mut self.pings
            && pings.send_ping(Ping::opaque()).is_ok()
        {
            self.last_ping = Some(SentPing {
                at: now,
                received,
                is_open: true,
            });
        }
    }
}

/// The last PING.
struct SentPing {
    at: Instant,
    /// Bytes received before it.
    received: u64,
    /// Its answer has not come yet.
    is_open: bool,
}

impl SentPing {
    /// Whether another may follow: servers forget earlier ones when they send a response.
    fn is_past(&self, now: Instant, received: u64) -> bool {
        now - self.at >= NEXT_PING || received - self.received > CONTROL_BYTES
    }
}
