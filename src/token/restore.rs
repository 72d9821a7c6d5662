//! Takes back the grants of a former run, by as many threads as bring some. Loaded in the
//! order of their digests they fill one shard of the table after the other. All users are
//! met before the first token, and are put on record when the last has come, all of a
//! shard's together: a token needs no more of its user than the place and one reference.

use std::fmt;
use std::hint::black_box;
use std::ops::BitXor;
use std::sync::Arc;
use std::thread;

use super::expiry_index::{ExpiryEntry, Second};
use super::flags::GrantFlags;
use super::grant_table::StoredGrant;
use super::memory::TokenMemory;
use super::user_index::{SHARDS, TokenFamily};
use super::{TokenDigest, TokenOrigin, TokenStore};
use crate::clock::{self, PackedDeadline};
use crate::store::{GrantBatchSink, GrantSink, LiveGrant, threads_for};
use parking_lot::Mutex;

/// Whether a user's tokens are wanted.
type IsKnown = dyn Fn(&str) -> bool + Send + Sync;

/// Hints by the shard of their lots.
type EntriesByShard = Vec<Vec<ExpiryEntry>>;

/// Tokens put into the table at once, at least; more if they go into one shard. What they
/// touch fits into a core's own cache.
const LEAST_PUT: usize = 4096;

/// Tokens whose lots are fetched at a time.
const FEW: usize = 128;

/// Takes in tokens where none are. No login, logout or sweep may run beside it. The caps
/// do not count: nobody loses a live token to a restart.
pub struct TokenRestore {
    memory: Arc<TokenMemory>,
    origin: TokenOrigin,
    is_known: Box<IsKnown>,
    /// Now, on both clocks, once for all.
    since_start_millis: u64,
    wall_millis: u64,
    /// By the users' numbers; None: their tokens are not wanted.
    lots: Vec<Option<Arc<TokenFamily>>>,
    /// Of the parts that are over.
    hints: Mutex<Vec<EntriesByShard>>,
}

/// What one thread brings.
struct RestorePart<'a> {
    whole: &'a TokenRestore,
    pile: Vec<RestoredToken>,
    hints: EntriesByShard,
    taken: usize,
}

/// A token on its way into the table, with the shard and id of its lot.
type RestoredToken = (TokenDigest, StoredGrant, (u16, u32));

/// What belongs into one shard of the holders.
#[derive(Default)]
struct ShardShare {
    lots: Vec<Arc<TokenFamily>>,
    hints: Vec<Vec<ExpiryEntry>>,
}

impl fmt::Debug for TokenRestore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Restore")
            .field("users", &self.lots.len())
            .finish_non_exhaustive()
    }
}

impl TokenStore {
    /// Of tokens of this origin, and of users that are known.
    pub fn restore(
        &self,
        origin: TokenOrigin,
        is_known: impl Fn(&str) -> bool + Send + Sync + 'static,
    ) -> TokenRestore {
        let memory = Arc::clone(&self.memory);
        TokenRestore {
            origin,
            is_known: Box::new(is_known),
            since_start_millis: memory.millis(),
            wall_millis: clock::unix_millis(),
            lots: Vec::new(),
            hints: Mutex::default(),
            memory,
        }
    }
}

impl GrantSink for TokenRestore {
    /// Each has a lot from here on, and is on record once it turns out to hold something.
    fn users(&mut self, names: &[Arc<str>]) {
        let Self { memory, lots, .. } = self;
        let is_known = &self.is_known;
        lots.resize(names.len(), None);
        let length = names.len().div_ceil(threads_for(names.len())).max(1);
        thread::scope(|scope| {
            for (names, lots) in names.chunks(length).zip(lots.chunks_mut(length)) {
                let holders = &memory.holders;
                scope.spawn(move || {
                    for (name, lot) in names.iter().zip(lots) {
                        *lot = is_known(name).then(|| holders.lot_to_fill(name));
                    }
                });
            }
        });
    }

