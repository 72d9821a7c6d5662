//! Takes back the grants of a former run, many at once: the order of what is due is
//! built in one go, shard by shard.

use std::sync::Arc;

use super::due::{Hint, Second};
use super::holders::{Lot, SHARDS};
use super::memory::Memory;
use super::table::Stored;
use super::{TokenDigest, TokenStore};
use crate::clock::{self, PackedDeadline};
use crate::webapp::Role;

/// A grant of a former run. What was revoked meanwhile is not among them.
#[derive(Clone, Copy, Debug)]
pub struct Kept<'a> {
    pub digest: TokenDigest,
    pub user: &'a str,
    pub role: Option<Role>,
    /// Its end on the wall clock, in milliseconds since 1970.
    pub ends_millis: u64,
}

/// A restore under way; when it is dropped, what was taken in is looked after. No
/// login, logout or sweep may run beside it. The caps do not count: nobody loses a
/// live token to a restart.
#[derive(Debug)]
pub struct Restore {
    memory: Arc<Memory>,
    /// Now, on both clocks, once for all.
    since_start_millis: u64,
    wall_millis: u64,
    latest: Option<Arc<Lot>>,
    hints: Vec<Vec<Hint>>,
    taken: usize,
}

impl TokenStore {
    pub fn restore(&self) -> Restore {
        Restore {
            memory: Arc::clone(&self.memory),
            since_start_millis: self.memory.millis(),
            wall_millis: clock::unix_millis(),
            latest: None,
            hints: vec![Vec::new(); usize::from(SHARDS)],
            taken: 0,
        }
    }
}

impl Restore {
    pub fn take(&mut self, kept: Kept<'_>) {
        let left = kept.ends_millis.saturating_sub(self.wall_millis);
        if left == 0 {
            return;
        }
        let monotonic = self.since_start_millis.saturating_add(left);
        let due = Second::try_from(monotonic / 1000 + 1).unwrap_or(Second::MAX - 1);
        let lot = self.lot_of(kept.user);
        let stored = Stored {
            lot: Arc::clone(&lot),
            due,
            ends: PackedDeadline::new(monotonic, kept.ends_millis),
            role: kept.role,
        };
        let hint = stored.hint(&kept.digest);
        if self.memory.table.add(kept.digest, stored) {
            self.memory.holders.of_lot(&lot).count_in(&lot);
            self.hints[usize::from(lot.shard)].push(hint);
            self.taken += 1;
        }
    }

    fn lot_of(&mut self, user: &str) -> Arc<Lot> {
        match &self.latest {
            Some(lot) if *lot.name == *user => Arc::clone(lot),
            _ => {
                let lot = self.memory.holders.of_user(user).lot_for(user);
                self.latest = Some(Arc::clone(&lot));
                lot
            }
        }
    }
}

impl Drop for Restore {
    fn drop(&mut self) {
        for (place, hints) in (0..SHARDS).zip(self.hints.drain(..)) {
            let mut shard = self.memory.holders.shard(place);
            shard.due.load(hints);
            shard.settle_all();
        }
        self.memory.count_restored(self.taken);
    }
}
