//! The user directory (`directory = "gateway"`): who may log in, with which password and role.
//! Read from memory; changes are serialised and take effect once the store has confirmed them
//! (`directory_change`). Does not revoke tokens: the caller of `remove` does, and a login running meanwhile
//! is fenced by the token store's epoch.

mod directory_change;
mod error;
mod first_admin;
mod user_replica;

pub use error::{ChangeError, CreateError, Error, LoginDenied, RemoveError};
pub use first_admin::{FirstAdminStatus, GeneratedAdmin};

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::sync::Mutex;

use super::password::PasswordVerdict;
use super::{Hasher, PasswordHash};
use crate::profiles::{self, Role};
use crate::secret::Secret;
use crate::store::{PhcText, StoreBackend, UserRecord};

/// Maximum length in bytes of a password that is checked. The rule allows 64 characters.
const MAX_PASSWORD_BYTES: usize = 1024;

/// The users and their passwords; shared by all workers.
#[derive(Debug)]
pub struct UserDirectory {
    hasher: Hasher,
    unknown_user_hash: PasswordHash,
    directory: Arc<RwLock<DirectoryState>>,
    store: StoreBackend,
    /// Applies other gateways' changes; None: the store is not shared.
    replica: Option<Arc<user_replica::UserReplica>>,
    /// Serialises check-then-write on the directory.
    changes: Arc<Mutex<()>>,
}

#[derive(Debug, Default)]
struct DirectoryState {
    users: HashMap<String, DirectoryUser>,
    created: u64,
}

#[derive(Clone, Debug)]
struct DirectoryUser {
    role: Role,
    hash: Arc<PasswordHash>,
    must_change: bool,
    is_first_admin: bool,
    /// The password that the configuration gave last; a different one there replaces the user's.
    configured: Option<PhcText>,
    revision: UserRevision,
    /// Number of the change that wrote this user to a shared store; 0 for a local store.
    seq: u64,
}

impl DirectoryUser {
    fn record(&self, name: &str) -> UserRecord {
        UserRecord {
            name: name.into(),
            role: self.role,
            hash: PhcText(self.hash.text()),
            must_change: self.must_change,
            is_first_admin: self.is_first_admin,
            configured: self.configured.clone(),
        }
    }
}

/// Identifies one version of a user: a user created again under the same name, and a changed
/// password, differ. A re-hash of the same password does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct UserRevision {
    created: u64,
    changes: u64,
}

/// The result of a successful password check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifiedPassword {
    pub role: Role,
    /// The login must also set a new password (`new_password`).
    pub must_change: bool,
    revision: UserRevision,
}

/// Who changes a password.
#[derive(Clone, Copy, Debug)]
pub enum ChangedBy<'a> {
    /// An admin; the old password does not matter.
    Admin,
    /// The user, whose old password was just checked: it must still be the current one.
    User(&'a VerifiedPassword),
}

impl UserDirectory {
    /// Checks a password. An unknown name takes as long as a wrong password.
    pub async fn verify(
        &self,
        name: &str,
        password: Secret,
    ) -> Result<VerifiedPassword, LoginDenied> {
        if password.expose().len() > MAX_PASSWORD_BYTES {
            return Err(LoginDenied::WrongPassword);
        }
        let user = self.read().users.get(name).cloned();
        let hash = user
            .as_ref()
            .map_or(&self.unknown_user_hash, |user| &user.hash);
        let verdict = self.hasher.verify(password, hash.clone()).await?;
        let user = user.ok_or(LoginDenied::Unknown)?;
        let rehashed = match verdict {
            PasswordVerdict::Mismatch => return Err(LoginDenied::WrongPassword),
            PasswordVerdict::Match => None,
            PasswordVerdict::MatchOutdated(hash) => Some(Arc::from(hash)),
        };
        // The check took milliseconds: the user may have been removed or its password changed.
        let verified = {
            let directory = self.read();
            let now = directory.users.get(name).ok_or(LoginDenied::Unknown)?;
            if now.revision != user.revision {
                return Err(LoginDenied::WrongPassword);
            }
            VerifiedPassword {
                role: now.role,
                must_change: now.must_change,
                revision: now.revision,
            }
        };
        if let Some(hash) = rehashed {
            self.replace_hash(name, hash, verified.revision).await;
        }
        Ok(verified)
    }

    pub async fn create(
        &self,
        name: &str,
        password: Secret,
        role: Role,
    ) -> Result<(), CreateError> {
        profiles::check_name(name)?;
        profiles::check_password(&password)?;
        if self.show(name).is_some() {
            return Err(CreateError::Exists);
        }
        let hash = Arc::new(self.hasher.hash(password).await?);
        let change = self.begin_change().await?;
        let created = {
            let mut directory = self.write();
            if directory.users.contains_key(name) {
                return Err(CreateError::Exists);
            }
            directory.created += 1;
            directory.created
        };
        let user = DirectoryUser {
            role,
            hash,
            must_change: false,
            is_first_admin: false,
            configured: None,
            revision: UserRevision {
                created,
                changes: 0,
            },
            seq: 0,
        };
        change.put(name, user).await?;
        Ok(())
    }

    /// The role of a user; None: there is no such user.
    pub fn show(&self, name: &str) -> Option<Role> {
        self.read().users.get(name).map(|user| user.role)
    }

    /// The names of all users.
    pub fn names(&self) -> HashSet<String> {
        self.read().users.keys().cloned().collect()
    }

    /// Sets a new password, and clears the demand for a change.
    pub async fn change_password(
        &self,
        name: &str,
        password: Secret,
        by: ChangedBy<'_>,
    ) -> Result<(), ChangeError> {
        let before = self.revision(name).ok_or(ChangeError::Unknown)?;
        profiles::check_password(&password)?;
        let hash = Arc::new(self.hasher.hash(password).await?);
        let change = self.begin_change().await?;
        // A user deleted and created again meanwhile is another user.
        let user = self.read().users.get(name).cloned();
        let user = user.filter(|user| user.revision.created == before.created);
        let mut user = user.ok_or(ChangeError::Unknown)?;
        if let ChangedBy::User(verified) = by
            && verified.revision != user.revision
        {
            return Err(ChangeError::Superseded);
        }
        user.hash = hash;
        user.must_change = false;
        user.revision.changes += 1;
        change.put(name, user).await?;
        Ok(())
    }

    /// Whether the password that was checked is still the user's.
    pub fn is_current(&self, name: &str, verified: &VerifiedPassword) -> bool {
        self.revision(name) == Some(verified.revision)
    }

    /// Removes a user. Its tokens stay live until the caller ends them.
    pub async fn remove(&self, name: &str) -> Result<(), RemoveError> {
        let change = self.begin_change().await?;
        let is_first_admin = {
            let directory = self.read();
            let user = directory.users.get(name).ok_or(RemoveError::Unknown)?;
            user.is_first_admin
        };
        if is_first_admin {
            return Err(RemoveError::FirstAdmin);
        }
        change.remove(name).await?;
        Ok(())
    }

    fn revision(&self, name: &str) -> Option<UserRevision> {
        self.read().users.get(name).map(|user| user.revision)
    }

    fn read(&self) -> RwLockReadGuard<'_, DirectoryState> {
        self.directory.read()
    }

    fn write(&self) -> RwLockWriteGuard<'_, DirectoryState> {
        self.directory.write()
    }
}

#[cfg(test)]
mod tests;
