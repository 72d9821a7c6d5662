//! How the gateway logs in at one upstream: the part of a session that a reload replaces.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use http::{HeaderName, HeaderValue};

use super::call::{LoginCall, LoginError, LoginGrant};
use super::description::LoginDescription;
use super::token_probe::{ProbeTrust, ProbeVerdict, TokenProbe};
use crate::config;
use crate::secret::Secret;
use crate::upstream::endpoints::own_requests::OwnRequests;

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
/// Header fields that carry a token.
pub(in crate::upstream) type TokenHeaders = [(HeaderName, HeaderValue)];

/// The renewer's calls to the upstream. The model test implements them with a simulated upstream.
pub(in crate::upstream) trait LoginCalls: fmt::Debug + Send + Sync {
    fn log_in<'a>(&'a self, password: &'a Secret) -> BoxFuture<'a, Result<LoginGrant, LoginError>>;

    /// The probe's verdict on a token; `Undecided` without a probe.
    fn probe<'a>(&'a self, headers: &'a TokenHeaders) -> BoxFuture<'a, ProbeVerdict>;

    /// Whether there is a probe that refuses invented tokens.
    fn has_probe(&self) -> BoxFuture<'_, bool>;

    /// Returns at the end of the current or next outage of the upstream.
    fn back(&self) -> BoxFuture<'_, ()>;
}

/// The login's settings and the calls made with them.
#[derive(Debug)]
pub(in crate::upstream) struct LoginPlan {
    pub(in crate::upstream) settings: config::Login,
    pub(in crate::upstream) description: Arc<LoginDescription>,
    /// Whether a probe is configured.
    pub(in crate::upstream) has_probe: bool,
    pub(in crate::upstream) calls: Box<dyn LoginCalls>,
}

impl LoginPlan {
    pub(in crate::upstream) fn new(
        login: &config::Login,
        own: &Arc<OwnRequests>,
        probe: Option<Arc<TokenProbe>>,
        description: &Arc<LoginDescription>,
    ) -> Self {
        let call = LoginCall::new(own, description, login);
        Self {
            settings: login.clone(),
            description: Arc::clone(description),
            has_probe: probe.is_some(),
            calls: Box::new(NetworkCalls { call, probe }),
        }
    }
}

/// The calls over the network.
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
        Box::pin(self.call.endpoints().back())
    }
}
