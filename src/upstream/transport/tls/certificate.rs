//! Explains why the upstream's certificate is not trusted, and names the configuration key to set. Names
//! from the certificate come from the network: they are escaped and truncated before they are shown.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, RootCertStore};
use sha2::{Digest as _, Sha256};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate, X509Version};
use x509_parser::public_key::PublicKey;

const MAX_NAMES: usize = 5;
const MAX_NAME: usize = 100;
/// The signature algorithms that are accepted.
const MIN_RSA_BITS: usize = 2048;

/// The trust anchors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::upstream) enum TrustPlace {
    PublicAuthorities,
    File(PathBuf),
    Pins,
}

/// A certificate that is not trusted.
#[derive(Clone, Debug)]
pub struct CertificateProblem {
    upstream: Arc<str>,
    reason: CertificateFault,
    /// The pin of the presented key, in the form that `pins` takes.
    pin: String,
}

#[derive(Clone, Debug)]
enum CertificateFault {
    SelfSigned { is_authority: bool },
    UnknownIssuer { issuer: String, place: TrustPlace },
    OtherName { wanted: String, names: Vec<String> },
    Expired { end: String },
    NotYetValid { begin: String },
    AuthorityAsServer,
    NotPinned,
    Unusual(UnusualCertificate),
    Unusable(String),
}

/// What is wrong with an old or re-issued certificate.
#[derive(Clone, Debug)]
enum UnusualCertificate {
    /// Another certificate of the chain has expired, or is not valid yet.
    ChainDates,
    /// Issued in the name of a trusted authority, but with another key than the trusted one.
    OtherAuthorityKey { issuer: String, place: TrustPlace },
    /// X.509 version 1 or 2, which cannot state the purpose of a certificate.
    OldVersion,
    /// An RSA key of fewer than 2048 bits.
    ShortRsaKey { bits: usize },
}

impl CertificateProblem {
    /// None if the certificate cannot be parsed.
    pub(in crate::upstream) fn find(
        shown: &CertificateDer<'_>,
        wanted: &ServerName<'_>,
        verdict: VerifierVerdict<'_>,
    ) -> Option<Self> {
        let (_, read) = X509Certificate::from_der(shown).ok()?;
        let is_self_signed = read.subject().as_raw() == read.issuer().as_raw()
            && (read.is_ca() || is_signed_by_itself(shown, wanted, verdict.now));
        Some(Self {
            upstream: Arc::clone(verdict.upstream),
            reason: reason(&read, is_self_signed, wanted, &verdict),
            pin: format!("sha256//{}", STANDARD.encode(key_digest(&read))),
        })
    }
}

/// The verdict on a certificate, and the verifier that gave it.
#[derive(Clone, Copy, Debug)]
pub(in crate::upstream) struct VerifierVerdict<'a> {
    pub(in crate::upstream) upstream: &'a Arc<str>,
    pub(in crate::upstream) place: &'a TrustPlace,
    pub(in crate::upstream) error: &'a CertificateError,
    pub(in crate::upstream) now: UnixTime,
}

/// Whether the certificate would be valid if its issuer were trusted: equal names prove nothing.
fn is_signed_by_itself(shown: &CertificateDer<'_>, wanted: &ServerName<'_>, now: UnixTime) -> bool {
    let mut roots = RootCertStore::empty();
    if roots.add(shown.clone().into_owned()).is_err() {
        return false;
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
    let verdict =
        verifier.map(|verifier| verifier.verify_server_cert(shown, &[], wanted, &[], now));
    let is_other = |failure: &rustls::Error| {
        let unknown = [
            CertificateError::UnknownIssuer,
            CertificateError::BadSignature,
        ];
        matches!(failure, rustls::Error::InvalidCertificate(error) if unknown.contains(error))
    };
    verdict.is_ok_and(|verdict| !verdict.is_err_and(|failure| is_other(&failure)))
}

pub(super) fn key_digest(certificate: &X509Certificate<'_>) -> [u8; 32] {
    Sha256::digest(certificate.public_key().raw).into()
}

fn reason(
    shown: &X509Certificate<'_>,
    is_self_signed: bool,
    wanted: &ServerName<'_>,
    verdict: &VerifierVerdict<'_>,
) -> CertificateFault {
    let is_authority = shown.is_ca();
    let validity = shown.validity();
    let now = i64::try_from(verdict.now.as_secs()).unwrap_or(i64::MAX);
    if let Ok(PublicKey::RSA(key)) = shown.public_key().parsed()
        && key.key_size() < MIN_RSA_BITS
    {
        let bits = key.key_size();
        return CertificateFault::Unusual(UnusualCertificate::ShortRsaKey { bits });
    }
    match verdict.error {
        _ if *verdict.place == TrustPlace::Pins => CertificateFault::NotPinned,
        _ if shown.version() != X509Version::V3 => {
            CertificateFault::Unusual(UnusualCertificate::OldVersion)
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. }
            if now <= validity.not_after.timestamp() =>
        {
            CertificateFault::Unusual(UnusualCertificate::ChainDates)
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }
            if now >= validity.not_before.timestamp() =>
        {
            CertificateFault::Unusual(UnusualCertificate::ChainDates)
        }
        CertificateError::BadSignature if !is_self_signed => {
            CertificateFault::Unusual(UnusualCertificate::OtherAuthorityKey {
                issuer: shown_name(&shown.issuer().to_string()),
                place: verdict.place.clone(),
            })
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            CertificateFault::Expired {
                end: day(validity.not_after.timestamp()),
            }
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            CertificateFault::NotYetValid {
                begin: day(validity.not_before.timestamp()),
            }
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            CertificateFault::OtherName {
                wanted: shown_name(&wanted.to_str()),
                names: names(shown),
            }
        }
        CertificateError::UnknownIssuer if !is_self_signed => CertificateFault::UnknownIssuer {
            issuer: shown_name(&shown.issuer().to_string()),
            place: verdict.place.clone(),
        },
        CertificateError::UnknownIssuer | CertificateError::Other(_) if is_self_signed => {
            CertificateFault::SelfSigned { is_authority }
        }
        CertificateError::Other(_) if is_authority => CertificateFault::AuthorityAsServer,
        error => CertificateFault::Unusable(error.to_string()),
    }
}

fn names(shown: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(names)) = shown.subject_alternative_name() else {
        return Vec::new();
    };
    let names = names
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(shown_name(name)),
            GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
            _ => None,
        });
    names.take(MAX_NAMES).collect()
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    }
}

