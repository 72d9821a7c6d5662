//! A service behind the gateway, as data: its routes, limits, login, probe and error format.
//! Start at `Profile`; `whatsapp/` is the one profile of a named service, `NONE` assumes nothing
//! about paths. Pure: no sockets, no clock.

mod basic_credentials;
mod envelope;
mod error_format;
mod expiry;
mod login_description;
mod password_rule;
mod problem_json;
mod profile_route;
mod role;
mod services;
mod template;
mod user_name;
mod users_replies;
pub mod whatsapp;

use std::time::Duration;

pub use basic_credentials::{BadBasic, BasicCredentials};
pub use envelope::{EnvelopeMeta, body};
pub use error_format::{ErrorFormat, ErrorKind, ErrorReport};
pub use expiry::{format_expiry, parse_expiry};
pub use login_description::{
    BodyCode, BodyValue, CredentialForm, ExpirySource, FormField, HeaderTemplate, JsonMember,
    JsonTemplate, LoginAcceptance, LoginContent, LoginDescription, TokenSource,
};
pub use password_rule::{BadPassword, check_password};
pub use profile_route::{ProfileAccess, ProfileLimit, ProfileRoute, RouteNeeds, UsersCall};
pub use role::Role;
pub use services::{SERVICE_LOGINS, ServiceLogin};
pub use template::{Template, TemplateFault, TemplateName, TemplateValue};
pub use user_name::{
    BadName, check_addressable, check_name, is_escaped_twice, is_invisible, name_in_path,
};
pub use users_replies::{
    LoginBody, NotJson, UserEntry, login_body, login_reply, meta_reply, user_reply,
};

/// Length of an API key in characters (protocol sheet, section 2).
pub const API_KEY_LENGTH: std::ops::RangeInclusive<usize> = 12..=128;

/// What the gateway knows of the kind of service behind it. Chosen by the key `profile` when the
/// configuration is loaded.
#[derive(Debug)]
pub struct Profile {
    /// As the key `profile` spells it; unique.
    pub name: &'static str,
    /// In match order, after the routes of the file.
    pub routes: &'static [ProfileRoute],
    pub classes: &'static [&'static str],
    pub limits: &'static [ProfileLimit],
    pub login: fn() -> LoginDescription,
    /// The usual life of a token.
    pub token_lifetime: Duration,
    /// Path of a GET that answers 401 to a token that is not valid.
    pub probe: Option<&'static str>,
    pub errors: ErrorFormat,
    /// The `meta` member of responses from the gateway's own users node.
    pub meta: Option<EnvelopeMeta>,
}

/// A service of which nothing is known but how it grants tokens: at the same path and in the same
/// form as the one profile of a named service, since no key describes another form yet.
static NONE: Profile = Profile {
    name: "none",
    routes: &[],
    classes: &[],
    limits: &[],
    login: whatsapp::login_description,
    token_lifetime: whatsapp::TOKEN_LIFETIME,
    probe: None,
    errors: problem_json::PROBLEM_JSON,
    meta: None,
};

impl Profile {
    /// Where the file has no key `profile`.
    pub const DEFAULT: &'static Self = &whatsapp::PROFILE;

    /// Every profile, by its name.
    pub const BY_NAME: &'static [(&'static str, &'static Self)] = &[
        (whatsapp::PROFILE.name, &whatsapp::PROFILE),
        (NONE.name, &NONE),
    ];
}

impl PartialEq for Profile {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}
