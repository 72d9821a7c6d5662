//! What outlives a restart, and where; a shared store: where its server is, and how far
//! a gate believes its own copy.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::secret::SecretSource;

/// What outlives a restart.
#[derive(Clone, Debug, PartialEq)]
pub struct StoreConfig {
    pub place: StorePlace,
    /// Seals the upstream's token at rest; None: it is not kept.
    pub key: Option<SecretSource>,
    /// The key before it: still opens what it sealed.
    pub old_key: Option<SecretSource>,
    /// How long a change waits for a file's disk.
    pub timeout: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StorePlace {
    /// Nothing outlives a restart.
    Memory,
    File(PathBuf),
    /// A server that several gates share.
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
    /// Of the Sentinels, where they want one.
    pub sentinel_password: Option<SecretSource>,
    pub database: u32,
    /// What this gate's keys begin with; gates with the same one are one gate.
    pub prefix: String,
    /// How long grants that a gate knows stay good while the store is away.
    pub stale_for: Duration,
    /// How long a gate remembers that the store does not know a token.
    pub negative_ttl: Duration,
    /// A server that evicts keys is accepted, although ended tokens may then come back.
    pub allow_eviction: bool,
    /// Longest wait for one answer.
    pub timeout: Duration,
}

impl SharedStoreConfig {
    /// Where nothing but its servers is said of it: what the rest then is.
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

/// How the server that takes changes is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MasterDiscovery {
    /// It is the one named.
    Server,
    /// The Sentinels named know it by this name.
    Sentinel { master: String },
    /// The cluster nodes named know which of them has our keys.
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
