//! What makes the upstream's certificate trusted: public authorities, private ones from a file that may
//! change, or pinned keys. Verification cannot be turned off.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore,
    SignatureScheme,
};
use sha2::{Digest as _, Sha256};
use tracing::{error, info};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::certificate::{CertificateProblem, TrustPlace, VerifierVerdict, key_digest};
use crate::config::Trust;
use crate::error_chain::chain;

/// Why the trust settings of the upstream cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error("{name} cannot be the name in a certificate")]
    BadName { name: String },
    #[error("cannot read authorities from {}", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is not a PEM file", path.display())]
    NotPem {
        path: PathBuf,
        #[source]
        source: pem::Error,
    },
    #[error("{} holds no certificate", path.display())]
    NoCertificate { path: PathBuf },
    #[error("a certificate in {} cannot be an authority", path.display())]
    BadAuthority {
        path: PathBuf,
        #[source]
        source: rustls::Error,
    },
}

/// TLS toward one upstream.
#[derive(Debug)]
pub(in crate::upstream) struct UpstreamTls {
    config: ArcSwap<ClientConfig>,
    name: ServerName<'static>,
    authorities: Option<AuthorityFile>,
}

#[derive(Debug)]
struct AuthorityFile {
    path: PathBuf,
    /// The digest of the file's last content; None: it could not be read.
    seen: Mutex<Option<[u8; 32]>>,
}

impl UpstreamTls {
    /// `upstream` is used in messages that name the configuration key.
    pub(in crate::upstream) fn open(
        trust: &Trust,
        name: &str,
        upstream: &Arc<str>,
    ) -> Result<Self, TrustError> {
        let bad_name = || TrustError::BadName {
            name: name.to_owned(),
        };
        let name = ServerName::try_from(name.to_owned()).map_err(|_| bad_name())?;
        let mut authorities = None;
        let config = match trust {
            Trust::PublicAuthorities => {
                let roots = webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect();
                trusting(roots, upstream, TrustPlace::PublicAuthorities)
            }
            Trust::Authorities(path) => {
                let pem = read(path)?;
                let config = trusting(
                    private_roots(path, &pem)?,
                    upstream,
                    TrustPlace::File(path.clone()),
                );
                authorities = Some(AuthorityFile {
                    path: path.clone(),
                    seen: Mutex::new(Some(Sha256::digest(&pem).into())),
                });
                config
            }
            Trust::Pins(pins) => {
                let verifier = PinnedKeys {
                    pins: pins.clone(),
                    provider: provider(),
                };
                judged_by(Arc::new(verifier), upstream, TrustPlace::Pins)
            }
        };
        Ok(Self {
            config: ArcSwap::from_pointee(config),
            name,
            authorities,
        })
    }

    pub(in crate::upstream) fn current(&self) -> (Arc<ClientConfig>, ServerName<'static>) {
        (self.config.load_full(), self.name.clone())
    }

    /// Whether there is a file that may change.
    pub(in crate::upstream) fn may_change(&self) -> bool {
        self.authorities.is_some()
    }

    /// Loads the authorities file if its content has changed and is valid.
    pub(in crate::upstream) fn reread(&self, upstream: &Arc<str>) {
        let Some(AuthorityFile { path, seen }) = &self.authorities else {
            return;
        };
        let mut seen = seen.lock();
        let pem = match read(path) {
            Ok(pem) => pem,
            Err(failure) => {
                if seen.take().is_some() {
                    error!(%upstream, error = %chain(&failure), "keeping the old authorities");
                }
                return;
            }
        };
        let digest = Sha256::digest(&pem).into();
        if seen.replace(digest) == Some(digest) {
            return;
        }
        match private_roots(path, &pem) {
            Ok(roots) => {
                let count = roots.len();
                let place = TrustPlace::File(path.clone());
                self.config
                    .store(Arc::new(trusting(roots, upstream, place)));
                info!(%upstream, count, "authorities for the upstream read again");
            }
            Err(failure) => {
                error!(%upstream, error = %chain(&failure), "keeping the old authorities");
            }
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TrustError> {
    std::fs::read(path).map_err(|source| TrustError::Unreadable {
        path: path.to_owned(),
        source,
    })
}

fn private_roots(path: &Path, pem: &[u8]) -> Result<RootCertStore, TrustError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|source| TrustError::NotPem {
            path: path.to_owned(),
            source,
        })?;
        roots
            .add(certificate)
            .map_err(|source| TrustError::BadAuthority {
                path: path.to_owned(),
                source,
            })?;
    }
    if roots.is_empty() {
        return Err(TrustError::NoCertificate {
            path: path.to_owned(),
        });
    }
    Ok(roots)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// The verifier of one upstream's certificates; `inner` decides.
fn judged_by(
    inner: Arc<dyn ServerCertVerifier>,
    upstream: &Arc<str>,
    place: TrustPlace,
) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("aws-lc-rs speaks the default versions");
    let verifier = Arc::new(ExplainedVerdict {
        inner,
        upstream: Arc::clone(upstream),
        place,
    });
    let mut config = builder
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

fn trusting(roots: RootCertStore, upstream: &Arc<str>, place: TrustPlace) -> ClientConfig {
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .expect("there is an authority, and no revocation list that could be wrong");
    judged_by(verifier, upstream, place)
}

/// Wraps another verifier, and describes a certificate that it rejects.
#[derive(Debug)]
struct ExplainedVerdict {
    inner: Arc<dyn ServerCertVerifier>,
    upstream: Arc<str>,
    place: TrustPlace,
}

impl ServerCertVerifier for ExplainedVerdict {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verdict = self.inner.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        verdict.map_err(|failure| {
            let rustls::Error::InvalidCertificate(error) = &failure else {
                return failure;
            };
            let verdict = VerifierVerdict {
                upstream: &self.upstream,
                place: &self.place,
                error,
                now,
            };
            match CertificateProblem::find(end_entity, server_name, verdict) {
                Some(problem) => CertificateError::Other(OtherError(Arc::new(problem))).into(),
                None => failure,
            }
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Trusts a peer that proves possession of one of the pinned keys, whatever the certificate's names
/// and dates: the key is the identity.
#[derive(Debug)]
struct PinnedKeys {
    pins: Vec<[u8; 32]>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedKeys {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let (_, certificate) =
            X509Certificate::from_der(end_entity).map_err(|_| CertificateError::BadEncoding)?;
        if self.pins.contains(&key_digest(&certificate)) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    // A certificate is public; only these signatures prove that the peer has its key.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let schemes = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, schemes)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let schemes = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, schemes)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
