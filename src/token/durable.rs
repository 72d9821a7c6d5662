//! Changes of tokens that last: in memory and in the store, in the same order, in both or in
//! neither. A new token enters memory before the store has confirmed it, when no client has
//! it yet; a revoked one leaves memory once the store has confirmed the revocation. `UserLocks`
//! keeps the order, and a change is completed when the store confirms it, whether or not the
//! client is still connected.

use std::sync::Arc;

use tokio::sync::oneshot;
use tracing::{info, warn};

use super::caps::TokenPlaced;
use super::memory::TokenMemory;
use super::token_replica::TokenReplica;
use super::{GrantRequest, InsertRefused, TokenBackend, TokenDigest, TokenStore};
use crate::clock::Deadline;
use crate::metrics::TokenEvent;
use crate::store::{GrantRecord, LoadedGrants, StoreChange, StoreUnavailable, TokenOrigin};

/// Why a user's tokens end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RevokeCause {
    Logout,
    Deletion,
    /// The user has changed its password with this token: all its other tokens end.
    AllBut(TokenDigest),
}

impl TokenStore {
    pub(super) async fn insert_until(
        &self,
        digest: TokenDigest,
        request: GrantRequest<'_>,
        ends: Deadline,
    ) -> Result<TokenPlaced, InsertRefused> {
        let store = match &self.backend {
            TokenBackend::Shared(replica) => return replica.insert(digest, request, ends).await,
            TokenBackend::Local(store) => store,
        };
        if store.is_memory() {
            let placed = self.memory.insert(digest, request, ends)?;
            if let Some(ended) = &placed.ended {
                self.memory.displace(ended);
            }
            return Ok(placed);
        }
        let guard = store.acquire(self.user_locks.shared(request.user)).await;
        let guard = guard.map_err(InsertRefused::Unavailable)?;
        // No await from here to the end of `submit`: a logout comes before both the insert and
        // the submit, or after both.
        let placed = self.memory.insert(digest, request, ends)?;
        let grant = GrantRecord {
            digest: digest.into(),
            user: request.user.into(),
            role: request.role,
            ends_millis: ends.unix_millis(),
            epoch: 0,
            origin: request.origin,
        };
        let (sender, receiver) = oneshot::channel();
        let memory = Arc::clone(&self.memory);
        let ended = placed.ended;
        let change = match ended {
            Some(ended) => StoreChange::ReplaceGrant {
                grant,
                ended: ended.into(),
            },
            None => StoreChange::PutGrant(grant),
        };
        store.submit(change, move |outcome| {
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
            drop(guard);
            let _ = sender.send(outcome); // the client may have left
        });
        let outcome = store.outcome(receiver).await;
        outcome.map(|()| placed).map_err(InsertRefused::Unavailable)
    }

    /// Revokes one token; returns whether it was live. It is dead at once. If the store
    /// fails, it is live again after a restart, until the upstream refuses it once more.
    pub async fn revoke(&self, digest: &TokenDigest) -> bool {
        let store = match &self.backend {
            TokenBackend::Shared(replica) => return self.revoke_shared(replica, digest).await,
            TokenBackend::Local(store) => store,
        };
        let Some(grant) = self.find(digest) else {
            return false;
        };
        // Goes on without the lock if it times out: the token must not live on because a disk hangs.
        let guard = store.acquire(self.user_locks.exclusive(&grant.user)).await;
        let was_live = self.memory.remove(digest);
        if was_live {
            self.metrics.token_events.add(TokenEvent::Revoked);
        }
        let change = StoreChange::RemoveGrant((*digest).into());
        if let Err(error) = store.commit(change).await {
            warn!(%error, "a refused token is revoked in memory but not in the store; it is live again after a restart");
        }
        drop(guard);
        was_live
    }

    async fn revoke_shared(&self, replica: &TokenReplica, digest: &TokenDigest) -> bool {
        match replica.revoke(digest).await {
            Ok(false) => false,
            Ok(true) => {
                self.metrics.token_events.add(TokenEvent::Revoked);
                true
            }
            Err(error) => {
                warn!(%error, "a refused token is revoked at this gateway but not in the shared store; other gateways still accept it");
                true
            }
        }
    }

    /// Revokes all tokens that the user has now, in constant time; returns how many. A login
    /// that is still running gets its token: it counts as the later event.
    pub async fn revoke_user(&self, user: &str) -> Result<usize, StoreUnavailable> {
        self.end_tokens(user, RevokeCause::Logout).await
    }

    /// Revokes a user's tokens once the store has confirmed it; returns how many.
    pub async fn end_tokens(
        &self,
        user: &str,
        cause: RevokeCause,
    ) -> Result<usize, StoreUnavailable> {
        let store = match &self.backend {
            TokenBackend::Shared(replica) => {
                let ended = replica.end(user, cause).await;
                return ended.map(|count| self.count_revoked(count));
            }
            TokenBackend::Local(store) => store,
        };
        let guard = store.acquire(self.user_locks.exclusive(user)).await?;
        let (sender, receiver) = oneshot::channel();
        let memory = Arc::clone(&self.memory);
        let name: Arc<str> = user.into();
        let change = self.end_change(&name, cause);
        store.submit(change, move |outcome| {
            let ended = outcome.map(|()| end(&memory, &name, cause));
            drop(guard);
            let _ = sender.send(ended); // the client may have left
        });
        let ended = store.outcome(receiver).await;
        ended.map(|count| self.count_revoked(count))
    }

