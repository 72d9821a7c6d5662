//! Tokens the gate has never seen, put to the Webapp once each
//! (`directory = "webapp"`, `unknown_tokens = "ask"`).

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::authenticate::asks;
use super::forward;
use super::inject::UpstreamCredential;
use crate::clock::{self, Deadline, LogThrottle};
use crate::lifecycle::ShutdownSignal;
use crate::metrics::{LabelSet as _, UnreadableLogin};
use crate::pipeline::reject::Rejection;
use crate::pipeline::worker_context::WorkerContext;
use crate::pipeline::{AppState, LiveRules};
use crate::secret::Secret;
use crate::token::{Grant, GrantRequest, TokenDigest, TokenOrigin, TokenStore};
use crate::upstream::{ProbeTrust, ProbeVerdict, ResponseTimeout};

/// How long a refusal is remembered.
const NEGATIVE_FOR: Duration = Duration::from_secs(30);
/// How long an accepted token is believed at most before it is asked about again.
const BELIEVED_FOR: Duration = Duration::from_secs(15 * 60);
/// How long the Webapp may take to answer a question.
const LONGEST_ANSWER: Duration = Duration::from_secs(10);
/// How often it is looked whether the probe is to be tried again.
const TRIED_EVERY: Duration = Duration::from_secs(5);
/// Refusals remembered at once; more are simply asked again.
const MOST_REMEMBERED: usize = 100_000;

/// What the Webapp said about a token.
#[derive(Clone, Debug)]
pub(in crate::pipeline) enum Introspected {
    Known(Grant),
    Unknown,
}

/// The questions under way and the refusals of the last half minute.
#[derive(Debug, Default)]
pub struct TokenIntrospection {
    under_way: DashMap<TokenDigest, watch::Receiver<Option<IntrospectionVerdict>>>,
    refused: DashMap<TokenDigest, Deadline>,
    /// Of answers to relayed logins that could not be read, by reason.
    pub(in crate::pipeline) unread_logins: [LogThrottle; UnreadableLogin::ALL.len()],
}

/// The end of one question, shared by all who wait for it.
#[derive(Clone, Debug)]
pub enum IntrospectionVerdict {
    Known(Grant),
    Unknown,
    /// The Webapp could not say: neither yes nor no.
    NoAnswer,
}

impl IntrospectionVerdict {
    fn into_asked(self) -> Result<Introspected, Rejection> {
        match self {
            Self::Known(grant) => Ok(Introspected::Known(grant)),
            Self::Unknown => Ok(Introspected::Unknown),
            Self::NoAnswer => Err(Rejection::CannotAsk),
        }
    }
}

/// The part of asking that the first one to ask has to do.
#[derive(Debug)]
pub struct LeadFlight {
    digest: TokenDigest,
    questions: Arc<TokenIntrospection>,
    answer: watch::Sender<Option<IntrospectionVerdict>>,
}

/// Either an answer, or somebody's question to wait for, or yours to put.
#[derive(Debug)]
pub enum FlightRole {
    Refused,
    Wait(watch::Receiver<Option<IntrospectionVerdict>>),
    Put(LeadFlight, watch::Receiver<Option<IntrospectionVerdict>>),
}

impl TokenIntrospection {
    /// Joins the question about this token, or begins it.
    pub fn turn(self: &Arc<Self>, digest: TokenDigest) -> FlightRole {
        if let Some(until) = self.refused.get(&digest).map(|until| *until) {
            if !until.has_passed() {
                return FlightRole::Refused;
            }
            self.refused.remove(&digest);
        }
        match self.under_way.entry(digest) {
            Entry::Occupied(entry) => FlightRole::Wait(entry.get().clone()),
            Entry::Vacant(entry) => {
                let (answer, waiting) = watch::channel(None);
                entry.insert(waiting.clone());
                let question = LeadFlight {
                    digest,
                    questions: Arc::clone(self),
                    answer,
                };
                FlightRole::Put(question, waiting)
            }
        }
    }

    /// Forgets refusals that have run out.
    pub fn sweep(&self) {
        self.refused.retain(|_, until| !until.has_passed());
    }
}

impl LeadFlight {
    pub fn digest(&self) -> &TokenDigest {
        &self.digest
    }

    pub fn complete(self, verdict: IntrospectionVerdict) {
        let refused = &self.questions.refused;
        if matches!(verdict, IntrospectionVerdict::Unknown) && refused.len() < MOST_REMEMBERED {
            refused.insert(self.digest, Deadline::after(NEGATIVE_FOR));
        }
        self.answer.send_replace(Some(verdict));
    }
}

impl Drop for LeadFlight {
    /// Settled or given up: nobody may wait for it any longer.
    fn drop(&mut self) {
        self.questions.under_way.remove(&self.digest);
    }
}

/// Waits for somebody's question. A question that was given up has no answer.
pub(in crate::pipeline) async fn wait(
    mut waiting: watch::Receiver<Option<IntrospectionVerdict>>,
) -> Result<Introspected, Rejection> {
    let verdict = waiting.wait_for(Option::is_some).await;
    let verdict = verdict.ok().and_then(|verdict| verdict.clone());
    verdict
        .unwrap_or(IntrospectionVerdict::NoAnswer)
        .into_asked()
}

