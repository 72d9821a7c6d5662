//! One login request on a connection of its own, with limits on size and time. Its outcome is
//! classified for the renewer. Never retries.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, DATE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::time::timeout;

use super::description::{BadLoginResponse, LoginDescription, LoginResponseParts, UnsendableValue};
use super::status::LoginFailure;
use crate::clock::{self, Deadline};
use crate::config;
use crate::metrics::LoginOutcome;
use crate::secret::Secret;
use crate::upstream::endpoints::own_requests::{CallError, OwnRequests};
use crate::upstream::endpoints::{EndpointSet, EndpointState};
use crate::upstream::health::EndpointHealth;
use crate::upstream::health::breaker::FailureSource;
use crate::upstream::transport::dial_error::DialError;

const MAX_ANSWER: usize = 64 * 1024;
/// Upper limit of an honoured `Retry-After`: a longer one may be a mistake.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// Why a login brought no token.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    #[error("cannot reach the upstream")]
    Unreachable(#[source] DialError),
    #[error("the connection to the upstream broke during the login")]
    Broken(#[source] hyper::Error),
    #[error("no response to the login within {0:?}")]
    Timeout(Duration),
    #[error("the upstream refuses our user name or password")]
    WrongPassword,
    #[error("the upstream wants the password to be changed first")]
    PasswordChange,
    #[error("the upstream refuses the login with status {status}")]
    Refused {
        status: StatusCode,
        retry_after: Option<Duration>,
    },
    #[error("the upstream does not take the token that its login has just given")]
    NotAccepted,
    #[error("the login cannot be sent as it is described")]
    Unsendable(#[source] UnsendableValue),
    #[error("the response to the login cannot be used")]
    Unusable(#[source] BadLoginResponse),
}

impl LoginError {
    pub(in crate::upstream) fn why(&self) -> LoginFailure {
        match self {
            Self::Unreachable(_) | Self::Broken(_) => LoginFailure::Unreachable,
            Self::Timeout(_) => LoginFailure::Timeout,
            Self::WrongPassword => LoginFailure::WrongPassword,
            Self::PasswordChange => LoginFailure::PasswordChange,
            Self::Refused { status, .. } => LoginFailure::Refused(*status),
            Self::NotAccepted => LoginFailure::NotAccepted,
            Self::Unsendable(_) => LoginFailure::Unsendable,
            Self::Unusable(_) => LoginFailure::Unusable,
        }
    }

    pub(in crate::upstream) fn outcome(&self) -> LoginOutcome {
        match self {
            Self::Unreachable(_) | Self::Broken(_) => LoginOutcome::Unreachable,
            Self::Timeout(_) => LoginOutcome::Timeout,
            Self::WrongPassword => LoginOutcome::WrongPassword,
            Self::PasswordChange => LoginOutcome::PasswordChange,
            Self::Refused { .. } => LoginOutcome::Refused,
            Self::NotAccepted => LoginOutcome::NotAccepted,
            Self::Unsendable(_) => LoginOutcome::SecretUnreadable,
            Self::Unusable(_) => LoginOutcome::Unusable,
        }
    }

    /// Whether the login never reached the upstream.
    pub(in crate::upstream) fn is_unsent(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Unsendable(_))
    }

    pub(in crate::upstream) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// The result of a successful login.
#[derive(Debug)]
pub(in crate::upstream) struct LoginGrant {
    pub(in crate::upstream) token: Secret,
    pub(in crate::upstream) headers: Vec<(HeaderName, HeaderValue)>,
    pub(in crate::upstream) left: Duration,
    /// The upstream's clock minus the gateway's.
    pub(in crate::upstream) skew_seconds: i64,
}

/// When the login began, on both clocks: the host may be suspended before the response is read.
#[derive(Clone, Copy, Debug)]
struct LoginStart(Deadline);

const FAR: Duration = Duration::from_secs(86_400);

impl LoginStart {
    fn now() -> Self {
        Self(Deadline::after(FAR))
    }

    fn elapsed(self) -> Duration {
        FAR.saturating_sub(self.0.left())
    }
}

/// How logins at this upstream are made.
#[derive(Debug)]
pub(in crate::upstream) struct LoginCall {
    own: Arc<OwnRequests>,
    description: Arc<LoginDescription>,
    username: String,
    /// The timeout of the whole call: connect, send and read.
    timeout: Duration,
    /// The endpoint at which the last login failed: the next one goes elsewhere.
    failed_at: Mutex<Option<Arc<EndpointState>>>,
}

impl LoginCall {
    pub(in crate::upstream) fn new(
        own: &Arc<OwnRequests>,
        description: &Arc<LoginDescription>,
        login: &config::Login,
    ) -> Self {
        Self {
            own: Arc::clone(own),
            description: Arc::clone(description),
            username: login.username.clone(),
            timeout: login.timeout,
            failed_at: Mutex::default(),
        }
    }

    pub(in crate::upstream) fn endpoints(&self) -> &EndpointSet {
        &self.own.endpoints
    }

    pub(in crate::upstream) async fn make(
        &self,
        password: &Secret,
    ) -> Result<LoginGrant, LoginError> {
        let mut used = self.failed_at.lock().clone();
        let outcome = timeout(self.timeout, Box::pin(self.ask(password, &mut used)))
            .await
            .unwrap_or(Err(LoginError::Timeout(self.timeout)));
        if let Some(used) = &used {
            tell(&outcome, &used.health);
        }
        *self.failed_at.lock() = used.filter(|_| outcome.is_err());
        outcome
    }

    async fn ask(
        &self,
        password: &Secret,
        used: &mut Option<Arc<EndpointState>>,
    ) -> Result<LoginGrant, LoginError> {
        let began = LoginStart::now();
        let request = self.request(password).map_err(LoginError::Unsendable)?;
        let judge = async |response| self.judge(response, began).await;
        match self
            .own
            .call(request, used, None, self.timeout, judge)
            .await
        {
            Ok(outcome) => outcome,
            Err(CallError::Unreachable(source)) => Err(LoginError::Unreachable(source)),
            Err(CallError::Broken(source)) => Err(LoginError::Broken(source)),
            Err(CallError::Late(limit)) => Err(LoginError::Timeout(limit)),
        }
    }

    fn request(&self, password: &Secret) -> Result<Request<Full<Bytes>>, UnsendableValue> {
        let question = self.description.question(&self.username, password)?;
        let mut request = Request::new(Full::new(Bytes::copy_from_slice(&question.body)));
        *request.method_mut() = self.description.method.clone();
        *request.uri_mut() = question.target;
        self.own.dress(&mut request);
        let headers = request.headers_mut();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        for (name, value) in question.headers {
            headers.insert(name, value);
        }
        Ok(request)
    }

    async fn judge(
        &self,
        response: Response<Incoming>,
        began: LoginStart,
    ) -> Result<LoginGrant, LoginError> {
        let (head, body) = response.into_parts();
        let status = head.status;
        if self.description.accepted.statuses.contains(&status) {
            let body = read(body).await.map_err(LoginError::Unusable)?;
            return self
                .believe(&head.headers, &body, began)
                .map_err(LoginError::Unusable);
        }
        if self.description.refused.contains(&status) {
            // The status decides even if the body cannot be read.
            let body = read(body).await.unwrap_or_default();
            return Err(if self.description.wants_password_change(&body) {
                LoginError::PasswordChange
            } else {
                LoginError::WrongPassword
            });
        }
        Err(LoginError::Refused {
            status,
            retry_after: retry_after(&head.headers),
        })
    }

    fn believe(
        &self,
        headers: &HeaderMap,
        body: &[u8],
        began: LoginStart,
    ) -> Result<LoginGrant, BadLoginResponse> {
        let ours = clock::unix_seconds();
        let upstream_now = date(headers).unwrap_or(ours);
        let answer = LoginResponseParts {
            headers,
            body,
            upstream_now,
        };
        let found = self.description.read(answer)?;
        // The token may be as old as the request, and `Date` has whole seconds: it may be almost one second
        // behind.
        let rounding = Duration::from_secs(1).min(found.life / 4);
        let left = found.life.saturating_sub(began.elapsed() + rounding);
        if left.is_zero() {
            return Err(BadLoginResponse::Past);
        }
        Ok(LoginGrant {
            token: found.token,
            headers: found.headers,
            left,
            skew_seconds: upstream_now.saturating_sub(ours),
        })
    }
}

/// Reports the outcome of a login to the health of the endpoint that it was sent to.
fn tell(outcome: &Result<LoginGrant, LoginError>, health: &EndpointHealth) {
    match outcome {
        Err(failure @ LoginError::Unreachable(_)) => {
            health.connect_failed(FailureSource::Request, failure);
        }
        Err(failure @ (LoginError::Broken(_) | LoginError::Timeout(_))) => {
            health.response_failed(FailureSource::Request, failure);
        }
        Ok(_)
        | Err(
            LoginError::WrongPassword
            | LoginError::PasswordChange
            | LoginError::Refused { .. }
            | LoginError::NotAccepted
            | LoginError::Unusable(_),
        ) => health.responded(),
        Err(LoginError::Unsendable(_)) => {}
    }
}

async fn read(body: Incoming) -> Result<Bytes, BadLoginResponse> {
    match Limited::new(body, MAX_ANSWER).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(BadLoginResponse::TooLarge),
        Err(_) => Err(BadLoginResponse::CutShort),
    }
}

fn date(headers: &HeaderMap) -> Option<i64> {
    let date = httpdate::parse_http_date(headers.get(DATE)?.to_str().ok()?).ok()?;
    let since = date.duration_since(std::time::UNIX_EPOCH).ok()?;
    i64::try_from(since.as_secs()).ok()
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let pause = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(text)
            .ok()?
            .duration_since(clock::wall())
            .unwrap_or_default(),
    };
    Some(pause.min(MAX_RETRY_AFTER))
}
