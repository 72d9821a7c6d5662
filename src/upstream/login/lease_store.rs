//! Saves the upstream's token across restarts: sealed, and bound to the upstream's name, address and
//! user, so that a changed configuration never sends it elsewhere.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::{info, warn};
use zeroize::Zeroizing;

use crate::clock;
use crate::secret::Secret;
use crate::store::shared::SharedStore;
use crate::store::{SealedBytes, SealedLease, SealingKeys, StoreBackend, StoreChange};

/// A saved token with less time left is not adopted: its renewal would be due at once.
const MIN_REMAINING: Duration = Duration::from_secs(10);

/// Where tokens are saved, and those that were found there at the start.
#[derive(Clone, Debug)]
pub struct SealedLeaseStore {
    store: StoreBackend,
    seal: Arc<SealingKeys>,
    found: Vec<SealedLease>,
}

impl SealedLeaseStore {
    pub fn new(store: StoreBackend, seal: Arc<SealingKeys>, found: Vec<SealedLease>) -> Self {
        Self { store, seal, found }
    }

    /// For an upstream that a reload has changed: the tokens found belong to the one before.
    pub fn ignoring_saved_lease(self) -> Self {
        Self {
            found: Vec::new(),
            ..self
        }
    }
}

/// The part of one upstream.
#[derive(Debug)]
pub(in crate::upstream) struct LeaseBinding {
    lease_store: SealedLeaseStore,
    upstream: Arc<str>,
    bound_to: String,
}

/// A token as it is sealed.
#[derive(Debug, Serialize, Deserialize)]
struct SealedToken<'a> {
    #[serde(borrow)]
    token: Cow<'a, str>,
    began_millis: u64,
    ends_millis: u64,
}

/// A saved token that is still valid.
#[derive(Debug)]
pub(in crate::upstream) struct SavedLease {
    pub(in crate::upstream) token: Secret,
    pub(super) ends_millis: u64,
    pub(in crate::upstream) life: Duration,
    /// How much of its lifetime has passed.
    pub(super) age: Duration,
}

impl LeaseBinding {
    /// `bound_to`: what the token belongs to; a token sealed for something else cannot be opened.
    pub(in crate::upstream) fn new(
        lease_store: SealedLeaseStore,
        upstream: &Arc<str>,
        bound_to: String,
    ) -> Self {
        Self {
            lease_store,
            upstream: Arc::clone(upstream),
            bound_to,
        }
    }

    /// The token of an earlier start, if it belongs to this upstream and is still valid.
    pub(in crate::upstream) fn find(&self) -> Option<SavedLease> {
        let mut leases = self.lease_store.found.iter();
        let lease = leases.find(|lease| lease.upstream == self.upstream)?;
        let now = clock::unix_millis();
        let (kept, began_millis) = self.open(&lease.sealed)?;
        // A clock that is earlier than the token's own login cannot tell its expiry.
        let is_usable = began_millis <= now && span(now, kept.ends_millis) >= MIN_REMAINING;
        is_usable.then_some(kept)
    }

    /// Opens a token that was sealed for this upstream; with the time of its login.
    pub(in crate::upstream) fn open(&self, sealed: &SealedBytes) -> Option<(SavedLease, u64)> {
        let opened = self.lease_store.seal.open(sealed, self.bound_to.as_bytes());
        let text = match opened {
            Ok(text) => text,
            Err(error) => {
                info!(upstream = %self.upstream, %error, "the kept token is of no use; logging in");
                return None;
            }
        };
        let sealed: SealedToken<'_> = serde_json::from_str(text.expose()).ok()?;
        let kept = SavedLease {
            token: Secret::new(&*sealed.token),
            ends_millis: sealed.ends_millis,
            life: span(sealed.began_millis, sealed.ends_millis),
            age: span(sealed.began_millis, clock::unix_millis()),
        };
        Some((kept, sealed.began_millis))
    }

    /// Seals the token with the current time; None only if the host has no randomness.
    pub(super) fn sealed(&self, token: &Secret, ends_millis: u64) -> Option<SealedBytes> {
        let lease = self.seal(token, clock::unix_millis(), ends_millis)?;
        Some(lease.sealed)
    }

