//! The protocol's vocabulary, spoken by three: the gate's users node answers with
//! it, the session asks with it, the emulator pretends with it. Pure: no sockets,
//! no clock; bytes in, values out. Facts and their confidence: the protocol sheet.

mod envelope;
mod user_name;
mod users;

pub use envelope::{EnvelopeMeta, ErrorCode, body, error_body};
pub use user_name::{
    BadName, check_addressable, check_name, is_escaped_twice, is_invisible, name_in_path,
};
pub use users::{
    BadBasic, BadPassword, BasicCredentials, LoginBody, NotJson, UserEntry, check_password,
    format_expiry, login_body, login_reply, meta_reply, parse_expiry, user_reply,
};

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

/// The challenge that goes with a 401 from login (protocol sheet, section 1.1).
pub const BASIC_CHALLENGE: &str = "Basic realm=\"Secured\"";

/// Length of an API key in characters (protocol sheet, section 2).
pub const API_KEY_LENGTH: std::ops::RangeInclusive<usize> = 12..=128;
