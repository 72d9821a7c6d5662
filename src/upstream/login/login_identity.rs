//! Which login a task makes. A token is used for no other.

use std::fmt;
use std::sync::Arc;

use crate::config;
use crate::config::BaseAddress;
use crate::upstream::endpoints::Endpoint;

/// A login of one upstream, or of one of its endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::upstream) struct LoginIdentity {
    /// In logs and in the store: the upstream's name, or `NAME@ADDRESS` of an endpoint.
    pub(super) name: Arc<str>,
    /// The only endpoint at which its tokens are valid; None: they are at all.
    pub(in crate::upstream) endpoint: Option<Arc<str>>,
    /// The user that logs in, and the service: another `Host` may be another one at the same address.
    pub(super) account: String,
    /// What is asked for: a project, a scope or another call may bring another token for the same user.
    call: String,
}

impl LoginIdentity {
    pub(in crate::upstream) fn of_upstream(
        upstream: &config::UpstreamConfig,
        login: &config::Login,
    ) -> Self {
        Self {
            name: Arc::clone(&upstream.name),
            endpoint: None,
            account: account(upstream, login, &upstream.base),
            call: upstream.login_description.call(),
        }
    }

    pub(in crate::upstream) fn of_endpoint(
        upstream: &config::UpstreamConfig,
        login: &config::Login,
        endpoint: &Endpoint,
    ) -> Self {
        let name = &endpoint.state.name;
        Self {
            name: format!("{}@{name}", upstream.name).into(),
            endpoint: Some(Arc::clone(name)),
            account: account(upstream, login, &endpoint.base),
            call: upstream.login_description.call(),
        }
    }
}

fn account(upstream: &config::UpstreamConfig, login: &config::Login, base: &BaseAddress) -> String {
    let user = &login.username;
    match &upstream.host {
        None => format!("{base}\n{user}"),
        Some(host) => format!("{base}\n{host}\n{user}"),
    }
}

/// What a kept token is bound to. It is part of the sealed format.
impl fmt::Display for LoginIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lease\n{}\n{}\n{}", self.name, self.account, self.call)
    }
}
