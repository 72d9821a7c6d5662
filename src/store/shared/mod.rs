//! The store that several gateways share: a Redis or Valkey server. Every change is one script
//! (`client::script`), which numbers the change and publishes it to all gateways. Each gateway
//! reads the numbered changes on a connection of its own (`link`) and applies them to its
//! replicas. Start reading at `SharedStore`, then `link`.
//!
//! The replicas may have newer state than the server. When the server has lost data, or fell
//! behind in a failover, each gateway sends it the state that it holds (`resync`); of two versions
//! the one with the greater change number counts, so that a revocation is never undone.

mod change;
mod client;
mod link;
mod rate_permits;
mod shared_entry;
mod shared_lease;
mod snapshot;
mod store_check;
mod tokens;
mod transfer;
mod users;

pub use change::{Replica, RevokedUpTo, SharedChange};
pub use client::eviction::{EvictingServer, EvictionFound};
pub use rate_permits::{GrantedPermits, PermitRate};
pub use shared_entry::{EntryRevision, SharedEntry};
pub use shared_lease::{LeaseAt, LoginLock, LoginRateLimit, LoginTurn, PublishOutcome};
pub use snapshot::StateSnapshotItem;
pub use store_check::{check_settings, reach};
pub use tokens::{InsertOutcome, SharedGrant, TokenInsert, TokenKind};
pub use users::EntryChange;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use redis::Script;
use redis::aio::MultiplexedConnection;
use tokio::time::Instant;

use super::StoreUnavailable;
use crate::config;
use crate::metrics::{Metrics, StoreFailure};
use client::reconnect::ReconnectSignal;
use client::redis_keys::RedisKeys;
use client::reply::ScriptReply;
use client::resolver::RedisResolver;

/// One gateway's view of the shared store.
#[derive(Debug)]
pub struct SharedStore {
    settings: config::SharedStoreConfig,
    keys: RedisKeys,
    resolver: RedisResolver,
    /// A random id, to recognise this gateway's own changes.
    writer: String,
    up: ArcSwapOption<StoreConnection>,
    /// Why there is no connection.
    down: ArcSwap<StoreDown>,
    start: Instant,
    /// When the replicas were last up to date, in milliseconds after `start`; 0: never.
    contact: AtomicU64,
    /// Number of the last change applied to the replicas.
    applied: AtomicU64,
    /// Changes made by this gateway, which the replicas have applied before they arrive on the
    /// stream.
    own: Mutex<HashSet<u64>>,
    replicas: Mutex<Vec<Weak<dyn Replica>>>,
    /// Number of gateways that share the store, with this one, at the last contact.
    gates: AtomicU32,
    reconnect: Arc<ReconnectSignal>,
    /// Whether the servers evict keys, at the last check.
    eviction: ArcSwap<EvictionFound>,
    /// At the first connection the server evicts keys, so the gateway must not start.
    is_refused: AtomicBool,
    metrics: Arc<Metrics>,
}

/// Why the store could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("the store at {endpoint} cannot be used: {reason}")]
pub struct SharedOpenError {
    endpoint: String,
    reason: Arc<str>,
}

impl SharedOpenError {
    fn new(settings: &config::SharedStoreConfig, reason: Arc<str>) -> Self {
        Self {
            endpoint: settings.to_string(),
            reason,
        }
    }
}

/// A working connection, and the id of the store behind it.
#[derive(Debug)]
struct StoreConnection {
    commands: CommandConnection,
    id: String,
}

#[derive(Clone)]
struct CommandConnection(MultiplexedConnection);

impl std::fmt::Debug for CommandConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CommandConnection")
    }
}

#[derive(Debug)]
struct StoreDown {
    reason: Arc<str>,
}

/// The arguments of a script call; those that all scripts have in common are added by `run_on`.
#[derive(Debug, Default)]
struct ScriptCall {
    keys: Vec<Vec<u8>>,
    args: Vec<Vec<u8>>,
}

impl ScriptCall {
    fn key(mut self, key: impl Into<Vec<u8>>) -> Self {
        self.keys.push(key.into());
        self
    }

    fn arg(mut self, arg: impl Into<Vec<u8>>) -> Self {
        self.args.push(arg.into());
        self
    }

    fn number(self, number: impl std::fmt::Display) -> Self {
        self.arg(number.to_string())
    }
}

impl SharedStore {
    /// Applies every change to `replica` from here on.
    pub fn add_replica(&self, replica: Weak<dyn Replica>) {
        self.replicas.lock().push(replica);
    }

