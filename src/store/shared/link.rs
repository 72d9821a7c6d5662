//! The connection, and reading the changes. One task, on the control runtime: only this task
//! connects, and only this task passes changes to the replicas.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use redis::aio::MultiplexedConnection;
use redis::{RedisError, Value};
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::change::NumberedChange;
use super::client::redis_keys::RedisKeys;
use super::client::reply::ScriptReply;
use super::client::resolver::RedisResolver;
use super::client::server_error::describe;
use super::client::{endpoint, eviction, script};
use super::shared_entry::SharedEntry;
use super::{
    CommandConnection, EvictingServer, SharedChange, SharedOpenError, SharedStore, StoreConnection,
    StoreDown,
};
use crate::backoff::Backoff;
use crate::config;
use crate::lifecycle::{ShutdownSignal, TaskScope};
use crate::metrics::Metrics;

/// How long the server may block XREAD: then it returns without changes, which shows that it is
/// still there.
const XREAD_BLOCK: Duration = Duration::from_millis(500);
/// How often a gateway registers itself; it is counted for five times as long.
const REGISTER_INTERVAL: Duration = Duration::from_secs(2);
/// Changes per XREAD.
const MAX_CHANGES: usize = 1000;
const RECONNECT_BACKOFF: Backoff = Backoff {
    first: Duration::from_millis(50),
    max: Duration::from_secs(1),
    jitter: 0.5,
};
/// A start waits this long for the store, then fails with the reason.
const START_TIMEOUT: Duration = Duration::from_secs(15);
/// The server remembers a user's removal this long (`end.lua`). A gateway that was away for longer
/// must not restore users.
const REMOVAL_RETENTION: Duration = Duration::from_secs(3600);

