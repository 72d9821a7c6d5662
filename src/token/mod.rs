//! What was handed out, and until when. Owns the live tokens' digests, never the
//! tokens; does not know how a client proved who it is. What a request needs (`find`)
//! is in memory and never waits; what changes something is async, because the store
//! makes it last before it is answered (`durable`).
//! The surprise: a grant may lie here dead. What counts is the check at use; the
//! sweep only frees memory.

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

/// Opaque text that *we* mint: `tg_` and 256 random bits.
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

/// What we keep instead of a token: SHA-256 of its text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenDigest([u8; 32]);

impl TokenDigest {
    /// The digest of a token as presented.
    pub fn of(text: &str) -> Self {
        Self(Sha256::digest(text).into())
    }

    /// What a client is called of which only the token is known. No user is called so: a
    /// name with a colon cannot be sent in a login (RFC 7617, 2).
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

    fn tag(&self) -> grant_table::Tag {
        let (first, _) = self.0.split_first_chunk().expect("32 is more than 4");
        grant_table::Tag::from_be_bytes(*first)
    }
}

/// As the stores know it, which know nothing of tokens.
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

/// What a token entitles to, until when.
#[derive(Clone, Debug)]
pub struct Grant {
    pub user: Arc<str>,
    /// None: the Webapp knows its users' roles, we do not.
    pub role: Option<Role>,
    pub ends: Deadline,
}

/// How far the deletions of users had got. Take it when a login begins and give it back
/// with the grant: a deletion in between refuses the grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeletionEpoch {
    /// By this gate's own count.
    here: u64,
    /// By the count of the shared store, where there is one.
    shared: u64,
}

/// A grant to be.
#[derive(Clone, Copy, Debug)]
pub struct GrantRequest<'a> {
    pub user: &'a str,
    pub role: Option<Role>,
    pub lifetime: Duration,
    pub origin: TokenOrigin,
    /// As it was when the login began.
    pub epoch: DeletionEpoch,
    /// The user whose password was right, where the store has a say in it.
    pub revision: Option<EntryRevision>,
}

/// Why a token is not taken in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InsertRefused {
    /// And how long until the user's next one ends.
    #[error("user has too many live tokens")]
    UserFull(Option<Duration>),
    /// And how long until the next one ends.
    #[error("too many live tokens in all")]
    Full(Option<Duration>),
    #[error("user was deleted while the login ran")]
    Ended,
    #[error("cannot be made to last")]
    Unavailable(#[source] StoreUnavailable),
}

/// The live tokens.
#[derive(Debug)]
pub struct TokenStore {
    memory: Arc<memory::TokenMemory>,
    store: Arc<Store>,
    /// Where other gates have a say: this gate's copy of a shared store.
    front: Option<Arc<token_replica::TokenReplica>>,
    lanes: user_locks::UserLocks,
    cap_watch: caps::CapWatch,
    metrics: Arc<Metrics>,
}

impl TokenStore {
    /// Tokens that a restart forgets.
    pub fn new(settings: &config::UsersConfig, metrics: Arc<Metrics>) -> Arc<Self> {
        Self::over(Arc::new(Store::Memory), settings, metrics)
    }

    /// Tokens that live as long as `store` keeps them; empty until it is loaded.
    pub fn over(
        store: Arc<Store>,
        settings: &config::UsersConfig,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let memory = memory::TokenMemory::new(settings, Arc::clone(&metrics));
        Self::of((Arc::new(memory), None), store, metrics)
    }

    /// Tokens of a store that other gates share; looked up as they are needed, by `tasks`.
    pub fn sharing(
        shared: &Arc<SharedStore>,
        tasks: &TaskSet,
        settings: &config::UsersConfig,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let memory = memory::TokenMemory::new(settings, Arc::clone(&metrics));
        let memory = Arc::new(memory);
        let front = token_replica::TokenReplica::new(
            shared,
            Arc::clone(&memory),
            tasks.clone(),
            Arc::clone(&metrics),
        );
        let store = Arc::new(Store::Shared(Arc::clone(shared)));
        Self::of((memory, Some(front)), store, metrics)
    }

    fn of(
        (memory, front): (
            Arc<memory::TokenMemory>,
            Option<Arc<token_replica::TokenReplica>>,
        ),
        store: Arc<Store>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Self {
            memory,
            store,
            front,
            lanes: user_locks::UserLocks::new(),
            cap_watch: caps::CapWatch::new(Arc::clone(&metrics)),
            metrics,
        })
    }

    /// Takes the caps of a new configuration. What is over them already stays:
    /// nobody loses a live token to somebody's edit.
    pub fn reload(&self, settings: &config::UsersConfig) {
        self.memory.cap(settings);
    }

    /// To be taken before a login's first check. The user is named for the sake of
    /// stores that count by user.
    pub fn epoch(&self, _user: &str) -> DeletionEpoch {
        let here = self.memory.holders.epoch();
        match &self.front {
            Some(front) => DeletionEpoch {
                shared: front.shared.applied(),
                ..here
            },
            None => here,
        }
    }

    /// Takes a token in, or takes its new end if it is known. Gives its end.
    pub async fn insert(
        &self,
        digest: TokenDigest,
        wanted: GrantRequest<'_>,
    ) -> Result<Deadline, InsertRefused> {
        let ends = Deadline::after(wanted.lifetime);
        let placed = self.insert_until(digest, wanted, ends).await;
        let (of_user, of_all) = self.memory.caps();
        self.cap_watch.note(wanted.user, &placed, of_user, of_all);
        self.metrics
            .token_events
            .add(match (&placed, wanted.origin) {
                (Ok(_), TokenOrigin::Minted) => TokenEvent::Minted,
                (Ok(_), TokenOrigin::Learned) => TokenEvent::Learned,
                (Err(_), _) => TokenEvent::Refused,
            });
        placed.map(|_| ends)
    }

    /// The grant of a token, if it is live this instant. One look-up, no allocation.
    pub fn find(&self, digest: &TokenDigest) -> Option<Grant> {
        match self.memory.find(digest) {
            memory::TokenState::Live(grant) => self.is_sure(digest).then_some(grant),
            memory::TokenState::Dead => {
                self.memory.forget_dead(digest);
                None
            }
            memory::TokenState::Nothing => None,
        }
    }

    /// A token that is not found may still be one that another gate gave out.
    pub async fn look_up(&self, digest: &TokenDigest) -> Result<Option<Grant>, StoreUnavailable> {
        match &self.front {
            Some(front) => front.look_up(*digest).await,
            None => Ok(None),
        }
    }

    fn is_sure(&self, digest: &TokenDigest) -> bool {
        let front = self.front.as_ref();
        front.is_none_or(|front| front.is_sure(digest))
    }

    /// Whether what is known here counts: a shared store was there not too long ago.
    pub fn is_believed(&self) -> bool {
        let front = self.front.as_ref();
        front.is_none_or(|front| front.shared.is_believed())
    }

    /// Tokens in memory, dead ones that await the sweep included.
    pub fn len(&self) -> usize {
        self.memory.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests;
