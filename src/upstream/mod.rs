//! The service behind us: how it is reached and trusted, our standing login at
//! it, and each worker's connections to it. Knows nothing of who called.
//!
//! The surprise: requests never log in. One task per login owns it (`renewer`);
//! a request reads a lease, or complains about one, and the generation fence
//! (`fence`) turns a hundred complaints into one login.

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

mod bell;
mod body;
mod common;
mod connect;
mod connections;
mod description;
mod fence;
#[cfg(fuzzing)]
pub mod fuzzed;
mod held;
mod keeper;
mod login;
mod pace;
mod pool;
mod probe;
mod renewer;
mod session;
mod sync {
    //! What the fence is made of; its model check puts other parts in here.
    pub(super) use std::sync::atomic::{AtomicU64, Ordering};
    pub(super) use std::sync::{Mutex, MutexGuard};
}
#[cfg(test)]
mod tests;
mod trust;

pub use body::AnswerBody;
pub use connect::DialError;
pub use connections::{Connections, SendError, SendErrorKind};
pub use description::{
    BodyCode, CredentialForm, ExpirySource, Flaw, Injection, LoginDescription, TokenSource,
};
pub use held::Patience;
pub use keeper::LeaseKeeper;
pub use probe::{ProbeTrust, ProbeVerdict, TokenProbe};
pub use session::{Lease, NoLease, Session, Status, Why};
pub use trust::TrustError;

use common::Common;
use connect::Dialer;
use keeper::Place;
use login::LoginCall;
use pace::Budget;
use renewer::Renewer;
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

/// One service behind us, shared by all workers.
#[derive(Debug)]
pub struct Upstream {
    pub name: Arc<str>,
    pub base: BaseAddress,
    /// The `Host` of requests to it.
    host: HeaderValue,
    dialer: Arc<Dialer>,
    probe: Option<TokenProbe>,
    session: Option<Arc<Session>>,
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
        let description = LoginDescription::whatsapp();
        Self::open_with(settings, description, (tasks, stop), metrics)
    }

    /// The same, with the token of an earlier start if one was kept.
    pub fn open_keeping(
        settings: &config::Upstream,
        life: (&Tasks, &Stop),
        metrics: &Arc<Metrics>,
        keeper: Option<LeaseKeeper>,
    ) -> Result<Arc<Self>, Error> {
        Self::build(
            settings,
            LoginDescription::whatsapp(),
            life,
            metrics,
            keeper,
        )
    }

    /// The same, for a service with another kind of login.
    pub fn open_with(
        settings: &config::Upstream,
        description: LoginDescription,
        life: (&Tasks, &Stop),
        metrics: &Arc<Metrics>,
    ) -> Result<Arc<Self>, Error> {
        Self::build(settings, description, life, metrics, None)
    }

    fn build(
        settings: &config::Upstream,
        description: LoginDescription,
        (tasks, stop): (&Tasks, &Stop),
        metrics: &Arc<Metrics>,
        keeper: Option<LeaseKeeper>,
    ) -> Result<Arc<Self>, Error> {
        let name = &settings.name;
        let host = host(&settings.base).ok_or_else(|| Error::Host {
            upstream: Arc::clone(name),
        })?;
        let dialer = Arc::new(dialer(settings)?);
        let api_key = api_key(settings)?;
        let stop = stop.child();
        let turns = settings.concurrency.min(Semaphore::MAX_PERMITS);
        let session = settings.login.as_ref().map(|login| {
            let call = LoginCall {
                dialer: Arc::clone(&dialer),
                host: host.clone(),
                description,
                username: login.username.clone(),
                timeout: login.timeout,
            };
            let place = keeper.map(|keeper| Place::new(keeper, name, &settings.base, login));
            let (session, phase) = Session::new(login.single_active_token, Arc::clone(metrics));
            let common = place
                .as_ref()
                .and_then(|place| Common::of(place, name, &session));
            let renewer = Renewer {
                upstream: Arc::clone(name),
                session: Arc::clone(&session),
                phase,
                call,
                budget: Budget::new(login.min_login_interval, login.logins_per_hour),
                settings: login.clone(),
                failures: 0,
                reported: None,
                place,
                common,
                metrics: Arc::clone(metrics),
                stop: stop.clone(),
            };
            tasks.spawn("upstream login", renewer.run());
            session
        });
        let upstream = Arc::new(Self {
            probe: TokenProbe::of(settings, &host, &dialer, metrics),
            name: Arc::clone(name),
            base: settings.base.clone(),
            host,
            dialer,
            session,
            api_key: ArcSwapOption::new(api_key.map(Arc::new)),
            api_key_source: settings.api_key.clone(),
            turns: Arc::new(Semaphore::new(turns)),
            queue_timeout: settings.queue_timeout,
            idle_timeout: settings.idle_timeout,
            metrics: Arc::clone(metrics),
            stop: stop.clone(),
        });
        if upstream.has_files() {
            tasks.spawn("upstream files", watch(Arc::downgrade(&upstream), stop));
        }
        Ok(upstream)
    }

    /// None: nothing is injected but an API key, perhaps.
    pub fn session(&self) -> Option<&Arc<Session>> {
        self.session.as_ref()
    }

    /// How this upstream is asked about a token; None: it cannot be.
    pub fn probe(&self) -> Option<&TokenProbe> {
        self.probe.as_ref()
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

    /// Stops what runs for this upstream, after a reload has replaced it. Requests
    /// that still use it keep its lease; nobody renews it.
    pub async fn retire(&self) {
        self.stop.drain();
        if let Some(session) = &self.session {
            session.ended().await;
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
    /// Whoever forgets to retire it does not leave a renewer behind.
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

fn dialer(settings: &config::Upstream) -> Result<Dialer, Error> {
    let base = &settings.base;
    let tls = if base.tls {
        let name = settings.server_name.as_deref().unwrap_or(&base.host);
        let tls = Tls::open(&settings.trust, name).map_err(|source| Error::Trust {
            upstream: Arc::clone(&settings.name),
            source,
        })?;
        Some(tls)
    } else {
        None
    };
    Ok(Dialer {
        host: base.host.clone(),
        port: base.port,
        names: Names::of_this_host(),
        tls,
        limit: settings.connect_timeout,
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

fn api_key(settings: &config::Upstream) -> Result<Option<Lease>, Error> {
    let key = settings.api_key.as_ref().map(read_api_key).transpose();
    key.map_err(|source| Error::ApiKey {
        upstream: Arc::clone(&settings.name),
        source,
    })
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
