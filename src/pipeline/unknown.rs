//! Tokens the gate has never seen, put to the Webapp once each
//! (`directory = "webapp"`, `unknown_tokens = "ask"`).

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use http::StatusCode;
use serde::Deserialize;
use tokio::sync::watch;

use super::reject::Rejection;
use crate::clock::{self, Deadline};
use crate::secret::Secret;
use crate::token::{Grant, Origin, TokenDigest, TokenStore, Wanted};

/// How long a refusal is remembered.
const NEGATIVE_FOR: Duration = Duration::from_secs(30);
/// How long an accepted token whose end nobody can read is believed before it is asked about again.
const UNREADABLE_FOR: Duration = Duration::from_secs(15 * 60);
/// Refusals remembered at once; more are simply asked again.
const MOST_REMEMBERED: usize = 100_000;

/// What the Webapp said about a token.
#[derive(Clone, Debug)]
pub(super) enum Asked {
    Known(Grant),
    Unknown,
}

/// The questions under way and the refusals of the last half minute.
#[derive(Debug, Default)]
pub struct Questions {
    under_way: DashMap<TokenDigest, watch::Receiver<Option<Verdict>>>,
    refused: DashMap<TokenDigest, Deadline>,
}

/// The end of one question, shared by all who wait for it.
#[derive(Clone, Debug)]
pub enum Verdict {
    Known(Grant),
    Unknown,
    /// The Webapp could not say: neither yes nor no.
    NoAnswer,
}

impl Verdict {
    fn into_asked(self) -> Result<Asked, Rejection> {
        match self {
            Self::Known(grant) => Ok(Asked::Known(grant)),
            Self::Unknown => Ok(Asked::Unknown),
            Self::NoAnswer => Err(Rejection::CannotAsk),
        }
    }
}

/// The part of asking that the first one to ask has to do.
#[derive(Debug)]
pub struct Question {
    digest: TokenDigest,
    questions: Arc<Questions>,
    answer: watch::Sender<Option<Verdict>>,
}

/// Either an answer, or somebody's question to wait for, or yours to put.
#[derive(Debug)]
pub enum Turn {
    Refused,
    Wait(watch::Receiver<Option<Verdict>>),
    Put(Question, watch::Receiver<Option<Verdict>>),
}

impl Questions {
    /// Joins the question about this token, or begins it.
    pub fn turn(self: &Arc<Self>, digest: TokenDigest) -> Turn {
        if let Some(until) = self.refused.get(&digest).map(|until| *until) {
            if !until.has_passed() {
                return Turn::Refused;
            }
            self.refused.remove(&digest);
        }
        match self.under_way.entry(digest) {
            Entry::Occupied(entry) => Turn::Wait(entry.get().clone()),
            Entry::Vacant(entry) => {
                let (answer, waiting) = watch::channel(None);
                entry.insert(waiting.clone());
                let question = Question {
                    digest,
                    questions: Arc::clone(self),
                    answer,
                };
                Turn::Put(question, waiting)
            }
        }
    }

    /// Forgets refusals that have run out.
    pub fn sweep(&self) {
        self.refused.retain(|_, until| !until.has_passed());
    }
}

impl Question {
    pub fn digest(&self) -> &TokenDigest {
        &self.digest
    }

    pub fn settle(self, verdict: Verdict) {
        let refused = &self.questions.refused;
        if matches!(verdict, Verdict::Unknown) && refused.len() < MOST_REMEMBERED {
            refused.insert(self.digest, Deadline::after(NEGATIVE_FOR));
        }
        self.answer.send_replace(Some(verdict));
    }
}

impl Drop for Question {
    /// Settled or given up: nobody may wait for it any longer.
    fn drop(&mut self) {
        self.questions.under_way.remove(&self.digest);
    }
}

/// Waits for somebody's question. A question that was given up has no answer.
pub(super) async fn wait(
    mut waiting: watch::Receiver<Option<Verdict>>,
) -> Result<Asked, Rejection> {
    let verdict = waiting.wait_for(Option::is_some).await;
    let verdict = verdict.ok().and_then(|verdict| verdict.clone());
    verdict.unwrap_or(Verdict::NoAnswer).into_asked()
}

/// What the Webapp's answer to the probe says; a good token is learned.
pub(super) async fn learn(
    tokens: &TokenStore,
    digest: TokenDigest,
    token: &Secret,
    status: StatusCode,
) -> Verdict {
    if status == StatusCode::UNAUTHORIZED {
        return Verdict::Unknown;
    }
    if !status.is_success() {
        return Verdict::NoAnswer;
    }
    let claims = Claims::read(token);
    let user = claims
        .as_ref()
        .map_or("(unknown)", |claims| claims.user.as_str());
    let lifetime = claims.as_ref().map_or(UNREADABLE_FOR, Claims::left);
    let wanted = Wanted {
        user,
        role: None,
        lifetime,
        origin: Origin::Learned,
        epoch: tokens.epoch(user),
        revision: None,
    };
    if tokens.insert(digest, wanted).await.is_err() {
        return Verdict::NoAnswer;
    }
    tokens
        .find(&digest)
        .map_or(Verdict::Unknown, Verdict::Known)
}

/// The claims of a Webapp token. They are read only after the Webapp itself has
/// accepted the token, so its signature need not be checked here; a token that
/// is no JWT is simply opaque.
#[derive(Debug, Deserialize)]
struct Claims {
    user: String,
    exp: i64,
}

impl Claims {
    fn read(token: &Secret) -> Option<Self> {
        let payload = token.expose().split('.').nth(1)?;
        let bytes = URL_SAFE_NO_PAD.decode(payload).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    fn left(&self) -> Duration {
        let left = self.exp.saturating_sub(clock::unix_seconds()).max(1);
        Duration::from_secs(left.unsigned_abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn many_who_ask_about_one_token_put_one_question() {
        let questions = Arc::new(Questions::default());
        let digest = TokenDigest::of("token");
        let Turn::Put(question, first) = questions.turn(digest) else {
            panic!("the first one puts the question");
        };
        let Turn::Wait(second) = questions.turn(digest) else {
            panic!("the second one waits");
        };
        question.settle(Verdict::Unknown);
        assert!(matches!(wait(first).await, Ok(Asked::Unknown)));
        assert!(matches!(wait(second).await, Ok(Asked::Unknown)));
        assert!(
            matches!(questions.turn(digest), Turn::Refused),
            "remembered"
        );
    }

    #[tokio::test]
    async fn a_question_given_up_frees_those_who_wait_and_may_be_put_again() {
        let questions = Arc::new(Questions::default());
        let digest = TokenDigest::of("token");
        let Turn::Put(question, waiting) = questions.turn(digest) else {
            panic!("the first one puts the question");
        };
        drop(question);
        assert!(matches!(wait(waiting).await, Err(Rejection::CannotAsk)));
        assert!(matches!(questions.turn(digest), Turn::Put(..)));
    }
}
