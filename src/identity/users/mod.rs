//! The user directory (`directory = "gateway"`): who may log in, with which
//! password, as what. Read from memory; a change counts once the store has it, and
//! one after the other (`change`). Does not end tokens: whoever removes a user does
//! that next, and a login then in flight is fenced by the token store's epoch.

mod change;
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

/// Bytes of the longest password worth checking. The rule allows 64 characters.
const LONGEST_PASSWORD: usize = 1024;

/// The users and their passwords. Many may ask at once.
#[derive(Debug)]
pub struct UserDirectory {
    hasher: Hasher,
    nobody: PasswordHash,
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
    /// The password the config file gave last; another one there is news.
    configured: Option<PhcText>,
    revision: UserRevision,
    /// Number of the change that wrote it, in a shared store; 0 elsewhere.
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

/// Tells a user from an earlier one of the same name, and a password from the one
/// before it. A re-hash of the same password is no new revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct UserRevision {
    created: u64,
    changes: u64,
}

/// A password that was right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifiedPassword {
    pub role: Role,
    /// The login must send `new_password`.
    pub must_change: bool,
    revision: UserRevision,
}

/// Who wants a new password.
#[derive(Clone, Copy, Debug)]
pub enum ChangedBy<'a> {
    /// An admin, whatever the password was.
    Admin,
    /// The user, who has just shown the old one: it must still be the password.
    User(&'a VerifiedPassword),
}

impl UserDirectory {
    /// Checks a password. An unknown name takes as long as a wrong password.
    pub async fn verify(
        &self,
        name: &str,
        password: Secret,
    ) -> Result<VerifiedPassword, LoginDenied> {
        if password.expose().len() > LONGEST_PASSWORD {
            return Err(LoginDenied::WrongPassword);
        }
        let user = self.read().users.get(name).cloned();
        let hash = user.as_ref().map_or(&self.nobody, |user| &user.hash);
        let verdict = self.hasher.verify(password, hash.clone()).await?;
        let user = user.ok_or(LoginDenied::Unknown)?;
        let anew = match verdict {
            PasswordVerdict::Mismatch => return Err(LoginDenied::WrongPassword),
            PasswordVerdict::Match => None,
            PasswordVerdict::MatchAnew(hash) => Some(Arc::from(hash)),
        };
        // Milliseconds have passed: the user may be gone, or its password another.
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
        if let Some(hash) = anew {
            self.improve(name, hash, verified.revision).await;
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

    /// The role of a user; None when there is no such user.
    pub fn show(&self, name: &str) -> Option<Role> {
        self.read().users.get(name).map(|user| user.role)
    }

    /// Everybody's name.
    pub fn names(&self) -> HashSet<String> {
        self.read().users.keys().cloned().collect()
    }

    /// Sets a new password; nothing demands a change of it any more.
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
        // A user deleted meanwhile, and perhaps made again, is somebody else.
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

    /// Whether the password that was right is still the user's.
    pub fn is_current(&self, name: &str, verified: &VerifiedPassword) -> bool {
        self.revision(name) == Some(verified.revision)
    }

    /// Removes a user. Its tokens live on until the caller ends them.
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
        // Every change is one step, so a panic elsewhere leaves no half of one.
        self.directory.read()
    }

    fn write(&self) -> RwLockWriteGuard<'_, DirectoryState> {
        self.directory.write()
    }
}

#[cfg(test)]
mod tests;
