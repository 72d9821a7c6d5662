//! The user directory (`directory = "gateway"`): who may log in, with which
//! password, as what. In memory; the calls that change it are async, because a
//! durable store will make them wait. Does not end tokens: whoever removes a user
//! does that next, and a login then in flight is fenced by the token store's epoch.

mod error;

pub use error::{ChangeError, CreateError, Error, Refused, RemoveError};

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use rand::TryRng as _;
use rand::rngs::SysRng;
use zeroize::Zeroizing;

use super::password::Verdict;
use super::{Hasher, PasswordHash};
use crate::config::{self, FirstPassword};
use crate::secret::Secret;
use crate::webapp::{self, Role};

/// Bytes of the longest password worth checking. The rule allows 64 characters.
const LONGEST_PASSWORD: usize = 1024;

/// Name of the first admin when the operator gives none, as at the Webapp.
const ADMIN: &str = "admin";

/// The users and their passwords. Many may ask at once.
#[derive(Debug)]
pub struct Users {
    hasher: Hasher,
    nobody: PasswordHash,
    directory: RwLock<Directory>,
}

#[derive(Debug, Default)]
struct Directory {
    users: HashMap<String, User>,
    created: u64,
}

#[derive(Clone, Debug)]
struct User {
    role: Role,
    hash: Arc<PasswordHash>,
    must_change: bool,
    is_first_admin: bool,
    revision: Revision,
}

/// Tells a user from an earlier one of the same name, and a password from the one
/// before it. A re-hash of the same password is no new revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Revision {
    created: u64,
    changes: u64,
}

/// A password that was right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    pub role: Role,
    /// The login must send `new_password`.
    pub must_change: bool,
    revision: Revision,
}

/// Who wants a new password.
#[derive(Clone, Copy, Debug)]
pub enum ChangedBy<'a> {
    /// An admin, whatever the password was.
    Admin,
    /// The user, who has just shown the old one: it must still be the password.
    User(&'a Verified),
}

/// The first admin, made because the operator named none. Show it once, to a person.
#[derive(Debug)]
pub struct GeneratedAdmin {
    pub username: String,
    pub password: Secret,
}

impl Users {
    /// A directory with its first admin in it.
    pub async fn open(
        settings: &config::Users,
        hasher: Hasher,
    ) -> Result<(Self, Option<GeneratedAdmin>), Error> {
        let (name, hash, must_change, generated) = match &settings.first_admin {
            Some(admin) => {
                let hash = match &admin.password {
                    FirstPassword::Hash(text) => PasswordHash::parse(text)?,
                    FirstPassword::Plain(source) => {
                        let password = source.read()?;
                        webapp::check_password(&password)?;
                        hasher.hash(password).await?
                    }
                };
                (admin.username.clone(), hash, admin.must_change, None)
            }
            None => {
                let password = random_password();
                let hash = hasher.hash(password.clone()).await?;
                let username = ADMIN.to_owned();
                let generated = Some(GeneratedAdmin { username, password });
                (ADMIN.to_owned(), hash, false, generated)
            }
        };
        webapp::check_name(&name)?;
        let admin = User {
            role: Role::Admin,
            hash: Arc::new(hash),
            must_change,
            is_first_admin: true,
            revision: Revision {
                created: 0,
                changes: 0,
            },
        };
        let users = Self {
            hasher,
            nobody: PasswordHash::of_nobody(),
            directory: RwLock::new(Directory {
                users: HashMap::from([(name, admin)]),
                created: 0,
            }),
        };
        Ok((users, generated))
    }

    /// Checks a password. An unknown name takes as long as a wrong password.
    pub async fn verify(&self, name: &str, password: Secret) -> Result<Verified, Refused> {
        if password.expose().len() > LONGEST_PASSWORD {
            return Err(Refused::WrongPassword);
        }
        let user = self.read().users.get(name).cloned();
        let hash = user.as_ref().map_or(&self.nobody, |user| &user.hash);
        let verdict = self.hasher.verify(password, hash.clone()).await?;
        let user = user.ok_or(Refused::Unknown)?;
        let anew = match verdict {
            Verdict::Mismatch => return Err(Refused::WrongPassword),
            Verdict::Match => None,
            Verdict::MatchAnew(hash) => Some(Arc::from(hash)),
        };
        // Milliseconds have passed: the user may be gone, or its password another.
        let mut directory = self.write();
        let now = directory.users.get_mut(name).ok_or(Refused::Unknown)?;
        if now.revision != user.revision {
            return Err(Refused::WrongPassword);
        }
        if let Some(hash) = anew {
            now.hash = hash;
        }
        Ok(Verified {
            role: now.role,
            must_change: now.must_change,
            revision: now.revision,
        })
    }

