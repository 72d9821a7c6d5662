//! Which token ends when: hints for the sweep, never the verdict. Ordered trees, so
//! that adding, removing and taking the next are all cheap, and none of them ever
//! stops to move millions.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, RangeInclusive};
use std::sync::Arc;

use super::grant_table::Tag;
use super::user_index::TokenFamily;

/// Seconds since the store was made, on the monotonic clock.
pub(super) type Second = u32;

/// Says where to look for a token, and when. Two tokens may share one hint: it stays
/// until the last of them is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ExpiryEntry {
    pub(super) lot: u32,
    pub(super) due: Second,
    pub(super) tag: Tag,
}

impl ExpiryEntry {
    /// Its place in the order of those of one lot, as one number.
    fn rank(&self) -> u64 {
        (u64::from(self.due) << 32) | u64::from(self.tag)
    }

    /// Those of a lot that are due by then.
    fn of(lot: u32, until: Second) -> RangeInclusive<Self> {
        let (first, last) = ((0, Tag::MIN), (until, Tag::MAX));
        let [first, last] = [first, last].map(|(due, tag)| Self { lot, due, tag });
        first..=last
    }
}

/// The hints of lots whose ids are at most `latest`, in order: first brought together by
/// lot, which takes one look at each.
pub(super) fn in_order(some: &[Vec<ExpiryEntry>], latest: u32) -> Vec<ExpiryEntry> {
    let mut places = vec![0; latest as usize + 2];
    for hint in some.iter().flatten() {
        places[hint.lot as usize + 1] += 1;
    }
    for lot in 1..places.len() {
        places[lot] += places[lot - 1];
    }
    let count = some.iter().map(Vec::len).sum();
    let mut all = vec![ExpiryEntry::default(); count];
    for hint in some.iter().flatten() {
        let place = &mut places[hint.lot as usize];
        all[*place] = *hint;
        *place += 1;
    }
    for of_one in all.chunk_by_mut(|one, next| one.lot == next.lot) {
        of_one.sort_unstable_by_key(ExpiryEntry::rank);
    }
    all
}

/// The hints of some users' tokens.
#[derive(Debug, Default)]
pub(super) struct ExpiryIndex {
    tokens: BTreeSet<ExpiryEntry>,
    /// Each lot at the second its first token is due; sooner where that one is gone.
    lots: BTreeMap<(Second, u32), Arc<TokenFamily>>,
}

impl ExpiryIndex {
    pub(super) fn add(&mut self, lot: &Arc<TokenFamily>, due: Second, tag: Tag) {
        self.tokens.insert(ExpiryEntry {
            lot: lot.id,
            due,
            tag,
        });
        if due < lot.soonest() {
            self.move_lot(lot, due);
        }
    }

    /// All that there is, in order; and each lot at the second its first token is due.
    pub(super) fn of_all(
        hints: Vec<ExpiryEntry>,
        lots: impl Iterator<Item = Arc<TokenFamily>>,
    ) -> Self {
        Self {
            tokens: hints.into_iter().collect(),
            lots: lots.map(|lot| ((lot.soonest(), lot.id), lot)).collect(),
        }
    }

    pub(super) fn remove(&mut self, hint: ExpiryEntry) {
        self.tokens.remove(&hint);
    }

    /// A lot that has something due.
    pub(super) fn lot(&self, now: Second) -> Option<Arc<TokenFamily>> {
        let ((second, _), lot) = self.lots.first_key_value()?;
        (*second <= now).then(|| Arc::clone(lot))
    }

    /// Up to `most` hints of a lot that are due by then.
    pub(super) fn of(&self, lot: &TokenFamily, until: Second, most: usize) -> Vec<ExpiryEntry> {
        let hints = self.tokens.range(ExpiryEntry::of(lot.id, until));
        hints.take(most).copied().collect()
    }

    /// Up to `most` hints in their order, from the first or from one that was seen last.
    pub(super) fn after(&self, last: Option<ExpiryEntry>, most: usize) -> Vec<ExpiryEntry> {
        let from = last.map_or(Bound::Unbounded, Bound::Excluded);
        let hints = self.tokens.range((from, Bound::Unbounded));
        hints.take(most).copied().collect()
    }

    /// The lot's hint after another one; after the last, or after none, its first.
    pub(super) fn next_of(
        &self,
        lot: &TokenFamily,
        after: Option<ExpiryEntry>,
    ) -> Option<ExpiryEntry> {
        let all = ExpiryEntry::of(lot.id, Second::MAX);
        let (first, last) = all.into_inner();
        let after = after.filter(|after| *after >= first && *after < last);
        let rest = after.and_then(|after| {
            let rest = (Bound::Excluded(after), Bound::Included(last));
            self.tokens.range(rest).next()
        });
        rest.or_else(|| self.tokens.range(first..=last).next())
            .copied()
    }

    /// When the first token of all is due.
    pub(super) fn soonest(&self) -> Option<Second> {
        self.lots.first_key_value().map(|((second, _), _)| *second)
    }

    /// The lot is looked at again when its next token is due.
    pub(super) fn settle(&mut self, lot: &Arc<TokenFamily>) {
        let next = self
            .tokens
            .range(ExpiryEntry::of(lot.id, Second::MAX))
            .next();
        let next = next.map_or(Second::MAX, |hint| hint.due);
        if next != lot.soonest() {
            self.move_lot(lot, next);
        }
    }

    /// The lot is not looked at again; its hints stay.
    pub(super) fn forget_lot(&mut self, lot: &TokenFamily) {
        self.lots.remove(&(lot.soonest(), lot.id));
        lot.set_soonest(Second::MAX);
    }

    fn move_lot(&mut self, lot: &Arc<TokenFamily>, due: Second) {
        self.forget_lot(lot);
        lot.set_soonest(due);
        if due < Second::MAX {
            self.lots.insert((due, lot.id), Arc::clone(lot));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    pub(super) fn has_lot(&self, id: u32) -> bool {
        let mut hints = self.tokens.range(ExpiryEntry::of(id, Second::MAX));
        hints.next().is_some()
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
        fn what_many_have_brought_comes_in_order(
            parts in vec(vec((1..=20u32, 0..9u32, any::<u32>()), 0..60), 0..4),
        ) {
            let hint = |(lot, due, tag)| ExpiryEntry { lot, due, tag };
            let parts: Vec<Vec<ExpiryEntry>> = parts
                .into_iter()
                .map(|part| part.into_iter().map(hint).collect())
                .collect();
            let mut wanted = parts.concat();
            wanted.sort();
            prop_assert_eq!(in_order(&parts, 20), wanted);
        }
    }
}