    /// The shared store, if there is one.
    pub(in crate::upstream) fn shared(&self) -> Option<&Arc<SharedStore>> {
        self.lease_store.store.shared()
    }

    /// Saves a token in the background. If that fails, the next start logs in.
    pub(in crate::upstream) fn keep(&self, token: &Secret, ends_millis: u64) {
        let sealed = self.seal(token, clock::unix_millis(), ends_millis);
        if let Some(sealed) = sealed {
            self.submit(StoreChange::PutLease(sealed));
        }
    }

    /// None only if the host has no randomness.
    fn seal(&self, token: &Secret, began_millis: u64, ends_millis: u64) -> Option<SealedLease> {
        let sealed = SealedToken {
            token: token.expose().into(),
            began_millis,
            ends_millis,
        };
        let text = Zeroizing::new(serde_json::to_string(&sealed).ok()?);
        let seal = &self.lease_store.seal;
        Some(SealedLease {
            upstream: Arc::clone(&self.upstream),
            ends_millis,
            sealed: seal.seal(&Secret::new(text.as_str()), self.bound_to.as_bytes())?,
        })
    }

    /// Removes the saved token, which the upstream refused.
    pub(in crate::upstream) fn forget(&self) {
        self.submit(StoreChange::RemoveLease {
            upstream: Arc::clone(&self.upstream),
        });
    }

    fn submit(&self, change: StoreChange) {
        let StoreBackend::Local(store) = &self.lease_store.store else {
            return; // a shared store has the leases of all gateways, and its own calls for them
        };
        let upstream = Arc::clone(&self.upstream);
        store.submit(change, move |outcome| {
            if let Err(error) = outcome {
                warn!(%upstream, %error, "the upstream's token is not kept; the next start may log in");
            }
        });
    }
}

fn span(from: u64, to: u64) -> Duration {
    Duration::from_millis(to.saturating_sub(from))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{SealKey, Store};

    const HOUR: u64 = 3_600_000;

    fn place(host: &str, username: &str, found: Vec<SealedLease>) -> LeaseBinding {
        let key = Secret::new("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=");
        let seal = SealingKeys::new(SealKey::parse(&key).unwrap(), None);
        let lease_store = SealedLeaseStore::new(
            StoreBackend::Local(Arc::new(Store::Memory)),
            Arc::new(seal),
            found,
        );
        LeaseBinding::new(lease_store, &"main".into(), format!("{host}\n{username}"))
    }

    fn found(began: u64, ends: u64) -> Option<SavedLease> {
        let lease = place("a", "gate", Vec::new()).seal(&Secret::new("to\"ken"), began, ends);
        place("a", "gate", vec![lease.unwrap()]).find()
    }

    #[test]
    fn a_stored_token_is_used_between_its_beginning_and_its_expiry() {
        let now = clock::unix_millis();
        let kept = found(now - HOUR, now + HOUR).unwrap();
        assert!(kept.token == Secret::new("to\"ken"));
        assert_eq!(
            (kept.life, kept.ends_millis),
            (Duration::from_millis(2 * HOUR), now + HOUR)
        );
        assert!(kept.age >= Duration::from_millis(HOUR));
        assert!(found(now - 2 * HOUR, now - HOUR).is_none(), "ended");
        assert!(
            found(now - HOUR, now + 1000).is_none(),
            "a token about to expire"
        );
        assert!(
            found(now + HOUR, now + 2 * HOUR).is_none(),
            "the clock was set back"
        );
    }

    #[test]
    fn a_stored_token_is_not_used_for_another_address_or_user() {
        let now = clock::unix_millis();
        let lease = place("a", "gate", Vec::new()).seal(&Secret::new("t"), now, now + HOUR);
        let lease = lease.unwrap();
        assert!(place("a", "gate", vec![lease.clone()]).find().is_some());
        for (host, username) in [("b", "gate"), ("a", "other"), ("a", "gate\n")] {
            assert!(place(host, username, vec![lease.clone()]).find().is_none());
        }
    }
}
