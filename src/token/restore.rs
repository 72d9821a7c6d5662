//! Restores the grants of the last run, on several threads. In the order of their digests they
//! fill one shard of the table after the other. All users come first; they enter the user index at
//! the end, one shard at a time, so that meanwhile a token needs only its family's index and one
//! reference.

use std::fmt;
use std::hint::black_box;
use std::ops::BitXor;
use std::sync::Arc;
use std::thread;

use super::expiry_index::ExpiryEntry;
use super::flags::GrantFlags;
use super::grant_table::StoredGrant;
use super::memory::TokenMemory;
use super::token_family::{Second, TokenFamily};
use super::user_index::SHARDS;
use super::{TokenDigest, TokenOrigin, TokenStore};
use crate::clock::{self, PackedDeadline};
use crate::store::{GrantBatchSink, GrantSink, LiveGrant, threads_for};
use parking_lot::Mutex;

/// Whether to load the tokens of this user.
type IsKnown = dyn Fn(&str) -> bool + Send + Sync;

/// Expiry entries by the shard of their families.
type EntriesByShard = Vec<Vec<ExpiryEntry>>;

/// Minimum number of tokens inserted at once; more if they belong to one shard. The memory that
/// one batch touches fits into a core's own cache.
const MIN_BATCH: usize = 4096;

/// Tokens whose families are prefetched together.
const PREFETCH: usize = 128;

/// Loads tokens into an empty store. No login, logout or sweep may run at the same time. Caps do
/// not apply: a restart ends no live token.
pub struct TokenRestore {
    memory: Arc<TokenMemory>,
    origin: TokenOrigin,
    is_known: Box<IsKnown>,
    /// The time of the restore, on both clocks, read once.
    since_start_millis: u64,
    wall_millis: u64,
    /// By the index of the user; None: its tokens are not loaded.
    families: Vec<Option<Arc<TokenFamily>>>,
    /// Entries of the parts that are complete.
    entries: Mutex<Vec<EntriesByShard>>,
}

/// The part of one thread.
struct RestorePart<'a> {
    whole: &'a TokenRestore,
    batch: Vec<RestoredToken>,
    entries: EntriesByShard,
    loaded: usize,
}

/// A token to insert, with the shard and id of its family.
type RestoredToken = (TokenDigest, StoredGrant, (u16, u32));

/// What belongs into one shard of the user index.
#[derive(Default)]
struct ShardShare {
    families: Vec<Arc<TokenFamily>>,
    entries: Vec<Vec<ExpiryEntry>>,
}

impl fmt::Debug for TokenRestore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Restore")
            .field("users", &self.families.len())
            .finish_non_exhaustive()
    }
}

impl TokenStore {
    /// A sink for tokens of this origin whose users `is_known` accepts.
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
            families: Vec::new(),
            entries: Mutex::default(),
            memory,
        }
    }
}

impl GrantSink for TokenRestore {
    /// Creates a family for each user; it enters the index only if it gets a token.
    fn users(&mut self, names: &[Arc<str>]) {
        let Self {
            memory, families, ..
        } = self;
        let is_known = &self.is_known;
        families.resize(names.len(), None);
        let length = names.len().div_ceil(threads_for(names.len())).max(1);
        thread::scope(|scope| {
            for (names, families) in names.chunks(length).zip(families.chunks_mut(length)) {
                let users = &memory.users;
                scope.spawn(move || {
                    for (name, family) in names.iter().zip(families) {
                        *family = is_known(name).then(|| users.family_to_fill(name));
                    }
                });
            }
        });
    }

