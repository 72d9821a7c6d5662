//! What passes between this gate's copy of a shared store's tokens and the store: changes
//! that others made, what this copy knows, and new tokens.

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

/// Times that other gates may end the token first that was to end for a new one.
const ENDINGS: usize = 4;

impl TokenReplica {
    /// Takes a token into the store, where all gates' caps are kept. At a user's cap the
    /// store names those that end first; which of them are in use only gates know, each its own.
    pub(super) async fn insert_there(
        &self,
        digest: TokenDigest,
        wanted: GrantRequest<'_>,
    ) -> Result<TokenPlaced, InsertRefused> {
        let (max_per_user, max) = self.memory.caps();
        let mut insert = TokenInsert {
            digest: digest.into(),
            user: wanted.user,
            kind: TokenKind {
                origin: wanted.origin,
                role: wanted.role,
            },
            life: wanted.lifetime,
            epoch: wanted.epoch.shared,
            max_per_user,
            max,
            revision: wanted.revision,
            ends: None,
        };
        for try_number in 0..=ENDINGS {
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
                    insert.ends = self.unused_of(&oldest);
                    let may_end = self.memory.at_cap() == AtTokenCap::EndOldest;
                    if !may_end || insert.ends.is_none() || try_number == ENDINGS {
                        return Err(InsertRefused::UserFull(Some(next)));
                    }
                }
            }
        }
        Err(InsertRefused::UserFull(None))
    }

    /// The first one that was not used here lately; all in use: the first.
    fn unused_of(&self, oldest: &[RecordDigest]) -> Option<RecordDigest> {
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
                self.spoil(&digest);
                self.no_longer_unknown(&digest);
            }
            SharedChange::TokenRevoked(digest) => {
                let digest = TokenDigest::from(*digest);
                self.spoil(&digest);
                self.ends().remember_revoked(digest);
                self.memory.remove(&digest);
            }
            SharedChange::UserEnded { user, end } => {
                self.end_here(user, *end);
            }
            SharedChange::User(..)
            | SharedChange::Key(..)
            | SharedChange::Lease(_)
            | SharedChange::Directory { .. } => {}
        }
    }

    fn doubt(&self, seen: u64) {
        self.rounds().push(seen);
        self.round.fetch_add(1, Ordering::AcqRel);
        for ask in &self.asks {
            ask.is_spoiled.store(true, Ordering::Release);
        }
        self.unknown.clear();
        self.unknown_count.store(0, Ordering::Relaxed);
    }

    fn knowledge(&self, give: &mut dyn FnMut(StateSnapshotItem)) {
        self.ends().tell(give);
        let rounds = self.rounds().clone();
        let now = self.shared.applied();
        self.memory.each(|digest, grant| {
            let round = self.round_of(digest);
            // The Webapp does not tell its users' roles, and the gate knows its own.
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
