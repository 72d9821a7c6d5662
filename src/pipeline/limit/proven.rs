//! Peers that have shown a good credential lately. A flood from elsewhere must not shut
//! them out, so they draw on buckets of their own. Only a success enters a peer here: what
//! a stranger names or tries leaves no trace.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

/// How long a success is remembered.
const REMEMBERED: Duration = Duration::from_secs(7 * 86_400);
/// Peers of one name: a user with a password cannot push out those of other users.
const PEERS_PER_NAME: usize = 64;
/// When there are too many names, one in so many is forgotten, the longest unused first.
const FORGOTTEN_SHARE: usize = 16;

#[derive(Debug)]
pub(super) struct ProvenPeers {
    /// By a keyed hash of the name: no name takes more room than another.
    names: Mutex<HashMap<u64, NamePeers>>,
    most_names: usize,
    hasher: RandomState,
}

/// The peers that one name came from.
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
    pub(super) fn new(most_names: usize) -> Self {
        Self {
            names: Mutex::default(),
            most_names: most_names.max(1),
            hasher: RandomState::new(),
        }
    }

    /// Whether this name had a success from this peer within the last week.
    pub(super) fn has(&self, name: impl Hash, peer: impl Hash) -> bool {
        let (name, peer) = (self.hasher.hash_one(name), self.hasher.hash_one(peer));
        let names = self.names();
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
        let names = self.names();
        let known = names.get(&self.hasher.hash_one(name));
        known.is_some_and(|known| known.peers.iter().any(ProvenPeer::is_recent))
    }

    pub(super) fn remember(&self, name: impl Hash, peer: impl Hash) {
        let (name, peer) = (self.hasher.hash_one(name), self.hasher.hash_one(peer));
        let mut names = self.names();
        if names.len() >= self.most_names && !names.contains_key(&name) {
            forget_some(&mut names);
        }
        names.entry(name).or_default().remember(peer);
    }

    pub(super) fn sweep(&self) {
        let mut names = self.names();
        names.retain(|_, known| {
            known.peers.retain(ProvenPeer::is_recent);
            !known.peers.is_empty()
        });
    }

    fn names(&self) -> MutexGuard<'_, HashMap<u64, NamePeers>> {
        // Each change under this lock is whole.
        self.names.lock()
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
            if let Some((place, _)) = oldest {
                self.peers.swap_remove(place);
            }
        }
        self.peers.push(ProvenPeer { peer, latest });
    }
}

impl ProvenPeer {
    fn is_recent(&self) -> bool {
        self.latest.elapsed() < REMEMBERED
    }
}

/// Makes room in one step, so that this is seldom done.
fn forget_some(names: &mut HashMap<u64, NamePeers>) {
    let mut times: Vec<Option<Instant>> = names.values().map(|known| known.latest).collect();
    let place = times.len() / FORGOTTEN_SHARE;
    let (_, limit, _) = times.select_nth_unstable(place);
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
        advance(REMEMBERED - Duration::from_secs(1)).await;
        assert!(proven.has("anna", 1));
        proven.sweep();
        advance(Duration::from_secs(1)).await;
        assert!(!proven.has("anna", 1));
        proven.sweep();
        assert!(proven.names().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn one_name_cannot_push_out_another_and_the_memory_is_bounded() {
        let proven = ProvenPeers::new(100);
        proven.remember("anna", 1);
        for peer in 0..10_000 {
            proven.remember("greedy", peer);
        }
        assert!(proven.has("anna", 1));
        let greedy = proven.hasher.hash_one("greedy");
        assert_eq!(proven.names()[&greedy].peers.len(), PEERS_PER_NAME);
        for name in 0..1000 {
            advance(Duration::from_millis(1)).await;
            proven.remember(name, 1);
            assert!(proven.names().len() <= 100);
            assert!(proven.has(name, 1), "the newest stays");
        }
    }
}