    pub async fn create(
        &self,
        name: &str,
        password: Secret,
        role: Role,
    ) -> Result<(), CreateError> {
        webapp::check_name(name)?;
        webapp::check_password(&password)?;
        if self.show(name).is_some() {
            return Err(CreateError::Exists);
        }
        let hash = Arc::new(self.hasher.hash(password).await?);
        let mut directory = self.write();
        if directory.users.contains_key(name) {
            return Err(CreateError::Exists);
        }
        directory.created += 1;
        let user = User {
            role,
            hash,
            must_change: false,
            is_first_admin: false,
            revision: Revision {
                created: directory.created,
                changes: 0,
            },
        };
        directory.users.insert(name.to_owned(), user);
        Ok(())
    }

    /// The role of a user; None when there is no such user.
    pub fn show(&self, name: &str) -> Option<Role> {
        self.read().users.get(name).map(|user| user.role)
    }

    /// Sets a new password; nothing demands a change of it any more.
    pub async fn change_password(
        &self,
        name: &str,
        password: Secret,
        by: ChangedBy<'_>,
    ) -> Result<(), ChangeError> {
        let before = self.revision(name).ok_or(ChangeError::Unknown)?;
        webapp::check_password(&password)?;
        let hash = Arc::new(self.hasher.hash(password).await?);
        let mut directory = self.write();
        let user = directory.users.get_mut(name);
        // A user deleted meanwhile, and perhaps made again, is somebody else.
        let user = user.filter(|user| user.revision.created == before.created);
        let user = user.ok_or(ChangeError::Unknown)?;
        if let ChangedBy::User(verified) = by
            && verified.revision != user.revision
        {
            return Err(ChangeError::Superseded);
        }
        user.hash = hash;
        user.must_change = false;
        user.revision.changes += 1;
        Ok(())
    }

    /// Removes a user. Its tokens live on until the caller ends them.
    pub async fn remove(&self, name: &str) -> Result<(), RemoveError> {
        let mut directory = self.write();
        let user = directory.users.get(name).ok_or(RemoveError::Unknown)?;
        if user.is_first_admin {
            return Err(RemoveError::FirstAdmin);
        }
        directory.users.remove(name);
        Ok(())
    }

    fn revision(&self, name: &str) -> Option<Revision> {
        self.read().users.get(name).map(|user| user.revision)
    }

    fn read(&self) -> RwLockReadGuard<'_, Directory> {
        // Every change is one step, so a panic elsewhere leaves no half of one.
        self.directory
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Directory> {
        self.directory
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Four groups of six, without letters that look alike: a person will type it.
fn random_password() -> Secret {
    const LETTERS: &[u8] = b"abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789";
    // Largest multiple of the alphabet that fits a byte: above it lies a bias.
    const FAIR: u8 = (256 / LETTERS.len() * LETTERS.len()) as u8;
    loop {
        let mut bytes = Zeroizing::new([0; 64]);
        SysRng
            .try_fill_bytes(bytes.as_mut_slice())
            .expect("the operating system gives random bytes");
        let fair = bytes.iter().filter(|byte| **byte < FAIR).take(24);
        let mut text = Zeroizing::new(String::with_capacity(27));
        for (place, byte) in fair.enumerate() {
            if place > 0 && place % 6 == 0 {
                text.push('-');
            }
            text.push(char::from(LETTERS[usize::from(*byte) % LETTERS.len()]));
        }
        let password = Secret::new(text.as_str());
        // Now and then 24 letters hold no digit, which the rule demands.
        if text.len() == 27 && webapp::check_password(&password).is_ok() {
            return password;
        }
    }
}

#[cfg(test)]
mod tests;
