//! What changes tokens: in memory and in the store, in the same order, and in both or
//! in neither. A token counts in memory before it lasts, when nobody has it yet; it is
//! ended there once its end lasts. The order is kept by lanes, and the second half of
//! each change runs when the store says so, whether or not the client is still there.

use std::sync::Arc;

use tokio::sync::oneshot;
use tracing::{info, warn};

use super::caps::TokenPlaced;
use super::memory::TokenMemory;
use super::token_replica::TokenReplica;
use super::{GrantRequest, InsertRefused, TokenDigest, TokenStore};
use crate::clock::Deadline;
use crate::metrics::TokenEvent;
use crate::store::{GrantRecord, LoadedGrants, StoreChange, StoreUnavailable, TokenOrigin};

/// What ends a user's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RevokeCause {
    Logout,
    Deletion,
    /// The user has changed something with this one of its tokens: the others end.
    AllBut(TokenDigest),
}

impl TokenStore {
    pub(super) async fn insert_until(
        &self,
        digest: TokenDigest,
        wanted: GrantRequest<'_>,
        ends: Deadline,
    ) -> Result<TokenPlaced, InsertRefused> {
        if let Some(front) = &self.front {
            return front.insert(digest, wanted, ends).await;
        }
        if self.store.is_memory() {
            let placed = self.memory.place(digest, wanted, ends)?;
            if let Some(ended) = &placed.ended {
                self.memory.displace(ended);
            }
            return Ok(placed);
        }
        let lane = self.store.turn(self.lanes.beside(wanted.user)).await;
        let lane = lane.map_err(InsertRefused::Unavailable)?;
        // From here to the end of `submit` nothing waits: a logout comes before both or
        // after both.
        let placed = self.memory.place(digest, wanted, ends)?;
        let grant = GrantRecord {
            digest: digest.into(),
            user: wanted.user.into(),
            role: wanted.role,
            ends_millis: ends.unix_millis(),
            epoch: 0,
            origin: wanted.origin,
        };
        let (answer, answered) = oneshot::channel();
        let memory = Arc::clone(&self.memory);
        let ended = placed.ended;
        let change = match ended {
            Some(ended) => StoreChange::ReplaceGrant {
                grant,
                ended: ended.into(),
            },
            None => StoreChange::PutGrant(grant),
        };
        self.store.submit(change, move |outcome| {
            match (&outcome, &ended) {
                (Ok(()), Some(ended)) => {
                    memory.displace(ended);
                }
                (Ok(()), None) => {}
                (Err(_), ended) => {
                    memory.remove(&digest);
                    ended.iter().for_each(|ended| memory.keep(ended));
                }
            }
            drop(lane);
            let _ = answer.send(outcome); // the client may have left
        });
        let outcome = self.store.outcome(answered).await;
        outcome.map(|()| placed).map_err(InsertRefused::Unavailable)
    }

    /// Ends one token; whether it was live. It is dead at once, and stays dead unless
    /// the store fails and the gate is started again: then the Webapp has to refuse it
    /// once more.
    pub async fn revoke(&self, digest: &TokenDigest) -> bool {
        if let Some(front) = &self.front {
            return self.revoke_everywhere(front, digest).await;
        }
        let Some(grant) = self.find(digest) else {
            return false;
        };
        // Without its turn in the end: the token must not live on because a disk hangs.
        let lane = self.store.turn(self.lanes.alone(&grant.user)).await.ok();
        let was_live = self.memory.remove(digest);
        if was_live {
            self.metrics.token_events.add(TokenEvent::Revoked);
        }
        let change = StoreChange::RemoveGrant((*digest).into());
        if let Err(error) = self.store.commit(change).await {
            warn!(%error, "a refused token is ended, but not for good");
        }
        drop(lane);
        was_live
    }

    async fn revoke_everywhere(&self, front: &TokenReplica, digest: &TokenDigest) -> bool {
        match front.revoke(digest).await {
            Ok(false) => false,
            Ok(true) => {
                self.metrics.token_events.add(TokenEvent::Revoked);
                true
            }
            Err(error) => {
                warn!(%error, "a refused token is ended here, and not at the other gates");
                true
            }
        }
    }

    /// Ends all tokens of a user that exist this instant, in constant time; how many.
    /// A login still running gets its token: it counts as the later one.
    pub async fn revoke_user(&self, user: &str) -> Result<usize, StoreUnavailable> {
        self.end_tokens(user, RevokeCause::Logout).await
    }