    /// Revokes all tokens of a deleted user, and those that logins still running would get.
    /// The store has the deletion already, and with it the end of the user's older tokens.
    pub async fn end_user(&self, user: &str) -> usize {
        self.end_at_once(user, RevokeCause::Deletion).await
    }

    /// Revokes a user's tokens in memory at once, without waiting for the store: for an event
    /// that has taken place already, such as a deletion. Returns how many.
    pub async fn end_at_once(&self, user: &str, cause: RevokeCause) -> usize {
        let store = match &self.backend {
            TokenBackend::Shared(replica) => return self.end_shared(replica, user, cause).await,
            TokenBackend::Local(store) => store,
        };
        let guard = store.acquire(self.user_locks.exclusive(user)).await;
        let change = self.end_change(&user.into(), cause);
        let count = self.count_revoked(end(&self.memory, user, cause));
        if let Err(error) = store.commit(change).await {
            warn!(%error, "tokens are revoked in memory but not in the store; they are live again after a restart");
        }
        drop(guard);
        count
    }

    async fn end_shared(&self, replica: &TokenReplica, user: &str, cause: RevokeCause) -> usize {
        let local = self.count_revoked(self.memory.end_user(user));
        match replica.end(user, cause).await {
            Ok(count) => count.max(local),
            Err(error) => {
                warn!(%error, "tokens are revoked at this gateway but not in the shared store; other gateways still accept them");
                local
            }
        }
    }

    /// The store change that ends a user's tokens. The caller holds the user's exclusive lock,
    /// so a token that is live now is still live when the change is submitted.
    fn end_change(&self, user: &Arc<str>, cause: RevokeCause) -> StoreChange {
        let kept = match cause {
            RevokeCause::AllBut(digest) => self.record_of(digest, user),
            RevokeCause::Logout | RevokeCause::Deletion => None,
        };
        match kept {
            Some(kept) => StoreChange::EndOtherTokens { kept },
            None => StoreChange::EndTokens {
                user: Arc::clone(user),
            },
        }
    }

    /// The record of a user's token; None: it is not a live token of this user.
    fn record_of(&self, digest: TokenDigest, user: &str) -> Option<GrantRecord> {
        let grant = self.find(&digest).filter(|grant| *grant.user == *user)?;
        Some(GrantRecord {
            digest: digest.into(),
            // Only minted tokens have a role: the upstream does not reveal its users' roles.
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

    /// Loads the stored tokens of this origin whose users `is_known` accepts. Caps do not apply:
    /// a cap that was lowered since ends no live token. Must come before any other call; after
    /// an error, or if the returned future was dropped, this `TokenStore` must not be used.
    pub async fn load(
        &self,
        origin: TokenOrigin,
        is_known: impl Fn(&str) -> bool + Send + Sync + 'static,
    ) -> Result<LoadedGrants, StoreUnavailable> {
        let TokenBackend::Local(store) = &self.backend else {
            // Tokens of a shared store are looked up one by one, as requests need them.
            return Ok(LoadedGrants::default());
        };
        let loaded = store.load(self.restore(origin, is_known)).await?;
        let live = self.len() as u64;
        let others = loaded.live.saturating_sub(live);
        if !store.is_memory() {
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

    /// Why logins, logouts and changes are refused now; None: they are not.
    pub fn trouble(&self) -> Option<Arc<str>> {
        match &self.backend {
            TokenBackend::Local(store) => store.trouble(),
            TokenBackend::Shared(replica) => replica.shared.trouble(),
        }
    }

    /// A problem of the store that does not keep it from taking changes: it may evict keys.
    pub fn warning(&self) -> Option<String> {
        match &self.backend {
            TokenBackend::Local(_) => None,
            TokenBackend::Shared(replica) => {
                let server = replica.shared.eviction()?;
                Some(server.to_string())
            }
        }
    }

    /// Passes the number of dead tokens to the store, which removes their rows later.
    pub(super) fn report_dead(&self) {
        let count = self.memory.take_dead_count();
        if let TokenBackend::Local(store) = &self.backend
            && count > 0
        {
            store.forget(count);
        }
    }

    fn count_revoked(&self, count: usize) -> usize {
        let events = &self.metrics.token_events;
        events.add_many(TokenEvent::Revoked, count as u64);
        count
    }
}

fn end(memory: &TokenMemory, user: &str, cause: RevokeCause) -> usize {
    match cause {
        RevokeCause::Logout => memory.revoke_user(user),
        RevokeCause::Deletion => memory.end_user(user),
        RevokeCause::AllBut(digest) => memory.revoke_others(user, &digest),
    }
}
