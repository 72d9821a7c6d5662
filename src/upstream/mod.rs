//! The service behind us: how it is reached and trusted, our standing login at
//! it, and each worker's connections to it. Knows nothing of who called.
//!
//! The surprise: requests never log in. One task per login owns it (`renewer`); a request
//! carries a lease, reports how it fared, and the judgement (`judgement`) turns a hundred
//! refusals into one look or one login, or into none.

use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::HeaderValue;
use http::header::AUTHORIZATION;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{error, info};

use crate::causes::chain;
use crate::clock::Deadline;
use crate::config::{self, BaseAddress};
use crate::lifecycle::{Stop, Tasks};
use crate::metrics::{Gauged, Metrics};
use crate::names::Names;
use crate::secret::{self, SecretSource};
use crate::webapp;

mod accepted_paths;
mod address_book;
mod address_memory;
mod bell;
mod body;
mod certificate;
mod common;
mod connect;
mod connections;
mod description;
#[cfg(fuzzing)]
pub mod fuzzed;
mod handshake;
mod held;
mod judgement;
mod keep_alive;
mod keeper;
mod lease;
mod link;
mod login;
mod login_plan;
mod login_task;
mod pace;
mod pool;
mod proof;
mod refused_paths;
mod renewer;
mod session;
mod session_control;
mod single_call;
mod speculation;
mod status;
mod sync {
    //! What the judgement is made of; its model check puts other parts in here.
    pub(super) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    pub(super) use std::sync::{Mutex, MutexGuard, PoisonError};

    /// Holders of these locks leave nothing half done, also when they panic.
    pub(super) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
#[cfg(test)]
mod tests;
mod token_probe;
mod trust;

pub use accepted_paths::PathKey;
pub use body::AnswerBody;
pub use certificate::CertificateProblem;
pub use connect::{DialError, WaitingFor};
pub use connections::{Connections, SendError, SendErrorKind};
pub use description::{
    BodyCode, CredentialForm, ExpirySource, Flaw, Injection, LoginDescription, TokenSource,
};
pub use handshake::HandshakeError;
pub use held::Patience;
pub use keeper::LeaseKeeper;
pub use lease::Lease;
pub use refused_paths::RefusedRequest;
pub use session::{Session, Verdict};
pub use status::{NoLease, Status, Why};
pub use trust::TrustError;

use address_book::AddressBook;
use address_memory::AddressMemory;
use connect::Dialer;
use login_plan::LoginPlan;
use login_task::{LoginScope, LoginTask};
use trust::Tls;

const FILE_POLL: Duration = Duration::from_secs(1);
/// An API key ends when the operator changes it, not by time.
const NO_END: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Why an upstream cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot set up trust in upstream {upstream}")]
    Trust {
        upstream: Arc<str>,
        #[source]
        source: TrustError,
    },
    #[error("cannot use the API key for upstream {upstream}")]
    ApiKey {
        upstream: Arc<str>,
        #[source]
        source: BadApiKey,
    },
    #[error("upstream {upstream} has a host that cannot stand in a header")]
    Host { upstream: Arc<str> },
}

/// Why a text is no API key.
#[derive(Debug, thiserror::Error)]
pub enum BadApiKey {
    #[error("the key cannot be read")]
    Unreadable(#[source] secret::Error),
    #[error("a key has 12 to 128 characters, this one {length}")]
    Length { length: usize },
    #[error("the key cannot be sent in a header")]
    NotText,
}

/// No turn came up within the upstream's `queue_timeout`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no turn at the upstream within {waited:?}")]
pub struct Crowded {
    pub waited: Duration,
}

/// Leave to have one request at the upstream; drop it when the answer has ended.
#[derive(Debug)]
#[must_use = "the turn ends when this is dropped"]
pub struct Turn(#[expect(dead_code, reason = "held, not read")] OwnedSemaphorePermit);

/// What an upstream is made from.
#[derive(Debug)]
pub struct UpstreamOpening<'a> {
    settings: &'a config::Upstream,
    description: LoginDescription,
    tasks: &'a Tasks,
    stop: &'a Stop,
    metrics: &'a Arc<Metrics>,
    keeper: Option<LeaseKeeper>,
    before: Option<&'a Upstream>,
}

impl<'a> UpstreamOpening<'a> {
    pub fn new(
        settings: &'a config::Upstream,
        tasks: &'a Tasks,
        stop: &'a Stop,
        metrics: &'a Arc<Metrics>,
    ) -> Self {
        Self {
            settings,
            description: LoginDescription::whatsapp(),
            tasks,
            stop,
            metrics,
            keeper: None,
            before: None,
        }
    }

