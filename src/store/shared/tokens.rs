//! Tokens in the shared store.

use std::sync::Arc;
use std::time::Duration;

use super::client::script;
use super::{ScriptCall, SharedStore};
use crate::profiles::Role;
use crate::store::{RecordDigest, StoreUnavailable, TokenOrigin};

/// What kind of token, in two letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenKind {
    pub origin: TokenOrigin,
    pub role: Option<Role>,
}

/// A token to take in.
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
    /// The user whose password was right; None: the gate does not own the users.
    pub revision: Option<super::EntryRevision>,
    /// Which of the user's tokens ends for this one, should the user have too many.
    pub ends: Option<RecordDigest>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InsertOutcome {
    /// So many tokens its user has now, and all users; and whether one ended for it.
    Placed {
        of_user: usize,
        of_all: usize,
        has_ended: bool,
    },
    /// The user was deleted, or its password changed, while the login ran.
    Ended,
    /// The user's next token ends in so long; and those of them that end first.
    UserFull {
        next: Duration,
        oldest: Vec<RecordDigest>,
    },
    /// The next token ends in so long.
    Full { next: Duration },
}

/// A live token as the store knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedGrant {
    pub user: Arc<str>,
    pub kind: TokenKind,
    pub left: Duration,
    /// Number of the change that gave it out.
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

/// Tokens are counted by the second of their end, rounded up to this: some hundred
/// counts a user at most, and late by a sixty-fourth of a life at most.
pub(super) fn grain(life: Duration) -> u64 {
    let most = (life.as_secs() / 64).max(1);
    1 << most.ilog2()
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
    /// Takes a token in, unless the user's end, or a cap, is in the way.
    pub async fn insert(&self, wanted: TokenInsert<'_>) -> Result<InsertOutcome, StoreUnavailable> {
        let call = ScriptCall::default()
            .key(self.names.holder(wanted.user))
            .key(self.names.token(&wanted.digest.0))
            .key(self.names.users.as_str())
            .arg(wanted.digest.0)
            .arg(wanted.user)
            .arg(wanted.kind.letters())
            .number(millis(wanted.life))
            .number(grain(wanted.life))
            .number(wanted.epoch)
            .number(wanted.max_per_user)
            .number(wanted.max)
            .arg(
                wanted
                    .revision
                    .map(|known| known.to_string())
                    .unwrap_or_default(),
            )
            .arg(wanted.ends.map(|ends| ends.0.to_vec()).unwrap_or_default());
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
            _ => Err(reply.odd()),
        }
    }

    /// The grant of a token; None: there is none. A store that lost its data does not
    /// say so before all gates have had the time to tell it what they know.
    pub async fn find(
        &self,
        digest: &RecordDigest,
    ) -> Result<Option<SharedGrant>, StoreUnavailable> {
        let call = ScriptCall::default().key(self.names.token(&digest.0));
        let reply = self.run(&script::FIND, call).await?;
        match reply.word() {
            "ok" => Ok(Some(SharedGrant {
                user: reply.text(1)?.into(),
                kind: TokenKind::parse(&reply.text(2)?).ok_or_else(|| reply.odd())?,
                left: Duration::from_millis(reply.number(3)?),
                seq: reply.number(4)?,
            })),
            "none" => Ok(None),
            "unsettled" => Err(StoreUnavailable::Failed(
                "the store lost its data and may not know all tokens yet".into(),
            )),
            _ => Err(reply.odd()),
        }
    }

    /// Ends one token; whether it was live.
    pub async fn revoke(&self, digest: &RecordDigest) -> Result<bool, StoreUnavailable> {
        let call = ScriptCall::default()
            .key(self.names.token(&digest.0))
            .arg(digest.0);
        let reply = self.run(&script::REVOKE, call).await?;
        match reply.word() {
            "ok" => Ok(reply.number(2)? == 1),
            "none" => Ok(false),
            _ => Err(reply.odd()),
        }
    }

    /// Ends all tokens of a user, but for `kept` if it is one of them; how many. `apply`
    /// does the same to the copies, at once: there `kept` is looked up again.
    pub async fn end_tokens(
        &self,
        user: &str,
        logins_too: bool,
        kept: Option<RecordDigest>,
        apply: impl FnOnce(super::RevokedUpTo),
    ) -> Result<usize, StoreUnavailable> {
        let mode = if logins_too { "end" } else { "logout" };
        let call = ScriptCall::default()
            .key(self.names.holder(user))
            .key(self.names.users.as_str())
            .arg(user)
            .arg(mode)
            .arg(kept.map(|kept| kept.0.to_vec()).unwrap_or_default());
        let reply = self.run(&script::END, call).await?;
        if reply.word() != "ok" {
            return Err(reply.odd());
        }
        let seq = reply.number(1)?;
        self.is_own(seq);
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
