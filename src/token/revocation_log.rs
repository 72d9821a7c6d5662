//! What has ended, as far as this gate has seen it: for a store that loses it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::TokenDigest;
use crate::store::TokenOrigin;
use crate::store::shared::{RevokedUpTo, SharedGrant, StateSnapshotItem};

/// Ends and revocations remembered.
const MOST: usize = 100_000;
/// As long as a token that was ended could have lived, at the least.
const KEEP: Duration = Duration::from_secs(8 * 86_400);

/// What has ended, newest last.
#[derive(Debug, Default)]
pub(super) struct RevocationLog {
    users: HashMap<Arc<str>, RevokedUpTo>,
    users_order: VecDeque<Arc<str>>,
    revoked: HashSet<TokenDigest>,
    revoked_order: VecDeque<TokenDigest>,
}

impl RevocationLog {
    pub(super) fn remember(&mut self, user: &str, end: RevokedUpTo) {
        let Some(known) = self.users.get_mut(user) else {
            if self.users_order.len() >= MOST
                && let Some(oldest) = self.users_order.pop_front()
            {
                self.users.remove(&oldest);
            }
            let user: Arc<str> = user.into();
            self.users_order.push_back(Arc::clone(&user));
            self.users.insert(user, end);
            return;
        };
        known.tokens = known.tokens.max(end.tokens);
        known.logins = known.logins.max(end.logins);
    }

    pub(super) fn remember_revoked(&mut self, digest: TokenDigest) {
        if !self.revoked.insert(digest) {
            return;
        }
        self.revoked_order.push_back(digest);
        if self.revoked_order.len() > MOST
            && let Some(oldest) = self.revoked_order.pop_front()
        {
            self.revoked.remove(&oldest);
        }
    }

    /// Whether this gate knows better than a server that says a token lives.
    pub(super) fn is_ended(&self, digest: &TokenDigest, found: &SharedGrant) -> bool {
        let end = self.users.get(&found.user).map(|end| end.tokens);
        end.is_some_and(|end| found.seq < end)
            || (found.kind.origin == TokenOrigin::Minted && self.revoked.contains(digest))
    }

    pub(super) fn tell(&self, give: &mut dyn FnMut(StateSnapshotItem)) {
        for (user, end) in &self.users {
            give(StateSnapshotItem::UserEnded {
                user: Arc::clone(user),
                end: *end,
                keep: KEEP,
            });
        }
        for revoked in &self.revoked {
            give(StateSnapshotItem::TokenRevoked {
                digest: (*revoked).into(),
                keep: KEEP,
            });
        }
    }
}