/// Why a connection was given up.
#[derive(Debug, thiserror::Error)]
enum LinkLost {
    #[error(transparent)]
    Endpoint(#[from] endpoint::EndpointError),
    #[error(transparent)]
    Server(#[from] RedisError),
    #[error(transparent)]
    Unavailable(#[from] crate::store::StoreUnavailable),
    #[error("the store has schema {0}, which this version does not know; upgrade the gates first")]
    Newer(String),
    #[error("the store's reply has an unknown form")]
    Malformed,
    #[error("the store was emptied")]
    Emptied,
    /// The server evicts keys at the first connection: the gateway does not start.
    #[error("{0}")]
    Evicts(EvictingServer),
    /// Another task found the connection unusable.
    #[error("{0}")]
    Unusable(Arc<str>),
}

impl SharedStore {
    /// Connects, and stays connected until shutdown. Add the replicas first: they get all users
    /// and keys from this call.
    pub async fn start(self: &Arc<Self>, scope: &TaskScope) -> Result<(), SharedOpenError> {
        let run = Arc::clone(self).run_link(scope.stop.clone());
        scope.spawn("store link", run);
        let first = timeout(START_TIMEOUT, async {
            while !self.is_up() && !self.is_refused.load(Ordering::Acquire) {
                sleep(Duration::from_millis(5)).await;
            }
        });
        if first.await.is_err() || !self.is_up() {
            let why = Arc::clone(&self.down.load().reason);
            return Err(SharedOpenError::new(&self.settings, why));
        }
        let watch = Arc::clone(self).watch_policy(scope.stop.clone());
        scope.spawn("store policy", watch);
        Ok(())
    }

    /// The store, not connected yet.
    pub fn new(settings: config::SharedStoreConfig, metrics: Arc<Metrics>) -> Self {
        Self {
            keys: RedisKeys::new(&settings.prefix),
            settings,
            resolver: RedisResolver::default(),
            writer: format!("{:016x}", rand::random::<u64>()),
            up: ArcSwapOption::empty(),
            down: ArcSwap::from_pointee(StoreDown {
                reason: "not connected yet".into(),
            }),
            start: Instant::now(),
            contact: AtomicU64::new(0),
            applied: AtomicU64::new(0),
            own: parking_lot::Mutex::default(),
            replicas: parking_lot::Mutex::default(),
            gates: AtomicU32::new(1),
            reconnect: Arc::default(),
            eviction: arc_swap::ArcSwap::default(),
            is_refused: AtomicBool::new(false),
            metrics,
        }
    }

    async fn run_link(self: Arc<Self>, stop: ShutdownSignal) {
        let mut known = KnownState::default();
        let mut failures = 0_u32;
        loop {
            let lost = tokio::select! {
                lost = self.connect_and_follow(&mut known) => lost,
                why = self.reconnect_requested() => LinkLost::Unusable(why),
                () = stop.aborting() => return,
            };
            let was_up = self.up.swap(None).is_some();
            self.metrics.store_up.set(0);
            self.report(&lost, was_up);
            if matches!(lost, LinkLost::Evicts(_)) {
                self.is_refused.store(true, Ordering::Release);
                return;
            }
            if was_up {
                failures = 0;
            }
            failures = failures.saturating_add(1);
            tokio::select! {
                () = sleep(RECONNECT_BACKOFF.pause(failures)) => {}
                () = stop.aborting() => return,
            }
        }
    }

    async fn reconnect_requested(&self) -> Arc<str> {
        loop {
            let why = self.reconnect.requested().await;
            if self.is_up() {
                return why;
            }
        }
    }

    /// Logs an outage once, not at every attempt.
    fn report(&self, lost: &LinkLost, was_up: bool) {
        let reason: Arc<str> = match lost {
            LinkLost::Server(error) => describe(error),
            LinkLost::Endpoint(error) => error.describe(),
            other => other.to_string().into(),
        };
        let before = self.down.swap(Arc::new(StoreDown {
            reason: Arc::clone(&reason),
        }));
        if was_up || before.reason != reason {
            warn!(store = %self.settings, error = %reason,
                "the store cannot be reached; known tokens stay valid for {:?}",
                self.settings.stale_for);
        }
    }

    async fn connect_and_follow(&self, known: &mut KnownState) -> LinkLost {
        match self.try_connect_and_follow(known).await {
            Ok(never) => match never {},
            Err(lost) => lost,
        }
    }

    async fn try_connect_and_follow(
        &self,
        known: &mut KnownState,
    ) -> Result<NeverReturns, LinkLost> {
        let limit = self.settings.timeout;
        let timing = eviction::timing(&self.settings, &self.resolver);
        let (client, mut connection) =
            endpoint::connect(&self.settings, &self.keys, &timing).await?;
        let is_first = known.id.is_empty();
        if let Some(evicts) = self.admit_policy(&mut connection, is_first).await? {
            return Err(LinkLost::Evicts(evicts));
        }
        let blocking = timing.set_response_timeout(Some(XREAD_BLOCK + limit));
        let follow = client.get_multiplexed_async_connection_with_config(&blocking);
        let mut follow = follow.await?;
        let mut commands = CommandConnection(connection);
        let id = self.greet(&mut commands, known).await?;
        self.set_current();
        self.up.store(Some(Arc::new(StoreConnection {
            commands: commands.clone(),
            id: id.clone(),
        })));
        self.metrics.store_up.set(1);
        info!(store = %self.settings, "connected to the store");
        self.follow_changes(&mut follow, &mut commands, known, &id)
            .await
    }

    /// Finds out whether this is the store as this gateway left it, and brings the replicas up to
    /// date.
    async fn greet(
        &self,
        commands: &mut CommandConnection,
        known: &mut KnownState,
    ) -> Result<String, LinkLost> {
        let seen = self.applied();
        let settle_millis = self.settings.stale_for.as_millis();
        let reply: Vec<Value> = script::HELLO
            .key(&self.keys.meta)
            .key(&self.keys.changes)
            .arg(&known.id)
            .arg(format!("{:032x}", rand::random::<u128>()))
            .arg(seen)
            .arg(&known.mark)
            .arg(u64::try_from(settle_millis).unwrap_or(u64::MAX))
            .invoke_async(&mut commands.0)
            .await?;
        let reply = ScriptReply::new(reply, &self.reconnect);
        let (id, seq) = (reply.text(1)?, reply.number(2)?);
        match reply.word() {
            "same" => return Ok(id),
            "new" => {}
            "newer" => return Err(LinkLost::Newer(id)),
            word @ ("gap" | "lost") => {
                warn!(store = %self.settings, seen, now = seq, is_other = id != known.id,
                    "changes may have been missed; tokens are looked up again");
                self.metrics.store_invalidations.inc();
                self.each_replica(|replica| replica.invalidate(seen));
                if word == "lost" {
                    let users_too = id != known.id || self.silent_for() < REMOVAL_RETENTION;
                    let items = self.resync(commands, &id, users_too).await?;
                    info!(items, "sent the state this gateway holds to the store");
                }
            }
            _ => return Err(LinkLost::Malformed),
        }
        known.id.clone_from(&id);
        known.mark.clear();
        self.applied.store(seq, Ordering::Release);
        self.read_directory(commands, seq).await?;
        Ok(id)
    }

    fn each_replica(&self, call: impl Fn(&dyn super::Replica)) {
        for replica in self.replicas() {
            call(replica.as_ref());
        }
    }

    /// Reads all users and keys. Changes made meanwhile also arrive on the stream.
    async fn read_directory(
        &self,
        commands: &mut CommandConnection,
        seq: u64,
    ) -> Result<(), LinkLost> {
        let change = SharedChange::Directory {
            users: read_entries(&mut commands.0, &self.keys.users).await?,
            keys: read_entries(&mut commands.0, &self.keys.keys).await?,
        };
        self.each_replica(|replica| replica.apply(&change, seq));
        Ok(())
    }

    async fn follow_changes(
        &self,
        follow: &mut MultiplexedConnection,
        commands: &mut CommandConnection,
        known: &mut KnownState,
        id: &str,
    ) -> Result<NeverReturns, LinkLost> {
        let silence = u64::try_from(XREAD_BLOCK.as_millis()).unwrap_or(u64::MAX);
        let mut registered = Instant::now() - REGISTER_INTERVAL;
        loop {
            if registered.elapsed() >= REGISTER_INTERVAL {
                registered = Instant::now();
                self.count_gates(commands).await?;
            }
            let seen = self.applied();
            let reply: Value = redis::cmd("XREAD")
                .arg("COUNT")
                .arg(MAX_CHANGES)
                .arg("BLOCK")
                .arg(silence)
                .arg("STREAMS")
                .arg(&self.keys.changes)
                .arg(format!("{seen}-0"))
                .query_async(follow)
                .await?;
            let Some(entries) = entries_of(reply) else {
                self.check_same_store(commands, id).await?;
                self.set_current();
                continue;
            };
            for entry in &entries {
                let numbered = NumberedChange::read(entry).ok_or(LinkLost::Malformed)?;
                self.apply_changes(numbered, known, commands).await?;
            }
            self.set_current();
        }
    }

    async fn count_gates(&self, commands: &mut CommandConnection) -> Result<(), LinkLost> {
        let all: u32 = script::GATES
            .key(self.keys.gates())
            .arg(&self.writer)
            .arg(u64::try_from((REGISTER_INTERVAL * 5).as_millis()).unwrap_or(u64::MAX))
            .invoke_async(&mut commands.0)
            .await?;
        self.gates.store(all, Ordering::Relaxed);
        Ok(())
    }

    /// There were no changes: checks that this is still the same store and none were missed.
    async fn check_same_store(
        &self,
        commands: &mut CommandConnection,
        id: &str,
    ) -> Result<(), LinkLost> {
        let seen = self.applied();
        let (now, seq): (Option<String>, Option<u64>) = redis::cmd("HMGET")
            .arg(&self.keys.meta)
            .arg("id")
            .arg("seq")
            .query_async(&mut commands.0)
            .await?;
        let is_same = now.as_deref() == Some(id) && seq.is_some_and(|seq| seq >= seen);
        is_same.then_some(()).ok_or(LinkLost::Emptied)
    }

    async fn apply_changes(
        &self,
        numbered: NumberedChange,
        known: &mut KnownState,
        commands: &mut CommandConnection,
    ) -> Result<(), LinkLost> {
        let seen = self.applied();
        if numbered.seq != seen + 1 {
            // Numbers are skipped only after a resync, when a gateway has sent its state to the
            // store.
            self.metrics.store_invalidations.inc();
            self.each_replica(|replica| replica.invalidate(seen));
            self.read_directory(commands, seen).await?;
        }
        // The replicas first, then the number: a login that reads the epoch in between gets the
        // older one, and at worst is refused without need.
        if !self.take_own(numbered.seq) {
            for change in &numbered.changes {
                self.each_replica(|replica| replica.apply(change, numbered.seq));
            }
        }
        known.mark = numbered.mark;
        self.applied.store(numbered.seq, Ordering::Release);
        Ok(())
    }
}

/// What this gateway knew of the store at the last contact.
#[derive(Debug, Default)]
struct KnownState {
    id: String,
    /// Mark of the last change that was applied.
    mark: Vec<u8>,
}

enum NeverReturns {}

/// The entries in the reply to XREAD on one stream; None: no changes.
fn entries_of(reply: Value) -> Option<Vec<Value>> {
    let Value::Array(mut streams) = reply else {
        return None;
    };
    let Some(Value::Array(mut stream)) = streams.pop() else {
        return None;
    };
    match stream.pop() {
        Some(Value::Array(entries)) => Some(entries),
        _ => None,
    }
}

async fn read_entries(
    connection: &mut MultiplexedConnection,
    key: &str,
) -> Result<Vec<(Arc<str>, SharedEntry)>, LinkLost> {
    let all: Vec<(String, String)> = redis::cmd("HGETALL")
        .arg(key)
        .query_async(connection)
        .await?;
    let read = |(name, text): (String, String)| Some((name.into(), SharedEntry::parse(&text)?));
    all.into_iter()
        .map(|entry| read(entry).ok_or(LinkLost::Malformed))
        .collect()
}
