//! The connection, and following the changes. One task, on the control runtime: it alone
//! connects, and it alone tells the copies what has changed.

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
use super::client::server_error::told;
use super::client::{endpoint, eviction, script};
use super::entry::SharedEntry;
use super::{
    CommandConnection, EvictingServer, SharedChange, SharedStore, StoreConnection, StoreDown,
};
use crate::backoff::Backoff;
use crate::config;
use crate::lifecycle::{ShutdownSignal, TaskScope};
use crate::metrics::Metrics;

/// Longest silence of the server: then it answers "nothing new", which tells us that it
/// is there.
const SILENCE: Duration = Duration::from_millis(500);
/// How often a gate says that it is there; it is counted for five times as long.
const COUNT_EVERY: Duration = Duration::from_secs(2);
/// Changes taken at once.
const MOST: usize = 1000;
const RECONNECT_BACKOFF: Backoff = Backoff {
    first: Duration::from_millis(50),
    max: Duration::from_secs(1),
    jitter: 0.5,
};
/// A start waits this long for the store, then gives up and says why.
const FIRST_CONTACT: Duration = Duration::from_secs(15);
/// A user's removal is remembered this long (`end.lua`): a gate that was away for longer
/// must not bring users back.
const REMOVAL_KNOWN: Duration = Duration::from_secs(3600);

/// Why the store could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("the store at {place} cannot be used: {why}")]
pub struct SharedOpenError {
    place: String,
    why: Arc<str>,
}

impl SharedOpenError {
    pub(super) fn new(settings: &config::SharedStoreConfig, why: Arc<str>) -> Self {
        Self {
            place: settings.to_string(),
            why,
        }
    }
}

