//! The users and the tokens given to them.

use std::sync::Arc;
use std::time::Duration;

use crate::secret::SecretSource;

/// The user directory and the tokens given to its users.
#[derive(Clone, Debug, PartialEq)]
pub struct UsersConfig {
    pub directory: DirectoryKind,
    pub unknown_tokens: UnknownTokens,
    pub token_lifetime: Duration,
    /// At most a quarter of `max_tokens`: no single user can use up all tokens.
    pub max_tokens_per_user: usize,
    pub at_token_cap: AtTokenCap,
    pub on_password_change: OnPasswordChange,
    pub max_tokens: usize,
    /// None: made at first start with a random password that is shown once.
    pub first_admin: Option<FirstAdmin>,
    /// Password hashes computed at once.
    pub hashing_slots: usize,
    /// The upstreams that users without a rule of their own may call; empty: every one.
    pub upstreams: Vec<Arc<str>>,
    pub rules: Vec<UserRule>,
}

/// What one user may do, from `[[user]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserRule {
    /// In lower case: an upstream that has the users may take a name in either.
    pub name: Arc<str>,
    /// Empty: every upstream.
    pub upstreams: Vec<Arc<str>>,
}

impl UsersConfig {
    /// The upstreams that the user may call; empty: every one.
    pub fn upstreams_of(&self, user: &str) -> &[Arc<str>] {
        if self.rules.is_empty() {
            return &self.upstreams;
        }
        let user = user.to_lowercase();
        // Sorted by name.
        let found = self.rules.binary_search_by(|rule| (*rule.name).cmp(&*user));
        found.map_or(&self.upstreams, |position| &self.rules[position].upstreams)
    }
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
            upstreams: Vec::new(),
            rules: Vec::new(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirectoryKind {
    Gateway,
    Upstream,
}

/// What happens to a token that the gateway has never seen (directory = "webapp").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownTokens {
    Reject,
    Ask,
}

/// Which of a user's tokens a new password ends, when it is set through the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnPasswordChange {
    /// All but the one with which the user itself changed it.
    EndOthers,
    /// All of them.
    EndAll,
}

/// What a login does when its user has as many tokens as are allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtTokenCap {
    /// The user's oldest token that has not been used recently ends.
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

/// The first admin's password, or its hash by `tollgate hash-password`.
#[derive(Clone, Debug, PartialEq)]
pub enum FirstPassword {
    Plain(SecretSource),
    /// PHC string, `$argon2id$...`.
    Hash(String),
}
