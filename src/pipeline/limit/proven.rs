//! Peers that have presented a valid credential lately. They have buckets of their own, so that a flood
//! from other peers cannot lock them out. Only a success adds a peer: failed attempts leave no trace.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// How long a success is remembered.
const SUCCESS_LIFETIME: Duration = Duration::from_secs(7 * 86_400);
/// Peers kept per name: one user cannot evict the peers of other users.
const PEERS_PER_NAME: usize = 64;
/// When there are too many names, one in this many is evicted, least recently used first.
const EVICTED_SHARE: usize = 16;

#[derive(Debug)]
pub(super) struct ProvenPeers {
    /// By a keyed hash of the name: long names take no more memory.
    names: Mutex<HashMap<u64, NamePeers>>,
    max_names: usize,
    hasher: RandomState,
}

/// The proven peers of one name.
#[derive(Debug, Default)]
struct NamePeers {
    latest: Option<Instant>,
    peers: Vec<ProvenPeer>,
}

#[derive(Debug)]
struct ProvenPeer {
    peer: u64,
    latest: Instant,
}

impl ProvenPeers {
    pub(super) fn new(max_names: usize) -> Self {
        Self {
            names: Mutex::default(),
            max_names: max_names.max(1),
            hasher: RandomState::new(),
        }
    }

    /// Whether this name had a success from this peer within the last week.
    pub(super) fn has(&self, name: impl Hash, peer: impl Hash) -> bool {
        let (name, peer) = (self.hasher.hash_one(name), self.hasher.hash_one(peer));
        let names = self.names.lock();
        let known = names.get(&name);
        known.is_some_and(|known| {
            known
                .peers
                .iter()
                .any(|one| one.peer == peer && one.is_recent())
        })
    }

    /// Whether this name had a success from anywhere within the last week.
    pub(super) fn has_name(&self, name: impl Hash) -> bool {
        let names = self.names.lock();
        let known = names.get(&self.hasher.hash_one(name));
        known.is_some_and(|known| known.peers.iter().any(ProvenPeer::is_recent))
    }

    pub(super) fn remember(&self, name: impl Hash, peer: impl Hash) {
        let (name, peer) = (self.hasher.hash_one(name), self.hasher.hash_one(peer));
        let mut names = self.names.lock();
        if names.len() >= self.max_names && !names.contains_key(&name) {
            evict_some(&mut names);
        }
        names.entry(name).or_default().remember(peer);
    }

    pub(super) fn sweep(&self) {
        let mut names = self.names.lock();
        names.retain(|_, known| {
            known.peers.retain(ProvenPeer::is_recent);
            !known.peers.is_empty()
        });
    }
}

impl NamePeers {
    fn remember(&mut self, peer: u64) {
        let latest = Instant::now();
        self.latest = Some(latest);
        if let Some(known) = self.peers.iter_mut().find(|known| known.peer == peer) {
            known.latest = latest;
            return;
        }
        if self.peers.len() >= PEERS_PER_NAME {
            let oldest = self
                .peers
                .iter()
                .enumerate()
                .min_by_key(|(_, one)| one.latest);
            if let Some((index, _)) = oldest {
                self.peers.swap_remove(index);
            }
        }
        self.peers.push(ProvenPeer { peer, latest });
    }
}

impl ProvenPeer {
    fn is_recent(&self) -> bool {
        self.latest.elapsed() < SUCCESS_LIFETIME
    }
}

/// Evicts several names at once, so that this is rarely necessary.
fn evict_some(names: &mut HashMap<u64, NamePeers>) {
    let mut times: Vec<Option<Instant>> = names.values().map(|known| known.latest).collect();
    let index = times.len() / EVICTED_SHARE;
    let (_, limit, _) = times.select_nth_unstable(index);
    let limit = *limit;
    names.retain(|_, known| known.latest > limit);
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_success_is_remembered_for_a_week_and_only_for_its_name_and_peer() {
        let proven = ProvenPeers::new(100);
        assert!(!proven.has("anna", 1));
        proven.remember("anna", 1);
        assert!(proven.has("anna", 1) && !proven.has("anna", 2) && !proven.has("bert", 1));
        advance(SUCCESS_LIFETIME - Duration::from_secs(1)).await;
        assert!(proven.has("anna", 1));
        proven.sweep();
        advance(Duration::from_secs(1)).await;
        assert!(!proven.has("anna", 1));
        proven.sweep();
        assert!(proven.names.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn one_name_cannot_evict_another_and_the_memory_is_bounded() {
        let proven = ProvenPeers::new(100);
        proven.remember("anna", 1);
        for peer in 0..10_000 {
            proven.remember("greedy", peer);
        }
        assert!(proven.has("anna", 1));
        let greedy = proven.hasher.hash_one("greedy");
        assert_eq!(proven.names.lock()[&greedy].peers.len(), PEERS_PER_NAME);
        for name in 0..1000 {
            advance(Duration::from_millis(1)).await;
            proven.remember(name, 1);
            assert!(proven.names.lock().len() <= 100);
            assert!(proven.has(name, 1), "the newest stays");
        }
    }
}
