//! The pretend Webapp's users.

use std::collections::HashMap;

use super::hold;
use crate::profiles::Role;
use crate::secret::Secret;
use parking_lot::Mutex;

const MOST: usize = 10_000;

pub(super) struct Directory {
    users: Mutex<HashMap<String, User>>,
    /// The factory's account; it cannot be deleted.
    first: String,
}

struct User {
    // The real one keeps a hash. This one forgets it all when it stops.
    password: Secret,
    role: Role,
    must_change: bool,
}

/// What is known of somebody who named a user and a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Good,
    MustChange,
    Wrong,
}

impl Directory {
    pub(super) fn new(first: &str, password: Secret, must_change: bool) -> Self {
        let admin = User {
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

    pub(super) fn judge(&self, name: &str, password: &Secret) -> Verdict {
        match hold(&self.users).get(name) {
            Some(user) if user.password != *password => Verdict::Wrong,
            Some(user) if user.must_change => Verdict::MustChange,
            Some(_) => Verdict::Good,
            None => Verdict::Wrong,
        }
    }

    pub(super) fn role(&self, name: &str) -> Option<Role> {
        hold(&self.users).get(name).map(|user| user.role)
    }

    /// False: the name is taken, or there are too many.
    pub(super) fn create(&self, name: &str, password: Secret) -> bool {
        let mut users = hold(&self.users);
        if users.contains_key(name) || users.len() >= MOST {
            return false;
        }
        let user = User {
            password,
            role: Role::User,
            must_change: false,
        };
        users.insert(name.to_owned(), user);
        true
    }

    /// False: no such user.
    pub(super) fn change_password(&self, name: &str, password: Secret) -> bool {
        let mut users = hold(&self.users);
        let Some(user) = users.get_mut(name) else {
            return false;
        };
        user.password = password;
        user.must_change = false;
        true
    }

    /// False: no such user.
    pub(super) fn delete(&self, name: &str) -> bool {
        hold(&self.users).remove(name).is_some()
    }

    pub(super) fn count(&self) -> usize {
        hold(&self.users).len()
    }
}
