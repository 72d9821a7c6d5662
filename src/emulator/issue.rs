//! Certificates as the Webapp makes them at its first start, and as the gate's
//! development material needs them.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
    KeyUsagePurpose, SerialNumber,
};

use crate::clock;
use crate::secret::Secret;

/// The Webapp's own certificates hold this long (protocol sheet, section 5.3).
pub(super) const YEAR: u64 = 365 * 86_400;

/// A certificate and its key, both PEM.
#[derive(Debug)]
pub(super) struct Pair {
    pub certificate: String,
    pub key: Secret,
}

/// An authority made just now, able to sign.
pub(super) type Authority = CertifiedIssuer<'static, KeyPair>;

/// Key type: the Webapp uses RSA-2048; tests want something that is made at once.
#[derive(Clone, Copy, Debug)]
pub(super) enum Keys {
    Rsa,
    Curve,
}

impl Keys {
    pub(super) fn make(self) -> Result<KeyPair, rcgen::Error> {
        match self {
            Self::Rsa => KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256),
            Self::Curve => KeyPair::generate(),
        }
    }
}

/// The Webapp's authority, with the captured subject.
pub(super) fn webapp_authority(keys: Keys) -> Result<Authority, rcgen::Error> {
    let mut name = webapp_name();
    name.push(
        DnType::OrganizationalUnitName,
        "Enterprise Client - AutoGen CA",
    );
    authority(name, keys, YEAR)
}

/// The Webapp's server certificate.
pub(super) fn webapp_server(by: &Authority, keys: Keys) -> Result<Pair, rcgen::Error> {
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
    keys: Keys,
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
    keys: Keys,
) -> Result<Pair, rcgen::Error> {
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
    Ok(Pair {
        certificate: params.signed_by(&key, by)?.pem(),
        key: Secret::new(key.serialize_pem()),
    })
}

fn valid_for(seconds: u64) -> CertificateParams {
    // Begins a minute early, or a client whose clock is a little behind refuses it.
    let begin = u64::try_from(clock::unix_seconds()).unwrap_or(0) - 60;
    let mut params = CertificateParams::default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(begin);
    params.not_after = epoch + Duration::from_secs(begin + seconds);
    // Two authorities of one name must not issue the same number: clients cache by it.
    params.serial_number = Some(SerialNumber::from(rand::random::<u64>() >> 1));
    params
}
