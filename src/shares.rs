//! Fair shares of a limited number of permits among clients. The rule is a dynamic threshold: a
//! client may hold at most `HEADROOM` times as many permits as are free, some of which are reserved
//! for clients that hold none. A single client gets five sixths of all permits, and however many
//! the first clients hold, the next one still gets one. See `docs/FAIRNESS.md`.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hash};
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::quality::RandomState;
use parking_lot::Mutex;

use crate::identity_hasher::BuildIdentityHasher;

/// How many times the number of free permits one client may hold.
const HEADROOM: usize = 8;

/// One permit in this many is reserved for clients that hold none.
const RESERVE_RATIO: usize = 16;

/// Up to this many permits none is reserved: a single client may need two.
const NO_RESERVE_UP_TO: usize = 4;

/// Whether a client that holds `held` permits may take one of the `free` ones, out of `total`.
pub fn is_within_share(held: usize, free: usize, total: usize) -> bool {
    let reserved = match (held, total) {
        (0, _) | (_, ..=NO_RESERVE_UP_TO) => 0,
        _ => total.div_ceil(RESERVE_RATIO),
    };
    held < free.saturating_sub(reserved).saturating_mul(HEADROOM)
}

/// A client, as a keyed hash of its identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ShareKey(pub u64);

/// Makes keys that cannot be predicted outside this process.
#[derive(Clone, Debug, Default)]
pub struct ShareHasher(RandomState);

impl ShareHasher {
    pub fn key(&self, client: impl Hash) -> ShareKey {
        ShareKey(self.0.hash_one(client))
    }
}

/// A map with `ShareKey` as its key.
pub type ByShareKey<T> = HashMap<ShareKey, T, BuildIdentityHasher>;

/// The network that counts as one client if it has no other identity: an IPv4 address, or an IPv6
/// /64, which is what a single host is usually assigned (RFC 6177).
pub fn network(peer: IpAddr) -> (u8, u64) {
    match peer.to_canonical() {
        IpAddr::V4(address) => (4, u64::from(address.to_bits())),
        IpAddr::V6(address) => (6, (address.to_bits() >> 64) as u64),
    }
}

/// The permits of one kind that each client holds. A client that has its share is refused; there is
/// no queue.
#[derive(Debug)]
pub struct SharePool {
    hasher: ShareHasher,
    ledger: Mutex<ShareLedger>,
}

#[derive(Debug)]
struct ShareLedger {
    taken: usize,
    /// Clients that hold permits now.
    held: ByShareKey<usize>,
}

/// One permit of a client, released on drop.
#[derive(Debug)]
pub struct SharePermit {
    pool: Arc<SharePool>,
    key: ShareKey,
}

impl SharePool {
    pub fn new() -> Arc<Self> {
        let ledger = ShareLedger {
            taken: 0,
            held: ByShareKey::default(),
        };
        Arc::new(Self {
            hasher: ShareHasher::default(),
            ledger: Mutex::new(ledger),
        })
    }

    pub fn key(&self, client: impl Hash) -> ShareKey {
        self.hasher.key(client)
    }

    /// Takes one of `total` permits for a client. None if it has its share.
    pub fn take(self: &Arc<Self>, key: ShareKey, total: usize) -> Option<SharePermit> {
        let mut ledger = self.ledger.lock();
        let free = total.saturating_sub(ledger.taken);
        self.take_from(&mut ledger, key, free)
    }

    /// Takes a permit when the caller counts the free ones, because permits may be in use that are
    /// not counted here.
    pub fn take_of_free(self: &Arc<Self>, key: ShareKey, free: usize) -> Option<SharePermit> {
        self.take_from(&mut self.ledger.lock(), key, free)
    }

    fn take_from(
        self: &Arc<Self>,
        ledger: &mut ShareLedger,
        key: ShareKey,
        free: usize,
    ) -> Option<SharePermit> {
        let held = ledger.held.get(&key).copied().unwrap_or(0);
        if !is_within_share(held, free, free + ledger.taken) {
            return None;
        }
        ledger.taken += 1;
        ledger.held.insert(key, held + 1);
        let pool = Arc::clone(self);
        Some(SharePermit { pool, key })
    }
}

impl SharePermit {
    pub fn key(&self) -> ShareKey {
        self.key
    }
}

impl Drop for SharePermit {
    fn drop(&mut self) {
        let mut ledger = self.pool.ledger.lock();
        ledger.taken -= 1;
        if let Some(held) = ledger.held.get_mut(&self.key) {
            *held -= 1;
            if *held == 0 {
                ledger.held.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken_by(pool: &Arc<SharePool>, who: &str) -> Vec<SharePermit> {
        taken_of(pool, who, 90)
    }

    fn taken_of(pool: &Arc<SharePool>, who: &str, total: usize) -> Vec<SharePermit> {
        std::iter::from_fn(|| pool.take(pool.key(who), total)).collect()
    }

    #[test]
    fn one_client_alone_leaves_permits_for_the_next() {
        let pool = SharePool::new();
        let first = taken_by(&pool, "first");
        assert_eq!(first.len(), 75);
        let second = taken_by(&pool, "second");
        assert_eq!(second.len(), 8);
        assert_eq!(taken_by(&pool, "first").len(), 0);
        // However many permits the clients before hold, the next still gets one.
        for who in ["third", "fourth", "fifth"] {
            assert!(!taken_by(&pool, who).is_empty(), "{who}");
        }
        drop(first);
        assert_eq!(second.len() + taken_by(&pool, "second").len(), 75);
    }

    #[test]
    fn a_client_that_holds_none_gets_the_last_permit() {
        let pool = SharePool::new();
        let only = taken_of(&pool, "only", 1);
        assert_eq!((only.len(), taken_of(&pool, "other", 1).len()), (1, 0));
        drop(only);
        assert_eq!(taken_of(&pool, "other", 1).len(), 1);
    }

    #[test]
    fn clients_without_permits_are_removed_and_a_new_total_applies() {
        let pool = SharePool::new();
        let take = |client| pool.take(pool.key(client), 1000);
        let many: Vec<_> = (0..1000).filter_map(take).collect();
        assert_eq!(many.len(), 1000);
        assert!(pool.take(pool.key("late"), 500).is_none());
        drop(many);
        assert!(pool.ledger.lock().held.is_empty());
        assert_eq!(taken_of(&pool, "late", 500).len(), 416);
    }

    #[test]
    fn a_host_is_one_network_however_it_is_written() {
        let same = |one: &str, other: &str| {
            network(one.parse().unwrap()) == network(other.parse().unwrap())
        };
        assert!(same("192.0.2.1", "::ffff:192.0.2.1"));
        assert!(same("2001:db8::1", "2001:db8::ffff:1"));
        assert!(!same("2001:db8::1", "2001:db8:0:1::1"));
        assert!(!same("192.0.2.1", "192.0.2.2"));
    }
}
