//! Why there is no lease, and the state of the renewer, as text for operators.

use std::fmt;
use std::time::Duration;

use http::StatusCode;

use crate::clock::Deadline;

pub(super) const MIN_RETRY: Duration = Duration::from_secs(1);

/// Why there is no lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoginFailure {
    /// The first login is still in progress.
    Starting,
    WrongPassword,
    PasswordChange,
    Unreachable,
    Timeout,
    /// User name or password cannot stand where the description puts them.
    Unsendable,
    /// A successful response without a usable token.
    Unusable,
    Refused(StatusCode),
    /// The login gave a token that the upstream does not accept.
    NotAccepted,
    /// The gateway's own password cannot be read.
    Secret,
    /// `min_login_interval` or `logins_per_hour` forbids a login now.
    Budget,
    Stopping,
}

impl fmt::Display for LoginFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "logging in",
            Self::WrongPassword => "wrong password",
            Self::PasswordChange => "password change required",
            Self::Unreachable => "upstream unreachable",
            Self::Timeout => "no response in time",
            Self::Unsendable => "user name or password cannot be sent as described",
            Self::Unusable => "response without a usable token",
            Self::Refused(status) => return write!(f, "refused with status {}", status.as_u16()),
            Self::NotAccepted => "the upstream does not take the token that its login gives",
            Self::Secret => "password cannot be read",
            Self::Budget => "login budget spent",
            Self::Stopping => "stopping",
        })
    }
}

/// There is no lease now, and waiting would not help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no upstream login: {why}")]
pub struct NoLease {
    pub why: LoginFailure,
    pub retry_after: Duration,
}

impl NoLease {
    /// The gateway stops.
    pub(in crate::upstream) fn stopping() -> Self {
        Self {
            why: LoginFailure::Stopping,
            retry_after: MIN_RETRY,
        }
    }
}

/// The state of the renewer, which alone writes it.
#[derive(Clone, Copy, Debug)]
pub(in crate::upstream) enum RenewerPhase {
    LoggingIn,
    /// The last login succeeded; nothing to do until the renewal.
    Resting,
    /// No login before `until`.
    Blocked {
        why: LoginFailure,
        until: Deadline,
    },
}

/// Readiness as text; contains no secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionStatus {
    pub is_ready: bool,
    /// What keeps the next login from happening, if anything does.
    pub trouble: Option<LoginFailure>,
}

impl fmt::Display for SessionStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.is_ready, self.trouble) {
            (true, None) => f.write_str("upstream login: ready"),
            (true, Some(why)) => write!(f, "upstream login: ready, but cannot renew: {why}"),
            (false, Some(why)) => write!(f, "upstream login: {why}"),
            (false, None) => f.write_str("upstream login: token ended, logging in"),
        }
    }
}