/// Whether asking is of no use: the upstream says yes to every token.
pub(in crate::pipeline) fn is_hopeless(live: &LiveRules) -> bool {
    let probe = live.upstream.probe();
    probe.is_none_or(|probe| probe.trust() == ProbeTrust::PassesAnything)
}

/// Puts a client's token to the Webapp; a good one is learned.
pub(in crate::pipeline) async fn put(
    here: &WorkerContext,
    tokens: &TokenStore,
    digest: TokenDigest,
    token: &Secret,
) -> IntrospectionVerdict {
    let upstream = &here.live.upstream;
    let Some(probe) = upstream.probe() else {
        return IntrospectionVerdict::NoAnswer;
    };
    match probe.tried().await {
        ProbeTrust::Discriminates => {}
        ProbeTrust::PassesAnything => return IntrospectionVerdict::Unknown,
        ProbeTrust::Unknown => return IntrospectionVerdict::NoAnswer,
    }
    if upstream.health().check().is_err() {
        return IntrospectionVerdict::NoAnswer;
    }
    // All such questions together are one client.
    let client = upstream.permits().key("unknown tokens");
    let Ok(_turn) = upstream.turn(client, false).await else {
        return IntrospectionVerdict::NoAnswer;
    };
    let settings = &here.live.config.upstream;
    let patience = ResponseTimeout::within(settings.first_byte_timeout.min(LONGEST_ANSWER));
    let carried = UpstreamCredential::bearer(token);
    let status = forward::ask(&here.connections, probe.path(), &carried, patience).await;
    match ProbeVerdict::of(status) {
        ProbeVerdict::Refused => IntrospectionVerdict::Unknown,
        ProbeVerdict::Accepted => learn(tokens, digest, token).await,
        ProbeVerdict::Undecided => IntrospectionVerdict::NoAnswer,
    }
}

/// Takes in a token that the Webapp has accepted. Whose it is, nobody knows: what it says
/// of itself was written by its bearer. It is a client of its own.
async fn learn(tokens: &TokenStore, digest: TokenDigest, token: &Secret) -> IntrospectionVerdict {
    let user = digest.pseudonym();
    let wanted = GrantRequest {
        user: &user,
        role: None,
        lifetime: TokenClaims::read(token).map_or(BELIEVED_FOR, |claims| claims.left()),
        origin: TokenOrigin::Learned,
        epoch: tokens.epoch(&user),
        revision: None,
    };
    if tokens.insert(digest, wanted).await.is_err() {
        return IntrospectionVerdict::NoAnswer;
    }
    tokens
        .find(&digest)
        .map_or(IntrospectionVerdict::Unknown, IntrospectionVerdict::Known)
}

/// The one claim of a Webapp token that is looked at. Nothing here proves it, so it may only
/// shorten how long the token is believed.
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

    fn left(&self) -> Duration {
        let left = self.exp.saturating_sub(clock::unix_seconds()).max(1);
        Duration::from_secs(left.unsigned_abs()).min(BELIEVED_FOR)
    }
}

/// Tries the probe where unknown tokens are asked about: at the start, after a reload, and
/// again when it is due, so that requests seldom wait for it and the operator sees the outcome.
pub async fn keep_probe_tried(shared: Arc<AppState>, stop: ShutdownSignal) {
    let mut tick = interval(TRIED_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            () = stop.draining() => return,
            _ = tick.tick() => {}
        }
        let live = shared.live.load_full();
        let Some(probe) = live.upstream.probe().filter(|_| asks(&live)) else {
            continue;
        };
        tokio::select! {
            () = stop.draining() => return,
            _ = probe.tried() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn many_who_ask_about_one_token_put_one_question() {
        let questions = Arc::new(TokenIntrospection::default());
        let digest = TokenDigest::of("token");
        let FlightRole::Put(question, first) = questions.turn(digest) else {
            panic!("the first one puts the question");
        };
        let FlightRole::Wait(second) = questions.turn(digest) else {
            panic!("the second one waits");
        };
        question.complete(IntrospectionVerdict::Unknown);
        assert!(matches!(wait(first).await, Ok(Introspected::Unknown)));
        assert!(matches!(wait(second).await, Ok(Introspected::Unknown)));
        assert!(
            matches!(questions.turn(digest), FlightRole::Refused),
            "remembered"
        );
    }

    #[tokio::test]
    async fn a_question_given_up_frees_those_who_wait_and_may_be_put_again() {
        let questions = Arc::new(TokenIntrospection::default());
        let digest = TokenDigest::of("token");
        let FlightRole::Put(question, waiting) = questions.turn(digest) else {
            panic!("the first one puts the question");
        };
        drop(question);
        assert!(matches!(wait(waiting).await, Err(Rejection::CannotAsk)));
        assert!(matches!(questions.turn(digest), FlightRole::Put(..)));
    }
}
