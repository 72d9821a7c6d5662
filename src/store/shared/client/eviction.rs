//! Whether the server evicts keys when its memory is full (`maxmemory-policy` of `volatile-*` or
//! `allkeys-*`). A revocation is a key: if the server evicts it, the revoked token is live again.
//! So a gateway does not start with such a server unless the operator accepts it, and checks again
//! at each connection and every few seconds.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisError, Value};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{error, info, warn};

use super::endpoint;
use super::resolver::RedisResolver;
use crate::config::{self, MasterDiscovery, ServerAddress};
use crate::lifecycle::ShutdownSignal;
use crate::store::shared::SharedStore;

/// Interval of the checks.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);
const REMEDY: &str = "set maxmemory-policy to noeviction there, or [store] allow_eviction = \
                           true to accept that revoked tokens may be live again";

/// A server that evicts keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvictingServer {
    pub server: String,
    /// Its `maxmemory-policy`, such as `volatile-ttl`.
    pub policy: String,
}

/// The problem, and what to do about it.
impl fmt::Display for EvictingServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { server, policy } = self;
        write!(
            f,
            "{server} evicts keys when its memory is full (maxmemory-policy {policy}): a token \
             that was revoked may be live again; {REMEDY}"
        )
    }
}

/// The result of the last check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum EvictionFound {
    #[default]
    NotAsked,
    /// No server evicts.
    Keeps,
    Evicts(EvictingServer),
    /// The gateway's user has no right to read this server's policy.
    Hidden(String),
}

impl EvictionFound {
    /// The value of the metric: 1 evicts, 0 does not, -1 not known.
    fn number(&self) -> i64 {
        match self {
            Self::Evicts(_) => 1,
            Self::Keeps => 0,
            Self::NotAsked | Self::Hidden(_) => -1,
        }
    }

    fn is_worse_than(&self, other: &Self) -> bool {
        let rank = |found: &Self| match found {
            Self::NotAsked => 0,
            Self::Keeps => 1,
            Self::Hidden(_) => 2,
            Self::Evicts(_) => 3,
        };
        rank(self) > rank(other)
    }
}

/// The timeouts of a connection and its replies.
pub(in crate::store::shared) fn timing(
    settings: &config::SharedStoreConfig,
    resolver: &RedisResolver,
) -> AsyncConnectionConfig {
    let limit = settings.timeout;
    AsyncConnectionConfig::new()
        .set_dns_resolver(resolver.clone())
        .set_connection_timeout(Some(limit.max(Duration::from_secs(1))))
        .set_response_timeout(Some(limit))
}

/// The worst result of all servers. A master that cannot be reached is left out.
pub(in crate::store::shared) async fn ask_all(
    settings: &config::SharedStoreConfig,
    connection: &mut MultiplexedConnection,
    timing: &AsyncConnectionConfig,
) -> Result<EvictionFound, RedisError> {
    let masters = match settings.finding {
        MasterDiscovery::Cluster => masters(connection).await,
        MasterDiscovery::Server | MasterDiscovery::Sentinel { .. } => BTreeSet::new(),
    };
    let mut worst = EvictionFound::NotAsked;
    for master in masters {
        let Ok(mut opened) = endpoint::open_data(settings, &master, timing).await else {
            continue;
        };
        match ask(&mut opened, &master.to_string()).await {
            Ok(found) if found.is_worse_than(&worst) => worst = found,
            _ => {}
        }
    }
    if worst == EvictionFound::NotAsked {
        return ask(connection, &settings.to_string()).await;
    }
    Ok(worst)
}

/// INFO shows the policy also where CONFIG is forbidden, as on managed servers.
async fn ask(
    connection: &mut MultiplexedConnection,
    server: &str,
) -> Result<EvictionFound, RedisError> {
    let info: Result<String, RedisError> = redis::cmd("INFO")
        .arg("memory")
        .query_async(connection)
        .await;
    let policy = match info {
        Ok(info) => policy_in(&info).map(str::to_owned),
        Err(error) if is_connection_error(&error) => return Err(error),
        Err(_) => None,
    };
    let policy = match policy {
        Some(policy) => Some(policy),
        None => ask_config(connection).await?,
    };
    Ok(match policy.as_deref() {
        None => EvictionFound::Hidden(server.to_owned()),
        Some("noeviction") => EvictionFound::Keeps,
        Some(policy) => EvictionFound::Evicts(EvictingServer {
            server: server.to_owned(),
            policy: policy.to_owned(),
        }),
    })
}

async fn ask_config(connection: &mut MultiplexedConnection) -> Result<Option<String>, RedisError> {
    let reply: Result<Vec<String>, RedisError> = redis::cmd("CONFIG")
        .arg("GET")
        .arg("maxmemory-policy")
        .query_async(connection)
        .await;
    match reply {
        Ok(values) => Ok(values.into_iter().nth(1)),
        Err(error) if is_connection_error(&error) => Err(error),
        Err(_) => Ok(None),
    }
}

