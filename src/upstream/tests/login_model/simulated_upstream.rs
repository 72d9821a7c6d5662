//! The simulated upstream: which tokens it accepts where and when, and how its login behaves.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::StatusCode;
use http::header::{AUTHORIZATION, HeaderValue};
use tokio::time::{Instant, sleep};

use crate::secret::Secret;
use crate::upstream::login::call::{LoginError, LoginGrant};
use crate::upstream::login::description::BadLoginResponse;
use crate::upstream::login::plan::{LoginCalls, TokenHeaders};
use crate::upstream::login::token_probe::ProbeVerdict;

/// How the upstream treats tokens.
#[derive(Clone, Debug)]
pub(super) struct UpstreamTraits {
    pub(super) lifetime: u64,
    /// Seconds until each node accepts a new token.
    pub(super) delays: [u64; 2],
    /// A token is valid only at the node that minted it.
    pub(super) one_node_only: bool,
    pub(super) single_active: bool,
    pub(super) has_probe: bool,
    pub(super) login_millis: u64,
}

/// A fault and its time, in seconds.
#[derive(Clone, Debug)]
pub(super) enum TimedFault {
    /// All tokens minted so far end.
    Revoke { at: u64 },
    LoginAnswers {
        from: u64,
        to: u64,
        response: BadLogin,
    },
    /// Tokens minted in this time are never accepted.
    BadTokens { from: u64, to: u64 },
    /// A path answers 401 to everything in this time.
    PathRefuses { from: u64, to: u64, path: usize },
}

#[derive(Clone, Copy, Debug)]
pub(super) enum BadLogin {
    Busy,
    WrongPassword,
    Garbage,
    Hangs,
}

impl TimedFault {
    /// When the fault ends.
    pub(super) fn end(&self) -> u64 {
        match self {
            Self::Revoke { at } => *at,
            Self::LoginAnswers { to, .. }
            | Self::BadTokens { to, .. }
            | Self::PathRefuses { to, .. } => *to,
        }
    }
}

#[derive(Debug)]
struct MintedToken {
    at: u64,
    at_millis: u64,
    node: usize,
    is_bad: bool,
}

/// Shared by the gateway under test and the traffic.
#[derive(Debug)]
pub(super) struct SimulatedUpstream {
    pub(super) traits: UpstreamTraits,
    pub(super) faults: Vec<TimedFault>,
    began: Instant,
    minted: Mutex<Vec<MintedToken>>,
    /// Milliseconds at which a login reached the upstream.
    logins: Mutex<Vec<u64>>,
    requests_to_nodes: Mutex<usize>,
}

impl SimulatedUpstream {
    pub(super) fn new(traits: UpstreamTraits, faults: Vec<TimedFault>) -> Arc<Self> {
        Arc::new(Self {
            traits,
            faults,
            began: Instant::now(),
            minted: Mutex::default(),
            logins: Mutex::default(),
            requests_to_nodes: Mutex::default(),
        })
    }

    pub(super) fn millis(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap()
    }

    pub(super) fn seconds(&self) -> u64 {
        self.millis() / 1000
    }

    pub(super) fn logins(&self) -> Vec<u64> {
        self.logins.lock().unwrap().clone()
    }

    /// Requests go to the nodes in turn.
    fn node(&self) -> usize {
        let mut requests_to_nodes = self.requests_to_nodes.lock().unwrap();
        *requests_to_nodes += 1;
        // Not strictly: 0, 0, 1, 0, 1, 1, repeated.
        [0, 0, 1, 0, 1, 1][*requests_to_nodes % 6]
    }

    /// Whether a path that requires a token accepts this one.
    pub(super) fn accepts(&self, token: &str) -> bool {
        let Some(index) = token.strip_prefix("token-") else {
            return false;
        };
        let index: usize = index.parse().unwrap();
        let minted = self.minted.lock().unwrap();
        let (now, node) = (self.seconds(), self.node());
        let token = &minted[index];
        let revoked = self.faults.iter().any(|fault| {
            matches!(fault, TimedFault::Revoke { at } if token.at_millis < at * 1000 && *at <= now)
        });
        let is_last = index + 1 == minted.len();
        let is_known = match self.traits.one_node_only {
            true => node == token.node,
            false => now >= token.at + self.traits.delays[node],
        };
        let is_alive = now < token.at + self.traits.lifetime;
        is_known && is_alive && !revoked && !token.is_bad && (is_last || !self.traits.single_active)
    }

