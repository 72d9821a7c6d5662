//! `[store]`: where state is kept; for a shared store its servers, and how long a gateway trusts
//! its own replica.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::secret::SecretSource;

/// Where state is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct StoreConfig {
    pub place: StorePlace,
    /// Seals the upstream's token at rest; None: it is not stored.
    pub key: Option<SecretSource>,
    /// The previous key: it can still open what it has sealed.
    pub old_key: Option<SecretSource>,
    /// How long a change waits for the disk of a file.
    pub timeout: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StorePlace {
    /// Nothing outlives a restart.
    Memory,
    File(PathBuf),
    /// A server that several gateways share.
    Shared(Box<SharedStoreConfig>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedStoreConfig {
    /// The server itself, or those to ask for it. Never empty.
    pub servers: Vec<ServerAddress>,
    pub finding: MasterDiscovery,
    /// None: `redis://`, in the clear.
    pub tls: Option<StoreTls>,
    pub username: Option<String>,
    pub password: Option<SecretSource>,
    /// For the Sentinels, where they require one.
    pub sentinel_password: Option<SecretSource>,
    pub database: u32,
    /// Prefix of the gateway's keys; gateways with the same prefix share all state.
    pub prefix: String,
    /// How long known grants stay valid while the store is unreachable.
    pub stale_for: Duration,
    /// How long the answer "the store does not know this token" is cached.
    pub negative_ttl: Duration,
    /// A server that evicts keys is accepted, although ended tokens may then come back.
    pub allow_eviction: bool,
    /// Longest wait for one reply.
    pub timeout: Duration,
}

impl SharedStoreConfig {
    /// The defaults for these servers.
    pub fn at(servers: Vec<ServerAddress>) -> Self {
        Self {
            servers,
            finding: MasterDiscovery::Server,
            tls: None,
            username: None,
            password: None,
            sentinel_password: None,
            database: 0,
            prefix: "tollgate".to_owned(),
            stale_for: Duration::from_secs(300),
            negative_ttl: Duration::from_secs(10),
            allow_eviction: false,
            timeout: Duration::from_secs(1),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServerAddress {
    pub host: String,
    pub port: u16,
}

/// How the server that accepts writes is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MasterDiscovery {
    /// The configured server.
    Server,
    /// The configured Sentinels know it by this name.
    Sentinel { master: String },
    /// The configured cluster nodes know which of them has the gateway's keys.
    Cluster,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreTls {
    /// PEM; None: the authorities that the host trusts.
    pub authorities: Option<PathBuf>,
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Display for SharedStoreConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() {
            "rediss"
        } else {
            "redis"
        };
        let servers: Vec<_> = self.servers.iter().map(ToString::to_string).collect();
        write!(f, "{scheme}://{}", servers.join(","))?;
        match &self.finding {
            MasterDiscovery::Server => write!(f, "/{}", self.database),
            MasterDiscovery::Sentinel { master } => {
                write!(f, "/{} (master {master})", self.database)
            }
            MasterDiscovery::Cluster => f.write_str(" (cluster)"),
        }
    }
}
