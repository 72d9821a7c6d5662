//! Our own certificate towards an upstream: reads and checks the pair of files, and hands it to
//! handshakes that ask for it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::Timestamp;
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

use super::certificate::shown_name;
use crate::config::CertificateFiles;
use crate::watched_files::{FileContent, FileContents};

/// Why a certificate of ours cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ClientCertificateError {
    #[error("cannot read {}", path.display())]
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
    #[error("the first certificate in {} cannot be parsed", path.display())]
    BadCertificate {
        path: PathBuf,
        #[source]
        source: x509_parser::nom::Err<x509_parser::error::X509Error>,
    },
    #[error("{} holds no private key, or one that needs a passphrase, which the gate cannot give", path.display())]
    NoKey { path: PathBuf },
    #[error("the key in {} cannot be used", path.display())]
    UnusableKey {
        path: PathBuf,
        #[source]
        source: rustls::Error,
    },
    #[error("the key in {} does not belong to the certificate in {}", key.display(), certificate.display())]
    Mismatch { certificate: PathBuf, key: PathBuf },
    #[error("the certificate in {} {dates}", path.display())]
    OutOfDate {
        path: PathBuf,
        dates: CertificateDates,
    },
}

impl ClientCertificateError {
    /// The key to look at, within the upstream's section.
    pub fn key(&self) -> &'static str {
        match self {
            Self::NoKey { .. } | Self::UnusableKey { .. } | Self::Mismatch { .. } => "client_key",
            Self::Unreadable { .. }
            | Self::NotPem { .. }
            | Self::NoCertificate { .. }
            | Self::BadCertificate { .. }
            | Self::OutOfDate { .. } => "client_certificate",
        }
    }
}

/// How a certificate stands to its dates.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateDates {
    #[error("is valid until {end}")]
    Valid { end: String },
    #[error("has ended at {end}: the upstream will refuse it")]
    Ended { end: String },
    #[error("is not valid before {begin}: compare this host's clock")]
    NotYetValid { begin: String },
}

/// A certificate chain with the key that belongs to it.
#[derive(Clone, Debug)]
pub(in crate::upstream) struct ClientCertificate {
    certified: Arc<CertifiedKey>,
    path: PathBuf,
    /// The subject, escaped and truncated.
    pub(in crate::upstream) subject: String,
    /// Seconds since 1970.
    not_before: i64,
    pub(in crate::upstream) not_after: i64,
}

impl ClientCertificate {
    /// The pair in `contents`, which has the certificate's file and the key's. Its dates are not checked.
    pub(super) fn parse(
        files: &CertificateFiles,
        contents: FileContents,
    ) -> Result<Self, ClientCertificateError> {
        let mut contents = contents.into_files().into_iter();
        let mut next = || bytes(contents.next().expect("two files are watched"));
        let (certificate, key) = (next()?, next()?);
        let path = || files.certificate.clone();
        let chain = chain(&files.certificate, &certificate)?;
        let first = chain.first();
        let first = first.ok_or_else(|| ClientCertificateError::NoCertificate { path: path() })?;
        let (_, own) = X509Certificate::from_der(first).map_err(|source| {
            let path = path();
            ClientCertificateError::BadCertificate { path, source }
        })?;
        let subject = shown_name(&own.subject().to_string());
        let validity = own.validity();
        let dates = [validity.not_before, validity.not_after].map(|time| time.timestamp());
        let key = private_key(&files.key, &key)?;
        let provider = aws_lc_rs::default_provider();
        let certified = CertifiedKey::from_der(chain.clone(), key, &provider);
        let certified = certified.map_err(|source| match source {
            rustls::Error::InconsistentKeys(_) => ClientCertificateError::Mismatch {
                certificate: path(),
                key: files.key.clone(),
            },
            source => ClientCertificateError::UnusableKey {
                path: files.key.clone(),
                source,
            },
        })?;
        Ok(Self {
            certified: Arc::new(certified),
            path: path(),
            subject,
            not_before: dates[0],
            not_after: dates[1],
        })
    }

    /// `now`: seconds since 1970.
    pub(in crate::upstream) fn dates(&self, now: i64) -> CertificateDates {
        if now > self.not_after {
            let end = at(self.not_after);
            return CertificateDates::Ended { end };
        }
        if now < self.not_before {
            let begin = at(self.not_before);
            return CertificateDates::NotYetValid { begin };
        }
        let end = at(self.not_after);
        CertificateDates::Valid { end }
    }

    /// The same, refused unless it is valid now.
    pub(super) fn valid_at(self, now: i64) -> Result<Self, ClientCertificateError> {
        match self.dates(now) {
            CertificateDates::Valid { .. } => Ok(self),
            dates => Err(ClientCertificateError::OutOfDate {
                path: self.path,
                dates,
            }),
        }
    }
}

/// What a handshake gets when the upstream asks for a certificate of ours.
#[derive(Debug)]
pub(in crate::upstream) struct OfferedCertificate {
    /// None: there is none.
    pub(super) certificate: Option<ClientCertificate>,
    was_asked: AtomicBool,
}

impl OfferedCertificate {
    pub(super) fn new(certificate: Option<ClientCertificate>) -> Self {
        Self {
            certificate,
            was_asked: AtomicBool::new(false),
        }
    }

    /// Whether a handshake has asked for one.
    pub(super) fn was_asked(&self) -> bool {
        self.was_asked.load(Ordering::Relaxed)
    }
}

impl ResolvesClientCert for OfferedCertificate {
    /// The issuers that the upstream names are hints: it decides itself, and says so in an alert.
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.was_asked.store(true, Ordering::Relaxed);
        let certificate = self.certificate.as_ref()?;
        Some(Arc::clone(&certificate.certified))
    }

    fn has_certs(&self) -> bool {
        self.certificate.is_some()
    }
}

/// The files to watch: the certificate's, then the key's.
pub(super) fn paths(files: &CertificateFiles) -> Vec<PathBuf> {
    vec![files.certificate.clone(), files.key.clone()]
}

fn bytes(file: FileContent) -> Result<Zeroizing<Vec<u8>>, ClientCertificateError> {
    let path = file.path;
    let content = file.content;
    content.map_err(|source| ClientCertificateError::Unreadable { path, source })
}

fn chain(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, ClientCertificateError> {
    let chain = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>();
    chain.map_err(|source| ClientCertificateError::NotPem {
        path: path.to_owned(),
        source,
    })
}

fn private_key(path: &Path, pem: &[u8]) -> Result<PrivateKeyDer<'static>, ClientCertificateError> {
    let path = || path.to_owned();
    PrivateKeyDer::from_pem_slice(pem).map_err(|source| match source {
        pem::Error::NoItemsFound => ClientCertificateError::NoKey { path: path() },
        source => ClientCertificateError::NotPem {
            path: path(),
            source,
        },
    })
}

fn at(seconds: i64) -> String {
    let time = Timestamp::from_second(seconds);
    time.map_or_else(|_| "an unknown time".to_owned(), |time| time.to_string())
}
