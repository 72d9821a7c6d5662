//! The users and the tokens given to them.

use std::time::Duration;

use crate::secret::SecretSource;

/// The user directory and the tokens given to its users.
#[derive(Clone, Debug, PartialEq)]
pub struct UsersConfig {
    pub directory: DirectoryKind,
    pub unknown_tokens: UnknownTokens,
    pub token_lifetime: Duration,
    /// At most a quarter of `max_tokens`: no user can fill the gate alone.
    pub max_tokens_per_user: usize,
    pub at_token_cap: AtTokenCap,
    pub on_password_change: OnPasswordChange,
    pub max_tokens: usize,
    /// None: made at first start with a random password that is shown once.
    pub first_admin: Option<FirstAdmin>,
    /// Password hashes computed at once.
    pub hashing_slots: usize,
}

impl Default for UsersConfig {
    fn default() -> Self {
        Self {
            directory: DirectoryKind::Gateway,
            unknown_tokens: UnknownTokens::Reject,
            token_lifetime: Duration::from_secs(7 * 86_400),
            max_tokens_per_user: 10_000,
            at_token_cap: AtTokenCap::EndOldest,
            on_password_change: OnPasswordChange::EndOthers,
            max_tokens: 1_000_000,
            first_admin: None,
            hashing_slots: 2,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirectoryKind {
    Gateway,
    Upstream,
}

/// What happens to a token that the gate has never seen (directory = "webapp").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownTokens {
    Reject,
    Ask,
}

/// What a new password, set through the gate, means for its user's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnPasswordChange {
    /// All of the user's tokens end, but the one with which the user itself changed it.
    EndOthers,
    /// That one too.
    EndAll,
}

/// What a login does when its user has as many tokens as are allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtTokenCap {
    /// The user's oldest token that has not been used lately ends.
    EndOldest,
    Refuse,
}

#[derive(Clone, Debug, PartialEq)]
pub struct FirstAdmin {
    pub username: String,
    pub password: FirstPassword,
    /// The first login must send `new_password`.
    pub must_change: bool,
}

/// The first admin's password, or what `tollgate hash-password` made of it.
#[derive(Clone, Debug, PartialEq)]
pub enum FirstPassword {
    Plain(SecretSource),
    /// PHC string, `$argon2id$...`.
    Hash(String),
}
