//! What makes the upstream's certificate trusted: public authorities, private ones from a file that may
//! change, or pinned keys. Verification cannot be turned off.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};
use tracing::info;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::certificate::{CertificateProblem, TrustPlace, VerifierVerdict, key_digest};
use crate::config::Trust;
use crate::watched_files::{FileContent, WatchedFiles};

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

/// Decides whether a certificate of the upstream is trusted, and the file that it follows.
#[derive(Debug)]
pub(super) struct TrustVerifier {
    pub(super) verifier: Arc<dyn ServerCertVerifier>,
    /// The file of private authorities; None: there is none.
    pub(super) authorities: Option<WatchedFiles>,
}

impl TrustVerifier {
    /// Reads the file of private authorities, if there is one.
    pub(super) fn open(trust: &Trust, upstream: &Arc<str>) -> Result<Self, TrustError> {
        let mut authorities = None;
        let verifier = match trust {
            Trust::PublicAuthorities => {
                let roots = webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect();
                trusting(roots, upstream, TrustPlace::PublicAuthorities)
            }
            Trust::Authorities(path) => {
                let (files, contents) = WatchedFiles::open(vec![path.clone()]);
                authorities = Some(files);
                let place = TrustPlace::File(path.clone());
                trusting(private_roots(contents.into_file())?, upstream, place)
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
            verifier,
            authorities,
        })
    }
}

/// The verifier for the authorities in `file`, which was read again.
pub(super) fn reread(
    file: FileContent,
    upstream: &Arc<str>,
) -> Result<Arc<dyn ServerCertVerifier>, TrustError> {
    let place = TrustPlace::File(file.path.clone());
    let roots = private_roots(file)?;
    info!(%upstream, count = roots.len(), "authorities for the upstream read again");
    Ok(trusting(roots, upstream, place))
}

/// The authorities in a PEM file.
fn private_roots(file: FileContent) -> Result<RootCertStore, TrustError> {
    let path = file.path;
    let pem = match file.content {
        Ok(pem) => pem,
        Err(source) => return Err(TrustError::Unreadable { path, source }),
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = match certificate {
            Ok(certificate) => certificate,
            Err(source) => return Err(TrustError::NotPem { path, source }),
        };
        if let Err(source) = roots.add(certificate) {
            return Err(TrustError::BadAuthority { path, source });
        }
    }
    match roots.is_empty() {
        true => Err(TrustError::NoCertificate { path }),
        false => Ok(roots),
    }
}

pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// The verifier of one upstream's certificates; `inner` decides.
fn judged_by(
    inner: Arc<dyn ServerCertVerifier>,
    upstream: &Arc<str>,
    place: TrustPlace,
) -> Arc<dyn ServerCertVerifier> {
    Arc::new(ExplainedVerdict {
        inner,
        upstream: Arc::clone(upstream),
        place,
    })
}

fn trusting(
    roots: RootCertStore,
    upstream: &Arc<str>,
    place: TrustPlace,
) -> Arc<dyn ServerCertVerifier> {
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