    /// The status on a path: 0 to 3 require a token, 4 and 5 refuse everything, 6 is open.
    pub(super) fn response(&self, path: usize, token: &str) -> StatusCode {
        let now = self.seconds();
        let refuses = self.faults.iter().any(|fault| {
            matches!(fault, TimedFault::PathRefuses { from, to, path: refusing }
                if *refusing == path && (*from..*to).contains(&now))
        });
        match path {
            6 => StatusCode::OK,
            0..=3 if !refuses && self.accepts(token) => StatusCode::OK,
            _ => StatusCode::UNAUTHORIZED,
        }
    }

    async fn log_in(&self) -> Result<LoginGrant, LoginError> {
        self.logins.lock().unwrap().push(self.millis());
        sleep(Duration::from_millis(self.traits.login_millis)).await;
        let now = self.seconds();
        for fault in &self.faults {
            if let TimedFault::LoginAnswers { from, to, response } = fault
                && (*from..*to).contains(&now)
            {
                return Err(self.refuse(*response).await);
            }
        }
        let is_bad = self.faults.iter().any(|fault| {
            matches!(fault, TimedFault::BadTokens { from, to } if (*from..*to).contains(&now))
        });
        let node = self.node();
        let mut minted = self.minted.lock().unwrap();
        let token = format!("token-{}", minted.len());
        minted.push(MintedToken {
            at: now,
            at_millis: self.millis(),
            node,
            is_bad,
        });
        Ok(LoginGrant {
            headers: vec![header(&token)],
            token: Secret::new(token),
            left: Duration::from_secs(self.traits.lifetime),
            skew_seconds: 0,
        })
    }

    async fn refuse(&self, response: BadLogin) -> LoginError {
        match response {
            BadLogin::Busy => LoginError::Refused {
                status: StatusCode::SERVICE_UNAVAILABLE,
                retry_after: None,
            },
            BadLogin::WrongPassword => LoginError::WrongPassword,
            BadLogin::Garbage => LoginError::Unusable(BadLoginResponse::NoToken),
            BadLogin::Hangs => {
                sleep(Duration::from_secs(30)).await;
                LoginError::Timeout(Duration::from_secs(30))
            }
        }
    }
}

fn header(token: &str) -> (http::HeaderName, HeaderValue) {
    (AUTHORIZATION, HeaderValue::from_str(token).unwrap())
}

/// The token in a lease's headers.
pub(super) fn token_of(headers: &TokenHeaders) -> &str {
    headers[0].1.to_str().unwrap()
}

/// The simulated upstream as the renewer calls it.
#[derive(Debug)]
pub(super) struct SimulatedCalls(pub(super) Arc<SimulatedUpstream>);

impl LoginCalls for SimulatedCalls {
    fn log_in<'a>(
        &'a self,
        _: &'a Secret,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<LoginGrant, LoginError>> + Send + 'a>> {
        Box::pin(self.0.log_in())
    }

    fn probe<'a>(
        &'a self,
        headers: &'a TokenHeaders,
    ) -> std::pin::Pin<Box<dyn Future<Output = ProbeVerdict> + Send + 'a>> {
        Box::pin(async move {
            sleep(Duration::from_millis(5)).await;
            match (self.0.traits.has_probe, self.0.accepts(token_of(headers))) {
                (false, _) => ProbeVerdict::Undecided,
                (true, true) => ProbeVerdict::Accepted,
                (true, false) => ProbeVerdict::Refused,
            }
        })
    }

    fn back(&self) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(std::future::pending())
    }

    fn has_probe(&self) -> std::pin::Pin<Box<dyn Future<Output = bool> + Send + '_>> {
        Box::pin(async move { self.0.traits.has_probe })
    }
}
