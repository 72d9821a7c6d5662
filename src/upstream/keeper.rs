//! Keeps the upstream's token across restarts: sealed, and bound to the upstream's
//! name, address and user, so that a changed configuration never sends it elsewhere.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::{info, warn};
use zeroize::Zeroizing;

use crate::clock;
use crate::config::{BaseAddress, Login};
use crate::secret::Secret;
use crate::store::{Change, Seal, SealedLease, Store};

/// Less is not worth adopting: the renewal would be due at once.
const LEAST_LEFT: Duration = Duration::from_secs(10);

/// Where an upstream's token is kept, and what was found there at the start.
#[derive(Clone, Debug)]
pub struct LeaseKeeper {
    store: Arc<Store>,
    seal: Arc<Seal>,
    found: Vec<SealedLease>,
}

impl LeaseKeeper {
    pub fn new(store: Arc<Store>, seal: Arc<Seal>, found: Vec<SealedLease>) -> Self {
        Self { store, seal, found }
    }

    /// For an upstream that a reload has changed: what was found is of the one before.
    pub fn without_the_kept(self) -> Self {
        Self {
            found: Vec::new(),
            ..self
        }
    }
}

/// One upstream's part of it.
#[derive(Debug)]
pub(super) struct Place {
    keeper: LeaseKeeper,
    upstream: Arc<str>,
    bound_to: String,
}

/// A token as it is sealed.
#[derive(Debug, Serialize, Deserialize)]
struct Sealed<'a> {
    #[serde(borrow)]
    token: Cow<'a, str>,
    began_millis: u64,
    ends_millis: u64,
}

/// A token that is good still.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) token: Secret,
    pub(super) ends_millis: u64,
    pub(super) life: Duration,
    /// How much of its life has gone.
    pub(super) age: Duration,
}

impl Place {
    pub(super) fn new(
        keeper: LeaseKeeper,
        upstream: &Arc<str>,
        base: &BaseAddress,
        login: &Login,
    ) -> Self {
        let scheme = if base.tls { "https" } else { "http" };
        Self {
            keeper,
            upstream: Arc::clone(upstream),
            bound_to: format!(
                "lease\n{upstream}\n{scheme}://{}:{}\n{}",
                base.host, base.port, login.username
            ),
        }
    }

    /// The token of an earlier start, if it is this upstream's and has time left.
    pub(super) fn find(&self) -> Option<Kept> {
        let mut leases = self.keeper.found.iter();
        let lease = leases.find(|lease| lease.upstream == self.upstream)?;
        let opened = self
            .keeper
            .seal
            .open(&lease.sealed, self.bound_to.as_bytes());
        let text = match opened {
            Ok(text) => text,
            Err(error) => {
                info!(upstream = %self.upstream, %error, "the kept token is of no use; logging in");
                return None;
            }
        };
        let sealed: Sealed<'_> = serde_json::from_str(text.expose()).ok()?;
        let now = clock::unix_millis();
        let millis = |from: u64, to: u64| Duration::from_millis(to.saturating_sub(from));
        // A clock that is behind the token's own beginning says nothing about its end.
        let is_usable = sealed.began_millis <= now && millis(now, sealed.ends_millis) >= LEAST_LEFT;
        is_usable.then(|| Kept {
            token: Secret::new(&*sealed.token),
            ends_millis: sealed.ends_millis,
            life: millis(sealed.began_millis, sealed.ends_millis),
            age: millis(sealed.began_millis, now),
        })
    }

    /// Keeps a token. Nobody waits for it: without it the next start logs in.
    pub(super) fn keep(&self, token: &Secret, ends_millis: u64) {
        let sealed = Sealed {
            token: token.expose().into(),
            began_millis: clock::unix_millis(),
            ends_millis,
        };
        // A struct of text and numbers always has a JSON form.
        let Ok(text) = serde_json::to_string(&sealed).map(Zeroizing::new) else {
            return;
        };
        let secret = Secret::new(text.as_str());
        let Some(sealed) = self.keeper.seal.seal(&secret, self.bound_to.as_bytes()) else {
            return;
        };
        self.submit(Change::PutLease(SealedLease {
            upstream: Arc::clone(&self.upstream),
            ends_millis,
            sealed,
        }));
    }

    /// The upstream has refused the token: nobody is to try it again.
    pub(super) fn forget(&self) {
        self.submit(Change::RemoveLease {
            upstream: Arc::clone(&self.upstream),
        });
    }

    fn submit(&self, change: Change) {
        let upstream = Arc::clone(&self.upstream);
        self.keeper.store.submit(change, move |outcome| {
            if let Err(error) = outcome {
                warn!(%upstream, %error, "the upstream's token is not kept; the next start may log in");
            }
        });
    }
}
