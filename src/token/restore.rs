//! Takes back the grants of a former run, many at once, by several threads if there are
//! that many. Loaded in the order of their digests they fill one shard of the table after
//! the other; a user is looked up once; the order of what is due is built in one go.

use std::fmt;
use std::sync::{Arc, OnceLock};

use super::due::{Hint, Second};
use super::holders::{Lot, SHARDS};
use super::memory::Memory;
use super::table::Stored;
use super::{TokenDigest, TokenStore};
use crate::clock::{self, PackedDeadline};
use crate::webapp::Role;

/// Whether a user's tokens are wanted.
pub(super) type IsKnown = dyn Fn(&str) -> bool + Send + Sync;

/// Tokens put into the table at once, at least; more if they go into one shard. What they
/// touch fits into a core's own cache.
const PILE: usize = 4096;

/// A grant of a former run. What was revoked meanwhile is not among them.
#[derive(Clone, Copy, Debug)]
pub struct Kept<'a> {
    pub digest: TokenDigest,
    /// By reference to the reference: only a user's first token has its name read.
    pub user: &'a Arc<str>,
    /// The user's, and nobody else's, in this restore.
    pub number: u32,
    pub role: Option<Role>,
    /// Its end on the wall clock, in milliseconds since 1970.
    pub ends_millis: u64,
}

/// A restore under way. No login, logout or sweep may run beside it. The caps do not count:
/// nobody loses a live token to a restart.
pub struct Restore {
    memory: Arc<Memory>,
    is_known: Arc<IsKnown>,
    /// Now, on both clocks, once for all.
    since_start_millis: u64,
    wall_millis: u64,
    /// By number, once one of their tokens has been met; None: they are not wanted.
    lots: Vec<OnceLock<Option<Arc<Lot>>>>,
}

/// What one thread brings; when it is dropped, it is looked after.
pub struct RestorePart {
    whole: Arc<Restore>,
    pile: Vec<Row>,
    hints: Vec<Vec<Hint>>,
    taken: usize,
}

/// A token on its way into the table.
#[derive(Debug)]
struct Row {
    digest: TokenDigest,
    user: u32,
    due: Second,
    ends: PackedDeadline,
    role: Option<Role>,
}

impl fmt::Debug for Restore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Restore")
            .field("users", &self.lots.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for RestorePart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RestorePart")
            .field("taken", &self.taken)
            .finish_non_exhaustive()
    }
}

impl TokenStore {
    /// Of users whose numbers are below `users`.
    pub fn restore(&self, users: usize) -> Arc<Restore> {
        Arc::new(Restore::new(&self.memory, Arc::new(|_: &str| true), users))
    }
}

impl Restore {
    pub(super) fn new(memory: &Arc<Memory>, is_known: Arc<IsKnown>, users: usize) -> Self {
        Self {
            is_known,
            since_start_millis: memory.millis(),
            wall_millis: clock::unix_millis(),
            lots: (0..users).map(|_| OnceLock::new()).collect(),
            memory: Arc::clone(memory),
        }
    }

    pub fn part(self: &Arc<Self>) -> RestorePart {
        RestorePart {
            whole: Arc::clone(self),
            pile: Vec::new(),
            hints: vec![Vec::new(); usize::from(SHARDS)],
            taken: 0,
        }
    }

    fn row(&self, kept: &Kept<'_>) -> Row {
        let left = kept.ends_millis.saturating_sub(self.wall_millis);
        let monotonic = self.since_start_millis.saturating_add(left);
        Row {
            digest: kept.digest,
            user: kept.number,
            due: Second::try_from(monotonic / 1000 + 1).unwrap_or(Second::MAX - 1),
            ends: PackedDeadline::new(monotonic, kept.ends_millis),
            role: kept.role,
        }
    }

    /// The lot the token goes into; None: it is nobody's that is known.
    fn lot(&self, row: &Row) -> Option<&Arc<Lot>> {
        self.lots[row.user as usize].get().and_then(Option::as_ref)
    }

    fn meet(&self, kept: &Kept<'_>) {
        self.lots[kept.number as usize].get_or_init(|| {
            let holders = &self.memory.holders;
            (self.is_known)(kept.user).then(|| holders.lot_to_fill(kept.user))
        });
    }
}

impl RestorePart {
    /// Takes many together, so that the processor fetches what is known of many users at a
    /// time. Panics at a number that is not below what was said.
    pub fn take(&mut self, some: &[Kept<'_>]) {
        let whole = Arc::clone(&self.whole);
        let is_live = |kept: &&Kept<'_>| kept.ends_millis > whole.wall_millis;
        for kept in some.iter().filter(is_live) {
            whole.meet(kept);
        }
        for kept in some.iter().filter(is_live) {
            let row = whole.row(kept);
            if self.pile.len() >= PILE
                && let Some(last) = self.pile.last()
                && !whole.memory.table.are_together(&last.digest, &row.digest)
            {
                self.put();
            }
            self.pile.push(row);
        }
    }

    /// Twice over the pile: first only reading, so that the processor fetches many users'
    /// lots at a time; then counting references, which it does strictly one by one.
    fn put(&mut self) {
        let Self { whole, pile, .. } = self;
        for row in &*pile {
            let Some(lot) = whole.lot(row) else { continue };
            self.hints[usize::from(lot.shard)].push(Hint {
                lot: lot.id,
                due: row.due,
                tag: row.digest.tag(),
            });
        }
        let mut tokens = Vec::with_capacity(pile.len());
        for row in pile.drain(..) {
            let Some(lot) = whole.lot(&row) else { continue };
            lot.fill();
            let stored = Stored {
                lot: Arc::clone(lot),
                due: row.due,
                ends: row.ends,
                role: row.role,
            };
            tokens.push((row.digest, stored));
        }
        self.taken += tokens.len();
        for again in whole.memory.table.add_all(&mut tokens) {
            // Twice in the store, which no store of ours has.
            self.taken -= 1;
            again.lot.unfill();
        }
    }
}

impl Drop for RestorePart {
    fn drop(&mut self) {
        self.put();
        let memory = &self.whole.memory;
        for (place, mut hints) in (0..SHARDS).zip(self.hints.drain(..)) {
            // Before the lock is taken. From a file the tags come in order by themselves;
            // a tree built from what is in order is twice as dense.
            hints.sort_by_key(Hint::rank);
            let hints = hints.into_iter().collect();
            let mut shard = memory.holders.shard(place);
            shard.due.load(hints);
            shard.settle_all();
        }
        memory.count_restored(self.taken);
    }
}
