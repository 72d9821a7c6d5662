//! What can be wrong with the form of a credential. The client is told, since it can correct the
//! form; whether a well-formed credential is known is never told.

use std::fmt;

/// Why a credential cannot be looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialFault {
    /// More than one credential, of any kind: the gateway does not guess which one counts.
    Several,
    Empty,
    NotText,
    UnknownScheme,
    /// A password where a token or an API key is expected.
    PasswordHere,
    /// A login without a password.
    NoPassword,
    NotBasic,
    NotUtf8,
}

/// Text for the client. Repeats nothing that the client sent.
impl fmt::Display for CredentialFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Several => {
                "More than one credential: send one Authorization field or one X-Api-Key field"
            }
            Self::Empty => "The credential is empty",
            Self::NotText => "The credential has a character that is not printable ASCII",
            Self::UnknownScheme => "Authorization must be Bearer or Apikey here",
            Self::PasswordHere => "Basic is for the login: send its token as Bearer",
            Self::NoPassword => "A login needs Authorization: Basic with name and password",
            Self::NotBasic => "What follows Basic is not the base64 of name:password",
            Self::NotUtf8 => "Name and password must be UTF-8 before they are base64 (RFC 7617)",
        })
    }
}
