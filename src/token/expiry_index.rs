//! Which token expires when. The entries tell the sweep where to look; whether a token is live is
//! decided by its grant. Ordered trees, so that insertion, removal and finding the next entry are
//! all cheap, and none of them ever moves millions of entries at once.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, RangeInclusive};
use std::sync::Arc;

use super::token_family::{Second, Tag, TokenFamily};

/// Where and when the sweep must examine a token. Two tokens may share one entry: it stays until
/// both are removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ExpiryEntry {
    pub(super) family: u32,
    pub(super) due: Second,
    pub(super) tag: Tag,
}

impl ExpiryEntry {
    /// Sort key among the entries of one family.
    fn rank(&self) -> u64 {
        (u64::from(self.due) << 32) | u64::from(self.tag)
    }

    /// The range of a family's entries due until then.
    fn of(family: u32, until: Second) -> RangeInclusive<Self> {
        let (first, last) = ((0, Tag::MIN), (until, Tag::MAX));
        let [first, last] = [first, last].map(|(due, tag)| Self { family, due, tag });
        first..=last
    }
}

/// Sorts the entries of families whose ids are at most `latest`: a counting sort by family, then
/// each family by rank.
pub(super) fn sort_entries(parts: &[Vec<ExpiryEntry>], latest: u32) -> Vec<ExpiryEntry> {
    let mut starts = vec![0; latest as usize + 2];
    for entry in parts.iter().flatten() {
        starts[entry.family as usize + 1] += 1;
    }
    for family in 1..starts.len() {
        starts[family] += starts[family - 1];
    }
    let count = parts.iter().map(Vec::len).sum();
    let mut all = vec![ExpiryEntry::default(); count];
    for entry in parts.iter().flatten() {
        let next = &mut starts[entry.family as usize];
        all[*next] = *entry;
        *next += 1;
    }
    for family in all.chunk_by_mut(|one, next| one.family == next.family) {
        family.sort_unstable_by_key(ExpiryEntry::rank);
    }
    all
}

/// The expiry entries of one shard's tokens.
#[derive(Debug, Default)]
pub(super) struct ExpiryIndex {
    tokens: BTreeSet<ExpiryEntry>,
    /// Each family, at the second when its first token is due, or earlier if that token was
    /// removed.
    families: BTreeMap<(Second, u32), Arc<TokenFamily>>,
}

impl ExpiryIndex {
    pub(super) fn add(&mut self, family: &Arc<TokenFamily>, due: Second, tag: Tag) {
        self.tokens.insert(ExpiryEntry {
            family: family.id,
            due,
            tag,
        });
        if due < family.soonest() {
            self.move_family(family, due);
        }
    }

    /// An index of sorted entries, and of each family at the second when its first token is due.
    pub(super) fn from_sorted(
        entries: Vec<ExpiryEntry>,
        families: impl Iterator<Item = Arc<TokenFamily>>,
    ) -> Self {
        Self {
            tokens: entries.into_iter().collect(),
            families: families
                .map(|family| ((family.soonest(), family.id), family))
                .collect(),
        }
    }

    pub(super) fn remove(&mut self, entry: ExpiryEntry) {
        self.tokens.remove(&entry);
    }

    /// A family with a token that is due.
    pub(super) fn due_family(&self, now: Second) -> Option<Arc<TokenFamily>> {
        let ((second, _), family) = self.families.first_key_value()?;
        (*second <= now).then(|| Arc::clone(family))
    }

    /// Up to `max` entries of a family that are due until then.
    pub(super) fn of(&self, family: &TokenFamily, until: Second, max: usize) -> Vec<ExpiryEntry> {
        let entries = self.tokens.range(ExpiryEntry::of(family.id, until));
        entries.take(max).copied().collect()
    }

    /// Up to `max` entries in order, from the first one or after `last`.
    pub(super) fn after(&self, last: Option<ExpiryEntry>, max: usize) -> Vec<ExpiryEntry> {
        let from = last.map_or(Bound::Unbounded, Bound::Excluded);
        let entries = self.tokens.range((from, Bound::Unbounded));
        entries.take(max).copied().collect()
    }

    /// The family's entry after `after`; its first one if there is none, or if `after` is None.
    pub(super) fn next_entry(
        &self,
        family: &TokenFamily,
        after: Option<ExpiryEntry>,
    ) -> Option<ExpiryEntry> {
        let all = ExpiryEntry::of(family.id, Second::MAX);
        let (first, last) = all.into_inner();
        let after = after.filter(|after| *after >= first && *after < last);
        let rest = after.and_then(|after| {
            let rest = (Bound::Excluded(after), Bound::Included(last));
            self.tokens.range(rest).next()
        });
        rest.or_else(|| self.tokens.range(first..=last).next())
            .copied()
    }

    /// When the next token of any family is due.
    pub(super) fn soonest(&self) -> Option<Second> {
        self.families
            .first_key_value()
            .map(|((second, _), _)| *second)
    }

    /// Schedules the family for when its next token is due.
    pub(super) fn reschedule(&mut self, family: &Arc<TokenFamily>) {
        let next = self
            .tokens
            .range(ExpiryEntry::of(family.id, Second::MAX))
            .next();
        let next = next.map_or(Second::MAX, |entry| entry.due);
        if next != family.soonest() {
            self.move_family(family, next);
        }
    }

    /// Takes the family off the schedule; its entries stay.
    pub(super) fn forget_family(&mut self, family: &TokenFamily) {
        self.families.remove(&(family.soonest(), family.id));
        family.set_soonest(Second::MAX);
    }

    fn move_family(&mut self, family: &Arc<TokenFamily>, due: Second) {
        self.forget_family(family);
        family.set_soonest(due);
        if due < Second::MAX {
            self.families.insert((due, family.id), Arc::clone(family));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    pub(super) fn has_family(&self, id: u32) -> bool {
        let mut entries = self.tokens.range(ExpiryEntry::of(id, Second::MAX));
        entries.next().is_some()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn entries_of_several_threads_are_sorted(
            parts in vec(vec((1..=20u32, 0..9u32, any::<u32>()), 0..60), 0..4),
        ) {
            let entry = |(family, due, tag)| ExpiryEntry { family, due, tag };
            let parts: Vec<Vec<ExpiryEntry>> = parts
                .into_iter()
                .map(|part| part.into_iter().map(entry).collect())
                .collect();
            let mut expected = parts.concat();
            expected.sort();
            prop_assert_eq!(sort_entries(&parts, 20), expected);
        }
    }
}
