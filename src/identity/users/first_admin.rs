//! The first admin: created once, from the configuration or with a generated password that is
//! shown once. After that the stored password counts, and the configured one only when it differs
//! from the one configured last: a password that the admin has changed survives every restart, and
//! an operator who has lost it configures another one.

use std::sync::Arc;

use parking_lot::RwLock;
use rand::TryRng as _;
use rand::rngs::SysRng;
use tokio::sync::Mutex;
use tracing::info;
use zeroize::Zeroizing;

use super::{DirectoryState, DirectoryUser, Error, UserDirectory, UserRevision};
use crate::config::{self, FirstPassword};
use crate::identity::password::PasswordVerdict;
use crate::identity::{Hasher, PasswordHash};
use crate::profiles::{self, Role};
use crate::secret::Secret;
use crate::store::{PhcText, Store, StoreBackend, UserRecord};

/// Name of the first admin if the configuration gives none.
const DEFAULT_NAME: &str = "admin";

/// A generated first admin. Show it once, to a person.
#[derive(Debug)]
pub struct GeneratedAdmin {
    pub username: String,
    pub password: Secret,
}

/// Where the first admin's password came from at this start.
#[derive(Debug)]
pub enum FirstAdminStatus {
    Generated(GeneratedAdmin),
    /// Taken from the configuration at this start.
    Configured {
        username: String,
    },
    /// Stored by an earlier start, and perhaps changed since.
    Kept {
        username: String,
    },
}

impl FirstAdminStatus {
    pub fn username(&self) -> &str {
        match self {
            Self::Generated(admin) => &admin.username,
            Self::Configured { username } | Self::Kept { username } => username,
        }
    }
}

impl UserDirectory {
    /// The directory with the stored users, `records`, and its first admin.
    pub async fn open(
        settings: &config::UsersConfig,
        hasher: Hasher,
        store: Arc<Store>,
        records: Vec<UserRecord>,
    ) -> Result<(Self, FirstAdminStatus), Error> {
        let mut directory = DirectoryState::default();
        for record in records {
            directory.created += 1;
            let (name, user) = user(record, directory.created)?;
            directory.users.insert(name, user);
        }
        let users = Self {
            hasher,
            unknown_user_hash: PasswordHash::unmatchable(),
            directory: Arc::new(RwLock::new(directory)),
            store: StoreBackend::Local(store),
            replica: None,
            changes: Arc::new(Mutex::new(())),
        };
        let admin = users.settle_first_admin(settings).await?;
        Ok((users, admin))
    }

    pub(super) async fn settle_first_admin(
        &self,
        settings: &config::UsersConfig,
    ) -> Result<FirstAdminStatus, Error> {
        let stored = self.first_admin();
        let Some(configured_admin) = &settings.first_admin else {
            return match stored {
                Some((username, _)) => Ok(FirstAdminStatus::Kept { username }),
                None => self.generate().await,
            };
        };
        profiles::check_name(&configured_admin.username)?;
        let known = self.read().users.get(&configured_admin.username).cloned();
        let is_known = known.as_ref().is_some_and(|user| user.is_first_admin);
        let configured = known.as_ref().and_then(|user| user.configured.clone());
        let username = configured_admin.username.clone();
        if is_known
            && self
                .is_unchanged(&configured_admin.password, configured)
                .await?
        {
            return Ok(FirstAdminStatus::Kept { username });
        }
        if let Some((old, user)) = stored.filter(|(old, _)| *old != username) {
            info!(%old, new = %username, "the configuration names another first admin");
            let user = DirectoryUser {
                is_first_admin: false,
                configured: None,
                ..user
            };
            self.begin_change().await?.put(&old, user).await?;
        }
        let hash = self
            .hash(&configured_admin.password, configured_admin.must_change)
            .await?;
        let change = FirstUser {
            name: &username,
            configured: Some(match &configured_admin.password {
                FirstPassword::Hash(text) => PhcText(text.clone()),
                FirstPassword::Plain(_) => PhcText(hash.text()),
            }),
            hash,
            must_change: configured_admin.must_change,
        };
        self.put_first_admin(change, known).await?;
        info!(%username, "the first admin has the password of the configuration");
        Ok(FirstAdminStatus::Configured { username })
    }

    fn first_admin(&self) -> Option<(String, DirectoryUser)> {
        let directory = self.read();
        let mut users = directory.users.iter();
        let (name, user) = users.find(|(_, user)| user.is_first_admin)?;
        Some((name.clone(), user.clone()))
    }

