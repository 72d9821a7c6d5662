//! Name resolution: `/etc/hosts` first (`hosts_file`), then the name servers of `/etc/resolv.conf`
//! (`resolv_conf`, `servers`). Changes of the files take effect at once. It does not use the C
//! library, whose resolver loads modules at run time, which a static binary must not. Start at
//! `DnsResolver`.
//!
//! IPv4 and IPv6 addresses are queried separately and reported as they arrive, so that one family
//! can be used while the other is missing. An invalid entry of a file is skipped and logged.

mod hosts_file;
mod lookup;
mod resolv_conf;
mod servers;

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hickory_resolver::net::NetError;
use hickory_resolver::proto::rr::Name;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use hosts_file::HostsFile;
use resolv_conf::{ResolvConf, SkippedEntry};
use servers::NameServers;

pub use lookup::FoundAddresses;

/// How long to wait for IPv6 addresses once the IPv4 addresses have arrived (RFC 8305, section 3).
pub const RESOLUTION_DELAY: Duration = Duration::from_millis(50);
/// How long addresses may be used after the name servers have stopped responding (RFC 8767).
pub const MAX_STALE: Duration = Duration::from_secs(3600);

/// Why a name cannot be resolved.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    #[error("not a host name")]
    NotAName(#[source] hickory_resolver::proto::ProtoError),
    #[error("the name servers in {} know no address of this name", file.display())]
    Unknown { file: PathBuf },
    #[error("there is no name server in {}", file.display())]
    NoServer { file: PathBuf },
    #[error("no answer from the name servers in {}", file.display())]
    Unanswered {
        file: PathBuf,
        #[source]
        source: NetError,
    },
}

/// Resolves host names; shared by all dialers.
pub struct DnsResolver {
    servers: PathBuf,
    hosts: PathBuf,
    known: ArcSwap<ResolverFiles>,
    reading: Mutex<()>,
    /// The last result of `find` for each name, and until when it may be used if the name servers
    /// do not respond.
    earlier: Mutex<HashMap<String, (Vec<IpAddr>, Instant)>>,
    #[cfg(test)]
    pub(crate) port: u16,
}

/// The files as they were last read.
#[derive(Default)]
struct ResolverFiles {
    stamps: [Option<FileStamp>; 2],
    hosts: HostsFile,
    conf: ResolvConf,
    servers: NameServers,
}

/// Identifies a version of a file; it changes when the file is written, replaced or mounted again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileStamp {
    device: u64,
    inode: u64,
    length: u64,
    changed: (i64, i64),
}

impl DnsResolver {
    pub fn of_this_host() -> Self {
        Self::from_files("/etc/resolv.conf".into(), "/etc/hosts".into())
    }

    pub fn from_files(servers: PathBuf, hosts: PathBuf) -> Self {
        Self {
            servers,
            hosts,
            known: ArcSwap::default(),
            reading: Mutex::default(),
            earlier: Mutex::default(),
            #[cfg(test)]
            port: 53,
        }
    }

    /// The file that lists the name servers.
    pub fn servers_file(&self) -> &Path {
        &self.servers
    }

