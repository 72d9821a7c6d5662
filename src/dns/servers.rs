//! The name servers of `/etc/resolv.conf`. The one that responded last is queried first, the next
//! one when it has failed or has not responded for a while. The first response is used.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError, NoRecords};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RecordType};
use tokio::time::Instant;
use tracing::warn;

use super::resolv_conf::ResolvConf;
use crate::staggered::{CandidateList, StaggerDelays, race};

/// How long to wait for a name server before the next one is queried too.
const NEXT_SERVER_DELAY: Duration = Duration::from_millis(250);

/// The response of a name server.
#[derive(Clone, Debug)]
pub(super) struct DnsResponse {
    /// Empty: the name has no address of this family, or does not exist.
    pub(super) addresses: Vec<IpAddr>,
    pub(super) until: Instant,
}

#[derive(Default)]
pub(super) struct NameServers {
    servers: Arc<[TokioResolver]>,
    /// Index of the server that responded last.
    preferred: AtomicUsize,
}

impl NameServers {
    pub(super) fn new(conf: &ResolvConf, port: u16) -> Self {
        let servers = conf.servers.iter();
        Self {
            servers: servers.filter_map(|&ip| server(ip, port, conf)).collect(),
            preferred: AtomicUsize::new(0),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.servers.is_empty()
    }

    /// Queries the addresses of one family.
    pub(super) async fn ask(&self, name: &Name, kind: RecordType) -> Result<DnsResponse, NetError> {
        let preferred = self.preferred.load(Ordering::Relaxed);
        let mut order: Vec<usize> = (0..self.servers.len()).collect();
        order.sort_by_key(|&at| at != preferred);
        let stagger = StaggerDelays {
            delay: NEXT_SERVER_DELAY,
            delay_half_way: NEXT_SERVER_DELAY,
            until: None,
        };
        let mut order = CandidateList(order.into_iter());
        let won = race(&mut order, stagger, |at, _| {
            let (servers, name) = (Arc::clone(&self.servers), name.clone());
            async move { ask(&servers[at], name, kind).await }
        });
        match won.await {
            Ok(won) => {
                self.preferred.store(won.candidate, Ordering::Relaxed);
                Ok(won.value)
            }
            Err(mut lost) => {
                // An error response says more than a missing one.
                lost.failed
                    .sort_by_key(|(_, failure)| is_unanswered(failure));
                let first = lost.failed.into_iter().next();
                Err(first.map_or(NetError::NoConnections, |(_, failure)| failure))
            }
        }
    }
}

/// Whether the server has not responded at all.
pub(super) fn is_unanswered(failure: &NetError) -> bool {
    !matches!(failure, NetError::Dns(_))
}

async fn ask(
    server: &TokioResolver,
    name: Name,
    kind: RecordType,
) -> Result<DnsResponse, NetError> {
    match server.lookup(name, kind).await {
        Ok(found) => Ok(DnsResponse {
            addresses: {
                let addresses = found.answers().iter().filter_map(|one| one.data.ip_addr());
                addresses
                    .filter(|ip| ip.is_ipv6() == (kind == RecordType::AAAA))
                    .collect()
            },
            until: Instant::from_std(found.valid_until()),
        }),
        Err(NetError::Dns(DnsError::NoRecordsFound(NoRecords {
            response_code: ResponseCode::NXDomain | ResponseCode::NoError,
            ..
        }))) => Ok(DnsResponse {
            addresses: Vec::new(),
            until: Instant::now(),
        }),
        Err(failure) => Err(failure),
    }
}

fn server(ip: IpAddr, port: u16, conf: &ResolvConf) -> Option<TokioResolver> {
    let udp = (!conf.uses_tcp).then(ConnectionConfig::udp);
    let mut connections: Vec<_> = udp.into_iter().chain([ConnectionConfig::tcp()]).collect();
    for connection in &mut connections {
        connection.port = port;
    }
    let server = NameServerConfig::new(ip, true, connections);
    let mut options = ResolverOpts::default();
    options.timeout = conf.timeout;
    options.attempts = conf.attempts - 1; // hickory counts the attempts after the first
    options.edns0 = conf.uses_edns;
    options.use_hosts_file = ResolveHosts::Never;
    options.cache_size = 0; // the callers cache results
    let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        .with_options(options)
        .build()
        .inspect_err(|error| warn!(server = %ip, %error, "this name server cannot be queried"))
        .ok()
}
