//! Certificates as the Webapp creates them at its first start, and for the development files of the
//! gateway.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
    KeyUsagePurpose, SerialNumber,
};

use crate::clock;
use crate::secret::Secret;

/// Validity of the Webapp's own certificates in seconds (protocol sheet, section 5.3).
pub(super) const YEAR: u64 = 365 * 86_400;

/// A certificate and its key, both PEM.
#[derive(Debug)]
pub(super) struct CertificatePair {
    pub certificate: String,
    pub key: Secret,
}

/// A new authority with its key.
pub(super) type Authority = CertifiedIssuer<'static, KeyPair>;

/// The type of a key: the Webapp uses RSA-2048; tests use what is created fastest.
#[derive(Clone, Copy, Debug)]
pub(super) enum KeyType {
    Rsa,
    Curve,
}

impl KeyType {
    pub(super) fn make(self) -> Result<KeyPair, rcgen::Error> {
        match self {
            Self::Rsa => KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256),
            Self::Curve => KeyPair::generate(),
        }
    }
}

/// The Webapp's authority, with the captured subject.
pub(super) fn webapp_authority(keys: KeyType) -> Result<Authority, rcgen::Error> {
    let mut name = webapp_name();
    name.push(
        DnType::OrganizationalUnitName,
        "Enterprise Client - AutoGen CA",
    );
    authority(name, keys, YEAR)
}

/// The Webapp's server certificate.
pub(super) fn webapp_server(
    by: &Authority,
    keys: KeyType,
) -> Result<CertificatePair, rcgen::Error> {
    let mut name = webapp_name();
    name.push(DnType::CommonName, "webapp");
    server(name, &["localhost", "127.0.0.1", "::1", "webapp"], by, keys)
}

fn webapp_name() -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CountryName, "US");
    name.push(DnType::StateOrProvinceName, "CA");
    name.push(DnType::LocalityName, "Menlo Park");
    name.push(DnType::OrganizationName, "WhatsApp Inc");
    name
}

pub(super) fn authority(
    name: DistinguishedName,
    keys: KeyType,
    seconds: u64,
) -> Result<Authority, rcgen::Error> {
    let mut params = valid_for(seconds);
    params.distinguished_name = name;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    CertifiedIssuer::self_signed(params, keys.make()?)
}

pub(super) fn server(
    name: DistinguishedName,
    hosts: &[&str],
    by: &rcgen::Issuer<'_, KeyPair>,
    keys: KeyType,
) -> Result<CertificatePair, rcgen::Error> {
    let mut params = valid_for(YEAR);
    params.distinguished_name = name;
    let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
    params.subject_alt_names = CertificateParams::new(hosts)?.subject_alt_names;
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let key = keys.make()?;
    Ok(CertificatePair {
        certificate: params.signed_by(&key, by)?.pem(),
        key: Secret::new(key.serialize_pem()),
    })
}

fn valid_for(seconds: u64) -> CertificateParams {
    // Valid from a minute ago, for clients whose clock is a little behind.
    let begin = u64::try_from(clock::unix_seconds()).unwrap_or(0) - 60;
    let mut params = CertificateParams::default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(begin);
    params.not_after = epoch + Duration::from_secs(begin + seconds);
    // Two authorities of one name must not issue the same serial number, by which clients cache.
    params.serial_number = Some(SerialNumber::from(rand::random::<u64>() >> 1));
    params
}