    fn part(&self) -> GrantBatchSink<'_> {
        let mut part = RestorePart {
            whole: self,
            pile: Vec::new(),
            hints: vec![Vec::new(); usize::from(SHARDS)],
            taken: 0,
        };
        Box::new(move |grants| part.take(grants))
    }

    fn finish(&mut self) {
        let threads = threads_for(self.lots.len().max(self.memory.len()));
        let mut shares: Vec<ShardShare> = Vec::new();
        shares.resize_with(usize::from(SHARDS), ShardShare::default);
        for lot in self.lots.drain(..).flatten() {
            shares[usize::from(lot.shard)].lots.push(lot);
        }
        let parts = self.hints.get_mut();
        for part in parts.drain(..) {
            for (share, hints) in shares.iter_mut().zip(part) {
                share.hints.push(hints);
            }
        }
        let memory = &self.memory;
        let shares = Mutex::new((0..SHARDS).zip(shares));
        let next = || shares.lock().next();
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while let Some((place, share)) = next() {
                        let mut shard = memory.holders.shard(place);
                        shard.insert_families(share.lots, &share.hints);
                    }
                });
            }
        });
    }
}

impl RestorePart<'_> {
    /// Twice over a few: first only touching their lots, by as few instructions as do it, so
    /// that the processor fetches many at a time; then counting references, which it does
    /// strictly one by one.
    fn take(&mut self, grants: &[LiveGrant<'_>]) {
        let whole = self.whole;
        for few in grants.chunks(FEW) {
            let lots = few.iter().map(|grant| {
                let lot = whole.lots[grant.holder as usize].as_ref();
                lot.filter(|_| grant.origin == whole.origin)
            });
            let lots: Vec<Option<&Arc<TokenFamily>>> = lots.collect();
            // The count may lie on another cache line than the rest.
            let touch = |lot: &&Arc<TokenFamily>| Arc::strong_count(lot) ^ lot.id as usize;
            let touched = lots.iter().flatten().map(touch);
            black_box(touched.fold(0, BitXor::bitxor));
            for (grant, lot) in few.iter().zip(lots) {
                if let Some(lot) = lot {
                    let digest = TokenDigest::from(grant.digest);
                    self.push((digest, whole.stored(grant, lot), (lot.shard, lot.id)));
                }
            }
        }
    }

    fn push(&mut self, row: RestoredToken) {
        let table = &self.whole.memory.table;
        if self.pile.len() >= LEAST_PUT
            && let Some((last, ..)) = self.pile.last()
            && !table.are_together(last, &row.0)
        {
            self.put();
        }
        self.pile.push(row);
    }

    fn put(&mut self) {
        let table = &self.whole.memory.table;
        let runs = self
            .pile
            .chunk_by(|one, next| table.are_together(&one.0, &next.0));
        let runs: Vec<(TokenDigest, usize)> = runs.map(|run| (run[0].0, run.len())).collect();
        let mut rows = self.pile.drain(..);
        for (first, length) in runs {
            let run = rows.by_ref().take(length);
            // What is twice in the store, which no store of ours has, is one token.
            table.add_together(&first, run, |digest, due, (shard, lot)| {
                let tag = digest.tag();
                self.hints[usize::from(shard)].push(ExpiryEntry { lot, due, tag });
                self.taken += 1;
            });
        }
    }
}

impl Drop for RestorePart<'_> {
    fn drop(&mut self) {
        self.put();
        self.whole.memory.count_restored(self.taken);
        let brought = self.whole.hints.lock();
        let mut brought = brought;
        brought.push(std::mem::take(&mut self.hints));
    }
}

impl TokenRestore {
    fn stored(&self, grant: &LiveGrant<'_>, lot: &Arc<TokenFamily>) -> StoredGrant {
        let left = grant.ends_millis.saturating_sub(self.wall_millis);
        let monotonic = self.since_start_millis.saturating_add(left);
        StoredGrant {
            lot: Arc::clone(lot),
            due: Second::try_from(monotonic / 1000 + 1).unwrap_or(Second::MAX - 1),
            ends: PackedDeadline::new(monotonic, grant.ends_millis),
            flags: GrantFlags::new(grant.role),
        }
    }
}
