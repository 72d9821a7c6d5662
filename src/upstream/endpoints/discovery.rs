//! Follows the addresses of an upstream's name: each is an endpoint (`resolve = "all"`). A look-up that
//! fails takes nothing away.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::endpoint_factory::EndpointPlace;
use super::{Endpoint, EndpointFactory, EndpointSet, EndpointState, EndpointTasks};
use crate::backoff::Backoff;
use crate::dns::{DnsResolver, FoundAddresses, NameError};
use crate::error_chain::chain;
use crate::lifecycle::{ShutdownSignal, TaskScope};
use crate::metrics::ProbeOutcome;

/// Between two look-ups that fail.
const FAILED: Backoff = Backoff {
    first: Duration::from_secs(1),
    max: Duration::from_secs(30),
    jitter: 0.2,
};
/// Between two look-ups that succeed, at least; and for names in `/etc/hosts`, which have no TTL.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// The timeout of one look-up.
const LOOK_UP_LIMIT: Duration = Duration::from_secs(15);

/// Looks the name of one upstream up, again and again.
#[derive(Debug)]
pub(in crate::upstream) struct AddressDiscovery {
    pub(in crate::upstream) factory: EndpointFactory,
    pub(in crate::upstream) tasks: EndpointTasks,
    pub(in crate::upstream) names: DnsResolver,
    pub(in crate::upstream) scope: TaskScope,
    /// The endpoints of the upstream that this one replaces.
    pub(in crate::upstream) before: Option<Arc<EndpointSet>>,
}

/// An endpoint in use, and what stops its tasks.
struct RunningEndpoint {
    ip: IpAddr,
    endpoint: Arc<Endpoint>,
    stop: ShutdownSignal,
}

impl AddressDiscovery {
    /// Runs until drain.
    pub(in crate::upstream) async fn run(self) {
        let mut running: Vec<RunningEndpoint> = Vec::new();
        let known = self.known_addresses();
        if !known.is_empty() {
            self.apply(&mut running, &NameAddresses::fixed(known));
        }
        let mut failures = 0;
        loop {
            let host = &self.factory.settings.base.host;
            let looked_up = tokio::select! {
                () = self.scope.stop.draining() => return,
                looked_up = look_up(&self.names, host) => looked_up,
            };
            let pause = match looked_up {
                Ok(found) => {
                    if std::mem::take(&mut failures) > 0 {
                        info!(host, "the name is found again");
                    }
                    self.apply(&mut running, &found);
                    let until = found.until.unwrap_or_else(Instant::now);
                    until
                        .saturating_duration_since(Instant::now())
                        .max(MIN_INTERVAL)
                }
                Err(error) => {
                    failures += 1;
                    if failures == 1 {
                        let known = running.len();
                        warn!(host, known, error = %chain(&error),
                            "the name cannot be looked up; endpoints that are known stay in use");
                    }
                    FAILED.pause(failures)
                }
            };
            let outcome = match failures {
                0 => ProbeOutcome::Succeeded,
                _ => ProbeOutcome::Failed,
            };
            let upstream = &self.factory.settings.name;
            self.factory
                .metrics
                .endpoint_look_ups(upstream, outcome)
                .inc();
            tokio::select! {
                () = self.scope.stop.draining() => return,
                () = sleep(pause) => {}
            }
        }
    }

    /// The addresses of the endpoints of the upstream that this one replaces: they are used until the
    /// first look-up has ended.
    fn known_addresses(&self) -> Vec<IpAddr> {
        let before = self.before.as_ref().filter(|before| before.follows_name());
        let list = before.map(|before| before.list());
        let endpoints = list.iter().flat_map(|list| &list.endpoints);
        let same = endpoints.filter(|one| one.base == self.factory.settings.base);
        let addresses = same.filter_map(|one| one.state.name.parse::<SocketAddr>().ok());
        addresses.map(|address| address.ip()).collect()
    }

