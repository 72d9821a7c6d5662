//! The probe: a GET that tells whether the upstream accepts a token. Its verdict counts only if the
//! upstream refuses invented tokens there, so invented tokens are tried first, and again from time to
//! time.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::ACCEPT;
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Response, StatusCode};
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use super::description::LoginDescription;
use crate::config;
use crate::error_chain::chain;
use crate::metrics::UpstreamMetrics;
use crate::secret::Secret;
use crate::upstream::endpoints::own_requests::OwnRequests;

/// Timeout of connecting, and again of the request and the response head.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the outcome of a trial is trusted.
const GOOD_FOR: Duration = Duration::from_secs(15 * 60);
const BAD_FOR: Duration = Duration::from_secs(10);
/// Pause after a trial without an outcome.
const PAUSE: Duration = Duration::from_secs(2);

/// Whether a probe can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeTrust {
    /// Not tried yet, or the trial had no outcome.
    Unknown,
    /// It refuses invented tokens.
    Discriminates,
    /// It accepts invented tokens: its verdicts mean nothing.
    PassesAnything,
}

/// An upstream's verdict on a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeVerdict {
    Accepted,
    Refused,
    /// No verdict: the upstream may be unreachable or busy, or have no such path.
    Undecided,
}

impl ProbeVerdict {
    pub fn of(status: Option<StatusCode>) -> Self {
        match status {
            Some(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => Self::Refused,
            Some(status) if status.is_success() => Self::Accepted,
            _ => Self::Undecided,
        }
    }
}

/// The probe of one upstream, and whether it can be trusted.
#[derive(Debug)]
pub struct TokenProbe {
    upstream: Arc<str>,
    path: PathAndQuery,
    own: Arc<OwnRequests>,
    description: Arc<LoginDescription>,
    state: Mutex<TrialState>,
    /// One trial at a time; the others wait for its outcome.
    trying: tokio::sync::Mutex<()>,
    metrics: Arc<UpstreamMetrics>,
}

#[derive(Clone, Copy, Debug)]
struct TrialState {
    trust: ProbeTrust,
    /// When the next trial is due; None: now.
    next: Option<Instant>,
    /// What was logged last.
    reported: Option<TrialOutcome>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TrialOutcome {
    Refused,
    Passed,
    /// The response was neither a refusal nor a success.
    Odd(StatusCode),
    NoAnswer,
}

impl TokenProbe {
    /// None: the settings name no probe.
    pub(in crate::upstream) fn of(
        settings: &config::UpstreamConfig,
        own: &Arc<OwnRequests>,
        metrics: &Arc<UpstreamMetrics>,
    ) -> Option<Arc<Self>> {
        Some(Arc::new(Self {
            upstream: Arc::clone(&settings.name),
            path: settings.probe.clone()?,
            own: Arc::clone(own),
            description: Arc::clone(&settings.login_description),
            state: Mutex::new(TrialState {
                trust: ProbeTrust::Unknown,
                next: None,
                reported: None,
            }),
            trying: tokio::sync::Mutex::default(),
            metrics: Arc::clone(metrics),
        }))
    }

    pub fn path(&self) -> &PathAndQuery {
        &self.path
    }

    /// The result of the trials so far; sends no request.
    pub fn trust(&self) -> ProbeTrust {
        self.state().trust
    }

    /// The same after a trial, if one is due. Call it before relying on a verdict of this probe; from any
    /// runtime.
    pub async fn tried(&self) -> ProbeTrust {
        if self.is_due() {
            let _trying = self.trying.lock().await;
            if self.is_due() {
                let outcome = self.try_made_up().await;
                self.conclude(outcome);
            }
        }
        self.trust()
    }

    /// The status of the response to a credential, on a connection of its own; None: no response.
    pub async fn ask(&self, credential: &[(HeaderName, HeaderValue)]) -> Option<StatusCode> {
        let mut request = self.own.get(self.path.clone().into());
        let headers = request.headers_mut();
        headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
        for (name, value) in credential {
            headers.insert(name, value.clone());
        }
        let read = async |answer: Response<_>| answer.status();
        let dial_by = Instant::now() + PATIENCE;
        let mut used = None;
        let call = self
            .own
            .call(request, &mut used, Some(dial_by), PATIENCE, read);
        match Box::pin(call).await {
            Ok(status) => Some(status),
            Err(error) => {
                debug!(upstream = %self.upstream, error = %chain(&error), "the probe got no response");
                None
            }
        }
    }

