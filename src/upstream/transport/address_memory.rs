//! Orders addresses by earlier connection attempts: the last one that worked comes first, one that
//! failed recently comes last. Both expire, and no address is ever left out.

use std::cmp::Reverse;
use std::net::IpAddr;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

/// How long an address that worked goes first.
const SUCCESS_COUNTS: Duration = Duration::from_secs(600);
/// How long an address that failed goes last.
const FAILURE_COUNTS: Duration = Duration::from_secs(60);
const MAX_ENTRIES: usize = 64;

/// One per upstream; shared by all workers, and used for new connections only.
#[derive(Debug, Default)]
pub(in crate::upstream) struct AddressMemory(Mutex<Vec<AddressEntry>>);

#[derive(Clone, Copy, Debug)]
struct AddressEntry {
    address: IpAddr,
    outcome: ConnectOutcome,
    at: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ConnectOutcome {
    Worked,
    Failed,
}

impl AddressMemory {
    pub(in crate::upstream) fn worked(&self, address: IpAddr) {
        self.note(address, ConnectOutcome::Worked);
    }

    pub(in crate::upstream) fn failed(&self, address: IpAddr) {
        self.note(address, ConnectOutcome::Failed);
    }

    /// `addresses` in the order in which they should be tried.
    pub(in crate::upstream) fn order(&self, addresses: &[IpAddr]) -> Vec<IpAddr> {
        let now = Instant::now();
        let entries = self.lock();
        let seen = |address: IpAddr| {
            let entry = entries.iter().find(|entry| entry.address == address)?;
            let counts = match entry.outcome {
                ConnectOutcome::Worked => SUCCESS_COUNTS,
                ConnectOutcome::Failed => FAILURE_COUNTS,
            };
            (now.saturating_duration_since(entry.at) < counts).then_some(*entry)
        };
        let with = |outcome| {
            let entries = addresses.iter().filter_map(|&address| seen(address));
            entries
                .filter(|entry| entry.outcome == outcome)
                .collect::<Vec<_>>()
        };
        let mut worked = with(ConnectOutcome::Worked);
        worked.sort_by_key(|entry| Reverse(entry.at));
        let mut failed = with(ConnectOutcome::Failed);
        failed.sort_by_key(|entry| entry.at);
        let first = worked.first().map(|entry| entry.address);
        let failed: Vec<IpAddr> = failed.into_iter().map(|entry| entry.address).collect();
        let is_other = |address: &IpAddr| Some(*address) != first && !failed.contains(address);
        let others: Vec<IpAddr> = addresses.iter().copied().filter(is_other).collect();
        let mut order: Vec<IpAddr> = first.into_iter().collect();
        order.extend(interleaved(
            &others,
            first.is_some_and(|first| first.is_ipv6()),
        ));
        order.extend(failed);
        order
    }

    fn note(&self, address: IpAddr, outcome: ConnectOutcome) {
        let mut entries = self.lock();
        entries.retain(|entry| entry.address != address);
        if entries.len() == MAX_ENTRIES {
            entries.remove(0); // the oldest
        }
        entries.push(AddressEntry {
            address,
            outcome,
            at: Instant::now(),
        });
    }

    fn lock(&self) -> MutexGuard<'_, Vec<AddressEntry>> {
        self.0.lock()
    }
}

/// Alternates the address families (RFC 8305, section 4), beginning with that of the first address.
fn interleaved(addresses: &[IpAddr], has_had_v6: bool) -> Vec<IpAddr> {
    let (v6, v4): (Vec<IpAddr>, Vec<IpAddr>) = addresses.iter().partition(|ip| ip.is_ipv6());
    let begins_with_v6 = !has_had_v6 && addresses.first().is_none_or(IpAddr::is_ipv6);
    let (mut one, mut other) = if begins_with_v6 {
        (v6.into_iter(), v4.into_iter())
    } else {
        (v4.into_iter(), v6.into_iter())
    };
    let mut order = Vec::with_capacity(addresses.len());
    loop {
        let pair = [one.next(), other.next()];
        if pair == [None, None] {
            return order;
        }
        order.extend(pair.into_iter().flatten());
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn address_families_alternate() {
        let memory = AddressMemory::default();
        let given = ips(&["::1", "::2", "::3", "10.0.0.1", "10.0.0.2"]);
        let order = ips(&["::1", "10.0.0.1", "::2", "10.0.0.2", "::3"]);
        assert_eq!(memory.order(&given), order);
        memory.worked(given[1]);
        let order = ips(&["::2", "10.0.0.1", "::1", "10.0.0.2", "::3"]);
        assert_eq!(memory.order(&given), order);
        assert_eq!(
            memory.order(&ips(&["10.0.0.1", "::1"])),
            ips(&["10.0.0.1", "::1"])
        );
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_that_worked_come_first_and_failed_ones_last_for_a_while() {
        let memory = AddressMemory::default();
        let given = ips(&["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
        memory.failed(given[0]);
        memory.worked(given[2]);
        assert_eq!(
            memory.order(&given),
            ips(&["10.0.0.3", "10.0.0.2", "10.0.0.1"])
        );
        advance(FAILURE_COUNTS).await;
        assert_eq!(
            memory.order(&given),
            ips(&["10.0.0.3", "10.0.0.1", "10.0.0.2"])
        );
        memory.failed(given[2]);
        assert_eq!(memory.order(&given), given);
        memory.worked(given[2]);
        advance(SUCCESS_COUNTS).await;
        assert_eq!(memory.order(&given), given, "the order of the zone again");
    }

    #[tokio::test(start_paused = true)]
    async fn no_address_is_omitted_and_memory_is_bounded() {
        let memory = AddressMemory::default();
        let given: Vec<IpAddr> = (0..200).map(|at| IpAddr::from([10, 0, 0, at])).collect();
        for &address in &given {
            memory.failed(address);
            advance(Duration::from_millis(1)).await;
        }
        let mut order = memory.order(&given);
        assert_eq!(order.last(), given.last(), "the latest failure comes last");
        order.sort_unstable();
        assert_eq!(order, given);
        assert_eq!(memory.lock().len(), MAX_ENTRIES);
    }
}
