//! The TLS side of one listener, shared by its workers; certificates change under it.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::CipherSuite;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{
    ProducesTickets, ServerConfig, ServerSessionMemoryCache, StoresServerSessions,
};
use rustls::version::{TLS12, TLS13};
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{error, info, warn};

use super::certificates::{self, ContentFingerprint, LoadedCertificate, PemFiles};
use super::sni::SniResolver;
use crate::clock;
use crate::config;
use crate::lifecycle::ShutdownSignal;
use crate::listener::Error;
use crate::metrics::{Metrics, ReloadResult};

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// For TLS 1.2 clients without tickets; all others carry their state themselves.
const SESSIONS: usize = 4096;

/// Handshakes go by the certificates that are in use when they begin; connections
/// keep what they began with.
#[derive(Debug)]
pub struct ServerTls {
    current: ArcSwap<ServerConfig>,
    state: Mutex<ServerTlsState>,
    resumption: ResumptionState,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct ServerTlsState {
    settings: config::ListenerTls,
    /// The last content that was tried, in use or not.
    tried: ContentFingerprint,
}

/// Outlives certificates, so that clients resume across a renewal.
#[derive(Debug)]
struct ResumptionState {
    provider: Arc<CryptoProvider>,
    tickets: Arc<dyn ProducesTickets>,
    sessions: Arc<dyn StoresServerSessions>,
}

impl ServerTls {
    /// Reads all pairs; fails if one of them cannot be used.
    pub fn open(
        settings: &config::ListenerTls,
        metrics: &Arc<Metrics>,
    ) -> Result<Arc<Self>, Error> {
        let resumption = ResumptionState {
            provider: Arc::new(provider()),
            tickets: aws_lc_rs::Ticketer::new().map_err(Error::Setup)?,
            sessions: ServerSessionMemoryCache::new(SESSIONS),
        };
        let read = certificates::read(&settings.certificates);
        let tried = ContentFingerprint::of(&read);
        let (server, pairs) = build(settings, read, &resumption)?;
        let tls = Self {
            current: ArcSwap::from_pointee(server),
            state: Mutex::new(ServerTlsState {
                settings: settings.clone(),
                tried,
            }),
            resumption,
            metrics: Arc::clone(metrics),
        };
        tls.announce(settings, &pairs);
        Ok(Arc::new(tls))
    }

    /// Looks at the files again. True: there was something new, and it is in use now.
    /// A pair that cannot be used changes nothing, and is an error once.
    pub fn reload(&self) -> Result<bool, Error> {
        let settings = self.state().settings.clone();
        let read = certificates::read(&settings.certificates);
        let fingerprint = ContentFingerprint::of(&read);
        let mut state = self.state();
        if state.settings != settings || state.tried == fingerprint {
            return Ok(false); // replaced meanwhile, or nothing new
        }
        state.tried = fingerprint;
        self.swap(&settings, read)?;
        Ok(true)
    }

    /// Other files, or another version range, from a reloaded configuration. On an
    /// error all stays as it was.
    pub fn replace(&self, settings: &config::ListenerTls) -> Result<(), Error> {
        let read = certificates::read(&settings.certificates);
        let tried = ContentFingerprint::of(&read);
        let mut state = self.state();
        self.swap(settings, read)?;
        for files in &state.settings.certificates {
            if !settings.certificates.contains(files) {
                // It is missing if two entries shared the file: fine as well.
                let name = files.certificate.display().to_string();
                let _ = self
                    .metrics
                    .certificate_expiry
                    .remove_label_values(&[&name]);
            }
        }
        *state = ServerTlsState {
            settings: settings.clone(),
            tried,
        };
        Ok(())
    }

    /// Looks at the files each second, and at once after `hup`, until told to stop.
    /// Content is compared, not times: a link that is switched is a change too.
    pub async fn watch(self: Arc<Self>, stop: ShutdownSignal, hup: Arc<Notify>) {
        let mut tick = interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut last_seen = None;
        loop {
            let is_asked = tokio::select! {
                () = stop.draining() => return,
                _ = tick.tick() => false,
                () = hup.notified() => true,
            };
            let tls = Arc::clone(&self);
            let look = move || tls.check_files(last_seen, is_asked);
            // A panic would be lost here; there is nothing in it that could.
            if let Ok(seen) = tokio::task::spawn_blocking(look).await {
                last_seen = Some(seen);
            }
        }
    }

