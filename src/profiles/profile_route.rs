//! Routes and limits of a profile, as data. `config` turns them into its own route table.

use http::Method;

/// One route.
#[derive(Clone, Debug)]
pub struct ProfileRoute {
    /// Unique; its part before the first dot may be a class (`Profile::classes`).
    pub name: &'static str,
    pub methods: &'static [Method],
    pub path: &'static str,
    pub access: ProfileAccess,
    pub needs: RouteNeeds,
}

/// Which callers a route admits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProfileAccess {
    Open,
    /// A user's token, no API key.
    Token,
    /// A user's token, or an API key whose paths cover the route.
    Service,
    /// A user with the role of an admin.
    Admin,
    /// A user about itself, or an admin; the users node compares the names.
    Own,
}

/// What a route needs beyond the defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteNeeds {
    Nothing,
    /// This long until the first byte of the response.
    Minutes(u64),
    /// Bodies to 110 MB, both ways.
    Media,
    /// Pictures and certificates: bodies to 16 MiB.
    Files,
    /// Carries the upstream's API key.
    Monitoring,
    Users(UsersCall),
}

/// The calls of the users node; the gateway answers each of them, or relays it and learns from
/// the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UsersCall {
    Login,
    Logout,
    Create,
    Show,
    Change,
    Delete,
}

/// One limit for all clients together, a bucket per route class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProfileLimit {
    pub name: &'static str,
    /// None: every class that no limit above names.
    pub class: Option<&'static str>,
    pub per_second: u32,
    pub burst: u32,
}
