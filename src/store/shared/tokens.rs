//! Tokens in the shared store.

use std::sync::Arc;
use std::time::Duration;

use super::client::script;
use super::{ScriptCall, SharedStore};
use crate::profiles::Role;
use crate::store::{RecordDigest, StoreUnavailable, TokenOrigin};

/// The kind of a token, written as two letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenKind {
    pub origin: TokenOrigin,
    pub role: Option<Role>,
}

/// A token to insert.
#[derive(Clone, Copy, Debug)]
pub struct TokenInsert<'a> {
    pub digest: RecordDigest,
    pub user: &'a str,
    pub kind: TokenKind,
    pub life: Duration,
    /// `SharedStore::applied` when the login began.
    pub epoch: u64,
    pub max_per_user: usize,
    pub max: usize,
    /// The revision of the user whose password was checked; None: the store does not own the
    /// users.
    pub revision: Option<super::EntryRevision>,
    /// The user's token that may end to make room, should the user be at the cap.
    pub ends: Option<RecordDigest>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InsertOutcome {
    /// Stored; with the numbers of tokens of this user and of all, and whether `ends` was ended
    /// for it.
    Placed {
        of_user: usize,
        of_all: usize,
        has_ended: bool,
    },
    /// The user was deleted, or its password changed, while the login ran.
    Ended,
    /// The user is at the cap: time until its next token expires, and the tokens that expire
    /// first.
    UserFull {
        next: Duration,
        oldest: Vec<RecordDigest>,
    },
    /// The store is at the cap: time until the next token expires.
    Full { next: Duration },
}

/// A live token in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedGrant {
    pub user: Arc<str>,
    pub kind: TokenKind,
    pub left: Duration,
    /// Number of the change that inserted it.
    pub seq: u64,
}

impl TokenKind {
    pub(super) fn letters(self) -> &'static str {
        match (self.origin, self.role) {
            (TokenOrigin::Minted, Some(Role::Admin)) => "ma",
            (TokenOrigin::Minted, Some(Role::User)) => "mu",
            (TokenOrigin::Minted, None) => "mn",
            (TokenOrigin::Learned, Some(Role::Admin)) => "la",
            (TokenOrigin::Learned, Some(Role::User)) => "lu",
            (TokenOrigin::Learned, None) => "ln",
        }
    }

    pub(super) fn parse(letters: &str) -> Option<Self> {
        let (origin, role) = letters.split_at_checked(1)?;
        Some(Self {
            origin: match origin {
                "m" => TokenOrigin::Minted,
                "l" => TokenOrigin::Learned,
                _ => return None,
            },
            role: match role {
                "a" => Some(Role::Admin),
                "u" => Some(Role::User),
                "n" => None,
                _ => return None,
            },
        })
    }
}

/// Tokens are counted by the second of their expiry, rounded up to a multiple of this: at most
/// some hundred counters per user, and late by at most 1/64 of a token's lifetime.
pub(super) fn grain(life: Duration) -> u64 {
    let max = (life.as_secs() / 64).max(1);
    1 << max.ilog2()
}

pub(super) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX).max(1)
}

