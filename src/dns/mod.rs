//! Addresses by name. Asked in Rust and not through the C library, whose look-up loads
//! modules at run time: a static binary must not. What the host's files say holds as
//! soon as they change: `/etc/hosts` first, then the servers of `/etc/resolv.conf`.
//!
//! Half an answer is an answer: IPv4 and IPv6 addresses are asked for apart, and told as
//! they come. An entry of a file that cannot be used costs that entry.

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

/// How long a late IPv6 answer is waited for when the IPv4 addresses are there
/// (RFC 8305, section 3).
pub const RESOLUTION_DELAY: Duration = Duration::from_millis(50);
/// How long addresses may serve when the servers do not answer any more (RFC 8767).
pub const LONGEST_STALE: Duration = Duration::from_secs(3600);

/// Why a name leads nowhere.
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

/// Finds addresses; shared by all who connect.
pub struct DnsResolver {
    servers: PathBuf,
    hosts: PathBuf,
    known: ArcSwap<ResolverFiles>,
    reading: Mutex<()>,
    /// What `find` found last, and until when it may serve if servers stay silent.
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

/// What changes when a file does, be it written, replaced or mounted anew.
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

    /// The file with the servers.
    pub fn servers_file(&self) -> &Path {
        &self.servers
    }

    /// The addresses of `host` if no server need be asked for them: it is an address
    /// itself, this host, or in `/etc/hosts`.
    pub fn noted(&self, host: &str) -> Option<Vec<IpAddr>> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Some(vec![ip]);
        }
        if let Some(noted) = self.known().hosts.find(host) {
            return Some(noted.to_vec());
        }
        is_localhost(host).then(|| vec![Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()])
    }

    /// All addresses of `host`, which is a name or an address itself. What was found last
    /// serves on when the servers stay silent.
    pub async fn find(&self, host: &str) -> Result<Vec<IpAddr>, NameError> {
        if let Some(noted) = self.noted(host) {
            return Ok(noted);
        }
        let found = self.ask(host).await;
        let mut earlier = self.earlier.lock();
        match &found {
            Ok(found) => {
                let until = Instant::now() + LONGEST_STALE;
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
        let (tell, mut told) = watch::channel(FoundAddresses::default());
        let mut looking = std::pin::pin!(self.look_up(host, &tell));
        tokio::select! {
            biased;
            outcome = &mut looking => outcome?,
            at = first_at(&mut told) => {
                // Either the other family comes as well, or it is done without.
                let _ = timeout_at(at + RESOLUTION_DELAY, looking).await;
            }
        }
        Ok(tell.borrow().all())
    }

    /// Asks the servers for the addresses of `host` and tells them as they come. Ends when
    /// there is no more to come; good if there was at least one.
    pub async fn look_up(
        &self,
        host: &str,
        found: &watch::Sender<FoundAddresses>,
    ) -> Result<(), NameError> {
        let name = Name::from_str_relaxed(host).map_err(NameError::NotAName)?;
        let known = self.known();
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

    /// What the files say now. Looked at for each new connection only, and two `stat`
    /// calls on local files take no time.
    fn known(&self) -> Arc<ResolverFiles> {
        let stamps = || [&self.servers, &self.hosts].map(|path| stamp(path));
        let known = self.known.load_full();
        if known.stamps == stamps() {
            return known;
        }
        // One reads, so that what is wrong in the files is said once.
        let _reading = self.reading.lock();
        let known = self.known.load_full();
        let stamps = stamps();
        if known.stamps == stamps {
            return known;
        }
        let hosts = HostsFile::parse(&read(&self.hosts));
        if hosts.skipped != known.hosts.skipped {
            tell_skipped(&self.hosts, &hosts.skipped);
        }
        let conf = ResolvConf::parse(&read(&self.servers));
        if conf.skipped != known.conf.skipped {
            tell_skipped(&self.servers, &conf.skipped);
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

/// Waits for the first address; gives when it came.
async fn first_at(told: &mut watch::Receiver<FoundAddresses>) -> Instant {
    let first = told.wait_for(|found| found.first_at().is_some()).await;
    match first.ok().and_then(|found| found.first_at()) {
        Some(at) => at,
        // The look-up ends without one, and says so itself.
        None => std::future::pending().await,
    }
}

/// RFC 6761, section 6.3: these names are never asked for.
fn is_localhost(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost")
}

fn read(path: &Path) -> Vec<u8> {
    match fs::read(path) {
        Ok(text) => text,
        Err(error) => {
            // A host may do without either file.
            info!(file = %path.display(), %error, "this file says nothing about names");
            Vec::new()
        }
    }
}

fn tell_skipped(file: &Path, skipped: &[SkippedEntry]) {
    for SkippedEntry { line, entry, why } in skipped {
        warn!(file = %file.display(), line, entry, why, "entry skipped, the rest of the file is used");
    }
}

fn stamp(path: &Path) -> Option<FileStamp> {
    let facts = fs::metadata(path).ok()?;
    Some(FileStamp {
        device: facts.dev(),
        inode: facts.ino(),
        length: facts.len(),
        changed: (facts.ctime(), facts.ctime_nsec()),
    })
}

impl fmt::Debug for DnsResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Names")
            .field("servers", &self.servers)
            .field("hosts", &self.hosts)
            .finish_non_exhaustive()
    }
}
