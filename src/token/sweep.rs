//! Forgets the dead, in short slices, in proportion to what died.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;

use super::TokenStore;
use super::holders::Holder;
use super::memory::Gone;
use crate::lifecycle::Stop;

const EVERY: Duration = Duration::from_secs(1);

/// Tokens looked at between two yields: some hundred microseconds.
const SLICE: usize = 256;

/// How long a deletion is remembered against logins that began before it.
pub(super) const LONGEST_LOGIN: Duration = Duration::from_secs(3600);

/// A difference between the clocks that is a jump, and not drift or rounding.
const JUMP_MILLIS: i64 = 2000;

/// What one slice came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Tokens looked at; 0: nothing is left to do for now.
    pub seen: usize,
    pub removed: usize,
}

impl TokenStore {
    /// One slice: looks at up to `budget` tokens that died, or may have.
    pub fn sweep(&self, budget: usize) -> Swept {
        self.notice_jump(self.memory.clock_offset());
        self.forget_deletions();
        let (revoked, doubtful) = {
            let mut backlog = self.memory.backlog();
            let revoked = take(&mut backlog.revoked, budget);
            let doubtful = take(&mut backlog.doubtful, budget - revoked.len());
            (revoked, doubtful)
        };
        let left = budget - revoked.len() - doubtful.len();
        let due = self.memory.due().take(self.memory.now(), left);
        let mut swept = Swept {
            seen: revoked.len() + doubtful.len() + due.len(),
            removed: 0,
        };
        let revoked = revoked.iter().map(|digest| self.memory.forget_dead(digest));
        let hinted = doubtful.into_iter().chain(due);
        let hinted = hinted.map(|hint| self.memory.review(hint));
        for gone in revoked.chain(hinted) {
            swept.removed += usize::from(gone != Gone::Not);
            self.count_expired(gone);
        }
        swept
    }

    /// A wall clock set forward (or a host woken up) ends tokens that no hint names
    /// yet. One set back needs nothing: the monotonic clock goes on.
    pub(super) fn notice_jump(&self, offset: i64) {
        let assumed = self.memory.offset.load(Ordering::Relaxed);
        if (offset - assumed).abs() < JUMP_MILLIS {
            return;
        }
        self.memory.offset.store(offset, Ordering::Relaxed);
        if offset > assumed {
            let hints = self.memory.due().take_all();
            let hints = hints.into_iter().map(IntoIterator::into_iter);
            self.memory.backlog().doubtful.extend(hints);
        }
    }

    fn forget_deletions(&self) {
        while let Some(holder) = self.oldest_deletion() {
            self.memory.holders().forget_deletion(&holder);
        }
    }

    fn oldest_deletion(&self) -> Option<Arc<Holder>> {
        let mut backlog = self.memory.backlog();
        let (when, _) = backlog.deleted.front()?;
        if when.elapsed() < LONGEST_LOGIN {
            return None;
        }
        backlog.deleted.pop_front().map(|(_, holder)| holder)
    }
}

/// Up to `most` items from a queue of piles.
fn take<I: Iterator>(piles: &mut std::collections::VecDeque<I>, most: usize) -> Vec<I::Item> {
    let mut taken = Vec::new();
    while taken.len() < most {
        let Some(pile) = piles.front_mut() else { break };
        let left = most - taken.len();
        taken.extend(pile.by_ref().take(left));
        if taken.len() < most {
            piles.pop_front();
        }
    }
    taken
}

/// Sweeps every second until drain.
pub async fn sweep_loop(store: Arc<TokenStore>, stop: Stop) {
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            () = stop.draining() => return,
            _ = tick.tick() => {}
        }
        let mut removed = 0;
        loop {
            let swept = store.sweep(SLICE);
            removed += swept.removed;
            if swept.seen == 0 || stop.is_draining() {
                break;
            }
            // Others run between two slices.
            tokio::task::yield_now().await;
        }
        if removed > 0 {
            debug!(removed, "swept tokens");
        }
        store.tell_of_dead(removed);
    }
}
