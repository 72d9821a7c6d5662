//! The live tokens: which were handed out, to whom, until when. Keeps digests, never the tokens
//! themselves; does not know how a client authenticated. Requests need only `find`, which reads
//! memory and never waits. Changes are async, because the store must confirm them first
//! (`durable`). Start reading at `TokenStore`, then `memory`.
//! A grant in memory may be dead already. `find` checks it at each use; the sweep only frees
//! memory.

mod caps;
mod durable;
mod expiry_index;
mod flags;
mod follow;
mod grant_table;
mod insert;
mod memory;
mod restore;
mod revocation_log;
mod sweep;
mod token_family;
mod token_replica;
mod user_index;
mod user_locks;

pub use durable::RevokeCause;
pub use restore::TokenRestore;
pub use sweep::{SweptSlice, sweep_loop};

pub use crate::store::TokenOrigin;

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::clock::Deadline;
use crate::config;
use crate::identity::random_text;
use crate::lifecycle::TaskSet;
use crate::metrics::{Metrics, TokenEvent};
use crate::profiles::Role;
use crate::secret::Secret;
use crate::store::shared::{EntryRevision, SharedStore};
use crate::store::{Store, StoreUnavailable};

/// Opaque text that the gateway mints: `tg_` and 256 random bits.
#[derive(Clone, Debug)]
pub struct Token(Secret);

impl Token {
    pub fn mint() -> Self {
        Self(random_text("tg_"))
    }

    pub fn secret(&self) -> &Secret {
        &self.0
    }

    pub fn digest(&self) -> TokenDigest {
        TokenDigest::of(self.0.expose())
    }
}

/// What the gateway keeps instead of a token: the SHA-256 of its text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenDigest([u8; 32]);

impl TokenDigest {
    /// The digest of a token as the client presents it.
    pub fn of(text: &str) -> Self {
        Self(Sha256::digest(text).into())
    }

    /// The name of a client of which only the token is known. No user can have this name: one with
    /// a colon cannot be sent in a login (RFC 7617, 2).
    pub fn pseudonym(&self) -> String {
        let first = &self.0[..6];
        first.iter().fold("token:".to_owned(), |mut text, byte| {
            use fmt::Write as _;
            let _ = write!(text, "{byte:02x}"); // writing to memory cannot fail
            text
        })
    }

    fn first_bytes(&self) -> u64 {
        let (first, _) = self.0.split_first_chunk().expect("32 is more than 8");
        u64::from_be_bytes(*first)
    }

    fn tag(&self) -> token_family::Tag {
        let (first, _) = self.0.split_first_chunk().expect("32 is more than 4");
        token_family::Tag::from_be_bytes(*first)
    }
}

/// The form that the stores use; they know nothing of tokens.
impl From<TokenDigest> for crate::store::RecordDigest {
    fn from(digest: TokenDigest) -> Self {
        Self(digest.0)
    }
}

impl From<crate::store::RecordDigest> for TokenDigest {
    fn from(digest: crate::store::RecordDigest) -> Self {
        Self(digest.0)
    }
}

impl fmt::Debug for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[token digest]")
    }
}

impl Hash for TokenDigest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.first_bytes());
    }
}

/// What a token entitles to, and until when.
#[derive(Clone, Debug)]
pub struct Grant {
    pub user: Arc<str>,
    /// None: a user of the upstream, whose role only the upstream knows.
    pub role: Option<Role>,
    pub ends: Deadline,
}

/// Numbers of the last deletions of users. Taken when a login begins and passed on with its grant:
/// if the user is deleted in between, the grant is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeletionEpoch {
    /// Number of the last deletion at this gateway.
    local: u64,
    /// Number of the last change applied from a shared store; 0 without one.
    shared: u64,
}

/// A grant to be stored.
#[derive(Clone, Copy, Debug)]
pub struct GrantRequest<'a> {
    pub user: &'a str,
    pub role: Option<Role>,
    pub lifetime: Duration,
    pub origin: TokenOrigin,
    /// `TokenStore::epoch` when the login began.
    pub epoch: DeletionEpoch,
    /// The revision of the user whose password was checked; None: the store does not own the
    /// users.
    pub revision: Option<EntryRevision>,
}

/// Why a token was not stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InsertRefused {
    /// With the time until the user's next token expires.
    #[error("user has too many live tokens")]
    UserFull(Option<Duration>),
    /// With the time until the next token of any user expires.
    #[error("too many live tokens in all")]
    Full(Option<Duration>),
    #[error("user was deleted while the login ran")]
    Ended,
    #[error("cannot be written to the store")]
    Unavailable(#[source] StoreUnavailable),
}