pub(super) fn shown_name(name: &str) -> String {
    name.escape_debug().take(MAX_NAME).collect()
}

fn day(seconds: i64) -> String {
    Timestamp::from_second(seconds)
        .map_or_else(|_| "an unknown time".to_owned(), |at| at.to_string())
}

impl fmt::Display for CertificateProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { upstream, pin, .. } = self;
        let set_pins = format!(
            "set upstream.{upstream}.pins = [\"{pin}\"] in place of ca (compare the key with the upstream's \
             own first)"
        );
        match &self.reason {
            CertificateFault::SelfSigned { is_authority } => {
                self_signed(f, *is_authority, upstream, &set_pins)
            }
            CertificateFault::UnknownIssuer { issuer, place } => {
                let place = trusted_in(place);
                write!(
                    f,
                    "the certificate was issued by \"{issuer}\", which is not among {place}; set \
                     upstream.{upstream}.ca to a file with that authority's certificate, or \
                     {set_pins}"
                )
            }
            CertificateFault::OtherName { wanted, names } if names.is_empty() => {
                write!(
                    f,
                    "the certificate names no host, and so not {wanted}; {set_pins}"
                )
            }
            CertificateFault::OtherName { wanted, names } => {
                let names = names.join(", ");
                write!(
                    f,
                    "the certificate is for {names} and not for {wanted}; if that is the upstream, \
                     set upstream.{upstream}.server_name to the name in the certificate"
                )
            }
            CertificateFault::Expired { end } => write!(
                f,
                "the certificate ended at {end}; renew it at the upstream, or {set_pins}: pins do \
                 not look at dates"
            ),
            CertificateFault::NotYetValid { begin } => write!(
                f,
                "the certificate is not valid before {begin}; compare this host's clock with the \
                 upstream's"
            ),
            CertificateFault::AuthorityAsServer => write!(
                f,
                "the certificate is an authority's (CA:TRUE), which cannot stand for a server; give \
                 the upstream a server certificate, or {set_pins}"
            ),
            CertificateFault::NotPinned => write!(
                f,
                "the key is not pinned: if it is the upstream's new key, add \"{pin}\" to \
                 upstream.{upstream}.pins (compare it with the upstream's own first)"
            ),
            CertificateFault::Unusual(unusual) => unusual.explain(f, &set_pins),
            CertificateFault::Unusable(why) => {
                write!(f, "the certificate cannot be used: {why}; or {set_pins}")
            }
        }
    }
}

impl UnusualCertificate {
    fn explain(&self, f: &mut fmt::Formatter<'_>, set_pins: &str) -> fmt::Result {
        match self {
            Self::ChainDates => write!(
                f,
                "the certificate is within its dates, but an authority's between it and the \
             trusted one, or that one itself, is not: compare this host's clock, renew that \
             authority's certificate at the upstream or in `ca`, or {set_pins}"
            ),
            Self::OtherAuthorityKey { issuer, place } => write!(
                f,
                "the certificate names \"{issuer}\" as its issuer, but it was not signed by the \
             key of that authority in {}: if the authority was made anew, put its new \
             certificate there, or {set_pins}",
                place_of(place)
            ),
            Self::OldVersion => write!(
                f,
                "the certificate is of an old kind (X.509 before version 3, as OpenSSL makes \
             without extensions): give the upstream one with subjectAltName, or {set_pins}"
            ),
            Self::ShortRsaKey { bits } => write!(
                f,
                "the certificate's RSA key has {bits} bits: TLS here needs {MIN_RSA_BITS} or \
             more, and no setting changes that; give the upstream another key"
            ),
        }
    }
}

fn trusted_in(place: &TrustPlace) -> String {
    match place {
        TrustPlace::File(path) => format!("those in {}", path.display()),
        TrustPlace::PublicAuthorities | TrustPlace::Pins => place_of(place),
    }
}

fn place_of(place: &TrustPlace) -> String {
    match place {
        TrustPlace::File(path) => path.display().to_string(),
        TrustPlace::PublicAuthorities | TrustPlace::Pins => "the public authorities".to_owned(),
    }
}

fn self_signed(
    f: &mut fmt::Formatter<'_>,
    is_authority: bool,
    upstream: &str,
    set_pins: &str,
) -> fmt::Result {
    if is_authority {
        write!(
            f,
            "the certificate is self-signed, and an authority's (CA:TRUE), so that `ca` cannot \
             vouch for it; {set_pins}"
        )
    } else {
        write!(
            f,
            "the certificate is self-signed; {set_pins}, or set upstream.{upstream}.ca to a file \
             with this certificate"
        )
    }
}

impl std::error::Error for CertificateProblem {}