    /// The verdict on the gateway's own token. Only a 401 is a refusal: a known user may get a 403 for
    /// this path.
    pub(in crate::upstream) async fn verdict_on(
        &self,
        credential: &[(HeaderName, HeaderValue)],
    ) -> ProbeVerdict {
        if self.tried().await != ProbeTrust::Discriminates {
            return ProbeVerdict::Undecided;
        }
        match self.ask(credential).await {
            Some(StatusCode::FORBIDDEN) => ProbeVerdict::Undecided,
            status => ProbeVerdict::of(status),
        }
    }

    fn state(&self) -> TrialState {
        *self.state.lock()
    }

    fn is_due(&self) -> bool {
        self.state().next.is_none_or(|next| next <= Instant::now())
    }

    /// One opaque token and one in the form of a JWT: some services check no more than the form.
    async fn try_made_up(&self) -> TrialOutcome {
        let mut last = TrialOutcome::NoAnswer;
        for token in [opaque(), signed()] {
            let Ok(headers) = self.description.token_headers(&Secret::new(token)) else {
                return TrialOutcome::NoAnswer;
            };
            let status = self.ask(&headers).await;
            last = match (ProbeVerdict::of(status), status) {
                (ProbeVerdict::Refused, _) => TrialOutcome::Refused,
                (ProbeVerdict::Accepted, _) => return TrialOutcome::Passed,
                (ProbeVerdict::Undecided, Some(status)) => return TrialOutcome::Odd(status),
                (ProbeVerdict::Undecided, None) => return TrialOutcome::NoAnswer,
            };
        }
        last
    }

    fn conclude(&self, outcome: TrialOutcome) {
        let mut state = self.state.lock();
        let pause = match outcome {
            TrialOutcome::Refused => {
                state.trust = ProbeTrust::Discriminates;
                GOOD_FOR
            }
            TrialOutcome::Passed => {
                state.trust = ProbeTrust::PassesAnything;
                BAD_FOR
            }
            // The earlier result stays valid: the upstream is only unreachable.
            TrialOutcome::Odd(_) | TrialOutcome::NoAnswer => PAUSE,
        };
        state.next = Some(Instant::now() + pause);
        let is_news = state.reported.replace(outcome) != Some(outcome);
        let trust = state.trust;
        drop(state);
        let discriminates = trust == ProbeTrust::Discriminates;
        self.metrics
            .token_probe_trusted
            .set(i64::from(discriminates));
        if is_news {
            self.report(outcome);
        }
    }

    fn report(&self, outcome: TrialOutcome) {
        let (upstream, path) = (&self.upstream, &self.path);
        match outcome {
            TrialOutcome::Refused => {
                info!(%upstream, %path, "the probe refuses made-up tokens: its verdicts are used");
            }
            TrialOutcome::Passed => error!(
                %upstream,
                %path,
                "the probe accepts made-up tokens, so its verdicts are not used and unknown \
                 tokens are rejected; set upstream.{upstream}.probe to a path that the upstream \
                 opens to good tokens only"
            ),
            TrialOutcome::Odd(status) => warn!(
                %upstream,
                %path,
                %status,
                "the probe neither refuses a made-up token (401 or 403) nor accepts it; set \
                 upstream.{upstream}.probe to a path that the upstream has"
            ),
            TrialOutcome::NoAnswer => {
                warn!(%upstream, %path, "the probe could not be tried: the upstream gave no response");
            }
        }
    }
}

/// Random, so that no cache has a response to it.
fn opaque() -> String {
    URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>())
}

/// In the form of a JWT with an invented signature.
fn signed() -> String {
    let claims = format!(
        r#"{{"user":"probe","jti":"{}","exp":4102444800}}"#,
        opaque()
    );
    let [head, claims] = [r#"{"alg":"HS256","typ":"JWT"}"#, claims.as_str()]
        .map(|part| URL_SAFE_NO_PAD.encode(part));
    format!("{head}.{claims}.{}", opaque())
}
