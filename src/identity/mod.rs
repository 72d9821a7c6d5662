//! Who may call: the user directory with its passwords, and the API keys. Turns a credential into
//! a `Client`; mints no tokens and knows no routes. Start reading at `Client`, then `users` (the
//! directory) or `key_ring` (keys made at run time).
//! A password check is slow on purpose and never runs on a worker thread.

mod key_replica;
mod key_ring;
mod key_set;
mod password;
mod ring_state;
mod scope;
mod users;

pub use key_ring::{KeyError, KeyRing, NewKey};
pub use key_set::{KeyRefused, KeySet, ListedKey, mint_key};
pub use password::{HashFailed, Hasher, HasherBusy, PasswordHash, UnusableHash, hash_password};
pub use scope::{matches, permits};
pub use users::{
    ChangeError, ChangedBy, CreateError, Error, FirstAdminStatus, GeneratedAdmin, LoginDenied,
    RemoveError, UserDirectory, VerifiedPassword,
};

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::TryRng as _;
use rand::rngs::SysRng;
use zeroize::Zeroizing;

use crate::config::ApiKey;
use crate::profiles::Role;
use crate::secret::Secret;

/// Who calls: the result of authentication.
#[derive(Clone, Debug)]
pub enum Client {
    /// The route is open: no credential was required.
    Open,
    User {
        name: Arc<str>,
        /// None: a user of the upstream's, whose role only the upstream knows.
        role: Option<Role>,
    },
    Key(Arc<ApiKey>),
}

/// Identifies a client. The user "a" and the key "a" are two clients.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ClientId<'a> {
    Open,
    User(&'a str),
    Key(&'a str),
}

impl Client {
    /// For the access log; `-` on an open route.
    pub fn name(&self) -> &str {
        match self {
            Self::Open => "-",
            Self::User { name, .. } => name,
            Self::Key(key) => &key.name,
        }
    }

    /// A key is identified by its name, so that rotating its text gives it no fresh rate limit.
    pub fn id(&self) -> ClientId<'_> {
        match self {
            Self::Open => ClientId::Open,
            Self::User { name, .. } => ClientId::User(name),
            Self::Key(key) => ClientId::Key(&key.name),
        }
    }
}

/// `prefix` and 256 random bits, base64url.
pub fn random_text(prefix: &str) -> Secret {
    let bits = random_bits();
    let mut text = Zeroizing::new(String::with_capacity(prefix.len() + 43));
    text.push_str(prefix);
    URL_SAFE_NO_PAD.encode_string(bits.as_slice(), &mut text);
    Secret::new(text.as_str())
}

/// 256 bits from the operating system.
fn random_bits() -> Zeroizing<[u8; 32]> {
    let mut bits = Zeroizing::new([0; 32]);
    SysRng
        .try_fill_bytes(bits.as_mut_slice())
        // Without randomness tokens could be guessed: panic, which fails this request only.
        .expect("the operating system gives random bytes");
    bits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_and_a_key_of_the_same_name_are_two_clients() {
        let user = Client::User {
            name: "sender".into(),
            role: Some(Role::User),
        };
        let key = Client::Key(Arc::new(key_set::tests::key("sender", "012345678901")));
        assert_eq!(user.name(), key.name());
        assert_ne!(user.id(), key.id());
        assert_eq!(user.id(), user.clone().id());
        assert_eq!(Client::Open.name(), "-");
    }

    #[test]
    fn random_text_has_256_bits_and_never_repeats() {
        let (one, other) = (random_text("tg_"), random_text("tg_"));
        assert_eq!(one.expose().len(), 3 + 43);
        assert!(one != other);
    }
}
