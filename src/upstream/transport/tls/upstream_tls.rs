//! TLS toward one upstream: whom the gate trusts and which certificate it shows. Both follow their
//! files. Another certificate retires the connections made before; other authorities judge new ones.

use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::ServerName;
use tracing::{error, info, warn};

use super::client_certificate::{CertificateDates, ClientCertificate, OfferedCertificate, paths};
use super::trust::{TrustError, TrustVerifier, provider, reread};
use crate::clock;
use crate::config::{self, CertificateFiles, Http2Mode};
use crate::error_chain::chain;
use crate::lifecycle::ShutdownSignal;
use crate::metrics::Metrics;
use crate::upstream::Error;
use crate::upstream::transport::retire_flag::RetireFlag;
use crate::watched_files::{FileLook, ReloadRequests, WatchedFiles};

/// TLS toward one upstream.
#[derive(Debug)]
pub(in crate::upstream) struct UpstreamTls {
    current: ArcSwap<TlsGeneration>,
    /// From which the next generation is made.
    parts: Mutex<TlsParts>,
    http2: Http2Mode,
    /// For messages that name the configuration key.
    upstream: Arc<str>,
    /// The file of private authorities; None: there is none.
    authorities: Option<WatchedFiles>,
    /// None: the gate has no certificate of its own.
    own_files: Option<OwnCertificateFiles>,
}

/// The TLS settings of handshakes, until a file changes.
#[derive(Debug)]
pub(in crate::upstream) struct TlsGeneration {
    pub(in crate::upstream) config: Arc<ClientConfig>,
    pub(in crate::upstream) offered: Arc<OfferedCertificate>,
    /// Set when another certificate of the gate takes the place of this one.
    pub(in crate::upstream) retire: RetireFlag,
}

#[derive(Clone, Debug)]
struct TlsParts {
    verifier: Arc<dyn ServerCertVerifier>,
    certificate: Option<ClientCertificate>,
    http2: Http2Mode,
    /// Of the connections that have shown the certificate.
    retire: RetireFlag,
}

#[derive(Debug)]
struct OwnCertificateFiles {
    names: CertificateFiles,
    files: WatchedFiles,
}

/// The name that is asked for at `base`, and that the certificate there must have.
pub(in crate::upstream) fn server_name(
    settings: &config::UpstreamConfig,
    base: &config::BaseAddress,
) -> Result<ServerName<'static>, Error> {
    let name = settings.server_name.as_ref().unwrap_or(&base.host).clone();
    ServerName::try_from(name.clone()).map_err(|_| Error::Trust {
        upstream: Arc::clone(&settings.name),
        source: TrustError::BadName { name },
    })
}

impl UpstreamTls {
    /// Reads the files of authorities and of the gate's own certificate, where there are any. A
    /// certificate that is not valid now is used nevertheless: the upstream decides.
    pub(in crate::upstream) fn open(settings: &config::UpstreamConfig) -> Result<Self, Error> {
        let upstream = &settings.name;
        let bad_trust = |source| Error::Trust {
            upstream: Arc::clone(upstream),
            source,
        };
        for base in settings.addresses() {
            server_name(settings, base)?;
        }
        let trust = TrustVerifier::open(&settings.trust, upstream).map_err(bad_trust)?;
        let mut certificate = None;
        let mut own_files = None;
        if let Some(names) = settings.client_certificate.clone() {
            let (files, contents) = WatchedFiles::open(paths(&names));
            let parsed = ClientCertificate::parse(&names, contents);
            certificate = Some(parsed.map_err(|source| Error::ClientCertificate {
                upstream: Arc::clone(upstream),
                source,
            })?);
            own_files = Some(OwnCertificateFiles { names, files });
        }
        let parts = TlsParts {
            verifier: trust.verifier,
            certificate,
            http2: settings.http2,
            retire: RetireFlag::default(),
        };
        Ok(Self {
            current: ArcSwap::from_pointee(parts.generation()),
            parts: Mutex::new(parts),
            http2: settings.http2,
            upstream: Arc::clone(upstream),
            authorities: trust.authorities,
            own_files,
        })
    }

    /// The settings for a handshake that begins now.
    pub(in crate::upstream) fn current(&self) -> Arc<TlsGeneration> {
        self.current.load_full()
    }

    pub(in crate::upstream) fn http2(&self) -> Http2Mode {
        self.http2
    }

