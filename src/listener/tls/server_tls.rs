//! The TLS configuration of one listener, shared by its workers. Certificates can be replaced while
//! it runs.

use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::CipherSuite;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{
    ProducesTickets, ServerConfig, ServerSessionMemoryCache, StoresServerSessions,
};
use rustls::version::{TLS12, TLS13};
use tracing::{error, info, warn};

use super::loaded_certificate::{self, LoadedCertificate, pem_files};
use super::sni::SniResolver;
use crate::clock;
use crate::config;
use crate::lifecycle::ShutdownSignal;
use crate::listener::Error;
use crate::metrics::{Metrics, ReloadResult};
use crate::watched_files::{FileContents, FileLook, ReloadRequests, WatchedFiles};

/// Cached sessions of TLS 1.2 clients without tickets; other clients keep their own state.
const SESSIONS: usize = 4096;

/// A handshake uses the certificates that are current when it begins, and its connection keeps
/// them.
#[derive(Debug)]
pub struct ServerTls {
    current: ArcSwap<ServerConfig>,
    /// Locked while `current` is replaced.
    settings: Mutex<config::ListenerTls>,
    files: WatchedFiles,
    resumption: ResumptionState,
    metrics: Arc<Metrics>,
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
        let paths = loaded_certificate::paths(&settings.certificates);
        let (files, contents) = WatchedFiles::open(paths);
        let (server, loaded) = build(settings, contents, &resumption)?;
        let tls = Self {
            current: ArcSwap::from_pointee(server),
            settings: Mutex::new(settings.clone()),
            files,
            resumption,
            metrics: Arc::clone(metrics),
        };
        tls.announce(settings, &loaded);
        Ok(Arc::new(tls))
    }

    /// Uses other files or protocol versions, from a reloaded configuration. On an error nothing
    /// changes.
    pub fn replace(&self, settings: &config::ListenerTls) -> Result<(), Error> {
        let paths = loaded_certificate::paths(&settings.certificates);
        let (files, contents) = WatchedFiles::open(paths);
        let mut current = self.settings.lock();
        self.swap(settings, contents)?;
        self.files.replace(files);
        for files in &current.certificates {
            if !settings.certificates.contains(files) {
                // Fails if two entries shared the file and the label is gone already.
                let name = files.certificate.display().to_string();
                let _ = self
                    .metrics
                    .certificate_expiry
                    .remove_label_values(&[&name]);
            }
        }
        *current = settings.clone();
        Ok(())
    }

    /// Reloads changed certificates until drain.
    pub async fn watch(self: Arc<Self>, stop: ShutdownSignal, requests: ReloadRequests) {
        let tls = Arc::clone(&self);
        let reload = move |look| tls.reload(look);
        tokio::select! {
            () = stop.draining() => {}
            () = self.files.follow(requests, reload) => {}
        }
    }

    /// Uses the new certificates; if one of them cannot be used, nothing changes.
    fn reload(&self, look: FileLook) {
        if !look.is_changed {
            self.metrics
                .certificate_reloads
                .add(ReloadResult::Unchanged);
            return;
        }
        let settings = self.settings.lock();
        if !self.files.is_latest(&look.contents) {
            return; // a reloaded configuration has replaced them
        }
        let outcome = match self.swap(&settings, look.contents) {
            Ok(()) => {
                info!("certificates reloaded");
                ReloadResult::Applied
            }
            Err(refused) => {
                error!(
                    error = &refused as &dyn std::error::Error,
                    "certificates not reloaded; those in use are kept"
                );
                ReloadResult::Refused
            }
        };
        self.metrics.certificate_reloads.add(outcome);
    }

    fn swap(&self, settings: &config::ListenerTls, contents: FileContents) -> Result<(), Error> {
        let (server, loaded) = build(settings, contents, &self.resumption)?;
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
    contents: FileContents,
    resumption: &ResumptionState,
) -> Result<(ServerConfig, Vec<LoadedCertificate>), Error> {
    let loaded = settings
        .certificates
        .iter()
        .zip(pem_files(contents)?)
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
