//! Settings as the file writes them.

use std::fmt;
use std::time::Duration;

use super::{Access, AddressBlock, Quota, Target, UsersCall};
use crate::profiles::Role;

pub(super) fn listed<T: fmt::Display>(items: &[T]) -> String {
    let texts: Vec<_> = items.iter().map(T::to_string).collect();
    texts.join(", ")
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Token => "token",
            Self::Role(Role::User) => "user",
            Self::Role(Role::Admin) => "admin",
            Self::ApiKey => "api_key",
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Upstream => "upstream",
            Self::Closed => "closed",
            Self::UsersNode(UsersCall::Login) => "users.login",
            Self::UsersNode(UsersCall::Logout) => "users.logout",
            Self::UsersNode(UsersCall::Create) => "users.create",
            Self::UsersNode(UsersCall::Show) => "users.show",
            Self::UsersNode(UsersCall::Change) => "users.change",
            Self::UsersNode(UsersCall::Delete) => "users.delete",
        })
    }
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.per.as_secs() {
            60 => "m",
            3_600 => "h",
            86_400 => "d",
            _ => "s",
        };
        write!(f, "{}/{unit} burst {}", self.requests, self.burst)
    }
}

impl fmt::Display for AddressBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// A time as the file would have it.
pub(super) struct DurationText(pub(super) Duration);

impl fmt::Display for DurationText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        let (size, unit) = [
            (86_400_000, "d"),
            (3_600_000, "h"),
            (60_000, "m"),
            (1_000, "s"),
        ]
        .into_iter()
        .find(|(size, _)| millis > 0 && millis.is_multiple_of(*size))
        .unwrap_or((1, "ms"));
        write!(f, "{}{unit}", millis / size)
    }
}