fn is_connection_error(error: &RedisError) -> bool {
    error.is_io_error() || error.is_timeout() || error.is_connection_dropped()
}

fn policy_in(info: &str) -> Option<&str> {
    let policy = info
        .lines()
        .find_map(|line| line.strip_prefix("maxmemory_policy:"))?
        .trim();
    (!policy.is_empty()).then_some(policy)
}

/// The masters of a cluster, as far as the gateway's user may see them: the gateways' slot can
/// move to any of them.
async fn masters(connection: &mut MultiplexedConnection) -> BTreeSet<ServerAddress> {
    let slots: Result<Vec<Vec<Value>>, RedisError> = redis::cmd("CLUSTER")
        .arg("SLOTS")
        .query_async(connection)
        .await;
    // Each range of slots has: first slot, last slot, the master, its replicas.
    let ranges = slots.unwrap_or_default().into_iter();
    ranges
        .filter_map(|range| {
            let Value::Array(master) = range.into_iter().nth(2)? else {
                return None;
            };
            let mut master = master.into_iter();
            let host: String = redis::from_redis_value(master.next()?).ok()?;
            let port = redis::from_redis_value(master.next()?).ok()?;
            (!host.is_empty()).then_some(ServerAddress { host, port })
        })
        .collect()
}

impl SharedStore {
    /// The server that evicts keys, unless the operator accepts it; None: no server does.
    pub fn eviction(&self) -> Option<EvictingServer> {
        match &**self.eviction.load() {
            EvictionFound::Evicts(server) if !self.settings.allow_eviction => Some(server.clone()),
            _ => None,
        }
    }

    /// Checks a new connection; at the first one, all servers. Returns the server that keeps the
    /// gateway from starting.
    pub(in crate::store::shared) async fn admit_policy(
        &self,
        connection: &mut MultiplexedConnection,
        is_first: bool,
    ) -> Result<Option<EvictingServer>, RedisError> {
        let found = match is_first {
            true => {
                let timing = timing(&self.settings, &self.resolver);
                ask_all(&self.settings, connection, &timing).await?
            }
            false => ask(connection, &self.settings.to_string()).await?,
        };
        self.note_policy(found);
        Ok(self.eviction().filter(|_| is_first))
    }

    /// Checks the policy periodically until shutdown.
    pub(in crate::store::shared) async fn watch_policy(self: Arc<Self>, stop: ShutdownSignal) {
        let timing = timing(&self.settings, &self.resolver);
        let mut tick = interval(CHECK_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.tick().await; // the first tick completes at once
        loop {
            tokio::select! {
                () = stop.aborting() => return,
                _ = tick.tick() => {}
            }
            let Some(up) = self.up.load_full() else {
                continue;
            };
            let mut connection = up.commands.0.clone();
            tokio::select! {
                () = stop.aborting() => return,
                // `link` reports a server that does not respond.
                found = ask_all(&self.settings, &mut connection, &timing) => {
                    if let Ok(found) = found {
                        self.note_policy(found);
                    }
                }
            }
        }
    }

    /// Logs each change once.
    fn note_policy(&self, found: EvictionFound) {
        self.metrics.store_eviction_enabled.set(found.number());
        let found = Arc::new(found);
        let before = self.eviction.swap(Arc::clone(&found));
        if before == found {
            return;
        }
        match &*found {
            EvictionFound::Evicts(server) if self.settings.allow_eviction => {
                warn!(
                    %server.server,
                    %server.policy,
                    "the store evicts keys; allow_eviction accepts that revoked tokens may be live again"
                );
            }
            EvictionFound::Evicts(server) => {
                error!(reason = %server, "the store may lose revocations");
            }
            EvictionFound::Hidden(server) => {
                warn!(
                    %server,
                    "cannot read the store's maxmemory-policy, which must be noeviction; allow the \
                     gateway's user to read it (ACL SETUSER ... +info)"
                );
            }
            EvictionFound::Keeps if matches!(*before, EvictionFound::Evicts(_)) => {
                info!("the store no longer evicts keys");
            }
            EvictionFound::Keeps | EvictionFound::NotAsked => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_is_found_among_other_lines() {
        let info = "# Memory\r\nmaxmemory:0\r\nmaxmemory_policy:volatile-ttl\r\nallocator:x\r\n";
        assert_eq!(policy_in(info), Some("volatile-ttl"));
        assert_eq!(policy_in("# Memory\r\nmaxmemory:0\r\n"), None);
        assert_eq!(policy_in("maxmemory_policy:\r\n"), None);
    }

    #[test]
    fn the_worst_policy_of_a_server_counts() {
        let evicts = EvictionFound::Evicts(EvictingServer {
            server: "one".to_owned(),
            policy: "allkeys-lru".to_owned(),
        });
        let hidden = EvictionFound::Hidden("two".to_owned());
        assert!(evicts.is_worse_than(&hidden) && hidden.is_worse_than(&EvictionFound::Keeps));
        assert_eq!((evicts.number(), hidden.number()), (1, -1));
    }
}
