//! Asks the upstream about tokens that the gateway has never seen (`directory = "upstream"`,
//! `unknown_tokens = "ask"`).

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use tokio::time::{MissedTickBehavior, interval};

use super::inject::UpstreamCredential;
use super::token_introspection::{FlightRole, IntrospectionOutcome};
use super::upstream_exchange::probe_status;
use crate::clock;
use crate::config::{DirectoryKind, UnknownTokens};
use crate::lifecycle::ShutdownSignal;
use crate::pipeline::reject::Rejection;
use crate::pipeline::request_context::RequestContext;
use crate::pipeline::worker_context::WorkerContext;
use crate::pipeline::{AppState, LiveRules};
use crate::secret::Secret;
use crate::token::{Grant, GrantRequest, TokenDigest, TokenOrigin, TokenStore};
use crate::upstream::{ProbeTrust, ProbeVerdict, ResponseTimeout};

/// How long an accepted token is trusted at most before the upstream is asked again.
const MAX_TRUST: Duration = Duration::from_secs(15 * 60);
/// How long the upstream may take to respond.
const MAX_RESPONSE_TIME: Duration = Duration::from_secs(10);
/// Time between checks whether the token probe is due.
const PROBE_CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// Whether the upstream is asked about unknown tokens.
pub(super) fn is_enabled(live: &LiveRules) -> bool {
    let users = &live.config.users;
    users.directory == DirectoryKind::Upstream && users.unknown_tokens == UnknownTokens::Ask
}

/// The grant of an unknown token; None: the upstream refuses the token.
pub(super) async fn introspect(
    request: &RequestContext<'_>,
    token: Secret,
    digest: TokenDigest,
) -> Result<Option<Grant>, Rejection> {
    if accepts_every_token(request.live()) {
        return Ok(None);
    }
    let (leader, follower) = match request.worker.app.introspection.join(digest) {
        FlightRole::Refused => return Ok(None),
        FlightRole::Follow(follower) => return follower.outcome().await,
        FlightRole::Lead(leader, follower) => (leader, follower),
    };
    let limiter = &request.live().limiter;
    let attempt = limiter.admit_unknown_token(request.origin).await;
    let attempt = attempt.map_err(|limit| Rejection::TooMany(Box::new(limit)))?;
    let worker = Arc::clone(request.worker);
    // In a task of its own: when this client disconnects, the followers still get the outcome.
    request.worker.tasks.spawn("unknown token", async move {
        let outcome = ask_upstream(&worker, *leader.digest(), &token).await;
        if matches!(outcome, IntrospectionOutcome::Accepted(_)) {
            attempt.succeeded();
        }
        leader.complete(outcome);
    });
    follower.outcome().await
}

/// Whether asking is useless, because the upstream accepts every token.
fn accepts_every_token(live: &LiveRules) -> bool {
    let probe = live.users_upstream().probe();
    probe.is_none_or(|probe| probe.trust() == ProbeTrust::PassesAnything)
}

/// Sends the probe with the client's token; a token that is accepted is added to the store.
async fn ask_upstream(
    worker: &WorkerContext,
    digest: TokenDigest,
    token: &Secret,
) -> IntrospectionOutcome {
    let connections = &worker.connections[worker.live.config.users_upstream];
    let upstream = connections.upstream();
    let Some(probe) = upstream.probe() else {
        return IntrospectionOutcome::Unavailable;
    };
    match probe.tried().await {
        ProbeTrust::Discriminates => {}
        ProbeTrust::PassesAnything => return IntrospectionOutcome::Refused,
        ProbeTrust::Unknown => return IntrospectionOutcome::Unavailable,
    }
    if upstream.endpoints().check().is_err() {
        return IntrospectionOutcome::Unavailable;
    }
    // All introspections count as one client.
    let client = upstream.permits().key("unknown tokens");
    let Ok(_permit) = upstream.acquire_permit(client, false).await else {
        return IntrospectionOutcome::Unavailable;
    };
    let first_byte = worker.live.config.users_upstream().first_byte_timeout;
    let timeout = ResponseTimeout::within(first_byte.min(MAX_RESPONSE_TIME));
    let credential = UpstreamCredential::bearer(token);
    let status = probe_status(connections, probe.path(), &credential, timeout).await;
    match ProbeVerdict::of(status) {
        ProbeVerdict::Refused => IntrospectionOutcome::Refused,
        ProbeVerdict::Accepted => learn(&worker.app.tokens, digest, token).await,
        ProbeVerdict::Undecided => IntrospectionOutcome::Unavailable,
    }
}

/// Adds a token that the upstream has accepted. Its user is not known, since the claims of the token
/// are not verified: the token becomes a client of its own.
async fn learn(tokens: &TokenStore, digest: TokenDigest, token: &Secret) -> IntrospectionOutcome {
    let user = digest.pseudonym();
    let grant = GrantRequest {
        user: &user,
        role: None,
        lifetime: TokenClaims::read(token).map_or(MAX_TRUST, |claims| claims.lifetime()),
        origin: TokenOrigin::Learned,
        epoch: tokens.epoch(&user),
        revision: None,
    };
    if tokens.insert(digest, grant).await.is_err() {
        return IntrospectionOutcome::Unavailable;
    }
    let grant = tokens.find(&digest);
    grant.map_or(
        IntrospectionOutcome::Refused,
        IntrospectionOutcome::Accepted,
    )
}

/// The claim of the token that the gateway reads. Its signature is not verified, so the claim may
/// only shorten how long the token is accepted.
#[derive(Debug, Deserialize)]
struct TokenClaims {
    exp: i64,
}

impl TokenClaims {
    fn read(token: &Secret) -> Option<Self> {
        let payload = token.expose().split('.').nth(1)?;
        let bytes = URL_SAFE_NO_PAD.decode(payload).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    fn lifetime(&self) -> Duration {
        let seconds = self.exp.saturating_sub(clock::unix_seconds()).max(1);
        Duration::from_secs(seconds.unsigned_abs()).min(MAX_TRUST)
    }
}

/// Tries the token probe at the start, after a reload, and whenever it is due, so that requests
/// seldom wait for it and the operator sees its outcome.
pub async fn keep_probe_tried(app: Arc<AppState>, stop: ShutdownSignal) {
    let mut tick = interval(PROBE_CHECK_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            () = stop.draining() => return,
            _ = tick.tick() => {}
        }
        let live = app.live.load_full();
        let Some(probe) = live.users_upstream().probe().filter(|_| is_enabled(&live)) else {
            continue;
        };
        tokio::select! {
            () = stop.draining() => return,
            _ = probe.tried() => {}
        }
    }
}
