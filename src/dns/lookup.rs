//! One look-up: the names of the search list in turn, both address families of a name at
//! once. What one family's answer is like changes nothing for the other.

use std::net::IpAddr;
use std::time::Duration;

use hickory_resolver::net::NetError;
use hickory_resolver::proto::rr::{Name, RecordType};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::resolv_conf::ResolvConf;
use super::servers::{NameServers, ServerAnswer, is_silence};

/// How long a silent family holds up the next name of the search list when the other
/// family has none.
const SILENCE: Duration = Duration::from_secs(1);
/// A name's addresses beyond these are not used.
const MOST_ADDRESSES: usize = 32;
/// An answer is good for this long whatever the zone says.
const SHORTEST_LIFE: Duration = Duration::from_secs(1);

/// What a look-up has brought so far.
#[derive(Clone, Debug, Default)]
pub struct FoundAddresses {
    v4: Vec<IpAddr>,
    v6: Vec<IpAddr>,
    first_at: Option<Instant>,
    until: Option<Instant>,
    /// The answer about IPv6 has come, be it that there is none.
    pub has_v6_answer: bool,
    /// There was no answer about IPv6.
    pub is_v6_silent: bool,
}

impl FoundAddresses {
    /// IPv6 before IPv4, as the hosts of today prefer it (RFC 6724).
    pub fn all(&self) -> Vec<IpAddr> {
        self.v6.iter().chain(&self.v4).copied().collect()
    }

    pub fn has_v6(&self) -> bool {
        !self.v6.is_empty()
    }

    /// When the first address came.
    pub fn first_at(&self) -> Option<Instant> {
        self.first_at
    }

    /// How long these addresses are good.
    pub fn until(&self) -> Option<Instant> {
        self.until
    }

    fn take(&mut self, kind: RecordType, mut answer: ServerAnswer) {
        self.has_v6_answer |= kind == RecordType::AAAA;
        if answer.addresses.is_empty() {
            return;
        }
        answer.addresses.truncate(MOST_ADDRESSES);
        let now = Instant::now();
        self.first_at.get_or_insert(now);
        let until = answer.until.max(now + SHORTEST_LIFE);
        self.until = Some(self.until.map_or(until, |other| other.min(until)));
        match kind {
            RecordType::AAAA => self.v6 = answer.addresses,
            _ => self.v4 = answer.addresses,
        }
    }
}

/// False: no name of the search list has an address.
pub(super) async fn search(
    conf: &ResolvConf,
    servers: &NameServers,
    name: &Name,
    found: &watch::Sender<FoundAddresses>,
) -> Result<bool, NetError> {
    let mut failure = None;
    let mut candidates = conf.candidates(name).into_iter().peekable();
    while let Some(name) = candidates.next() {
        let question = NameQuery {
            name,
            is_last: candidates.peek().is_none(),
            without_aaaa: conf.without_aaaa,
        };
        match question.ask(servers, found).await {
            Ok(true) => return Ok(true),
            Ok(false) => {}
            // With servers that are silent each further name would take as long.
            Err(silence) if is_silence(&silence) => return Err(failure.unwrap_or(silence)),
            Err(refusal) => failure = failure.or(Some(refusal)),
        }
    }
    failure.map_or(Ok(false), Err)
}

/// Both families of one name.
struct NameQuery {
    name: Name,
    is_last: bool,
    without_aaaa: bool,
}

impl NameQuery {
    async fn ask(
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
            let (kind, answer) = tokio::select! {
                answer = &mut v4, if waits_v4 => (RecordType::A, answer),
                answer = &mut v6, if waits_v6 => (RecordType::AAAA, answer),
                () = sleep_until(end.unwrap_or_else(Instant::now)), if end.is_some() => break,
            };
            match kind {
                RecordType::AAAA => waits_v6 = false,
                _ => waits_v4 = false,
            }
            match answer {
                Ok(answer) => {
                    if answer.addresses.is_empty() && !self.is_last {
                        end = Some(Instant::now() + SILENCE);
                    }
                    found.send_modify(|found| found.take(kind, answer));
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