    /// For a service with another kind of login.
    #[must_use]
    pub fn described(self, description: LoginDescription) -> Self {
        Self {
            description,
            ..self
        }
    }

    /// With the token of an earlier start, if one was kept.
    #[must_use]
    pub fn keeping(self, keeper: Option<LeaseKeeper>) -> Self {
        Self { keeper, ..self }
    }

    /// In the place of `before`, with its login if that is the same.
    #[must_use]
    pub fn after(self, before: &'a Upstream) -> Self {
        Self {
            before: Some(before),
            ..self
        }
    }

    /// Reads what trust and API key need, and starts the renewer if there is a login.
    pub fn open(self) -> Result<Arc<Upstream>, Error> {
        Upstream::build(self)
    }
}

/// One service behind us, shared by all workers.
#[derive(Debug)]
pub struct Upstream {
    pub name: Arc<str>,
    pub base: BaseAddress,
    /// The `Host` of requests to it.
    host: HeaderValue,
    dialer: Arc<Dialer>,
    login: Option<Arc<LoginTask>>,
    /// How to log in from when this upstream is in use; None: as it has begun.
    plan: Option<Arc<LoginPlan>>,
    api_key: ArcSwapOption<Lease>,
    api_key_source: Option<SecretSource>,
    turns: Arc<Semaphore>,
    queue_timeout: Duration,
    idle_timeout: Duration,
    metrics: Arc<Metrics>,
    stop: Stop,
}

impl Upstream {
    /// Reads what trust and API key need, and starts the renewer if there is a login.
    pub fn open(
        settings: &config::Upstream,
        tasks: &Tasks,
        stop: &Stop,
        metrics: &Arc<Metrics>,
    ) -> Result<Arc<Self>, Error> {
        UpstreamOpening::new(settings, tasks, stop, metrics).open()
    }

    fn build(opening: UpstreamOpening<'_>) -> Result<Arc<Self>, Error> {
        let settings = opening.settings;
        let name = &settings.name;
        let metrics = opening.metrics;
        let host = host(&settings.base).ok_or_else(|| Error::Host {
            upstream: Arc::clone(name),
        })?;
        let stop = opening.stop.child();
        let dialer = Arc::new(dialer(settings, opening.tasks, &stop)?);
        let api_key = settings.api_key.as_ref().map(read_api_key).transpose();
        let api_key = api_key.map_err(|source| Error::ApiKey {
            upstream: Arc::clone(name),
            source,
        })?;
        let turns = settings.concurrency.min(Semaphore::MAX_PERMITS);
        let login = settings.login.as_ref().map(|login| {
            let description = opening.description;
            let plan = LoginPlan::new(settings, login, &dialer, &host, description);
            let scope = LoginScope {
                tasks: opening.tasks,
                stop: opening.stop.child(),
                metrics,
                keeper: opening.keeper,
            };
            let before = opening.before.and_then(|before| before.login.as_ref());
            LoginTask::continue_or_start(before, settings, plan, scope)
        });
        let (login, plan) = login.map_or((None, None), |login| (Some(login.task), login.plan));
        let upstream = Arc::new(Self {
            name: Arc::clone(name),
            base: settings.base.clone(),
            host,
            dialer,
            login,
            plan,
            api_key: ArcSwapOption::new(api_key.map(Arc::new)),
            api_key_source: settings.api_key.clone(),
            turns: Arc::new(Semaphore::new(turns)),
            queue_timeout: settings.queue_timeout,
            idle_timeout: settings.idle_timeout,
            metrics: Arc::clone(metrics),
            stop: stop.clone(),
        });
        if upstream.has_files() {
            let watch = watch(Arc::downgrade(&upstream), stop);
            opening.tasks.spawn("upstream files", watch);
        }
        Ok(upstream)
    }

    /// None: nothing is injected but an API key, perhaps.
    pub fn session(&self) -> Option<&Arc<Session>> {
        self.login.as_ref().map(|login| &login.session)
    }

    /// Whether the login of `other` goes on in this one.
    pub fn continues(&self, other: &Self) -> bool {
        match &self.login {
            Some(login) => login.is_same(other.login.as_ref()),
            None => true,
        }
    }

    /// This upstream is in use from now on: a login that goes on does so as it says.
    pub fn take_over(&self) {
        if let (Some(login), Some(plan)) = (&self.login, &self.plan) {
            login.follow(plan);
        }
    }

    /// Opens a connection and closes it: whether the upstream can be reached as configured.
    pub async fn reach(&self) -> Result<(), DialError> {
        self.dialer.dial(None).await.map(drop)
    }

