//! Roles of users.

use serde::{Deserialize, Serialize};

/// What a user of the directory may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Role {
    #[serde(rename = "ROLE_USER")]
    User,
    #[serde(rename = "ROLE_ADMIN")]
    Admin,
}

impl Role {
    /// As the users node writes it.
    pub fn text(self) -> &'static str {
        match self {
            Self::User => "ROLE_USER",
            Self::Admin => "ROLE_ADMIN",
        }
    }
}