fn count(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn digests(texts: &[Vec<u8>]) -> Vec<RecordDigest> {
    let whole = texts
        .iter()
        .filter_map(|text| text.as_slice().try_into().ok());
    whole.map(RecordDigest).collect()
}

impl SharedStore {
    /// Inserts a token, unless the user's tokens were ended meanwhile or a cap is reached.
    pub async fn insert(
        &self,
        request: TokenInsert<'_>,
    ) -> Result<InsertOutcome, StoreUnavailable> {
        let call = ScriptCall::default()
            .key(self.keys.token_user(request.user))
            .key(self.keys.token(&request.digest.0))
            .key(self.keys.users.as_str())
            .arg(request.digest.0)
            .arg(request.user)
            .arg(request.kind.letters())
            .number(millis(request.life))
            .number(grain(request.life))
            .number(request.epoch)
            .number(request.max_per_user)
            .number(request.max)
            .arg(
                request
                    .revision
                    .map(|known| known.to_string())
                    .unwrap_or_default(),
            )
            .arg(request.ends.map(|ends| ends.0.to_vec()).unwrap_or_default());
        let reply = self.run(&script::INSERT, call).await?;
        match reply.word() {
            "ok" => Ok(InsertOutcome::Placed {
                of_user: count(reply.number(2)?),
                of_all: count(reply.number(3)?),
                has_ended: reply.number(4)? == 1,
            }),
            "ended" | "changed" => Ok(InsertOutcome::Ended),
            "user_full" => Ok(InsertOutcome::UserFull {
                next: Duration::from_millis(reply.number(1)?),
                oldest: digests(&reply.rest(2)?),
            }),
            "full" => Ok(InsertOutcome::Full {
                next: Duration::from_millis(reply.number(1)?),
            }),
            _ => Err(reply.malformed()),
        }
    }

    /// The grant of a token; None: there is none. A store that lost its data does not answer None
    /// before all gateways have had time to send the state they hold.
    pub async fn find(
        &self,
        digest: &RecordDigest,
    ) -> Result<Option<SharedGrant>, StoreUnavailable> {
        let call = ScriptCall::default().key(self.keys.token(&digest.0));
        let reply = self.run(&script::FIND, call).await?;
        match reply.word() {
            "ok" => Ok(Some(SharedGrant {
                user: reply.text(1)?.into(),
                kind: TokenKind::parse(&reply.text(2)?).ok_or_else(|| reply.malformed())?,
                left: Duration::from_millis(reply.number(3)?),
                seq: reply.number(4)?,
            })),
            "none" => Ok(None),
            "unsettled" => Err(StoreUnavailable::Failed(
                "the store lost its data and may not know all tokens yet".into(),
            )),
            _ => Err(reply.malformed()),
        }
    }

    /// Revokes one token; returns whether it was live.
    pub async fn revoke(&self, digest: &RecordDigest) -> Result<bool, StoreUnavailable> {
        let call = ScriptCall::default()
            .key(self.keys.token(&digest.0))
            .arg(digest.0);
        let reply = self.run(&script::REVOKE, call).await?;
        match reply.word() {
            "ok" => Ok(reply.number(2)? == 1),
            "none" => Ok(false),
            _ => Err(reply.malformed()),
        }
    }

    /// Revokes all tokens of a user, but `kept` if it is one of them; returns how many. Calls
    /// `apply`, which ends all of them in the replica at once: `kept` is looked up again there.
    pub async fn end_tokens(
        &self,
        user: &str,
        logins_too: bool,
        kept: Option<RecordDigest>,
        apply: impl FnOnce(super::RevokedUpTo),
    ) -> Result<usize, StoreUnavailable> {
        let mode = if logins_too { "end" } else { "logout" };
        let call = ScriptCall::default()
            .key(self.keys.token_user(user))
            .key(self.keys.users.as_str())
            .arg(user)
            .arg(mode)
            .arg(kept.map(|kept| kept.0.to_vec()).unwrap_or_default());
        let reply = self.run(&script::END, call).await?;
        if reply.word() != "ok" {
            return Err(reply.malformed());
        }
        let seq = reply.number(1)?;
        self.remember_own(seq);
        apply(super::RevokedUpTo {
            tokens: seq,
            logins: if logins_too { seq } else { 0 },
        });
        Ok(usize::try_from(reply.number(2)?).unwrap_or(usize::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_reads_back_as_it_was_written() {
        for origin in [TokenOrigin::Minted, TokenOrigin::Learned] {
            for role in [None, Some(Role::User), Some(Role::Admin)] {
                let kind = TokenKind { origin, role };
                assert_eq!(TokenKind::parse(kind.letters()), Some(kind));
            }
        }
        for bad in ["", "m", "xx", "mx", "é"] {
            assert_eq!(TokenKind::parse(bad), None);
        }
    }

    #[test]
    fn counts_are_late_by_a_small_share_of_a_life_at_most() {
        for seconds in [1, 63, 64, 3600, 604_800, 31_536_000] {
            let grain = grain(Duration::from_secs(seconds));
            assert!(grain == 1 || grain * 64 <= seconds, "{seconds}: {grain}");
        }
    }
}
