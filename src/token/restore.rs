//! Takes back the grants of a former run, many at once, by several threads if there are
//! that many. Loaded in the order of their digests they fill one shard of the table after
//! the other; a user is looked up once; the order of what is due is built in one go.

use std::fmt;
use std::sync::Arc;

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
    /// The user's, and nobody else's, in this restore. Small numbers are best.
    pub number: u32,
    pub role: Option<Role>,
    /// Its end on the wall clock, in milliseconds since 1970.
    pub ends_millis: u64,
}

/// A restore under way, or one thread's part of it; when it is dropped, what was taken in
/// is looked after. No login, logout or sweep may run beside it, other parts may. The caps
/// do not count: nobody loses a live token to a restart.
pub struct Restore {
    memory: Arc<Memory>,
    is_known: Arc<IsKnown>,
    /// Now, on both clocks, once for all.
    since_start_millis: u64,
    wall_millis: u64,
    /// By number.
    users: Vec<User>,
    pile: Vec<Row>,
    hints: Vec<Vec<Hint>>,
    taken: usize,
}

#[derive(Clone, Debug, Default)]
enum User {
    #[default]
    Unseen,
    /// Its tokens are not wanted.
    Unknown,
    Known {
        lot: Arc<Lot>,
        count: u32,
    },
}

impl User {
    fn lot(&self) -> Option<&Arc<Lot>> {
        match self {
            Self::Known { lot, .. } => Some(lot),
            Self::Unseen | Self::Unknown => None,
        }
    }
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
            .field("taken", &self.taken)
            .finish_non_exhaustive()
    }
}

impl TokenStore {
    pub fn restore(&self) -> Restore {
        Restore::new(&self.memory, Arc::new(|_: &str| true))
    }
}

impl Restore {
    pub(super) fn new(memory: &Arc<Memory>, is_known: Arc<IsKnown>) -> Self {
        Self {
            is_known,
            since_start_millis: memory.millis(),
            wall_millis: clock::unix_millis(),
            users: Vec::new(),
            pile: Vec::new(),
            hints: vec![Vec::new(); usize::from(SHARDS)],
            taken: 0,
            memory: Arc::clone(memory),
        }
    }

    pub fn take(&mut self, kept: Kept<'_>) {
        let left = kept.ends_millis.saturating_sub(self.wall_millis);
        if left == 0 || !self.count_in(&kept) {
            return;
        }
        let monotonic = self.since_start_millis.saturating_add(left);
        let row = Row {
            digest: kept.digest,
            user: kept.number,
            due: Second::try_from(monotonic / 1000 + 1).unwrap_or(Second::MAX - 1),
            ends: PackedDeadline::new(monotonic, kept.ends_millis),
            role: kept.role,
        };
        let table = &self.memory.table;
        if self.pile.len() >= PILE
            && let Some(last) = self.pile.last()
            && !table.are_together(&last.digest, &row.digest)
        {
            self.put();
        }
        self.pile.push(row);
    }

    /// The user has one more; false: it is nobody's that is known.
    fn count_in(&mut self, kept: &Kept<'_>) -> bool {
        let place = kept.number as usize;
        if self.users.len() <= place {
            self.users.resize(place + 1, User::Unseen);
        }
        let user = &mut self.users[place];
        if matches!(user, User::Unseen) {
            *user = match (self.is_known)(kept.user) {
                true => User::Known {
                    lot: self.memory.holders.lot_to_fill(kept.user),
                    count: 0,
                },
                false => User::Unknown,
            };
        }
        let User::Known { count, .. } = user else {
            return false;
        };
        *count += 1;
        true
    }

    /// Twice over the pile: first only reading, so that the processor fetches many users'
    /// lots at a time; then counting references, which it does strictly one by one.
    fn put(&mut self) {
        for row in &self.pile {
            let Some(lot) = self.users[row.user as usize].lot() else {
                continue;
            };
            self.hints[usize::from(lot.shard)].push(Hint {
                lot: lot.id,
                due: row.due,
                tag: row.digest.tag(),
            });
        }
        let mut tokens = Vec::with_capacity(self.pile.len());
        for row in self.pile.drain(..) {
            let Some(lot) = self.users[row.user as usize].lot() else {
                continue;
            };
            let stored = Stored {
                lot: Arc::clone(lot),
                due: row.due,
                ends: row.ends,
                role: row.role,
            };
            tokens.push((row.digest, stored));
        }
        self.taken += tokens.len();
        for again in self.memory.table.add_all(&mut tokens) {
            // Twice in the store, which no store of ours has.
            self.taken -= 1;
            for user in &mut self.users {
                if let User::Known { lot, count } = user
                    && Arc::ptr_eq(lot, &again.lot)
                {
                    *count -= 1;
                }
            }
        }
    }
}

impl Drop for Restore {
    fn drop(&mut self) {
        self.put();
        for user in &self.users {
            if let User::Known { lot, count } = user {
                self.memory.holders.count_filled(lot, *count);
            }
        }
        for (place, hints) in (0..SHARDS).zip(self.hints.drain(..)) {
            let mut shard = self.memory.holders.shard(place);
            shard.due.load(hints);
            shard.settle_all();
        }
        self.memory.count_restored(self.taken);
    }
}