    /// The gate's own certificate.
    pub(in crate::upstream) fn certificate(&self) -> Option<ClientCertificate> {
        self.parts.lock().certificate.clone()
    }

    /// Loads the authorities again whenever their file has changed, until drain.
    pub(in crate::upstream) async fn watch_authorities(
        self: Arc<Self>,
        stop: ShutdownSignal,
        requests: ReloadRequests,
    ) {
        let Some(files) = &self.authorities else {
            return;
        };
        let tls = Arc::clone(&self);
        let reload = move |look| tls.reload_authorities(look);
        tokio::select! {
            () = stop.draining() => {}
            () = files.follow(requests, reload) => {}
        }
    }

    /// Loads the gate's own certificate again whenever one of its files has changed, until drain.
    pub(in crate::upstream) async fn watch_certificate(
        self: Arc<Self>,
        stop: ShutdownSignal,
        requests: ReloadRequests,
        metrics: Arc<Metrics>,
    ) {
        let Some(own) = &self.own_files else {
            return;
        };
        self.announce(own, &metrics);
        let tls = Arc::clone(&self);
        let reload = move |look| tls.reload_certificate(look, &metrics);
        tokio::select! {
            () = stop.draining() => {}
            () = own.files.follow(requests, reload) => {}
        }
    }

    /// Uses the new authorities; if the file cannot be used, the old ones stay.
    fn reload_authorities(&self, look: FileLook) {
        if !look.is_changed {
            return;
        }
        let upstream = &self.upstream;
        match reread(look.contents.into_file(), upstream) {
            Ok(verifier) => self.replace(|parts| parts.verifier = verifier),
            Err(failure) => {
                error!(%upstream, error = %chain(&failure), "keeping the old authorities");
            }
        }
    }

    /// Uses the new pair; one that cannot be used, or that is not valid now, leaves the old in use.
    fn reload_certificate(&self, look: FileLook, metrics: &Metrics) {
        let Some(own) = self.own_files.as_ref().filter(|_| look.is_changed) else {
            return;
        };
        let upstream = &self.upstream;
        let parsed = ClientCertificate::parse(&own.names, look.contents);
        match parsed.and_then(|certificate| certificate.valid_at(clock::unix_seconds())) {
            Ok(certificate) => {
                let subject = certificate.subject.clone();
                self.replace(|parts| {
                    parts.certificate = Some(certificate);
                    std::mem::take(&mut parts.retire).set();
                });
                info!(%upstream, subject, "the gate's certificate for the upstream was read again: \
                    new connections show it, idle ones with the old are closed");
                self.announce(own, metrics);
            }
            Err(failure) => {
                error!(%upstream, error = %chain(&failure),
                    "keeping the gate's old certificate for the upstream");
            }
        }
    }

    fn replace(&self, change: impl FnOnce(&mut TlsParts)) {
        let mut parts = self.parts.lock();
        change(&mut parts);
        self.current.store(Arc::new(parts.generation()));
    }

    /// Sets the expiry metric, and warns of a certificate that is not valid.
    fn announce(&self, own: &OwnCertificateFiles, metrics: &Metrics) {
        let Some(certificate) = self.certificate() else {
            return;
        };
        let file = own.names.certificate.display().to_string();
        let expiry = metrics.certificate_expiry.with_label_values(&[&file]);
        expiry.set(certificate.not_after);
        let dates = certificate.dates(clock::unix_seconds());
        if !matches!(dates, CertificateDates::Valid { .. }) {
            let upstream = &self.upstream;
            warn!(%upstream, certificate = file, "the gate's certificate for the upstream {dates}");
        }
    }
}

impl TlsParts {
    /// With a session store of its own: a session of another generation is not resumed.
    fn generation(&self) -> TlsGeneration {
        let offered = Arc::new(OfferedCertificate::new(self.certificate.clone()));
        let resolver = Arc::clone(&offered);
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("aws-lc-rs speaks the default versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&self.verifier))
            .with_client_cert_resolver(resolver);
        let offered_protocols: &[&[u8]] = match self.http2 {
            Http2Mode::Never => &[b"http/1.1"],
            Http2Mode::Auto => &[b"h2", b"http/1.1"],
            Http2Mode::Always => &[b"h2"],
        };
        config.alpn_protocols = offered_protocols.iter().map(|name| name.to_vec()).collect();
        TlsGeneration {
            config: Arc::new(config),
            offered,
            retire: self.retire.clone(),
        }
    }
}