/// Where changes of the tokens are stored.
#[derive(Debug)]
enum TokenBackend {
    /// A store that only this gateway uses.
    Local(Arc<Store>),
    /// A replica of the tokens in a store that several gateways share.
    Shared(Arc<token_replica::TokenReplica>),
}

/// The live tokens.
#[derive(Debug)]
pub struct TokenStore {
    memory: Arc<memory::TokenMemory>,
    backend: TokenBackend,
    user_locks: user_locks::UserLocks,
    cap_watch: caps::CapWatch,
    metrics: Arc<Metrics>,
}

impl TokenStore {
    /// Tokens that do not survive a restart.
    pub fn new(settings: &config::UsersConfig, metrics: Arc<Metrics>) -> Arc<Self> {
        Self::over(Arc::new(Store::Memory), settings, metrics)
    }

    /// Tokens that `store` keeps; empty until `load`.
    pub fn over(
        store: Arc<Store>,
        settings: &config::UsersConfig,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let memory = memory::TokenMemory::new(settings, Arc::clone(&metrics));
        Self::with_backend(Arc::new(memory), TokenBackend::Local(store), metrics)
    }

    /// Tokens of a store that several gateways share. They are looked up when requests need them,
    /// in `tasks`.
    pub fn sharing(
        shared: &Arc<SharedStore>,
        tasks: &TaskSet,
        settings: &config::UsersConfig,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let memory = memory::TokenMemory::new(settings, Arc::clone(&metrics));
        let memory = Arc::new(memory);
        let replica = token_replica::TokenReplica::new(
            shared,
            Arc::clone(&memory),
            tasks.clone(),
            Arc::clone(&metrics),
        );
        Self::with_backend(memory, TokenBackend::Shared(replica), metrics)
    }

    fn with_backend(
        memory: Arc<memory::TokenMemory>,
        backend: TokenBackend,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Self {
            memory,
            backend,
            user_locks: user_locks::UserLocks::new(),
            cap_watch: caps::CapWatch::new(Arc::clone(&metrics)),
            metrics,
        })
    }

    /// Applies the caps of a new configuration. Tokens above a lowered cap stay live.
    pub fn reload(&self, settings: &config::UsersConfig) {
        self.memory.set_caps(settings);
    }

    /// To be called before the first check of a login.
    pub fn epoch(&self, _user: &str) -> DeletionEpoch {
        let local = self.memory.users.epoch();
        match &self.backend {
            TokenBackend::Shared(replica) => DeletionEpoch {
                shared: replica.shared.applied(),
                ..local
            },
            TokenBackend::Local(_) => local,
        }
    }

    /// Stores a token, or the new expiry of a known one. Returns when it expires.
    pub async fn insert(
        &self,
        digest: TokenDigest,
        request: GrantRequest<'_>,
    ) -> Result<Deadline, InsertRefused> {
        let ends = Deadline::after(request.lifetime);
        let placed = self.insert_until(digest, request, ends).await;
        let (of_user, of_all) = self.memory.caps();
        self.cap_watch.note(request.user, &placed, of_user, of_all);
        self.metrics
            .token_events
            .add(match (&placed, request.origin) {
                (Ok(_), TokenOrigin::Minted) => TokenEvent::Minted,
                (Ok(_), TokenOrigin::Learned) => TokenEvent::Learned,
                (Err(_), _) => TokenEvent::Refused,
            });
        placed.map(|_| ends)
    }

    /// The grant of a token, if it is live now. One look-up, no allocation.
    pub fn find(&self, digest: &TokenDigest) -> Option<Grant> {
        match self.memory.find(digest) {
            memory::TokenState::Live(grant) => self.is_confirmed(digest).then_some(grant),
            memory::TokenState::Dead => {
                self.memory.remove_dead(digest);
                None
            }
            memory::TokenState::Nothing => None,
        }
    }

    /// Looks up a token that `find` does not know: another gateway may have minted it.
    pub async fn look_up(&self, digest: &TokenDigest) -> Result<Option<Grant>, StoreUnavailable> {
        match &self.backend {
            TokenBackend::Shared(replica) => replica.look_up(*digest).await,
            TokenBackend::Local(_) => Ok(None),
        }
    }

    fn is_confirmed(&self, digest: &TokenDigest) -> bool {
        match &self.backend {
            TokenBackend::Local(_) => true,
            TokenBackend::Shared(replica) => replica.is_confirmed(digest),
        }
    }

    /// Whether the tokens in memory are still valid: a shared store was reachable less than
    /// `stale_for` ago. Always true without one.
    pub fn is_trusted(&self) -> bool {
        match &self.backend {
            TokenBackend::Local(_) => true,
            TokenBackend::Shared(replica) => replica.shared.is_trusted(),
        }
    }

    /// Number of tokens in memory, with dead ones that the sweep has not removed yet.
    pub fn len(&self) -> usize {
        self.memory.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests;
