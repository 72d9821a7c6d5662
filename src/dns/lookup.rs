//! One look-up: the names of the search list one after the other, both address families of a name at
//! the same time. The result of one family does not affect the other.

use std::net::IpAddr;
use std::time::Duration;

use hickory_resolver::net::NetError;
use hickory_resolver::proto::rr::{Name, RecordType};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::resolv_conf::ResolvConf;
use super::servers::{DnsResponse, NameServers, is_unanswered};

/// How long a family without a response delays the next name of the search list when the other
/// family has no addresses.
const FAMILY_TIMEOUT: Duration = Duration::from_secs(1);
/// Most addresses of a name that are used.
const MAX_ADDRESSES: usize = 32;
/// Minimum time to use a result, even if its TTL is shorter.
const MIN_TTL: Duration = Duration::from_secs(1);

/// The addresses that a look-up has found so far.
#[derive(Clone, Debug, Default)]
pub struct FoundAddresses {
    v4: Vec<IpAddr>,
    v6: Vec<IpAddr>,
    first_at: Option<Instant>,
    until: Option<Instant>,
    /// The response about IPv6 has arrived, with addresses or without.
    pub has_v6_answer: bool,
    /// The look-up has ended without a response about IPv6.
    pub is_v6_silent: bool,
}

impl FoundAddresses {
    /// All addresses, IPv6 before IPv4, as hosts prefer by default (RFC 6724).
    pub fn all(&self) -> Vec<IpAddr> {
        self.v6.iter().chain(&self.v4).copied().collect()
    }

    pub fn has_v6(&self) -> bool {
        !self.v6.is_empty()
    }

    /// When the first address arrived.
    pub fn first_at(&self) -> Option<Instant> {
        self.first_at
    }

    /// Until when the addresses are valid.
    pub fn until(&self) -> Option<Instant> {
        self.until
    }

    fn add(&mut self, kind: RecordType, mut response: DnsResponse) {
        self.has_v6_answer |= kind == RecordType::AAAA;
        if response.addresses.is_empty() {
            return;
        }
        response.addresses.truncate(MAX_ADDRESSES);
        let now = Instant::now();
        self.first_at.get_or_insert(now);
        let until = response.until.max(now + MIN_TTL);
        self.until = Some(self.until.map_or(until, |other| other.min(until)));
        match kind {
            RecordType::AAAA => self.v6 = response.addresses,
            _ => self.v4 = response.addresses,
        }
    }
}

/// Looks up `name` with the search list. False: none of the names has an address.
pub(super) async fn search(
    conf: &ResolvConf,
    servers: &NameServers,
    name: &Name,
    found: &watch::Sender<FoundAddresses>,
) -> Result<bool, NetError> {
    let mut failure = None;
    let mut candidates = conf.candidates(name).into_iter().peekable();
    while let Some(name) = candidates.next() {
        let query = NameQuery {
            name,
            is_last: candidates.peek().is_none(),
            without_aaaa: conf.without_aaaa,
        };
        match query.run(servers, found).await {
            Ok(true) => return Ok(true),
            Ok(false) => {}
            // If the servers do not respond, each further name would take as long.
            Err(error) if is_unanswered(&error) => return Err(failure.unwrap_or(error)),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    failure.map_or(Ok(false), Err)
}

/// A query of both address families of one name.
struct NameQuery {
    name: Name,
    is_last: bool,
    without_aaaa: bool,
}

impl NameQuery {
    async fn run(
        &self,
        servers: &NameServers,
        found: &watch::Sender<FoundAddresses>,
    ) -> Result<bool, NetError> {
        found.send_modify(|found| *found = FoundAddresses::default());
        let mut v4 = std::pin::pin!(servers.ask(&self.name, RecordType::A));
        let mut v6 = std::pin::pin!(servers.ask(&self.name, RecordType::AAAA));
        let (mut waits_v4, mut waits_v6) = (true, !self.without_aaaa);
        let mut failure = None;
        let mut end = None;
        while waits_v4 || waits_v6 {
            let (kind, response) = tokio::select! {
                response = &mut v4, if waits_v4 => (RecordType::A, response),
                response = &mut v6, if waits_v6 => (RecordType::AAAA, response),
                () = sleep_until(end.unwrap_or_else(Instant::now)), if end.is_some() => break,
            };
            match kind {
                RecordType::AAAA => waits_v6 = false,
                _ => waits_v4 = false,
            }
            match response {
                Ok(response) => {
                    if response.addresses.is_empty() && !self.is_last {
                        end = Some(Instant::now() + FAMILY_TIMEOUT);
                    }
                    found.send_modify(|found| found.add(kind, response));
                }
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        let mut has_any = false;
        found.send_modify(|found| {
            has_any = found.first_at.is_some();
            found.is_v6_silent = !found.has_v6_answer;
        });
        match failure {
            Some(failure) if !has_any => Err(failure),
            _ => Ok(has_any),
        }
    }
}
