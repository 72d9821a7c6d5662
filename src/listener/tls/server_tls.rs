//! The TLS configuration of one listener, shared by its workers. Certificates can be replaced while
//! it runs.

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

use super::loaded_certificate::{self, ContentFingerprint, LoadedCertificate, PemFiles};
use super::sni::SniResolver;
use crate::clock;
use crate::config;
use crate::lifecycle::ShutdownSignal;
use crate::listener::Error;
use crate::metrics::{Metrics, ReloadResult};

const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Cached sessions of TLS 1.2 clients without tickets; other clients keep their own state.
const SESSIONS: usize = 4096;

/// A handshake uses the certificates that are current when it begins, and its connection keeps
/// them.
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
    /// The content of the last attempt, whether or not it is in use.
    tried: ContentFingerprint,
}

/// Kept across certificate changes, so that clients can resume their sessions after a renewal.
#[derive(Debug)]
struct ResumptionState {
    provider: Arc<CryptoProvider>,
    tickets: Arc<dyn ProducesTickets>,
    sessions: Arc<dyn StoresServerSessions>,
}

impl ServerTls {
    /// Reads all certificates; fails if one of them cannot be used.
    pub fn open(
        settings: &config::ListenerTls,
        metrics: &Arc<Metrics>,
    ) -> Result<Arc<Self>, Error> {
        let resumption = ResumptionState {
            provider: Arc::new(provider()),
            tickets: aws_lc_rs::Ticketer::new().map_err(Error::Setup)?,
            sessions: ServerSessionMemoryCache::new(SESSIONS),
        };
        let read = loaded_certificate::read(&settings.certificates);
        let tried = ContentFingerprint::of(&read);
        let (server, loaded) = build(settings, read, &resumption)?;
        let tls = Self {
            current: ArcSwap::from_pointee(server),
            state: Mutex::new(ServerTlsState {
                settings: settings.clone(),
                tried,
            }),
            resumption,
            metrics: Arc::clone(metrics),
        };
        tls.announce(settings, &loaded);
        Ok(Arc::new(tls))
    }

    /// Reads the files again. True: they had changed, and the new certificates are in use. If one
    /// cannot be used nothing changes, and the error is returned once per content.
    pub fn reload(&self) -> Result<bool, Error> {
        let settings = self.state.lock().settings.clone();
        let read = loaded_certificate::read(&settings.certificates);
        let fingerprint = ContentFingerprint::of(&read);
        let mut state = self.state.lock();
        if state.settings != settings || state.tried == fingerprint {
            return Ok(false); // replaced meanwhile, or unchanged
        }
        state.tried = fingerprint;
        self.swap(&settings, read)?;
        Ok(true)
    }

    /// Uses other files or protocol versions, from a reloaded configuration. On an error nothing
    /// changes.
    pub fn replace(&self, settings: &config::ListenerTls) -> Result<(), Error> {
        let read = loaded_certificate::read(&settings.certificates);
        let tried = ContentFingerprint::of(&read);
        let mut state = self.state.lock();
        self.swap(settings, read)?;
        for files in &state.settings.certificates {
            if !settings.certificates.contains(files) {
                // Fails if two entries shared the file and the label is gone already.
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

    /// Reads the files once a second, and at once after `hup`, until drain. Content is compared,
    /// not modification times, so that a switched symbolic link counts as a change.
    pub async fn watch(self: Arc<Self>, stop: ShutdownSignal, hup: Arc<Notify>) {
        let mut tick = interval(POLL_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut last_seen = None;
        loop {
            let is_asked = tokio::select! {
                () = stop.draining() => return,
                _ = tick.tick() => false,
                () = hup.notified() => true,
            };
            let tls = Arc::clone(&self);
            let check = move || tls.check_files(last_seen, is_asked);
            // Fails only if the check panics, which nothing in it can.
            if let Ok(seen) = tokio::task::spawn_blocking(check).await {
                last_seen = Some(seen);
            }
        }
    }

    /// Reloads files whose content has stayed the same for one interval: a certificate and its key
    /// are seldom written at the same moment, and half a renewal must not raise an error.
    fn check_files(
        &self,
        last_seen: Option<ContentFingerprint>,
        is_asked: bool,
    ) -> ContentFingerprint {
        let settings = self.state.lock().settings.clone();
        let seen = ContentFingerprint::of(&loaded_certificate::read(&settings.certificates));
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
                    "certificates not reloaded; those in use are kept"
                );
                Some(ReloadResult::Refused)
            }
        };
        if let Some(outcome) = outcome {
            self.metrics.certificate_reloads.add(outcome);
        }
        seen
    }

    fn swap(
        &self,
        settings: &config::ListenerTls,
        read: Result<Vec<PemFiles>, Error>,
    ) -> Result<(), Error> {
        let (server, loaded) = build(settings, read, &self.resumption)?;
        self.current.store(Arc::new(server));
        self.announce(settings, &loaded);
        Ok(())
    }

    /// Sets the expiry metrics of the certificates in use and warns of invalid ones.
    fn announce(&self, settings: &config::ListenerTls, loaded: &[LoadedCertificate]) {
        let now = clock::unix_seconds();
        for (files, certificate) in settings.certificates.iter().zip(loaded) {
            let file = files.certificate.display().to_string();
            self.metrics
                .certificate_expiry
                .with_label_values(&[&file])
                .set(certificate.not_after);
            if certificate.not_after < now {
                warn!(
                    certificate = file,
                    "certificate has expired; clients will refuse it"
                );
            } else if certificate.not_before > now {
                warn!(
                    certificate = file,
                    "certificate is not valid yet; is this host's clock right?"
                );
            }
        }
    }

    /// The configuration for a handshake that begins now.
    pub(in crate::listener) fn current(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }
}

/// The crypto provider with AES-128 suites first. AES-128 is as safe here, costs a fifth less per
/// byte than AES-256, and its SHA-256 a quarter less per handshake.
fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    // The sort is stable, so that the library's order is kept otherwise.
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
    let loaded = settings
        .certificates
        .iter()
        .zip(read?)
        .map(|(files, text)| LoadedCertificate::parse(files, &text, &resumption.provider))
        .collect::<Result<Vec<_>, _>>()?;
    let names = SniResolver::new(&loaded).ok_or(Error::NoCertificates)?;
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
    Ok((server, loaded))
}