/// Why a connection came to its end.
#[derive(Debug, thiserror::Error)]
enum LinkLost {
    #[error(transparent)]
    Place(#[from] endpoint::EndpointError),
    #[error(transparent)]
    Server(#[from] RedisError),
    #[error(transparent)]
    Unavailable(#[from] crate::store::StoreUnavailable),
    #[error("the store has schema {0}, which this version does not know; upgrade the gates first")]
    Newer(String),
    #[error("the store's answer cannot be understood")]
    Odd,
    #[error("the store was emptied")]
    Emptied,
    /// Found at the first connection, and not accepted: the gate does not start.
    #[error("{0}")]
    Evicts(EvictingServer),
    /// Somebody found that the connection is of no use any more.
    #[error("{0}")]
    OfNoUse(Arc<str>),
}

impl SharedStore {
    /// Connects, and keeps connected until the end. Whoever keeps a copy has said so with
    /// `follow`: the directory is told once, now.
    pub async fn start(self: &Arc<Self>, scope: &TaskScope) -> Result<(), SharedOpenError> {
        let run = Arc::clone(self).run_link(scope.stop.clone());
        scope.spawn("store link", run);
        let first = timeout(FIRST_CONTACT, async {
            while !self.is_up() && !self.is_refused.load(Ordering::Acquire) {
                sleep(Duration::from_millis(5)).await;
            }
        });
        if first.await.is_err() || !self.is_up() {
            let why = Arc::clone(&self.down.load().why);
            return Err(SharedOpenError::new(&self.settings, why));
        }
        let watch = Arc::clone(self).watch_policy(scope.stop.clone());
        scope.spawn("store policy", watch);
        Ok(())
    }

    /// The store, not connected yet.
    pub fn new(settings: config::SharedStoreConfig, metrics: Arc<Metrics>) -> Self {
        Self {
            names: RedisKeys::new(&settings.prefix),
            settings,
            resolver: RedisResolver::default(),
            writer: format!("{:016x}", rand::random::<u64>()),
            up: ArcSwapOption::empty(),
            down: ArcSwap::from_pointee(StoreDown {
                why: "not connected yet".into(),
            }),
            start: Instant::now(),
            contact: AtomicU64::new(0),
            applied: AtomicU64::new(0),
            own: parking_lot::Mutex::default(),
            replicas: parking_lot::Mutex::default(),
            gates: AtomicU32::new(1),
            relink: Arc::default(),
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
                why = self.relinked() => LinkLost::OfNoUse(why),
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

    async fn relinked(&self) -> Arc<str> {
        loop {
            let why = self.relink.asked().await;
            if self.is_up() {
                return why;
            }
        }
    }

    /// An outage is one line, not one per attempt.
    fn report(&self, lost: &LinkLost, was_up: bool) {
        let why: Arc<str> = match lost {
            LinkLost::Server(error) => told(error),
            LinkLost::Place(error) => error.words(),
            other => other.to_string().into(),
        };
        let before = self.down.swap(Arc::new(StoreDown {
            why: Arc::clone(&why),
        }));
        if was_up || before.why != why {
            warn!(store = %self.settings, error = %why,
                "the store cannot be reached; known grants stay good for {:?}",
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
            endpoint::connect(&self.settings, &self.names, &timing).await?;
        let is_first = known.id.is_empty();
        if let Some(evicts) = self.admit_policy(&mut connection, is_first).await? {
            return Err(LinkLost::Evicts(evicts));
        }
        let patient = timing.set_response_timeout(Some(SILENCE + limit));
        let follow = client.get_multiplexed_async_connection_with_config(&patient);
        let mut follow = follow.await?;
        let mut commands = CommandConnection(connection);
        let id = self.greet(&mut commands, known).await?;
        self.touch();
        self.up.store(Some(Arc::new(StoreConnection {
            commands: commands.clone(),
            id: id.clone(),
        })));
        self.metrics.store_up.set(1);
        info!(store = %self.settings, "the store is there");
        self.follow_changes(&mut follow, &mut commands, known, &id)
            .await
    }

    /// Finds out whether this is the store as it was left, and brings the copies in step.
    async fn greet(
        &self,
        commands: &mut CommandConnection,
        known: &mut KnownState,
    ) -> Result<String, LinkLost> {
        let seen = self.applied();
        let settle = self.settings.stale_for.as_millis();
        let reply: Vec<Value> = script::HELLO
            .key(&self.names.meta)
            .key(&self.names.changes)
            .arg(&known.id)
            .arg(format!("{:032x}", rand::random::<u128>()))
            .arg(seen)
            .arg(&known.mark)
            .arg(u64::try_from(settle).unwrap_or(u64::MAX))
            .invoke_async(&mut commands.0)
            .await?;
        let reply = ScriptReply::new(reply, &self.relink);
        let (id, seq) = (reply.text(1)?, reply.number(2)?);
        match reply.word() {
            "same" => return Ok(id),
            "new" => {}
            "newer" => return Err(LinkLost::Newer(id)),
            word @ ("gap" | "lost") => {
                warn!(store = %self.settings, seen, now = seq, is_other = id != known.id,
                    "changes may have been missed; grants are looked up again");
                self.metrics.store_invalidations.inc();
                self.each_replica(|replica| replica.invalidate(seen));
                if word == "lost" {
                    let users_too = id != known.id || self.silent_for() < REMOVAL_KNOWN;
                    let items = self.resync(commands, &id, users_too).await?;
                    info!(items, "sent the state this gateway holds to the store");
                }
            }
            _ => return Err(LinkLost::Odd),
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

    /// Reads users and keys whole. What changes meanwhile is told again as a change.
    async fn read_directory(
        &self,
        commands: &mut CommandConnection,
        seq: u64,
    ) -> Result<(), LinkLost> {
        let change = SharedChange::Directory {
            users: read_entries(&mut commands.0, &self.names.users).await?,
            keys: read_entries(&mut commands.0, &self.names.keys).await?,
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
        let silence = u64::try_from(SILENCE.as_millis()).unwrap_or(u64::MAX);
        let mut counted = Instant::now() - COUNT_EVERY;
        loop {
            if counted.elapsed() >= COUNT_EVERY {
                counted = Instant::now();
                self.count_gates(commands).await?;
            }
            let seen = self.applied();
            let news: Value = redis::cmd("XREAD")
                .arg("COUNT")
                .arg(MOST)
                .arg("BLOCK")
                .arg(silence)
                .arg("STREAMS")
                .arg(&self.names.changes)
                .arg(format!("{seen}-0"))
                .query_async(follow)
                .await?;
            let Some(entries) = entries_of(news) else {
                self.check_silence(commands, id).await?;
                self.touch();
                continue;
            };
            for entry in &entries {
                let numbered = NumberedChange::read(entry).ok_or(LinkLost::Odd)?;
                self.apply_changes(numbered, known, commands).await?;
            }
            self.touch();
        }
    }

    async fn count_gates(&self, commands: &mut CommandConnection) -> Result<(), LinkLost> {
        let all: u32 = script::GATES
            .key(self.names.gates())
            .arg(&self.writer)
            .arg(u64::try_from((COUNT_EVERY * 5).as_millis()).unwrap_or(u64::MAX))
            .invoke_async(&mut commands.0)
            .await?;
        self.gates.store(all, Ordering::Relaxed);
        Ok(())
    }

    /// Nothing new: is it still the same store, and is there really nothing?
    async fn check_silence(
        &self,
        commands: &mut CommandConnection,
        id: &str,
    ) -> Result<(), LinkLost> {
        let seen = self.applied();
        let (now, seq): (Option<String>, Option<u64>) = redis::cmd("HMGET")
            .arg(&self.names.meta)
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
            // Numbers are left out only when a gate has told the store what it had lost.
            self.metrics.store_invalidations.inc();
            self.each_replica(|replica| replica.invalidate(seen));
            self.read_directory(commands, seen).await?;
        }
        // The copies before the number: an epoch taken in between is the older one, and
        // at worst refuses a login that could have been let in.
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

/// What this gate last knew of the store.
#[derive(Debug, Default)]
struct KnownState {
    id: String,
    /// Of the last change taken in.
    mark: Vec<u8>,
}

enum NeverReturns {}

/// The entries of an answer to XREAD on one stream; None: nothing new.
fn entries_of(news: Value) -> Option<Vec<Value>> {
    let Value::Array(mut streams) = news else {
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
        .map(|entry| read(entry).ok_or(LinkLost::Odd))
        .collect()
}