    /// Adds and removes endpoints. Those that stay are not touched, whatever the order of the addresses.
    fn apply(&self, running: &mut Vec<RunningEndpoint>, found: &NameAddresses) {
        let wanted = &found.addresses;
        let is_gone = |ip: &IpAddr| {
            let may_be_missing = ip.is_ipv6() && found.lacks_v6;
            !wanted.contains(ip) && !may_be_missing
        };
        let is_known = |ip: &IpAddr| running.iter().any(|one| one.ip == *ip);
        let added: Vec<IpAddr> = wanted.iter().copied().filter(|ip| !is_known(ip)).collect();
        let removed = running.extract_if(.., |one| is_gone(&one.ip));
        let removed: Vec<RunningEndpoint> = removed.collect();
        if added.is_empty() && removed.is_empty() {
            return;
        }
        let is_first = running.is_empty() && removed.is_empty();
        for ip in added {
            let (endpoint, is_new) = self.make(ip);
            let scope = self.scope.child();
            self.tasks.start(&endpoint, &scope);
            if is_new && !is_first {
                endpoint.state.begin_ramp();
            }
            let stop = scope.stop;
            running.push(RunningEndpoint { ip, endpoint, stop });
        }
        let endpoints: Vec<_> = running
            .iter()
            .map(|one| Arc::clone(&one.endpoint))
            .collect();
        info!(upstream = %self.factory.settings.name, endpoints = endpoints.len(), removed = removed.len(),
            "the addresses of the upstream's name have changed");
        self.tasks.set.replace(endpoints);
        removed.iter().for_each(|one| one.stop.drain());
    }

    /// The endpoint at an address, and whether nothing was known of it.
    fn make(&self, ip: IpAddr) -> (Arc<Endpoint>, bool) {
        let place = EndpointPlace {
            base: self.factory.settings.base.clone(),
            ip: Some(ip),
        };
        let known = |name: &str| self.before.as_ref()?.state_of(name);
        let is_new = known(&place.name()).is_none();
        let made = self.factory.make(&place, known);
        let endpoint =
            made.expect("host and name in TLS are those of the file, which were checked");
        (endpoint, is_new)
    }
}

/// The endpoints at the addresses that the name has now, without tasks.
pub(in crate::upstream) async fn endpoints_at_once(
    factory: &EndpointFactory,
    names: &DnsResolver,
) -> Result<Vec<Arc<Endpoint>>, NameError> {
    let found = look_up(names, &factory.settings.base.host).await?;
    let made = found.addresses.into_iter().map(|ip| {
        let place = EndpointPlace {
            base: factory.settings.base.clone(),
            ip: Some(ip),
        };
        factory.make(&place, |_: &str| None::<Arc<EndpointState>>)
    });
    Ok(made.filter_map(Result::ok).collect())
}

/// The addresses of a name.
struct NameAddresses {
    addresses: Vec<IpAddr>,
    /// No server has said whether there are IPv6 addresses.
    lacks_v6: bool,
    /// The end of their TTL; None: there is none.
    until: Option<Instant>,
}

impl NameAddresses {
    fn fixed(addresses: Vec<IpAddr>) -> Self {
        Self {
            addresses,
            lacks_v6: false,
            until: None,
        }
    }
}

async fn look_up(names: &DnsResolver, host: &str) -> Result<NameAddresses, NameError> {
    if let Some(addresses) = names.noted(host) {
        return Ok(NameAddresses::fixed(addresses));
    }
    let (tell, found) = watch::channel(FoundAddresses::default());
    let outcome = timeout(LOOK_UP_LIMIT, Box::pin(names.look_up(host, &tell))).await;
    let found = found.borrow();
    match outcome {
        Ok(Err(error)) if found.first_at().is_none() => return Err(error),
        Err(_) if found.first_at().is_none() => {
            return Err(NameError::Unanswered {
                file: names.servers_file().to_owned(),
                source: "none came in time".into(),
            });
        }
        _ => {}
    }
    Ok(NameAddresses {
        addresses: found.all(),
        lacks_v6: !found.has_v6_answer,
        until: found.until(),
    })
}