    /// Ends a user's tokens once the store has it; how many.
    pub async fn end_tokens(
        &self,
        user: &str,
        ending: RevokeCause,
    ) -> Result<usize, StoreUnavailable> {
        if let Some(front) = &self.front {
            let ended = front.end(user, ending).await;
            return ended.map(|count| self.count_revoked(count));
        }
        let lane = self.store.turn(self.lanes.alone(user)).await?;
        let (answer, answered) = oneshot::channel();
        let memory = Arc::clone(&self.memory);
        let name: Arc<str> = user.into();
        let change = self.end_change(&name, ending);
        self.store.submit(change, move |outcome| {
            let ended = outcome.map(|()| end(&memory, &name, ending));
            drop(lane);
            let _ = answer.send(ended); // the client may have left
        });
        let ended = self.store.outcome(answered).await;
        ended.map(|count| self.count_revoked(count))
    }

    /// Ends all tokens of a deleted user, those of logins still running included. The
    /// deletion itself lasts already, and with it the end of tokens given out before.
    pub async fn end_user(&self, user: &str) -> usize {
        self.end_at_once(user, RevokeCause::Deletion).await
    }

    /// What has happened elsewhere, happens here: at once, whatever the store says.
    pub async fn end_at_once(&self, user: &str, ending: RevokeCause) -> usize {
        if let Some(front) = &self.front {
            let here = self.count_revoked(self.memory.end_user(user));
            return match front.end(user, ending).await {
                Ok(count) => count.max(here),
                Err(error) => {
                    warn!(%error, "tokens are ended here, and not at the other gates");
                    here
                }
            };
        }
        let lane = self.store.turn(self.lanes.alone(user)).await.ok();
        let change = self.end_change(&user.into(), ending);
        let count = self.count_revoked(end(&self.memory, user, ending));
        if let Err(error) = self.store.commit(change).await {
            warn!(%error, "tokens are ended, but not for good");
        }
        drop(lane);
        count
    }

    /// The change of the store that ends a user's tokens. Its lane is held: what is live
    /// now is live until then.
    fn end_change(&self, user: &Arc<str>, ending: RevokeCause) -> StoreChange {
        let kept = match ending {
            RevokeCause::AllBut(kept) => self.record_of(kept, user),
            RevokeCause::Logout | RevokeCause::Deletion => None,
        };
        match kept {
            Some(kept) => StoreChange::EndOtherTokens { kept },
            None => StoreChange::EndTokens {
                user: Arc::clone(user),
            },
        }
    }

    /// None: not a live token of this user.
    fn record_of(&self, digest: TokenDigest, user: &str) -> Option<GrantRecord> {
        let grant = self.find(&digest).filter(|grant| *grant.user == *user)?;
        Some(GrantRecord {
            digest: digest.into(),
            // The Webapp does not tell its users' roles, and the gate knows its own.
            origin: match grant.role {
                Some(_) => TokenOrigin::Minted,
                None => TokenOrigin::Learned,
            },
            user: grant.user,
            role: grant.role,
            ends_millis: grant.ends.unix_millis(),
            epoch: 0,
        })
    }

    /// Takes in what the store has kept of this origin, for users that are known. Nobody
    /// loses a live token to a cap that was lowered meanwhile. Comes first of all; after an
    /// error, or if nobody has waited for it, these tokens are of no more use.
    pub async fn load(
        &self,
        origin: TokenOrigin,
        is_known: impl Fn(&str) -> bool + Send + Sync + 'static,
    ) -> Result<LoadedGrants, StoreUnavailable> {
        let loaded = self.store.load(self.restore(origin, is_known)).await?;
        let live = self.len() as u64;
        let others = loaded.live.saturating_sub(live);
        if !self.store.is_memory() {
            info!(
                live,
                expired = loaded.expired,
                ended = loaded.ended,
                others,
                millis = loaded.took.as_millis(),
                "tokens loaded"
            );
        }
        Ok(LoadedGrants {
            live,
            others,
            ..loaded
        })
    }

    /// Why logins, logouts and changes are refused now, if they are.
    pub fn trouble(&self) -> Option<Arc<str>> {
        self.store.trouble()
    }

    /// What is wrong with the store although it takes changes.
    pub fn warning(&self) -> Option<String> {
        self.store.warning()
    }

    /// Rows of dead tokens may go, in time.
    pub(super) fn tell_of_dead(&self) {
        let died = self.memory.died();
        if died > 0 {
            self.store.forget(died);
        }
    }

    fn count_revoked(&self, count: usize) -> usize {
        let events = &self.metrics.token_events;
        events.add_many(TokenEvent::Revoked, count as u64);
        count
    }
}

fn end(memory: &TokenMemory, user: &str, ending: RevokeCause) -> usize {
    match ending {
        RevokeCause::Logout => memory.revoke_user(user),
        RevokeCause::Deletion => memory.end_user(user),
        RevokeCause::AllBut(kept) => memory.revoke_others(user, &kept),
    }
}
