//! The keys of `[store]` that are about a store shared by several gates.

use std::path::PathBuf;
use std::time::Duration;

use super::upstream_address_keys::is_loopback;
use crate::config::file::config_table::{ConfigTable, ConfigValue};
use crate::config::file::named_files::{public_file, secret};
use crate::config::file::value_readers::{flag, name, number, some, span, text};
use crate::config::{MasterDiscovery, ServerAddress, SharedStoreConfig, StoreTls};

const PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;
/// A user's removal is remembered for an hour; no replica may be trusted for longer.
const LONGEST_STALE: Duration = Duration::from_secs(3600);

/// One address as written.
#[derive(Clone, Debug)]
struct WrittenAddress {
    tls: bool,
    host: String,
    port: Option<u16>,
}

/// `ca` and `allow_plaintext` as written.
struct WrittenTransport {
    ca: Option<PathBuf>,
    allow_plaintext: bool,
}

/// None: there is no `url`, and the store is a file.
pub(super) fn shared_store(
    table: &ConfigTable<'_>,
    timeout: Option<Duration>,
) -> Option<SharedStoreConfig> {
    let urls = table.read("url", some(url));
    let transport = WrittenTransport {
        ca: table.read("ca", public_file),
        allow_plaintext: table.or("allow_plaintext", flag, false),
    };
    let finding = finding(table);
    let default = SharedStoreConfig::at(Vec::new());
    let store = SharedStoreConfig {
        finding,
        username: table.read("username", text),
        password: table.read("password", secret),
        sentinel_password: table.read("sentinel_password", secret),
        database: table.or("database", number(0..=1_000_000), default.database),
        prefix: table.or("prefix", name, default.prefix),
        stale_for: table.or("stale_for", span, default.stale_for),
        negative_ttl: table.or("negative_ttl", span, default.negative_ttl),
        allow_eviction: table.or("allow_eviction", flag, default.allow_eviction),
        timeout: timeout.unwrap_or(default.timeout),
        ..default
    };
    if !table.has("url") {
        warn_unused_keys(table);
        return None;
    }
    let urls = urls.filter(|urls| !urls.is_empty())?;
    let store = with_servers(table, store, &urls, transport);
    check(table, &store);
    Some(store)
}

fn finding(table: &ConfigTable<'_>) -> MasterDiscovery {
    let master = table.read("sentinel", text);
    let is_cluster = table.or("cluster", flag, false);
    match (master, is_cluster) {
        (Some(_), true) if table.has("url") => {
            let reason = "cannot be combined with sentinel: a cluster fails over without one";
            table.complain("cluster", reason, "keep one of the two");
            MasterDiscovery::Cluster
        }
        (Some(master), _) => MasterDiscovery::Sentinel { master },
        (None, true) => MasterDiscovery::Cluster,
        (None, false) => MasterDiscovery::Server,
    }
}

fn warn_unused_keys(table: &ConfigTable<'_>) {
    const KEYS: [&str; 12] = [
        "ca",
        "allow_plaintext",
        "sentinel",
        "cluster",
        "username",
        "password",
        "sentinel_password",
        "database",
        "prefix",
        "stale_for",
        "negative_ttl",
        "allow_eviction",
    ];
    for key in KEYS {
        if table.has(key) {
            table.warn(key, "has no effect without url", "");
        }
    }
}

/// `store` with the addresses of `url`, and TLS as their schemes demand.
fn with_servers(
    table: &ConfigTable<'_>,
    store: SharedStoreConfig,
    urls: &[WrittenAddress],
    transport: WrittenTransport,
) -> SharedStoreConfig {
    let tls = urls[0].tls;
    if urls.iter().any(|url| url.tls != tls) {
        let reason = "mixes redis:// and rediss://";
        table.complain("url", reason, "use rediss:// for all of them");
    }
    if !tls && !transport.allow_plaintext && urls.iter().any(|url| !is_loopback(&url.host)) {
        let reason = "must be rediss: password hashes and digests would travel in the clear";
        table.complain("url", reason, "or set allow_plaintext = true");
    }
    if !tls && transport.ca.is_some() {
        table.warn("ca", "has no effect with redis://", "use rediss://");
    }
    let port = match store.finding {
        MasterDiscovery::Sentinel { .. } => SENTINEL_PORT,
        MasterDiscovery::Server | MasterDiscovery::Cluster => PORT,
    };
    let servers = urls.iter().map(|url| ServerAddress {
        host: url.host.clone(),
        port: url.port.unwrap_or(port),
    });
    SharedStoreConfig {
        servers: servers.collect(),
        tls: tls.then_some(StoreTls {
            authorities: transport.ca,
        }),
        ..store
    }
}

fn check(table: &ConfigTable<'_>, store: &SharedStoreConfig) {
    if store.finding == MasterDiscovery::Cluster && store.database != 0 {
        table.complain("database", "must be 0: a cluster has no other", "");
    }
    if store.finding == MasterDiscovery::Server && store.servers.len() > 1 {
        let reason = "names several servers without sentinel or cluster";
        table.complain("url", reason, "add sentinel = \"NAME\" or cluster = true");
    }
    let is_sentinel = matches!(store.finding, MasterDiscovery::Sentinel { .. });
    if store.sentinel_password.is_some() && !is_sentinel {
        table.warn("sentinel_password", "has no effect without sentinel", "");
    }
    if store.username.is_some() && store.password.is_none() {
        table.complain(
            "username",
            "has no password",
            "add password = { file = \"...\" }",
        );
    }
    if store.stale_for > LONGEST_STALE {
        let reason = "must be an hour at most: a revoked token may be accepted that long by a gate \
                      that is cut off";
        table.complain("stale_for", reason, "");
    }
}

/// The text is never repeated: it may hold a password.
fn url(value: &ConfigValue<'_>) -> Option<WrittenAddress> {
    let suggestion = "such as \"rediss://redis.internal:6379\"";
    let bad = |reason: &str| {
        value.complain(reason, suggestion);
        None
    };
    let text = text(value)?;
    if text.contains('@') {
        return bad("must not hold a user name or password: they belong in username and password");
    }
    let Ok(uri) = text.parse::<http::Uri>() else {
        return bad("is no address");
    };
    let tls = match uri.scheme_str() {
        Some("rediss") => true,
        Some("redis") => false,
        _ => return bad("must begin with rediss:// or redis://"),
    };
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return bad("must end after host and port: database and the rest have their own keys");
    }
    let Some(authority) = uri.authority().filter(|part| !part.host().is_empty()) else {
        return bad("has no host");
    };
    let has_port = authority.as_str().len() > authority.host().len();
    if has_port && authority.port_u16().unwrap_or(0) == 0 {
        return bad("has an invalid port");
    }
    let host = authority.host();
    Some(WrittenAddress {
        tls,
        host: host.trim_matches(['[', ']']).to_owned(),
        port: authority.port_u16(),
    })
}
