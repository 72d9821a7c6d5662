//! Whether the server may evict keys when its memory is full. What a logout ended leaves a
//! mark; a server that drops the mark (`maxmemory-policy` of `volatile-*` or `allkeys-*`)
//! could let the token live again. So a gate does not start over such a server unless the
//! operator accepts it, and looks again at each connection and every few seconds.

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

/// Between two looks at the policy.
const LOOK_EVERY: Duration = Duration::from_secs(10);
const ACCEPTED_BY: &str = "set maxmemory-policy to noeviction there, or [store] allow_eviction = \
                           true to accept that ended tokens may come back";

/// A server that evicts keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvictingServer {
    pub server: String,
    /// Its `maxmemory-policy`, such as `volatile-ttl`.
    pub policy: String,
}

/// The reason, and what to do about it.
impl fmt::Display for EvictingServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { server, policy } = self;
        write!(
            f,
            "{server} evicts keys when its memory is full (maxmemory-policy {policy}): a token \
             that was ended could be good again; {ACCEPTED_BY}"
        )
    }
}

/// What the servers said when they were asked last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum EvictionFound {
    #[default]
    NotAsked,
    /// None of them evicts.
    Keeps,
    Evicts(EvictingServer),
    /// This server does not tell its policy to the gate's user.
    Hidden(String),
}

impl EvictionFound {
    /// For the metric: 1 evicts, 0 keeps, -1 not known.
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

/// How long a connection and its answers may take.
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

/// The worst of what all servers say. A master that cannot be reached says nothing.
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

/// INFO tells it also where CONFIG is forbidden, as managed servers have it.
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
        Err(error) if is_no_answer(&error) => return Err(error),
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
    let told: Result<Vec<String>, RedisError> = redis::cmd("CONFIG")
        .arg("GET")
        .arg("maxmemory-policy")
        .query_async(connection)
        .await;
    match told {
        Ok(told) => Ok(told.into_iter().nth(1)),
        Err(error) if is_no_answer(&error) => Err(error),
        Err(_) => Ok(None),
    }
}

fn is_no_answer(error: &RedisError) -> bool {
    error.is_io_error() || error.is_timeout() || error.is_connection_dropped()
}

fn policy_in(info: &str) -> Option<&str> {
    let policy = info
        .lines()
        .find_map(|line| line.strip_prefix("maxmemory_policy:"))?
        .trim();
    (!policy.is_empty()).then_some(policy)
}

/// The masters of a cluster, as far as the gate's user may know: any of them can come to
/// have the gate's slot.
async fn masters(connection: &mut MultiplexedConnection) -> BTreeSet<ServerAddress> {
    let slots: Result<Vec<Vec<Value>>, RedisError> = redis::cmd("CLUSTER")
        .arg("SLOTS")
        .query_async(connection)
        .await;
    // Each range of slots: first, last, its master, that one's replicas.
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
    /// What is wrong with the servers' policy and not accepted; None: nothing.
    pub fn eviction(&self) -> Option<EvictingServer> {
        match &**self.eviction.load() {
            EvictionFound::Evicts(server) if !self.settings.allow_eviction => Some(server.clone()),
            _ => None,
        }
    }

    /// Asks over a connection that is about to be used; at the first one, all servers. Gives
    /// the server for which this gate must not start.
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

    /// Looks at the policy now and then until the end.
    pub(in crate::store::shared) async fn watch_policy(self: Arc<Self>, stop: ShutdownSignal) {
        let timing = timing(&self.settings, &self.resolver);
        let mut tick = interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.tick().await; // the first one comes at once
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
                // One that does not answer is the link's to tell of.
                found = ask_all(&self.settings, &mut connection, &timing) => {
                    if let Ok(found) = found {
                        self.note_policy(found);
                    }
                }
            }
        }
    }

    /// Each change is one line.
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
                    "the store evicts keys; allow_eviction accepts that ended tokens may come back"
                );
            }
            EvictionFound::Evicts(server) => {
                error!(reason = %server, "the store may lose what was ended");
            }
            EvictionFound::Hidden(server) => {
                warn!(
                    %server,
                    "the store does not tell its maxmemory-policy, which must be noeviction; allow \
                     the gate's user to ask (ACL SETUSER ... +info)"
                );
            }
            EvictionFound::Keeps if matches!(*before, EvictionFound::Evicts(_)) => {
                info!("the store does not evict keys any more");
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
    fn the_worst_that_a_server_says_counts() {
        let evicts = EvictionFound::Evicts(EvictingServer {
            server: "one".to_owned(),
            policy: "allkeys-lru".to_owned(),
        });
        let hidden = EvictionFound::Hidden("two".to_owned());
        assert!(evicts.is_worse_than(&hidden) && hidden.is_worse_than(&EvictionFound::Keeps));
        assert_eq!((evicts.number(), hidden.number()), (1, -1));
    }
}
