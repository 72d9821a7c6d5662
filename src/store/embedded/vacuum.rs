//! Takes dead grants off the disk, some thousand rows at a time, along with whatever
//! else is committed. A walk goes through all rows in order, so each page is written
//! once however many of its rows died; it begins when enough of them have.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use redb::{ReadableTableMetadata as _, WriteTransaction};
use tokio::time::Instant;

use super::tables::{GRANTS, GrantRow, PREFIXES, start_of};
use crate::clock;

/// Rows looked at in one transaction, about.
const SLICE: u64 = 2048;
/// Dead rows that are worth a walk: so many, and this share of all.
const FEW: u64 = 1024;
const SHARE: u64 = 16;
/// Fewer wait this long.
const PATIENCE: Duration = Duration::from_secs(600);

#[derive(Debug)]
pub(super) struct Vacuum {
    /// Rows that died since the last walk began.
    dead: u64,
    /// Holders with rows of an earlier epoch, and the epoch from which they live.
    ended: HashMap<u32, u64>,
    under_way: Option<VacuumPosition>,
    last: Instant,
}

#[derive(Debug)]
struct VacuumPosition {
    prefix: u64,
    /// As `ended` was at the beginning: done with at the end.
    ended: HashMap<u32, u64>,
}

/// What one slice came to.
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
            under_way: None,
            last: Instant::now(),
        }
    }

    pub(super) fn add_dead(&mut self, count: u64) {
        self.dead = self.dead.saturating_add(count);
    }

    /// The epochs of these holders have moved.
    pub(super) fn ended(&mut self, holders: &[(u32, u64)]) {
        self.ended.extend(holders.iter().copied());
    }

    pub(super) fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// Begins a walk if one is worth it, among `rows` rows.
    pub(super) fn consider(&mut self, rows: u64) {
        let many = self.dead >= FEW.max(rows / SHARE);
        let long = self.dead > 0 && self.last.elapsed() >= PATIENCE;
        if self.under_way.is_none() && (many || long) {
            self.dead = 0;
            self.under_way = Some(VacuumPosition {
                prefix: 0,
                ended: self.ended.clone(),
            });
        }
    }

    /// Removes what is dead in the next slice; None when no walk is under way.
    pub(super) fn slice(&self, txn: &WriteTransaction) -> Result<Option<VacuumSlice>, redb::Error> {
        let Some(position) = &self.under_way else {
            return Ok(None);
        };
        let mut table = txn.open_table(GRANTS)?;
        let rows = table.len()?;
        let slices = (rows / SLICE).clamp(1, PREFIXES);
        let next = (position.prefix + PREFIXES.div_ceil(slices)).min(PREFIXES);
        let now = clock::unix_millis();
        let is_live = |bytes: &[u8; GrantRow::BYTES]| {
            // What cannot be read was not written by us, and is not ours to remove.
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

    /// Removes everything dead at once; notes whose grants are left.
    pub(super) fn all(
        &self,
        txn: &WriteTransaction,
        holders: &mut BTreeSet<u32>,
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
                holders.insert(grant.holder);
            }
            is_live
        })?;
        Ok(rows - table.len()?)
    }

    fn is_live(&self, grant: &GrantRow, now: u64) -> bool {
        let from = self.ended.get(&grant.holder).copied().unwrap_or(0);
        grant.ends_millis > now && grant.epoch >= from
    }

    /// The slice has been committed.
    pub(super) fn done(&mut self, slice: VacuumSlice) {
        let Some(position) = &mut self.under_way else {
            return;
        };
        position.prefix = slice.next;
        if slice.next < PREFIXES {
            return;
        }
        let done = self.under_way.take().map(|position| position.ended);
        for (holder, epoch) in done.unwrap_or_default() {
            if self.ended.get(&holder) == Some(&epoch) {
                self.ended.remove(&holder);
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