    async fn generate(&self) -> Result<FirstAdminStatus, Error> {
        let password = random_password();
        let known = self.read().users.get(DEFAULT_NAME).cloned();
        let first = FirstUser {
            name: DEFAULT_NAME,
            hash: self.hasher.hash(password.clone()).await?,
            must_change: false,
            configured: None,
        };
        self.put_first_admin(first, known).await?;
        Ok(FirstAdminStatus::Generated(GeneratedAdmin {
            username: DEFAULT_NAME.to_owned(),
            password,
        }))
    }

    async fn put_first_admin(
        &self,
        first: FirstUser<'_>,
        known: Option<DirectoryUser>,
    ) -> Result<(), Error> {
        let change = self.begin_change().await?;
        let revision = match known {
            Some(user) => UserRevision {
                changes: user.revision.changes + 1,
                ..user.revision
            },
            None => {
                let mut directory = self.write();
                directory.created += 1;
                UserRevision {
                    created: directory.created,
                    changes: 0,
                }
            }
        };
        let user = DirectoryUser {
            role: Role::Admin,
            hash: Arc::new(first.hash),
            must_change: first.must_change,
            is_first_admin: true,
            configured: first.configured,
            revision,
            seq: 0,
        };
        change.put(first.name, user).await?;
        Ok(())
    }

    /// Whether the configured password is the one that was applied last.
    async fn is_unchanged(
        &self,
        password: &FirstPassword,
        configured: Option<PhcText>,
    ) -> Result<bool, Error> {
        let Some(configured) = configured else {
            return Ok(false);
        };
        match password {
            FirstPassword::Hash(text) => Ok(*text == configured.0),
            FirstPassword::Plain(source) => {
                let Ok(hash) = PasswordHash::parse(&configured.0) else {
                    return Ok(false);
                };
                let verdict = self.hasher.verify(source.read()?, hash).await?;
                Ok(!matches!(verdict, PasswordVerdict::Mismatch))
            }
        }
    }

    async fn hash(
        &self,
        password: &FirstPassword,
        must_change: bool,
    ) -> Result<PasswordHash, Error> {
        match password {
            FirstPassword::Hash(text) => Ok(PasswordHash::parse(text)?),
            FirstPassword::Plain(source) => {
                let password = source.read()?;
                // A password that must be changed at once may be as weak as a factory default.
                if !must_change {
                    profiles::check_password(&password)?;
                }
                Ok(self.hasher.hash(password).await?)
            }
        }
    }
}

/// The first admin to be stored.
struct FirstUser<'a> {
    name: &'a str,
    hash: PasswordHash,
    must_change: bool,
    configured: Option<PhcText>,
}

pub(super) fn user(record: UserRecord, created: u64) -> Result<(String, DirectoryUser), Error> {
    let name = record.name.to_string();
    let hash = PasswordHash::parse(&record.hash.0).map_err(|source| Error::Stored {
        user: name.clone(),
        source,
    })?;
    let user = DirectoryUser {
        role: record.role,
        hash: Arc::new(hash),
        must_change: record.must_change,
        is_first_admin: record.is_first_admin,
        configured: record.configured,
        revision: UserRevision {
            created,
            changes: 0,
        },
        seq: 0,
    };
    Ok((name, user))
}

/// Four groups of six, without characters that look alike: a person has to type it.
pub(super) fn random_password() -> Secret {
    const LETTERS: &[u8] = b"abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789";
    // Largest multiple of the alphabet's size that fits a byte; larger bytes would cause a bias.
    const FAIR: u8 = (256 / LETTERS.len() * LETTERS.len()) as u8;
    loop {
        let mut bytes = Zeroizing::new([0; 64]);
        SysRng
            .try_fill_bytes(bytes.as_mut_slice())
            .expect("the operating system gives random bytes");
        let fair = bytes.iter().filter(|byte| **byte < FAIR).take(24);
        let mut text = Zeroizing::new(String::with_capacity(27));
        for (index, byte) in fair.enumerate() {
            if index > 0 && index % 6 == 0 {
                text.push('-');
            }
            text.push(char::from(LETTERS[usize::from(*byte) % LETTERS.len()]));
        }
        let password = Secret::new(text.as_str());
        // Sometimes 24 characters contain no digit, which the rule requires.
        if text.len() == 27 && profiles::check_password(&password).is_ok() {
            return password;
        }
    }
}
