//! Reads certificates and their keys from PEM files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{Error as PemError, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

use crate::config::CertificateFiles;
use crate::listener::Error;
use crate::watched_files::{FileContent, FileContents};

/// A certificate chain with the key that belongs to it.
#[derive(Debug)]
pub(super) struct LoadedCertificate {
    pub(super) certified: Arc<CertifiedKey>,
    /// DNS names in it, wildcards as `*.example.org`.
    pub(super) names: Vec<String>,
    /// Seconds since 1970.
    pub(super) not_before: i64,
    pub(super) not_after: i64,
}

/// The content of a certificate file and its key file.
pub(super) struct PemFiles {
    certificate: Zeroizing<Vec<u8>>,
    key: Zeroizing<Vec<u8>>,
}

/// The files to read: each certificate, followed by its key.
pub(super) fn paths(files: &[CertificateFiles]) -> Vec<PathBuf> {
    let paths = files.iter().flat_map(|pair| [&pair.certificate, &pair.key]);
    paths.cloned().collect()
}

/// The contents of the files that `paths` names.
pub(super) fn pem_files(contents: FileContents) -> Result<Vec<PemFiles>, Error> {
    let mut files = contents.into_files().into_iter();
    let mut pairs = Vec::with_capacity(files.len() / 2);
    while let (Some(certificate), Some(key)) = (files.next(), files.next()) {
        pairs.push(PemFiles {
            certificate: bytes(certificate)?,
            key: bytes(key)?,
        });
    }
    Ok(pairs)
}

fn bytes(file: FileContent) -> Result<Zeroizing<Vec<u8>>, Error> {
    let path = file.path;
    file.content
        .map_err(|source| Error::Unreadable { path, source })
}

impl LoadedCertificate {
    pub(super) fn parse(
        files: &CertificateFiles,
        text: &PemFiles,
        provider: &CryptoProvider,
    ) -> Result<Self, Error> {
        let chain = chain(&files.certificate, &text.certificate)?;
        let key = key(&files.key, &text.key)?;
        let own = chain.first().ok_or_else(|| Error::NoCertificate {
            path: files.certificate.clone(),
        })?;
        let (_, own) = X509Certificate::from_der(own).map_err(|source| Error::BadCertificate {
            path: files.certificate.clone(),
            source,
        })?;
        let names = names(&own);
        let (not_before, not_after) = (
            own.validity().not_before.timestamp(),
            own.validity().not_after.timestamp(),
        );
        let certified = CertifiedKey::from_der(chain.clone(), key, provider);
        let certified = certified.map_err(|source| match source {
            rustls::Error::InconsistentKeys(_) => Error::Mismatch {
                certificate: files.certificate.clone(),
                key: files.key.clone(),
            },
            source => Error::UnusableKey {
                path: files.key.clone(),
                source,
            },
        })?;
        Ok(Self {
            certified: Arc::new(certified),
            names,
            not_before,
            not_after,
        })
    }
}

fn chain(path: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    CertificateDer::pem_slice_iter(text)
        .collect::<Result<_, _>>()
        .map_err(|source| Error::NotPem {
            path: path.to_owned(),
            source,
        })
}

fn key(path: &Path, text: &[u8]) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_slice(text).map_err(|source| match source {
        PemError::NoItemsFound => Error::NoKey {
            path: path.to_owned(),
        },
        source => Error::NotPem {
            path: path.to_owned(),
            source,
        },
    })
}

/// The DNS names of a certificate, which are only in its subject alternative names (RFC 6125). A
/// certificate without any is used as the fallback only.
fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(alternatives)) = certificate.subject_alternative_name() else {
        return Vec::new();
    };
    let name = |general: &GeneralName<'_>| match general {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    };
    alternatives
        .value
        .general_names
        .iter()
        .filter_map(name)
        .collect()
}
