//! argon2id in blocking threads, a few at a time.

use std::sync::Arc;
use std::time::Duration;

use argon2::password_hash::phc;
use argon2::{Argon2, Params, PasswordHasher as _, PasswordVerifier as _};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::secret::Secret;

/// How many checks may wait per slot. One takes some 20 ms, so the last in the queue waits one to
/// two seconds; a client that has to wait longer has usually left.
const MAX_QUEUED_PER_SLOT: usize = 64;

/// Maximum memory and passes of a hash that the operator supplies; a costlier one would let login
/// attempts exhaust the host.
const MAX_MEMORY_KIB: u32 = 256 * 1024;
const MAX_PASSES: u32 = 32;

/// A PHC string that is argon2id, complete, and within the cost limits.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash(phc::PasswordHash);

impl std::fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[password hash]")
    }
}

/// Why a PHC string cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UnusableHash {
    #[error("password hash is not a PHC string")]
    NotPhc(#[source] phc::Error),
    #[error("password hash is not argon2id")]
    NotArgon2id,
    #[error("password hash lacks its salt or its output")]
    Incomplete,
    #[error("parameters of the password hash make no sense")]
    BadParameters(#[source] argon2::password_hash::Error),
    #[error("password hash needs more than 256 MiB or 32 passes")]
    TooExpensive,
}

impl PasswordHash {
    pub fn parse(text: &str) -> Result<Self, UnusableHash> {
        let hash = phc::PasswordHash::new(text).map_err(UnusableHash::NotPhc)?;
        if hash.algorithm.as_str() != "argon2id" {
            return Err(UnusableHash::NotArgon2id);
        }
        if hash.salt.is_none() || hash.hash.is_none() {
            return Err(UnusableHash::Incomplete);
        }
        let params = Params::try_from(&hash).map_err(UnusableHash::BadParameters)?;
        if params.m_cost() > MAX_MEMORY_KIB || params.t_cost() > MAX_PASSES {
            return Err(UnusableHash::TooExpensive);
        }
        Ok(Self(hash))
    }

    /// The PHC string, as it is stored.
    pub fn text(&self) -> String {
        self.0.to_string()
    }

    /// A hash that no password matches, as slow to check as a real one.
    pub(super) fn unmatchable() -> Self {
        let params = Params::DEFAULT;
        let text = format!(
            "$argon2id$v=19$m={},t={},p={}$dG9sbGdhdGUtbm9ib2R5${}",
            params.m_cost(),
            params.t_cost(),
            params.p_cost(),
            "A".repeat(43)
        );
        Self::parse(&text).expect("written out above")
    }

    fn matches(&self, password: &Secret) -> bool {
        Argon2::default()
            .verify_password(password.expose().as_bytes(), &self.0)
            .is_ok()
    }

    /// Whether it was made with other parameters than a hash made today.
    fn is_outdated(&self) -> bool {
        let params = Params::try_from(&self.0).ok();
        params.is_none_or(|params| {
            (params.m_cost(), params.t_cost(), params.p_cost())
                != (
                    Params::DEFAULT_M_COST,
                    Params::DEFAULT_T_COST,
                    Params::DEFAULT_P_COST,
                )
        })
    }

    fn of(password: &Secret) -> Result<Self, HashFailed> {
        let hash = Argon2::default().hash_password(password.expose().as_bytes());
        hash.map(Self).map_err(HashFailed::Argon2)
    }
}

/// Too many password checks are waiting already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many password checks are waiting")]
pub struct HasherBusy {
    pub retry_after: Duration,
}

/// Why a password could not be hashed or checked.
#[derive(Debug, thiserror::Error)]
pub enum HashFailed {
    #[error(transparent)]
    Busy(#[from] HasherBusy),
    #[error("cannot hash a password")]
    Argon2(#[source] argon2::password_hash::Error),
    #[error("a password check ended early")]
    Stopped(#[source] tokio::task::JoinError),
}

/// The result of a check.
#[derive(Debug)]
pub(super) enum PasswordVerdict {
    Mismatch,
    Match,
    /// The password is right and its hash outdated; this is a new hash of it.
    MatchOutdated(Box<PasswordHash>),
}

/// Hashes passwords. Each hash takes 19 MiB and milliseconds on purpose, so only a few run at once
/// and a bounded number waits. Clones share both limits.
#[derive(Clone, Debug)]
pub struct Hasher {
    runtime: Handle,
    slots: Arc<Semaphore>,
    queue: Arc<Semaphore>,
}

impl Hasher {
    /// `slots` hashes at once, on the blocking threads of `runtime`: the control runtime, although
    /// the requests come from the workers' runtimes.
    pub fn new(slots: usize, runtime: Handle) -> Self {
        let slots = slots.clamp(1, 1024);
        Self {
            runtime,
            slots: Arc::new(Semaphore::new(slots)),
            queue: Arc::new(Semaphore::new(slots * (MAX_QUEUED_PER_SLOT + 1))),
        }
    }

    pub(super) async fn verify(
        &self,
        password: Secret,
        hash: PasswordHash,
    ) -> Result<PasswordVerdict, HashFailed> {
        self.work(move || {
            if !hash.matches(&password) {
                return PasswordVerdict::Mismatch;
            }
            if !hash.is_outdated() {
                return PasswordVerdict::Match;
            }
            // A failure to re-hash must not refuse a login with the right password.
            let rehashed = PasswordHash::of(&password).map(Box::new);
            rehashed.map_or(PasswordVerdict::Match, PasswordVerdict::MatchOutdated)
        })
        .await
    }

    pub(super) async fn hash(&self, password: Secret) -> Result<PasswordHash, HashFailed> {
        self.work(move || PasswordHash::of(&password)).await?
    }

    #[cfg(test)]
    pub(super) async fn all_slots(&self) -> tokio::sync::OwnedSemaphorePermit {
        let all = u32::try_from(self.slots.available_permits()).unwrap();
        let slots = Arc::clone(&self.slots).acquire_many_owned(all).await;
        slots.unwrap()
    }

    async fn work<T, F>(&self, job: F) -> Result<T, HashFailed>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let queued = Arc::clone(&self.queue).try_acquire_owned();
        let queued = queued.map_err(|_| HasherBusy {
            retry_after: Duration::from_secs(2),
        })?;
        let slot = Arc::clone(&self.slots).acquire_owned().await;
        let slot = slot.expect("nothing closes this semaphore");
        let done = self.runtime.spawn_blocking(move || {
            // Held by the job, not by the caller: a client that disconnects must not free the
            // permits while the work still runs.
            let _permits = (slot, queued);
            job()
        });
        done.await.map_err(HashFailed::Stopped)
    }
}

/// The PHC string of a password, for the command line. Blocks its thread.
pub fn hash_password(password: &Secret) -> Result<String, HashFailed> {
    PasswordHash::of(password).map(|hash| hash.text())
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    /// Small parameters, as an older version of this program may have used.
    pub(in crate::identity) fn cheap_hash(password: &str) -> PasswordHash {
        let argon2 = Argon2::from(Params::new(64, 1, 1, None).unwrap());
        PasswordHash(argon2.hash_password(password.as_bytes()).unwrap())
    }

    fn hasher(slots: usize) -> Hasher {
        Hasher::new(slots, Handle::current())
    }

    #[tokio::test]
    async fn the_right_password_matches_and_no_other() {
        let hasher = hasher(1);
        let hash = hasher.hash(Secret::new("Passw0rd!")).await.unwrap();
        let hash = PasswordHash::parse(&hash.text()).unwrap();
        let right = hasher.verify(Secret::new("Passw0rd!"), hash.clone()).await;
        assert!(matches!(right, Ok(PasswordVerdict::Match)));
        let wrong = hasher.verify(Secret::new("Passw0rd?"), hash).await;
        assert!(matches!(wrong, Ok(PasswordVerdict::Mismatch)));
    }

    #[tokio::test]
    async fn an_outdated_hash_is_replaced_when_its_password_is_seen() {
        let hasher = hasher(1);
        let old = cheap_hash("Passw0rd!");
        let verdict = hasher.verify(Secret::new("Passw0rd!"), old.clone()).await;
        let Ok(PasswordVerdict::MatchOutdated(new)) = verdict else {
            panic!("{verdict:?}");
        };
        assert!(new.matches(&Secret::new("Passw0rd!")) && !new.is_outdated());
        let wrong = hasher.verify(Secret::new("no"), old).await;
        assert!(matches!(wrong, Ok(PasswordVerdict::Mismatch)));
    }

    #[test]
    fn an_unusable_hash_is_reported_with_its_reason() {
        for (text, reason) in [
            ("secret", "password hash is not a PHC string"),
            (
                "$argon2i$v=19$m=64,t=1,p=1$c2FsdHNhbHQ$AAAAAAAAAAAAAAAA",
                "password hash is not argon2id",
            ),
            (
                "$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHQ",
                "password hash lacks its salt or its output",
            ),
            (
                "$argon2id$v=19$m=4194304,t=1,p=1$c2FsdHNhbHQ$AAAAAAAAAAAAAAAA",
                "password hash needs more than 256 MiB or 32 passes",
            ),
            (
                "$argon2id$v=19$m=1,t=1,p=1$c2FsdHNhbHQ$AAAAAAAAAAAAAAAA",
                "parameters of the password hash make no sense",
            ),
        ] {
            assert_eq!(
                PasswordHash::parse(text).unwrap_err().to_string(),
                reason,
                "{text}"
            );
        }
        assert!(!PasswordHash::unmatchable().is_outdated());
        let debug = format!("{:?}", PasswordHash::unmatchable());
        assert_eq!(debug, "[password hash]");
    }

    /// A hasher of one slot whose slot is taken until the sender is used or dropped.
    async fn occupied() -> (Hasher, mpsc::Sender<()>, impl Future<Output = ()>) {
        let hasher = hasher(1);
        let (release, released) = mpsc::channel::<()>();
        let job = {
            let hasher = hasher.clone();
            async move {
                let _ = hasher.work(move || released.recv()).await;
            }
        };
        (hasher, release, job)
    }

    #[tokio::test]
    async fn a_cancelled_check_keeps_its_slot_until_it_ends() {
        let (hasher, release, job) = occupied().await;
        let mut job = Box::pin(job);
        assert!(futures_pending(job.as_mut()).await);
        drop(job);
        assert_eq!(hasher.slots.available_permits(), 0);
        release.send(()).unwrap();
        hasher.work(|| ()).await.unwrap();
    }

    #[tokio::test]
    async fn the_queue_is_bounded_and_cancelled_waiters_are_removed() {
        let (hasher, release, job) = occupied().await;
        let mut job = Box::pin(job);
        assert!(futures_pending(job.as_mut()).await);
        let ran = Arc::new(AtomicUsize::new(0));
        let mut waiting = Vec::new();
        for _ in 0..MAX_QUEUED_PER_SLOT {
            let ran = Arc::clone(&ran);
            let mut one = Box::pin(hasher.work(move || ran.fetch_add(1, Ordering::Relaxed)));
            assert!(futures_pending(one.as_mut()).await);
            waiting.push(one);
        }
        let refused = hasher.work(|| ()).await;
        assert!(matches!(refused, Err(HashFailed::Busy(_))));
        waiting.pop();
        let mut late = Box::pin(hasher.work(|| ()));
        assert!(futures_pending(late.as_mut()).await);
        release.send(()).unwrap();
        for one in waiting {
            one.await.unwrap();
        }
        late.await.unwrap();
        assert_eq!(ran.load(Ordering::Relaxed), MAX_QUEUED_PER_SLOT - 1);
    }

    /// Polls once.
    async fn futures_pending<F: Future + Unpin>(mut future: F) -> bool {
        use std::pin::Pin;
        std::future::poll_fn(|context| {
            std::task::Poll::Ready(Pin::new(&mut future).poll(context).is_pending())
        })
        .await
    }
}