    fn part(&self) -> GrantBatchSink<'_> {
        let mut part = RestorePart {
            whole: self,
            batch: Vec::new(),
            entries: vec![Vec::new(); usize::from(SHARDS)],
            loaded: 0,
        };
        Box::new(move |grants| part.take(grants))
    }

    fn finish(&mut self) {
        let threads = threads_for(self.families.len().max(self.memory.len()));
        let mut shares: Vec<ShardShare> = Vec::new();
        shares.resize_with(usize::from(SHARDS), ShardShare::default);
        for family in self.families.drain(..).flatten() {
            shares[usize::from(family.shard)].families.push(family);
        }
        let parts = self.entries.get_mut();
        for part in parts.drain(..) {
            for (share, entries) in shares.iter_mut().zip(part) {
                share.entries.push(entries);
            }
        }
        let memory = &self.memory;
        let shares = Mutex::new((0..SHARDS).zip(shares));
        let next = || shares.lock().next();
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while let Some((index, share)) = next() {
                        let mut shard = memory.users.shard(index);
                        shard.insert_families(share.families, &share.entries);
                    }
                });
            }
        });
    }
}

impl RestorePart<'_> {
    /// Two passes over each chunk. The first only touches the families, with as few instructions
    /// as possible, so that the processor fetches many at a time; the second counts references,
    /// which it does strictly one by one.
    fn take(&mut self, grants: &[LiveGrant<'_>]) {
        let whole = self.whole;
        for chunk in grants.chunks(PREFETCH) {
            let families = chunk.iter().map(|grant| {
                let family = whole.families[grant.token_user as usize].as_ref();
                family.filter(|_| grant.origin == whole.origin)
            });
            let families: Vec<Option<&Arc<TokenFamily>>> = families.collect();
            // The reference count may lie on another cache line than the family's fields.
            let touch = |family: &&Arc<TokenFamily>| Arc::strong_count(family) ^ family.id as usize;
            let touched = families.iter().flatten().map(touch);
            black_box(touched.fold(0, BitXor::bitxor));
            for (grant, family) in chunk.iter().zip(families) {
                if let Some(family) = family {
                    let digest = TokenDigest::from(grant.digest);
                    self.push((
                        digest,
                        whole.stored(grant, family),
                        (family.shard, family.id),
                    ));
                }
            }
        }
    }

    fn push(&mut self, row: RestoredToken) {
        let table = &self.whole.memory.table;
        if self.batch.len() >= MIN_BATCH
            && let Some((last, ..)) = self.batch.last()
            && !table.are_in_one_shard(last, &row.0)
        {
            self.flush();
        }
        self.batch.push(row);
    }

    fn flush(&mut self) {
        let table = &self.whole.memory.table;
        let runs = self
            .batch
            .chunk_by(|one, next| table.are_in_one_shard(&one.0, &next.0));
        let runs: Vec<(TokenDigest, usize)> = runs.map(|run| (run[0].0, run.len())).collect();
        let mut rows = self.batch.drain(..);
        for (first, length) in runs {
            let run = rows.by_ref().take(length);
            // A duplicate digest, which no store of ours contains, counts as one token.
            table.insert_run(&first, run, |digest, due, (shard, family)| {
                let tag = digest.tag();
                self.entries[usize::from(shard)].push(ExpiryEntry { family, due, tag });
                self.loaded += 1;
            });
        }
    }
}

impl Drop for RestorePart<'_> {
    fn drop(&mut self) {
        self.flush();
        self.whole.memory.count_restored(self.loaded);
        let entries = std::mem::take(&mut self.entries);
        self.whole.entries.lock().push(entries);
    }
}

impl TokenRestore {
    fn stored(&self, grant: &LiveGrant<'_>, family: &Arc<TokenFamily>) -> StoredGrant {
        let left = grant.ends_millis.saturating_sub(self.wall_millis);
        let monotonic = self.since_start_millis.saturating_add(left);
        StoredGrant {
            family: Arc::clone(family),
            due: Second::try_from(monotonic / 1000 + 1).unwrap_or(Second::MAX - 1),
            ends: PackedDeadline::new(monotonic, grant.ends_millis),
            flags: GrantFlags::new(grant.role),
        }
    }
}
