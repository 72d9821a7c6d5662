//! Removes dead grants from the disk, some thousand rows per transaction, along with other
//! changes. A run goes through all rows in order, so each page is written once however many of its
//! rows are dead; it starts when enough rows have died.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use redb::{ReadableTableMetadata as _, WriteTransaction};
use tokio::time::Instant;

use super::tables::{GRANTS, GrantRow, PREFIXES, start_of};
use crate::clock;

/// Rows per transaction, approximately.
const SLICE: u64 = 2048;
/// A run starts when this many rows are dead, and this share of all rows.
const MIN_DEAD: u64 = 1024;
const MIN_SHARE: u64 = 16;
/// A run for fewer rows starts after this time.
const MAX_DELAY: Duration = Duration::from_secs(600);

#[derive(Debug)]
pub(super) struct Vacuum {
    /// Rows that died since the last run began.
    dead: u64,
    /// Users with rows of an earlier epoch, and the epoch from which their rows are live.
    ended: HashMap<u32, u64>,
    running: Option<VacuumPosition>,
    last: Instant,
}

#[derive(Debug)]
struct VacuumPosition {
    prefix: u64,
    /// `ended` when the run began; removed from it at the end.
    ended: HashMap<u32, u64>,
}

/// The result of one slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct VacuumSlice {
    next: u64,
    removed: u64,
}

impl Vacuum {
    pub(super) fn new() -> Self {
        Self {
            dead: 0,
            ended: HashMap::new(),
            running: None,
            last: Instant::now(),
        }
    }

    pub(super) fn add_dead(&mut self, count: u64) {
        self.dead = self.dead.saturating_add(count);
    }

    /// Adds users whose epoch has changed.
    pub(super) fn add_ended(&mut self, token_users: &[(u32, u64)]) {
        self.ended.extend(token_users.iter().copied());
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Begins a run if enough of `rows` rows are dead.
    pub(super) fn start_if_due(&mut self, rows: u64) {
        let many = self.dead >= MIN_DEAD.max(rows / MIN_SHARE);
        let long = self.dead > 0 && self.last.elapsed() >= MAX_DELAY;
        if self.running.is_none() && (many || long) {
            self.dead = 0;
            self.running = Some(VacuumPosition {
                prefix: 0,
                ended: self.ended.clone(),
            });
        }
    }

    /// Removes the dead rows of the next slice; None: no run is in progress.
    pub(super) fn slice(&self, txn: &WriteTransaction) -> Result<Option<VacuumSlice>, redb::Error> {
        let Some(position) = &self.running else {
            return Ok(None);
        };
        let mut table = txn.open_table(GRANTS)?;
        let rows = table.len()?;
        let slices = (rows / SLICE).clamp(1, PREFIXES);
        let next = (position.prefix + PREFIXES.div_ceil(slices)).min(PREFIXES);
        let now = clock::unix_millis();
        let is_live = |bytes: &[u8; GrantRow::BYTES]| {
            // Keeps rows of an unknown form: a newer version may have written them.
            GrantRow::decode(bytes).is_none_or(|grant| self.is_live(&grant, now))
        };
        let first = start_of(position.prefix);
        if next == PREFIXES {
            table.retain_in::<&[u8; 32], _>(&first.., |_, bytes| is_live(bytes))?;
        } else {
            let end = start_of(next);
            table.retain_in::<&[u8; 32], _>(&first..&end, |_, bytes| is_live(bytes))?;
        }
        let removed = rows - table.len()?;
        Ok(Some(VacuumSlice { next, removed }))
    }

    /// Removes all dead rows at once; collects the users of the rows that are left.
    pub(super) fn remove_all(
        &self,
        txn: &WriteTransaction,
        token_users: &mut BTreeSet<u32>,
    ) -> Result<u64, redb::Error> {
        let mut table = txn.open_table(GRANTS)?;
        let rows = table.len()?;
        let now = clock::unix_millis();
        table.retain(|_, bytes| {
            let Some(grant) = GrantRow::decode(bytes) else {
                return true;
            };
            let is_live = self.is_live(&grant, now);
            if is_live {
                token_users.insert(grant.token_user);
            }
            is_live
        })?;
        Ok(rows - table.len()?)
    }

    fn is_live(&self, grant: &GrantRow, now: u64) -> bool {
        let from = self.ended.get(&grant.token_user).copied().unwrap_or(0);
        grant.ends_millis > now && grant.epoch >= from
    }

    /// To be called when the slice has been committed.
    pub(super) fn commit_slice(&mut self, slice: VacuumSlice) {
        let Some(position) = &mut self.running else {
            return;
        };
        position.prefix = slice.next;
        if slice.next < PREFIXES {
            return;
        }
        let done = self.running.take().map(|position| position.ended);
        for (token_user, epoch) in done.unwrap_or_default() {
            if self.ended.get(&token_user) == Some(&epoch) {
                self.ended.remove(&token_user);
            }
        }
        self.last = Instant::now();
    }
}

impl VacuumSlice {
    pub(super) fn removed(self) -> u64 {
        self.removed
    }
}