    /// Tries what has stayed the same for one interval: two files are seldom written
    /// in one instant, and half a renewal is not worth an alarm.
    fn check_files(
        &self,
        last_seen: Option<ContentFingerprint>,
        is_asked: bool,
    ) -> ContentFingerprint {
        let settings = self.state().settings.clone();
        let seen = ContentFingerprint::of(&certificates::read(&settings.certificates));
        if !is_asked && last_seen != Some(seen) {
            return seen;
        }
        let outcome = match self.reload() {
            Ok(true) => {
                info!("certificates reloaded");
                Some(ReloadResult::Applied)
            }
            Ok(false) => is_asked.then_some(ReloadResult::Unchanged),
            Err(refused) => {
                error!(
                    error = &refused as &dyn std::error::Error,
                    "certificates not reloaded; those in use stay"
                );
                Some(ReloadResult::Refused)
            }
        };
        if let Some(outcome) = outcome {
            self.metrics.certificate_reloads.add(outcome);
        }
        seen
    }

    fn state(&self) -> parking_lot::MutexGuard<'_, ServerTlsState> {
        self.state.lock()
    }

    fn swap(
        &self,
        settings: &config::ListenerTls,
        read: Result<Vec<PemFiles>, Error>,
    ) -> Result<(), Error> {
        let (server, pairs) = build(settings, read, &self.resumption)?;
        self.current.store(Arc::new(server));
        self.announce(settings, &pairs);
        Ok(())
    }

    /// Numbers and warnings about the pairs that are in use from now on.
    fn announce(&self, settings: &config::ListenerTls, pairs: &[LoadedCertificate]) {
        let now = clock::unix_seconds();
        for (files, pair) in settings.certificates.iter().zip(pairs) {
            let certificate = files.certificate.display().to_string();
            self.metrics
                .certificate_expiry
                .with_label_values(&[&certificate])
                .set(pair.not_after);
            if pair.not_after < now {
                warn!(
                    certificate,
                    "certificate has expired; clients will refuse it"
                );
            } else if pair.not_before > now {
                warn!(
                    certificate,
                    "certificate is not valid yet; is this host's clock right?"
                );
            }
        }
    }

    /// What a handshake that begins now goes by.
    pub(in crate::listener) fn current(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }
}

/// Suites in our order: AES-128 first. It is as safe for what TLS protects, costs a fifth
/// less per byte than AES-256, and its SHA-256 a quarter less per handshake.
fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    // Stable: among equals the library's order stays.
    provider.cipher_suites.sort_by_key(|suite| {
        !matches!(
            suite.suite(),
            CipherSuite::TLS13_AES_128_GCM_SHA256
                | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
                | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
        )
    });
    provider
}

fn build(
    settings: &config::ListenerTls,
    read: Result<Vec<PemFiles>, Error>,
    resumption: &ResumptionState,
) -> Result<(ServerConfig, Vec<LoadedCertificate>), Error> {
    let pairs = settings
        .certificates
        .iter()
        .zip(read?)
        .map(|(files, text)| LoadedCertificate::parse(files, &text, &resumption.provider))
        .collect::<Result<Vec<_>, _>>()?;
    let names = SniResolver::new(&pairs).ok_or(Error::NoPairs)?;
    let versions: &[_] = match settings.only_tls13 {
        true => &[&TLS13],
        false => &[&TLS13, &TLS12],
    };
    let mut server = ServerConfig::builder_with_provider(Arc::clone(&resumption.provider))
        .with_protocol_versions(versions)
        .map_err(Error::Setup)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(names));
    server.ignore_client_order = true;
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    server.ticketer = Arc::clone(&resumption.tickets);
    server.session_storage = Arc::clone(&resumption.sessions);
    Ok((server, pairs))
}
