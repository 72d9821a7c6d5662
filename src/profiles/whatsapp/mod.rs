//! The WhatsApp Business API Webapp (the protocol sheet has the facts and how sure they are).
//! Start at `PROFILE`; the emulator uses the error codes as well.

mod errors;
mod limits;
mod login;
mod routes;

use std::time::Duration;

use super::Profile;

pub use errors::{COREAPP_META, ErrorCode, WEBAPP_META, error_body};
pub use login::login_description;

/// Life of a token (protocol sheet, section 5.1).
pub(super) const TOKEN_LIFETIME: Duration = Duration::from_secs(7 * 86_400);

/// The challenge with a 401 from login (protocol sheet, section 1.1).
pub const BASIC_CHALLENGE: &str = "Basic realm=\"Secured\"";

pub(super) static PROFILE: Profile = Profile {
    name: "whatsapp",
    routes: routes::ROUTES,
    classes: routes::CLASSES,
    limits: limits::LIMITS,
    login: login_description,
    token_lifetime: TOKEN_LIFETIME,
    probe: Some("/v1/health"),
    errors: errors::ENVELOPE,
    meta: Some(WEBAPP_META),
};
