//! Traffic between this gateway's replica of the tokens and the shared store: new tokens, changes
//! made by other gateways, and the snapshot for a resync.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::caps::TokenPlaced;
use super::token_replica::TokenReplica;
use super::{GrantRequest, InsertRefused, TokenDigest};
use crate::config::AtTokenCap;
use crate::store::shared::{
    InsertOutcome, Replica, SharedChange, StateSnapshotItem, TokenInsert, TokenKind,
};
use crate::store::{RecordDigest, TokenOrigin};

/// Retries when another gateway ends the chosen oldest token first.
const MAX_RETRIES: usize = 4;

impl TokenReplica {
    /// Stores a token in the shared store, which applies the caps. At a user's cap the store names
    /// the tokens that expire first, and this gateway chooses one that it has not seen in use.
    pub(super) async fn insert_in_store(
        &self,
        digest: TokenDigest,
        request: GrantRequest<'_>,
    ) -> Result<TokenPlaced, InsertRefused> {
        let (max_per_user, max) = self.memory.caps();
        let mut insert = TokenInsert {
            digest: digest.into(),
            user: request.user,
            kind: TokenKind {
                origin: request.origin,
                role: request.role,
            },
            life: request.lifetime,
            epoch: request.epoch.shared,
            max_per_user,
            max,
            revision: request.revision,
            ends: None,
        };
        for try_number in 0..=MAX_RETRIES {
            let outcome = self.shared.insert(insert).await;
            match outcome.map_err(InsertRefused::Unavailable)? {
                InsertOutcome::Placed {
                    of_user,
                    of_all,
                    has_ended,
                } => {
                    let ended = insert.ends.filter(|_| has_ended);
                    return Ok(TokenPlaced {
                        ended: ended.map(TokenDigest::from),
                        of_user,
                        of_all,
                    });
                }
                InsertOutcome::Ended => return Err(InsertRefused::Ended),
                InsertOutcome::Full { next } => return Err(InsertRefused::Full(Some(next))),
                InsertOutcome::UserFull { next, oldest } => {
                    insert.ends = self.choose_unused(&oldest);
                    let may_end = self.memory.at_cap() == AtTokenCap::EndOldest;
                    if !may_end || insert.ends.is_none() || try_number == MAX_RETRIES {
                        return Err(InsertRefused::UserFull(Some(next)));
                    }
                }
            }
        }
        Err(InsertRefused::UserFull(None))
    }

    /// The first of these tokens that was not used at this gateway since it was examined last; if
    /// all were used, the first.
    fn choose_unused(&self, oldest: &[RecordDigest]) -> Option<RecordDigest> {
        let is_unused =
            |digest: &&RecordDigest| !self.memory.take_used(&TokenDigest::from(**digest));
        oldest.iter().find(is_unused).or(oldest.first()).copied()
    }
}

impl Replica for TokenReplica {
    fn apply(&self, change: &SharedChange, _seq: u64) {
        match change {
            SharedChange::TokenPut(digest) => {
                let digest = TokenDigest::from(*digest);
                self.invalidate_lookup(&digest);
                self.forget_unknown(&digest);
            }
            SharedChange::TokenRevoked(digest) => {
                let digest = TokenDigest::from(*digest);
                self.invalidate_lookup(&digest);
                self.revocations.lock().add_token(digest);
                self.memory.remove(&digest);
            }
            SharedChange::UserEnded { user, end } => {
                self.end_in_memory(user, *end);
            }
            SharedChange::User(..)
            | SharedChange::Key(..)
            | SharedChange::Lease(_)
            | SharedChange::Directory { .. } => {}
        }
    }

    fn invalidate(&self, seen: u64) {
        self.rounds.lock().push(seen);
        self.round.fetch_add(1, Ordering::AcqRel);
        for lookup in &self.lookups {
            lookup.is_stale.store(true, Ordering::Release);
        }
        self.unknown.clear();
        self.unknown_count.store(0, Ordering::Relaxed);
    }

    fn snapshot(&self, give: &mut dyn FnMut(StateSnapshotItem)) {
        self.revocations.lock().snapshot(give);
        let rounds = self.rounds.lock().clone();
        let now = self.shared.applied();
        self.memory.for_each_live(|digest, grant| {
            let round = self.round_of(digest);
            // Only minted tokens have a role: the upstream does not reveal its users' roles.
            let origin = match grant.role {
                Some(_) => TokenOrigin::Minted,
                None => TokenOrigin::Learned,
            };
            give(StateSnapshotItem::Token {
                digest: (*digest).into(),
                user: Arc::clone(&grant.user),
                kind: TokenKind {
                    origin,
                    role: grant.role,
                },
                left: grant.ends.left(),
                seq: rounds.get(round).copied().unwrap_or(now),
            });
        });
    }
}
