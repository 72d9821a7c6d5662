//! Places that many clients want, divided so that no client can hold what the others
//! need. The rule is a dynamic threshold: a client may hold at most `HEADROOM` times as
//! many places as are free, some of which are kept for clients that hold none. One client
//! alone gets five sixths of them, and however greedy the first ones are, the next finds a
//! place.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hash};
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::quality::RandomState;
use parking_lot::Mutex;

use crate::identity_hasher::BuildIdentityHasher;

/// How many times the free places one client may hold.
const HEADROOM: usize = 8;

/// One place in so many is kept for clients that hold none.
const NEWCOMERS: usize = 16;

/// Of so few, none is kept: one client alone may need two.
const FEW: usize = 4;

/// Whether a client that holds `held` places may have one more of the `free` ones, of `total`.
/// Some are kept for clients that hold none.
pub fn is_within_share(held: usize, free: usize, total: usize) -> bool {
    let kept = match (held, total) {
        (0, _) | (_, ..=FEW) => 0,
        _ => total.div_ceil(NEWCOMERS),
    };
    held < free.saturating_sub(kept).saturating_mul(HEADROOM)
}

/// A client as the places see it: a keyed hash of who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ShareKey(pub u64);

/// Makes keys that nobody outside this process can foresee.
#[derive(Clone, Debug, Default)]
pub struct ShareHasher(RandomState);

impl ShareHasher {
    pub fn key(&self, who: impl Hash) -> ShareKey {
        ShareKey(self.0.hash_one(who))
    }
}

/// A map by `ShareKey`.
pub type ByShareKey<T> = HashMap<ShareKey, T, BuildIdentityHasher>;

/// The network that counts as one client where nobody says who it is: an IPv4 address,
/// or an IPv6 /64, which is what a single host is usually given (RFC 6177).
pub fn network(peer: IpAddr) -> (u8, u64) {
    match peer.to_canonical() {
        IpAddr::V4(address) => (4, u64::from(address.to_bits())),
        IpAddr::V6(address) => (6, (address.to_bits() >> 64) as u64),
    }
}

/// Who holds how many places of one kind. A client that has its share is refused: there
/// is no queue.
#[derive(Debug)]
pub struct SharePool {
    hasher: ShareHasher,
    ledger: Mutex<ShareLedger>,
}

#[derive(Debug)]
struct ShareLedger {
    taken: usize,
    /// Clients that hold places now.
    held: ByShareKey<usize>,
}

/// One client's place; free again when dropped.
#[derive(Debug)]
pub struct SharedPlace {
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

    pub fn key(&self, who: impl Hash) -> ShareKey {
        self.hasher.key(who)
    }

    /// A place among `total` for the client behind `key`; None when it has its share.
    pub fn take(self: &Arc<Self>, key: ShareKey, total: usize) -> Option<SharedPlace> {
        let mut ledger = self.ledger.lock();
        let free = total.saturating_sub(ledger.taken);
        self.take_from(&mut ledger, key, free)
    }

    /// The same where others count what is free: places may be taken that are not
    /// counted here.
    pub fn take_of_free(self: &Arc<Self>, key: ShareKey, free: usize) -> Option<SharedPlace> {
        self.take_from(&mut self.ledger.lock(), key, free)
    }

    fn take_from(
        self: &Arc<Self>,
        ledger: &mut ShareLedger,
        key: ShareKey,
        free: usize,
    ) -> Option<SharedPlace> {
        let held = ledger.held.get(&key).copied().unwrap_or(0);
        if !is_within_share(held, free, free + ledger.taken) {
            return None;
        }
        ledger.taken += 1;
        ledger.held.insert(key, held + 1);
        let pool = Arc::clone(self);
        Some(SharedPlace { pool, key })
    }
}

impl SharedPlace {
    pub fn key(&self) -> ShareKey {
        self.key
    }
}

impl Drop for SharedPlace {
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

    fn taken_by(pool: &Arc<SharePool>, who: &str) -> Vec<SharedPlace> {
        taken_of(pool, who, 90)
    }

    fn taken_of(pool: &Arc<SharePool>, who: &str, total: usize) -> Vec<SharedPlace> {
        std::iter::from_fn(|| pool.take(pool.key(who), total)).collect()
    }

    #[test]
    fn one_client_alone_leaves_places_for_the_next() {
        let pool = SharePool::new();
        let first = taken_by(&pool, "first");
        assert_eq!(first.len(), 75);
        let second = taken_by(&pool, "second");
        assert_eq!(second.len(), 8);
        assert_eq!(taken_by(&pool, "first").len(), 0);
        // However many greedy ones came before, the next finds a place.
        for who in ["third", "fourth", "fifth"] {
            assert!(!taken_by(&pool, who).is_empty(), "{who}");
        }
        drop(first);
        assert_eq!(second.len() + taken_by(&pool, "second").len(), 75);
    }

    #[test]
    fn a_client_that_holds_none_gets_the_last_place() {
        let pool = SharePool::new();
        let only = taken_of(&pool, "only", 1);
        assert_eq!((only.len(), taken_of(&pool, "other", 1).len()), (1, 0));
        drop(only);
        assert_eq!(taken_of(&pool, "other", 1).len(), 1);
    }

    #[test]
    fn places_of_clients_that_left_are_forgotten_and_a_new_total_holds() {
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