    /// What monitoring nodes carry in place of the session's lease.
    pub fn api_key(&self) -> Option<Arc<Lease>> {
        self.api_key.load_full()
    }

    /// Waits for a turn at the upstream, which bears only so many requests at once.
    pub async fn turn(&self) -> Result<Turn, Crowded> {
        if let Ok(permit) = Arc::clone(&self.turns).try_acquire_owned() {
            return Ok(Turn(permit));
        }
        let _queued = Gauged::enter(&self.metrics.upstream_queue);
        let queue = Arc::clone(&self.turns).acquire_owned();
        match Box::pin(timeout(self.queue_timeout, queue)).await {
            Ok(Ok(permit)) => Ok(Turn(permit)),
            // The semaphore is never closed: only time can run out.
            Ok(Err(_)) | Err(_) => Err(Crowded {
                waited: self.queue_timeout,
            }),
        }
    }

    /// Stops what runs for this upstream alone, after a reload has put `next` in its place.
    /// Requests that still use it keep its lease.
    pub async fn retire(&self, next: &Self) {
        self.stop.drain();
        if let Some(login) = &self.login
            && !login.is_same(next.login.as_ref())
        {
            login.end().await;
        }
    }

    fn has_files(&self) -> bool {
        let has_key_file = matches!(self.api_key_source, Some(SecretSource::File(_)));
        has_key_file || self.dialer.tls.as_ref().is_some_and(Tls::may_change)
    }

    fn reread_api_key(&self, was_good: &mut bool) {
        let Some(source) = &self.api_key_source else {
            return;
        };
        match read_api_key(source) {
            Ok(key) => {
                *was_good = true;
                let old = self.api_key.load();
                if old.as_ref().is_none_or(|old| old.secret != key.secret) {
                    info!(upstream = %self.name, "upstream API key read again");
                    self.api_key.store(Some(Arc::new(key)));
                }
            }
            Err(failure) => {
                if std::mem::replace(was_good, false) {
                    error!(upstream = %self.name, error = %chain(&failure),
                        "keeping the old API key");
                }
            }
        }
    }
}

impl Drop for Upstream {
    /// An upstream that was not retired leaves no task behind.
    fn drop(&mut self) {
        self.stop.drain();
    }
}

/// Reads files again that may have changed, until drain or until the upstream is gone.
async fn watch(upstream: Weak<Upstream>, stop: Stop) {
    let mut tick = interval(FILE_POLL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut was_good = true;
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = stop.draining() => return,
        }
        let Some(upstream) = upstream.upgrade() else {
            return;
        };
        upstream.reread_api_key(&mut was_good);
        if let Some(tls) = &upstream.dialer.tls {
            tls.reread(&upstream.name);
        }
    }
}

fn dialer(settings: &config::Upstream, tasks: &Tasks, stop: &Stop) -> Result<Dialer, Error> {
    let base = &settings.base;
    let tls = if base.tls {
        let name = settings.server_name.as_deref().unwrap_or(&base.host);
        let tls =
            Tls::open(&settings.trust, name, &settings.name).map_err(|source| Error::Trust {
                upstream: Arc::clone(&settings.name),
                source,
            })?;
        Some(tls)
    } else {
        None
    };
    Ok(Dialer {
        port: base.port,
        book: AddressBook::new(&base.host, Names::of_this_host(), tasks, stop),
        memory: AddressMemory::default(),
        tls,
        limit: settings.connect_timeout,
        upstream: Arc::clone(&settings.name),
    })
}

fn host(base: &BaseAddress) -> Option<HeaderValue> {
    let is_ipv6 = base.host.contains(':');
    let name = if is_ipv6 {
        format!("[{}]", base.host)
    } else {
        base.host.clone()
    };
    let default_port = if base.tls { 443 } else { 80 };
    let text = if base.port == default_port {
        name
    } else {
        format!("{name}:{}", base.port)
    };
    HeaderValue::from_str(&text).ok()
}

fn read_api_key(source: &SecretSource) -> Result<Lease, BadApiKey> {
    let key = source.read().map_err(BadApiKey::Unreadable)?;
    let length = key.expose().chars().count();
    if !webapp::API_KEY_LENGTH.contains(&length) {
        return Err(BadApiKey::Length { length });
    }
    let injection = Injection {
        header: AUTHORIZATION,
        template: "Apikey {token}".to_owned(),
    };
    let header = injection.header(&key).map_err(|_| BadApiKey::NotText)?;
    Ok(Lease::new(0, Deadline::after(NO_END), vec![header], key))
}
