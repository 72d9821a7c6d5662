//! Takes back the grants of a former run, many at once, by several threads if there are
//! that many. Loaded in the order of their digests they fill one shard of the table after
//! the other; a user is looked up once; the order of what is due is built in one go.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use super::due::{Hint, Second};
use super::holders::{Lot, SHARDS};
use super::memory::Memory;
use super::table::Stored;
use super::{TokenDigest, TokenStore};
use crate::clock::{self, PackedDeadline};
use crate::hashed::BuildAsItIs;
use crate::webapp::Role;

/// Whether a user's tokens are wanted.
pub(super) type IsKnown = dyn Fn(&str) -> bool + Send + Sync;

/// Tokens put into the table at once, at least; more if they go into one shard.
const PILE: usize = 4096;

/// A grant of a former run. What was revoked meanwhile is not among them.
#[derive(Clone, Copy, Debug)]
pub struct Kept<'a> {
    pub digest: TokenDigest,
    pub user: &'a Arc<str>,
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
    /// By where a user's name lies in memory: kept here, it lies there alone.
    users: HashMap<u64, User, BuildAsItIs>,
    pile: Vec<(TokenDigest, Stored)>,
    hints: Vec<Vec<Hint>>,
    taken: usize,
}

#[derive(Debug)]
struct User {
    _name: Arc<str>,
    /// None: not wanted.
    lot: Option<Arc<Lot>>,
    count: u32,
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
            users: HashMap::default(),
            pile: Vec::new(),
            hints: vec![Vec::new(); usize::from(SHARDS)],
            taken: 0,
            memory: Arc::clone(memory),
        }
    }

    pub fn take(&mut self, kept: Kept<'_>) {
        let left = kept.ends_millis.saturating_sub(self.wall_millis);
        if left == 0 {
            return;
        }
        let Some(lot) = self.lot_of(kept.user) else {
            return;
        };
        let monotonic = self.since_start_millis.saturating_add(left);
        let due = Second::try_from(monotonic / 1000 + 1).unwrap_or(Second::MAX - 1);
        let stored = Stored {
            lot,
            due,
            ends: PackedDeadline::new(monotonic, kept.ends_millis),
            role: kept.role,
        };
        let hints = &mut self.hints[usize::from(stored.lot.shard)];
        hints.push(stored.hint(&kept.digest));
        let table = &self.memory.table;
        if self.pile.len() >= PILE
            && let Some((last, _)) = self.pile.last()
            && !table.are_together(last, &kept.digest)
        {
            self.put();
        }
        self.pile.push((kept.digest, stored));
    }

    fn lot_of(&mut self, name: &Arc<str>) -> Option<Arc<Lot>> {
        let address = name.as_ptr().addr() as u64;
        let place = address.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let user = self.users.entry(place).or_insert_with(|| User {
            _name: Arc::clone(name),
            lot: (self.is_known)(name).then(|| self.memory.holders.lot_to_fill(name)),
            count: 0,
        });
        user.count += 1;
        user.lot.clone()
    }

    fn put(&mut self) {
        self.taken += self.pile.len();
        for known in self.memory.table.add_all(&mut self.pile) {
            // Twice in the store, which no store of ours has.
            self.taken -= 1;
            let is_whose = |user: &&mut User| {
                let lot = user.lot.as_ref();
                lot.is_some_and(|lot| Arc::ptr_eq(lot, &known.lot))
            };
            if let Some(user) = self.users.values_mut().find(is_whose) {
                user.count -= 1;
            }
        }
    }
}

impl Drop for Restore {
    fn drop(&mut self) {
        self.put();
        for user in self.users.values() {
            if let Some(lot) = &user.lot {
                self.memory.holders.count_filled(lot, user.count);
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
