//! The revocations that this gateway has seen, for a resync of a store that lost them.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::TokenDigest;
use crate::store::TokenOrigin;
use crate::store::shared::{RevokedUpTo, SharedGrant, StateSnapshotItem};

/// Maximum number of users, and of tokens, remembered.
const MAX_ENTRIES: usize = 100_000;
/// How long the store must remember them: longer than any revoked token could have lived.
const RETENTION: Duration = Duration::from_secs(8 * 86_400);

/// Revoked users and tokens, newest last.
#[derive(Debug, Default)]
pub(super) struct RevocationLog {
    users: HashMap<Arc<str>, RevokedUpTo>,
    users_order: VecDeque<Arc<str>>,
    revoked: HashSet<TokenDigest>,
    revoked_order: VecDeque<TokenDigest>,
}

impl RevocationLog {
    pub(super) fn add_user(&mut self, user: &str, end: RevokedUpTo) {
        let Some(known) = self.users.get_mut(user) else {
            if self.users_order.len() >= MAX_ENTRIES
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

    pub(super) fn add_token(&mut self, digest: TokenDigest) {
        if !self.revoked.insert(digest) {
            return;
        }
        self.revoked_order.push_back(digest);
        if self.revoked_order.len() > MAX_ENTRIES
            && let Some(oldest) = self.revoked_order.pop_front()
        {
            self.revoked.remove(&oldest);
        }
    }

    /// Whether a token that the server calls live was revoked according to this log.
    pub(super) fn is_revoked(&self, digest: &TokenDigest, found: &SharedGrant) -> bool {
        let end = self.users.get(&found.user).map(|end| end.tokens);
        end.is_some_and(|end| found.seq < end)
            || (found.kind.origin == TokenOrigin::Minted && self.revoked.contains(digest))
    }

    pub(super) fn snapshot(&self, give: &mut dyn FnMut(StateSnapshotItem)) {
        for (user, end) in &self.users {
            give(StateSnapshotItem::UserEnded {
                user: Arc::clone(user),
                end: *end,
                keep: RETENTION,
            });
        }
        for revoked in &self.revoked {
            give(StateSnapshotItem::TokenRevoked {
                digest: (*revoked).into(),
                keep: RETENTION,
            });
        }
    }
}
