//! The users of the emulated Webapp.

use std::collections::HashMap;

use crate::profiles::Role;
use crate::secret::Secret;
use parking_lot::Mutex;

const MAX: usize = 10_000;

pub(super) struct EmulatedUsers {
    users: Mutex<HashMap<String, EmulatedUser>>,
    /// The preset account; it cannot be deleted.
    first: String,
}

struct EmulatedUser {
    // The real Webapp stores a hash; this one loses its users when it stops.
    password: Secret,
    role: Role,
    must_change: bool,
}

/// The result of checking a user name and a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PasswordVerdict {
    Good,
    MustChange,
    Wrong,
}

impl EmulatedUsers {
    pub(super) fn new(first: &str, password: Secret, must_change: bool) -> Self {
        let admin = EmulatedUser {
            password,
            role: Role::Admin,
            must_change,
        };
        Self {
            users: Mutex::new(HashMap::from([(first.to_owned(), admin)])),
            first: first.to_owned(),
        }
    }

    pub(super) fn first(&self) -> &str {
        &self.first
    }

    pub(super) fn check(&self, name: &str, password: &Secret) -> PasswordVerdict {
        match self.users.lock().get(name) {
            Some(user) if user.password != *password => PasswordVerdict::Wrong,
            Some(user) if user.must_change => PasswordVerdict::MustChange,
            Some(_) => PasswordVerdict::Good,
            None => PasswordVerdict::Wrong,
        }
    }

    pub(super) fn role(&self, name: &str) -> Option<Role> {
        self.users.lock().get(name).map(|user| user.role)
    }

    /// False: the name is taken, or there are too many.
    pub(super) fn create(&self, name: &str, password: Secret) -> bool {
        let mut users = self.users.lock();
        if users.contains_key(name) || users.len() >= MAX {
            return false;
        }
        let user = EmulatedUser {
            password,
            role: Role::User,
            must_change: false,
        };
        users.insert(name.to_owned(), user);
        true
    }

    /// False: no such user.
    pub(super) fn change_password(&self, name: &str, password: Secret) -> bool {
        let mut users = self.users.lock();
        let Some(user) = users.get_mut(name) else {
            return false;
        };
        user.password = password;
        user.must_change = false;
        true
    }

    /// False: no such user.
    pub(super) fn delete(&self, name: &str) -> bool {
        self.users.lock().remove(name).is_some()
    }

    pub(super) fn count(&self) -> usize {
        self.users.lock().len()
    }
}
