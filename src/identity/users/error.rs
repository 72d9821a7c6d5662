//! Errors of the user directory.

use crate::identity::{HashFailed, HasherBusy, UnusableHash};
use crate::profiles::{BadName, BadPassword};
use crate::secret;
use crate::store::StoreUnavailable;

/// Why the directory could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot use the first admin's password")]
    Secret(#[from] secret::Error),
    #[error("cannot use the first admin's password hash")]
    Hash(#[from] UnusableHash),
    #[error("the first admin's password is too simple")]
    Password(#[from] BadPassword),
    #[error("the first admin's name is not a user name")]
    Name(#[from] BadName),
    #[error("cannot hash the first admin's password")]
    Hashing(#[from] HashFailed),
    #[error("user {user} of the store has a password hash that cannot be used")]
    Stored {
        user: String,
        #[source]
        source: UnusableHash,
    },
    #[error("cannot store the first admin")]
    Unavailable(#[from] StoreUnavailable),
}

/// Why a login is refused. Clients get the same response for the first two.
#[derive(Debug, thiserror::Error)]
pub enum LoginDenied {
    #[error("no such user")]
    Unknown,
    #[error("wrong password")]
    WrongPassword,
    #[error("password cannot be checked now")]
    Busy(#[source] HasherBusy),
    #[error("cannot check a password")]
    Failed(#[source] HashFailed),
}

/// Why a user is not created.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    #[error("user exists already")]
    Exists,
    #[error("not a user name")]
    BadName(#[from] BadName),
    #[error("password is too simple")]
    BadPassword(#[from] BadPassword),
    #[error("password cannot be hashed now")]
    Busy(#[source] HasherBusy),
    #[error("cannot hash a password")]
    Failed(#[source] HashFailed),
    #[error("cannot be written to the store")]
    Unavailable(#[from] StoreUnavailable),
}

/// Why a password is not changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    #[error("no such user")]
    Unknown,
    #[error("password is too simple")]
    BadPassword(#[from] BadPassword),
    /// The old password, checked a moment ago, has been replaced meanwhile.
    #[error("password was changed meanwhile")]
    Superseded,
    #[error("password cannot be hashed now")]
    Busy(#[source] HasherBusy),
    #[error("cannot hash a password")]
    Failed(#[source] HashFailed),
    #[error("cannot be written to the store")]
    Unavailable(#[from] StoreUnavailable),
}

/// Why a user is not removed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RemoveError {
    #[error("no such user")]
    Unknown,
    /// The first admin cannot be deleted, so there is always one (protocol sheet, 1.1).
    #[error("the first admin cannot be deleted")]
    FirstAdmin,
    #[error("cannot be written to the store")]
    Unavailable(#[from] StoreUnavailable),
}

impl From<HashFailed> for LoginDenied {
    fn from(failed: HashFailed) -> Self {
        match failed {
            HashFailed::Busy(busy) => Self::Busy(busy),
            other => Self::Failed(other),
        }
    }
}

impl From<HashFailed> for CreateError {
    fn from(failed: HashFailed) -> Self {
        match failed {
            HashFailed::Busy(busy) => Self::Busy(busy),
            other => Self::Failed(other),
        }
    }
}

impl From<HashFailed> for ChangeError {
    fn from(failed: HashFailed) -> Self {
        match failed {
            HashFailed::Busy(busy) => Self::Busy(busy),
            other => Self::Failed(other),
        }
    }
}
