//! Addresses by name. Asked in Rust and not through the C library, whose look-up loads
//! modules at run time: a static binary must not. What the host's files say holds as
//! soon as they change: `/etc/hosts` first, then the servers of `/etc/resolv.conf`.

use std::fmt;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hickory_resolver::config::{ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::system_conf::parse_resolv_conf;
use hickory_resolver::{Hosts, TokioResolver};
use tracing::warn;

/// A name that is not there yet is asked for again after this, whatever the zone says:
/// an upstream that starts late must be found.
const LONGEST_NO: Duration = Duration::from_secs(1);

/// Why a name leads nowhere.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    #[error("not a host name")]
    NotAName(#[source] hickory_resolver::proto::ProtoError),
    #[error("no answer from the servers in {}", file.display())]
    Unanswered {
        file: PathBuf,
        #[source]
        source: NetError,
    },
}

/// Finds addresses; shared by all who connect.
pub struct Names {
    servers: PathBuf,
    hosts: PathBuf,
    known: ArcSwap<Known>,
    #[cfg(test)]
    pub(crate) port: u16,
}

/// The files as they were last read.
struct Known {
    stamps: [Option<Stamp>; 2],
    hosts: Hosts,
    resolver: Option<TokioResolver>,
}

/// What changes when a file does, be it written, replaced or mounted anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    changed: (i64, i64),
}

impl Names {
    pub fn of_this_host() -> Self {
        Self::from_files("/etc/resolv.conf".into(), "/etc/hosts".into())
    }

    pub fn from_files(servers: PathBuf, hosts: PathBuf) -> Self {
        let unread = Known {
            stamps: [None; 2],
            hosts: Hosts::default(),
            resolver: None,
        };
        Self {
            servers,
            hosts,
            known: ArcSwap::from_pointee(unread),
            #[cfg(test)]
            port: 53,
        }
    }

    /// All addresses of `host`, which is a name or an address itself.
    pub async fn find(&self, host: &str) -> Result<Vec<IpAddr>, NameError> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(vec![ip]);
        }
        let name = Name::from_ascii(host).map_err(NameError::NotAName)?;
        let known = self.known();
        let noted = in_hosts(&known.hosts, &name);
        if !noted.is_empty() {
            return Ok(noted);
        }
        let unanswered = |source| NameError::Unanswered {
            file: self.servers.clone(),
            source,
        };
        let Some(resolver) = &known.resolver else {
            return Err(unanswered(NetError::from(
                "no server could be read from it",
            )));
        };
        let found = resolver.lookup_ip(name).await.map_err(unanswered)?;
        Ok(found.iter().collect())
    }

    /// What the files say now. Looked at for each new connection only, and two `stat`
    /// calls on local files take no time.
    fn known(&self) -> Arc<Known> {
        let stamps = [&self.servers, &self.hosts].map(stamp);
        let known = self.known.load_full();
        if known.stamps == stamps && known.resolver.is_some() {
            return known;
        }
        let fresh = Arc::new(Known {
            stamps,
            hosts: self.read_hosts(),
            resolver: self.resolver(),
        });
        self.known.store(Arc::clone(&fresh));
        fresh
    }

    fn read_hosts(&self) -> Hosts {
        let mut hosts = Hosts::default();
        // Without the file there is nothing to know: names are asked for then.
        if let Ok(text) = fs::read(&self.hosts)
            && let Err(error) = hosts.read_hosts_conf(text.as_slice())
        {
            warn!(file = %self.hosts.display(), %error, "names in this file are not known");
        }
        hosts
    }

    fn resolver(&self) -> Option<TokioResolver> {
        // A host without servers still knows its own names, `localhost` among them.
        let nobody = || {
            (
                ResolverConfig::from_parts(None, vec![], vec![]),
                ResolverOpts::default(),
            )
        };
        let parsed = fs::read(&self.servers).map(parse_resolv_conf);
        let (config, mut options) = match parsed {
            Ok(Ok(parsed)) => parsed,
            Ok(Err(_)) | Err(_) => nobody(),
        };
        #[cfg(test)]
        let config = self.at_test_port(config);
        options.use_hosts_file = ResolveHosts::Never; // looked at already, once for both families
        options.negative_max_ttl = Some(LONGEST_NO);
        let provider = TokioRuntimeProvider::default();
        let builder = TokioResolver::builder_with_config(config, provider).with_options(options);
        builder
            .build()
            .inspect_err(|error| warn!(%error, "no resolver for names"))
            .ok()
    }

    #[cfg(test)]
    fn at_test_port(&self, mut config: ResolverConfig) -> ResolverConfig {
        for server in &mut config.name_servers {
            for connection in &mut server.connections {
                connection.port = self.port;
            }
        }
        config
    }
}

fn in_hosts(hosts: &Hosts, name: &Name) -> Vec<IpAddr> {
    [RecordType::A, RecordType::AAAA]
        .into_iter()
        .filter_map(|kind| hosts.lookup_static_host(&Query::query(name.clone(), kind)))
        .flat_map(|found| {
            let addresses = found.answers().iter().filter_map(|one| one.data.ip_addr());
            addresses.collect::<Vec<_>>()
        })
        .collect()
}

fn stamp(path: &PathBuf) -> Option<Stamp> {
    let facts = fs::metadata(path).ok()?;
    Some(Stamp {
        device: facts.dev(),
        inode: facts.ino(),
        length: facts.len(),
        changed: (facts.ctime(), facts.ctime_nsec()),
    })
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Names")
            .field("servers", &self.servers)
            .field("hosts", &self.hosts)
            .finish_non_exhaustive()
    }
}
