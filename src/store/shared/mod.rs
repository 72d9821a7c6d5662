//! The store that several gates share: a Redis or Valkey server. Every change is one
//! script (`script`), which also numbers it and tells all gates; each gate follows the
//! numbers on a connection of its own (`link`) and keeps its copies in step.
//!
//! The surprise: the copies may know more than the server. One that lost its data, or
//! fell behind in a failover, is told again what the gates know (`remake`), always by
//! the greatest number, so that what was revoked stays revoked.

mod change;
mod client;
mod entry;
mod lease;
mod link;
mod permits;
mod snapshot;
mod tokens;
mod transfer;
mod trial;
mod users;

pub use change::{Replica, RevokedUpTo, SharedChange};
pub use client::eviction::{EvictingServer, EvictionFound};
pub use entry::{EntryRevision, SharedEntry};
pub use lease::{LeaseAt, LoginLock, LoginRateLimit, LoginTurn, PublishOutcome};
pub use link::SharedOpenError;
pub use permits::{GrantedPermits, PermitRate};
pub use snapshot::StateSnapshotItem;
pub use tokens::{InsertOutcome, SharedGrant, TokenInsert, TokenKind};
pub use trial::{check_settings, reach};
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

/// The shared store as one gate uses it.
#[derive(Debug)]
pub struct SharedStore {
    settings: config::SharedStoreConfig,
    names: RedisKeys,
    resolver: RedisResolver,
    /// Tells this gate's changes from others'.
    writer: String,
    up: ArcSwapOption<StoreConnection>,
    /// Why there is no connection.
    down: ArcSwap<StoreDown>,
    start: Instant,
    /// Milliseconds after `start` at which the copies were last known to be in step; 0: never.
    contact: AtomicU64,
    /// Number of the last change that the copies have taken in.
    applied: AtomicU64,
    /// Changes made here that the copies have taken in already.
    own: Mutex<HashSet<u64>>,
    replicas: Mutex<Vec<Weak<dyn Replica>>>,
    /// Gates that share the store, this one included, when it was last there.
    gates: AtomicU32,
    relink: Arc<ReconnectSignal>,
    /// What the servers said of evicting keys.
    eviction: ArcSwap<EvictionFound>,
    /// The first connection found what this gate must not start over.
    is_refused: AtomicBool,
    metrics: Arc<Metrics>,
}

/// A connection that is good, and which store it leads to.
#[derive(Debug)]
struct StoreConnection {
    commands: CommandConnection,
    id: String,
}

#[derive(Clone)]
struct CommandConnection(MultiplexedConnection);

impl std::fmt::Debug for CommandConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Commands")
    }
}

#[derive(Debug)]
struct StoreDown {
    why: Arc<str>,
}

/// One call of a script: its keys after the first three, its arguments after the first two.
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

    /// Whether there is a connection, and the copies are in step.
    pub fn is_up(&self) -> bool {
        self.up.load().is_some()
    }

    /// What keeps the store from being used; None: nothing.
    pub fn trouble(&self) -> Option<Arc<str>> {
        let is_down = self.up.load().is_none();
        is_down.then(|| Arc::clone(&self.down.load().why))
    }

    /// Whether what a copy says may still be believed: it was in step not longer ago
    /// than `stale_for`.
    pub fn is_believed(&self) -> bool {
        let contact = self.contact.load(Ordering::Acquire);
        contact != 0 && self.elapsed() <= contact.saturating_add(self.stale_millis())
    }

    /// How long ago the copies were last known to be in step.
    pub fn silent_for(&self) -> Duration {
        let contact = self.contact.load(Ordering::Acquire);
        Duration::from_millis(self.elapsed().saturating_sub(contact))
    }

    pub fn settings(&self) -> &config::SharedStoreConfig {
        &self.settings
    }

    /// Number of the last change that the copies have taken in: the epoch of a login
    /// that begins now.
    pub fn applied(&self) -> u64 {
        self.applied.load(Ordering::Acquire)
    }

    /// Gates that share the store, this one included.
    pub fn gates(&self) -> u32 {
        self.gates.load(Ordering::Relaxed).max(1)
    }

    fn stale_millis(&self) -> u64 {
        u64::try_from(self.settings.stale_for.as_millis()).unwrap_or(u64::MAX)
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The copies are in step now.
    fn touch(&self) {
        self.contact.store(self.elapsed().max(1), Ordering::Release);
    }

    /// The copies have taken in this change before the server tells them of it.
    fn is_own(&self, seq: u64) {
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

    /// Runs a script on the store that this gate knows.
    async fn run(
        &self,
        script: &Script,
        call: ScriptCall,
    ) -> Result<ScriptReply, StoreUnavailable> {
        let Some(up) = self.up.load_full() else {
            self.metrics.store_failures.add(StoreFailure::Down);
            return Err(StoreUnavailable::Failed(Arc::clone(&self.down.load().why)));
        };
        let reply = self.run_on(&up.commands, &up.id, script, call).await;
        if matches!(&reply, Ok(reply) if reply.word() == "foreign") {
            // Emptied, or another one, while the connection stood.
            self.metrics.store_failures.add(StoreFailure::Foreign);
            let why: Arc<str> = "the store has lost its data".into();
            self.relink.ask(&why);
            return Err(StoreUnavailable::Failed(why));
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
        let names = &self.names;
        invocation
            .key(&names.meta)
            .key(&names.changes)
            .key(&names.ends);
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
        let values = values.map_err(|error| self.failed(&error))?;
        Ok(ScriptReply::new(values, &self.relink))
    }

    /// Counts an error of the server, and looks for a better one where that may help.
    fn failed(&self, error: &redis::RedisError) -> StoreUnavailable {
        let kind = match error.code() {
            _ if error.is_timeout() => StoreFailure::Timeout,
            _ if error.is_io_error() || error.is_connection_dropped() => StoreFailure::Broken,
            Some("OOM") => StoreFailure::Full,
            _ => StoreFailure::Refused,
        };
        self.metrics.store_failures.add(kind);
        let why = client::server_error::told(error);
        if client::server_error::is_elsewhere(error) {
            self.relink.ask(&why);
        }
        StoreUnavailable::Failed(why)
    }
}
