//! Tests of the upstream module with real sockets.

mod breaker;
#[cfg(feature = "emulator")]
mod certificates;
#[cfg(feature = "emulator")]
mod client_certificates;
mod connection_reuse;
mod connections;
mod description;
mod dialing;
mod dying_connections;
mod endpoints;
mod failures;
mod fair_queue;
mod file_reload;
mod framing;
mod http2;
mod judgement;
mod keep_alive;
mod login_model;
mod names;
#[cfg(feature = "emulator")]
mod proxies;
mod server;
mod service_logins;
mod session;
mod stub_dns;
#[cfg(feature = "emulator")]
mod trust;
mod unix_socket;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};

use super::transport::tls::upstream_tls::UpstreamTls;
use super::{
    Error, Lease, LoginDescription, NoLease, PathKey, RefusalVerdict, RefusedRequest, Session,
    Upstream, UpstreamOpening,
};
use crate::config::{self, BaseAddress, Trust};
use crate::lifecycle::TaskScope;
use crate::metrics::Metrics;
use crate::secret::SecretSource;
use crate::watched_files::ReloadSignal;

const TEST_TIMEOUT: Duration = Duration::from_secs(10);

/// TLS toward the only endpoint.
fn sole_tls(upstream: &Upstream) -> &Arc<UpstreamTls> {
    let sole = upstream.endpoints().sole().unwrap();
    sole.dialer.tls().unwrap()
}

/// Waits until `condition` is true; fails with `what` after a timeout.
async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + TEST_TIMEOUT;
    while !condition() {
        assert!(Instant::now() < deadline, "never came true: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Checks that `condition` stays true for longer than a changed file takes to be read again, as there is
/// no event to wait for.
async fn stays(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_millis(2300);
    while Instant::now() < deadline {
        assert!(condition(), "changed: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// A folder that is removed at the end of the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let name = format!("tollgate-upstream-{:016x}", rand::random::<u64>());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        // Replaced by a rename, as secret mounts do: a reader never sees half a file.
        let path = self.0.join(name);
        let fresh = self.0.join(format!("{name}.new"));
        std::fs::write(&fresh, text).unwrap();
        std::fs::rename(fresh, &path).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Everything that a test needs to open an upstream.
struct UpstreamSetup {
    folder: Folder,
    settings: config::UpstreamConfig,
    metrics: Arc<Metrics>,
    scope: TaskScope,
    reload_signal: ReloadSignal,
}

impl UpstreamSetup {
    fn of(address: SocketAddr) -> Self {
        let folder = Folder::new();
        let password = folder.write("password", "right\n");
        let settings = config::UpstreamConfig {
            login_description: Arc::new(crate::profiles::whatsapp::login_description()),
            name: "main".into(),
            base: BaseAddress {
                tls: false,
                host: address.ip().to_string(),
                port: address.port(),
                socket: None,
            },
            more_endpoints: Vec::new(),
            endpoint_policy: config::EndpointPolicy::default(),
            host: None,
            trust: Trust::PublicAuthorities,
            server_name: None,
            http2: config::Http2Mode::Never,
            client_certificate: None,
            proxy: None,
            login: Some(config::Login {
                username: "gateway".to_owned(),
                password: SecretSource::File(password),
                renew_at: 0.8,
                renew_floor: Duration::ZERO,
                min_login_interval: Duration::ZERO,
                logins_per_hour: 1000,
                timeout: Duration::from_secs(5),
                single_active_token: false,
                per_endpoint: false,
            }),
            api_key: None,
            concurrency: 16,
            stalled_streams: 64,
            queue_timeout: Duration::from_millis(50),
            idle_timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(5),
            first_byte_timeout: Duration::from_secs(5),
            body_idle_timeout: Duration::from_secs(5),
            replay_limit: 65_536,
            probe: None,
            required: true,
        };
        Self {
            folder,
            settings,
            metrics: Metrics::new(),
            scope: TaskScope::new(Handle::current()),
            reload_signal: ReloadSignal::default(),
        }
    }

    fn login(&mut self) -> &mut config::Login {
        self.settings.login.as_mut().unwrap()
    }

    fn without_login(mut self) -> Self {
        self.settings.login = None;
        self
    }

    fn open(&self) -> Result<Arc<Upstream>, Error> {
        self.open_with(&self.settings)
    }

    fn open_with(&self, settings: &config::UpstreamConfig) -> Result<Arc<Upstream>, Error> {
        UpstreamOpening::new(settings, &self.scope, &self.metrics)
            .reloaded_on(&self.reload_signal)
            .open()
    }

    fn session(&self) -> Arc<Session> {
        self.session_with(crate::profiles::whatsapp::login_description())
    }

    /// The session of an upstream that lives as long as the test.
    fn session_with(&self, description: LoginDescription) -> Arc<Session> {
        let mut settings = self.settings.clone();
        settings.login_description = Arc::new(description);
        let upstream = self.open_with(&settings).unwrap();
        let session = Arc::clone(upstream.shared_session().unwrap());
        let stop = self.scope.stop.clone();
        self.scope.spawn("holds the upstream", async move {
            stop.draining().await;
            drop(upstream);
        });
        session
    }
}

/// The reason for which `session` has no lease; waits until it knows one.
async fn refusal(session: &Session) -> NoLease {
    let lease = tokio::time::timeout(TEST_TIMEOUT, session.lease()).await;
    lease.expect("lease() must not hang").unwrap_err()
}

/// The path of the tests' requests.
const PATH: PathKey = PathKey(0x1234_5678_9abc_def0);

/// The lease with which a request succeeds that the upstream refuses until a lease `is_good`;
/// None: the refusal was upheld.
async fn retry(
    session: &Session,
    refused: &Arc<Lease>,
    is_good: impl Fn(&Lease) -> bool,
) -> Result<Option<Arc<Lease>>, NoLease> {
    let mut request = RefusedRequest::new(PATH, true);
    let mut refused = Arc::clone(refused);
    loop {
        refused = match session.reconsider(&mut request, &refused).await? {
            RefusalVerdict::Again(lease) if is_good(&lease) => {
                session.note_accepted(&lease, PATH, true);
                return Ok(Some(lease));
            }
            RefusalVerdict::Again(lease) => lease,
            RefusalVerdict::Upheld => return Ok(None),
        };
    }
}

/// Refuses `old` from now on; returns the newer lease.
async fn replace(session: &Session, old: &Arc<Lease>) -> Result<Arc<Lease>, NoLease> {
    let newer = retry(session, old, |lease| lease.generation > old.generation).await?;
    Ok(newer.expect("not upheld"))
}

/// `request` as it is sent. Its head lives as long as the test's process.
fn outbound<B>(request: http::Request<B>) -> crate::upstream::OutboundRequest<'static, B> {
    let (head, body) = request.into_parts();
    crate::upstream::OutboundRequest::of(Box::leak(Box::new(head)), body)
}
