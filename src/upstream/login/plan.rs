//! How the gate logs in at one upstream: what a reload replaces while the session goes on.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use http::{HeaderName, HeaderValue};

use super::call::{LoginCall, LoginError, LoginGrant};
use super::description::{LoginDescription, TokenInjection};
use super::token_probe::{ProbeTrust, ProbeVerdict, TokenProbe};
use crate::config;
use crate::secret::Secret;
use crate::upstream::own_requests::OwnRequests;

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
/// Header fields that carry a token.
pub(in crate::upstream) type TokenHeaders = [(HeaderName, HeaderValue)];

/// What the renewer asks of the upstream. The model of the login puts a simulated upstream
/// in here.
pub(in crate::upstream) trait LoginCalls: fmt::Debug + Send + Sync {
    fn log_in<'a>(&'a self, password: &'a Secret) -> BoxFuture<'a, Result<LoginGrant, LoginError>>;

    /// What the probe says of a token; undecided where there is none.
    fn probe<'a>(&'a self, headers: &'a TokenHeaders) -> BoxFuture<'a, ProbeVerdict>;

    /// Whether there is a probe, and it refuses what is not a token.
    fn has_probe(&self) -> BoxFuture<'_, bool>;

    /// Returns when an outage of the upstream, one that is or one that comes, has ended.
    fn back(&self) -> BoxFuture<'_, ()>;
}

/// The login's settings and the calls made with them.
#[derive(Debug)]
pub(in crate::upstream) struct LoginPlan {
    pub(in crate::upstream) settings: config::Login,
    pub(in crate::upstream) description: LoginDescription,
    /// Whether a probe is configured.
    pub(in crate::upstream) has_probe: bool,
    pub(in crate::upstream) calls: Box<dyn LoginCalls>,
}

impl LoginPlan {
    pub(in crate::upstream) fn new(
        login: &config::Login,
        own: &Arc<OwnRequests>,
        probe: Option<Arc<TokenProbe>>,
        description: LoginDescription,
    ) -> Self {
        let call = LoginCall::new(own, description.clone(), login);
        Self {
            settings: login.clone(),
            description,
            has_probe: probe.is_some(),
            calls: Box::new(NetworkCalls { call, probe }),
        }
    }

    pub(in crate::upstream) fn injection(&self) -> &TokenInjection {
        &self.description.inject
    }
}

/// The calls as they go over the network.
#[derive(Debug)]
struct NetworkCalls {
    call: LoginCall,
    probe: Option<Arc<TokenProbe>>,
}

impl LoginCalls for NetworkCalls {
    fn log_in<'a>(&'a self, password: &'a Secret) -> BoxFuture<'a, Result<LoginGrant, LoginError>> {
        Box::pin(self.call.make(password))
    }

    fn probe<'a>(&'a self, headers: &'a TokenHeaders) -> BoxFuture<'a, ProbeVerdict> {
        Box::pin(async move {
            match &self.probe {
                Some(probe) => probe.verdict_on(headers).await,
                None => ProbeVerdict::Undecided,
            }
        })
    }

    fn has_probe(&self) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            match &self.probe {
                Some(probe) => probe.tried().await == ProbeTrust::Discriminates,
                None => false,
            }
        })
    }

    fn back(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.call.health().back())
    }
}

/// What a token belongs to: one that was obtained for another identity is of no use.
pub(in crate::upstream) fn identity(
    upstream: &config::UpstreamConfig,
    login: &config::Login,
) -> String {
    let base = &upstream.base;
    let scheme = if base.tls { "https" } else { "http" };
    let (name, host, port) = (&upstream.name, &base.host, base.port);
    format!(
        "lease\n{name}\n{scheme}://{host}:{port}\n{}",
        login.username
    )
}