    /// Whether there is a connection and the replicas are up to date.
    pub fn is_up(&self) -> bool {
        self.up.load().is_some()
    }

    /// Why the store cannot be used; None: it can.
    pub fn trouble(&self) -> Option<Arc<str>> {
        let is_down = self.up.load().is_none();
        is_down.then(|| Arc::clone(&self.down.load().reason))
    }

    /// Whether the replicas' state is still valid: they were up to date less than `stale_for` ago.
    pub fn is_trusted(&self) -> bool {
        let contact = self.contact.load(Ordering::Acquire);
        contact != 0 && self.elapsed() <= contact.saturating_add(self.stale_millis())
    }

    /// How long ago the replicas were last known to be up to date.
    pub fn silent_for(&self) -> Duration {
        let contact = self.contact.load(Ordering::Acquire);
        Duration::from_millis(self.elapsed().saturating_sub(contact))
    }

    pub fn settings(&self) -> &config::SharedStoreConfig {
        &self.settings
    }

    /// Number of the last change applied to the replicas: the epoch of a login that begins now.
    pub fn applied(&self) -> u64 {
        self.applied.load(Ordering::Acquire)
    }

    /// Number of gateways that share the store, with this one.
    pub fn gates(&self) -> u32 {
        self.gates.load(Ordering::Relaxed).max(1)
    }

    fn stale_millis(&self) -> u64 {
        u64::try_from(self.settings.stale_for.as_millis()).unwrap_or(u64::MAX)
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The replicas are up to date now.
    fn set_current(&self) {
        self.contact.store(self.elapsed().max(1), Ordering::Release);
    }

    /// The replicas have applied this change before it arrives on the stream.
    fn remember_own(&self, seq: u64) {
        let mut own = self.own.lock();
        if seq > self.applied() {
            own.insert(seq);
        }
    }

    fn take_own(&self, seq: u64) -> bool {
        let mut own = self.own.lock();
        own.remove(&seq)
    }

    fn replicas(&self) -> Vec<Arc<dyn Replica>> {
        let mut replicas = self.replicas.lock();
        replicas.retain(|replica| replica.strong_count() > 0);
        replicas.iter().filter_map(Weak::upgrade).collect()
    }

    /// Runs a script on the store, if it is still the one this gateway knows.
    async fn run(
        &self,
        script: &Script,
        call: ScriptCall,
    ) -> Result<ScriptReply, StoreUnavailable> {
        let Some(up) = self.up.load_full() else {
            self.metrics.store_failures.add(StoreFailure::Down);
            return Err(StoreUnavailable::Failed(Arc::clone(
                &self.down.load().reason,
            )));
        };
        let reply = self.run_on(&up.commands, &up.id, script, call).await;
        if matches!(&reply, Ok(reply) if reply.word() == "foreign") {
            // The server was emptied or replaced while the connection stood.
            self.metrics.store_failures.add(StoreFailure::Foreign);
            let reason: Arc<str> = "the store has lost its data".into();
            self.reconnect.request(&reason);
            return Err(StoreUnavailable::Failed(reason));
        }
        reply
    }

    async fn run_on(
        &self,
        commands: &CommandConnection,
        id: &str,
        script: &Script,
        call: ScriptCall,
    ) -> Result<ScriptReply, StoreUnavailable> {
        let mut invocation = script.prepare_invoke();
        let keys = &self.keys;
        invocation
            .key(&keys.meta)
            .key(&keys.changes)
            .key(&keys.ends);
        let mark = format!("{}{:016x}", self.writer, rand::random::<u64>());
        invocation.arg(id).arg(mark);
        for key in call.keys {
            invocation.key(key);
        }
        for arg in call.args {
            invocation.arg(arg);
        }
        let mut connection = commands.0.clone();
        let values = invocation.invoke_async(&mut connection).await;
        let values = values.map_err(|error| self.record_failure(&error))?;
        Ok(ScriptReply::new(values, &self.reconnect))
    }

    /// Counts an error of the server, and asks for a new connection where that may help.
    fn record_failure(&self, error: &redis::RedisError) -> StoreUnavailable {
        let kind = match error.code() {
            _ if error.is_timeout() => StoreFailure::Timeout,
            _ if error.is_io_error() || error.is_connection_dropped() => StoreFailure::Broken,
            Some("OOM") => StoreFailure::Full,
            _ => StoreFailure::Refused,
        };
        self.metrics.store_failures.add(kind);
        let reason = client::server_error::describe(error);
        if client::server_error::needs_reconnect(error) {
            self.reconnect.request(&reason);
        }
        StoreUnavailable::Failed(reason)
    }
}