    /// The addresses of `host` if no query is needed: it is an address, localhost, or in
    /// `/etc/hosts`.
    pub fn noted(&self, host: &str) -> Option<Vec<IpAddr>> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Some(vec![ip]);
        }
        if let Some(noted) = self.files().hosts.find(host) {
            return Some(noted.to_vec());
        }
        is_localhost(host).then(|| vec![Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()])
    }

    /// All addresses of `host`, which is a name or an address. The last result is used again if the
    /// name servers do not respond.
    pub async fn find(&self, host: &str) -> Result<Vec<IpAddr>, NameError> {
        if let Some(noted) = self.noted(host) {
            return Ok(noted);
        }
        let found = self.ask(host).await;
        let mut earlier = self.earlier.lock();
        match &found {
            Ok(found) => {
                let until = Instant::now() + MAX_STALE;
                earlier.insert(host.to_owned(), (found.clone(), until));
            }
            Err(NameError::Unanswered { .. }) => {
                if let Some((addresses, until)) = earlier.get(host)
                    && Instant::now() < *until
                {
                    return Ok(addresses.clone());
                }
            }
            Err(_) => _ = earlier.remove(host),
        }
        found
    }

    async fn ask(&self, host: &str) -> Result<Vec<IpAddr>, NameError> {
        let (sender, mut receiver) = watch::channel(FoundAddresses::default());
        let mut looking = std::pin::pin!(self.look_up(host, &sender));
        tokio::select! {
            biased;
            outcome = &mut looking => outcome?,
            at = first_at(&mut receiver) => {
                // The other family may still arrive within the delay.
                let _ = timeout_at(at + RESOLUTION_DELAY, looking).await;
            }
        }
        Ok(sender.borrow().all())
    }

    /// Queries the name servers for the addresses of `host` and publishes them in `found` as they
    /// arrive. Returns when both families are done; Ok if there is at least one address.
    pub async fn look_up(
        &self,
        host: &str,
        found: &watch::Sender<FoundAddresses>,
    ) -> Result<(), NameError> {
        let name = Name::from_str_relaxed(host).map_err(NameError::NotAName)?;
        let known = self.files();
        let file = || self.servers.clone();
        if known.servers.is_empty() {
            return Err(NameError::NoServer { file: file() });
        }
        match lookup::search(&known.conf, &known.servers, &name, found).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(NameError::Unknown { file: file() }),
            Err(source) => Err(NameError::Unanswered {
                file: file(),
                source,
            }),
        }
    }

    /// The current content of the files. It is checked for each new connection, with two `stat`
    /// calls on local files. Not polled as `watched_files` are: a changed file holds for the next
    /// connection, not two seconds later, and a resolver has no task.
    fn files(&self) -> Arc<ResolverFiles> {
        let stamps = || [&self.servers, &self.hosts].map(|path| stamp(path));
        let known = self.known.load_full();
        if known.stamps == stamps() {
            return known;
        }
        // Only one thread reads, so that invalid entries are logged once.
        let _reading = self.reading.lock();
        let known = self.known.load_full();
        let stamps = stamps();
        if known.stamps == stamps {
            return known;
        }
        let hosts = HostsFile::parse(&read(&self.hosts));
        if hosts.skipped != known.hosts.skipped {
            log_skipped(&self.hosts, &hosts.skipped);
        }
        let conf = ResolvConf::parse(&read(&self.servers));
        if conf.skipped != known.conf.skipped {
            log_skipped(&self.servers, &conf.skipped);
        }
        let fresh = Arc::new(ResolverFiles {
            stamps,
            servers: NameServers::new(&conf, self.port()),
            hosts,
            conf,
        });
        self.known.store(Arc::clone(&fresh));
        fresh
    }

    #[cfg(test)]
    fn port(&self) -> u16 {
        self.port
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "tests ask servers at another port")]
    fn port(&self) -> u16 {
        53
    }
}

/// Waits for the first address; returns its time of arrival.
async fn first_at(found: &mut watch::Receiver<FoundAddresses>) -> Instant {
    let first = found.wait_for(|found| found.first_at().is_some()).await;
    match first.ok().and_then(|found| found.first_at()) {
        Some(at) => at,
        // The look-up has ended without an address, and returns the reason.
        None => std::future::pending().await,
    }
}

/// Names that are never queried (RFC 6761, section 6.3).
fn is_localhost(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost")
}

fn read(path: &Path) -> Vec<u8> {
    match fs::read(path) {
        Ok(text) => text,
        Err(error) => {
            // Both files are optional.
            info!(file = %path.display(), %error, "cannot read this file; names are resolved without it");
            Vec::new()
        }
    }
}

fn log_skipped(file: &Path, skipped: &[SkippedEntry]) {
    for SkippedEntry {
        line,
        entry,
        reason,
    } in skipped
    {
        warn!(file = %file.display(), line, entry, reason, "entry skipped, the rest of the file is used");
    }
}

fn stamp(path: &Path) -> Option<FileStamp> {
    let metadata = fs::metadata(path).ok()?;
    Some(FileStamp {
        device: metadata.dev(),
        inode: metadata.ino(),
        length: metadata.len(),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    })
}

impl fmt::Debug for DnsResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DnsResolver")
            .field("servers", &self.servers)
            .field("hosts", &self.hosts)
            .finish_non_exhaustive()
    }
}
