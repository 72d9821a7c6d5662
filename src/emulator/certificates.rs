//! Development files for the first run, in one folder: certificates of the gateway and of the emulated
//! Webapp, and the secrets of the latter. Creates what is missing or expires soon, and keeps the
//! rest.

use std::fs::{self, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rcgen::{DistinguishedName, DnType, Issuer, KeyPair, PublicKeyData as _};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tempfile::NamedTempFile;
use x509_parser::certificate::X509Certificate;

use super::issue::{self, CertificatePair, KeyType, YEAR};
use super::{Error, hex};
use crate::clock;
use crate::secret::Secret;

pub(super) const WEBAPP_CA: &str = "webapp-ca.pem";
pub(super) const WEBAPP: &str = "webapp.pem";
pub(super) const WEBAPP_KEY: &str = "webapp.key";
pub(super) const WEBAPP_PASSWORD: &str = "webapp-password";
pub(super) const WEBAPP_API_KEY: &str = "webapp-api-key";
const CA: &str = "ca.pem";
const CA_KEY: &str = "ca.key";
const SERVER: &str = "server.pem";
const SERVER_KEY: &str = "server.key";

/// A certificate with less than this left, in seconds, is created again.
const RENEW_BEFORE: i64 = 7 * 86_400;

/// The files that were created; empty if all existed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Development {
    pub made: Vec<PathBuf>,
}

/// Creates what is missing in `folder`, and `folder` itself. Several processes may call it at the same
/// time: files appear whole, and files that belong together but do not match are created again.
pub fn make(folder: &Path) -> Result<Development, Error> {
    fs::create_dir_all(folder).map_err(|source| Error::Write {
        path: folder.to_owned(),
        source,
    })?;
    let mut files = DevelopmentFolder {
        folder,
        made: Vec::new(),
    };
    files.gate()?;
    files.webapp()?;
    files.secret(WEBAPP_PASSWORD, password)?;
    files.secret(WEBAPP_API_KEY, api_key)?;
    Ok(Development { made: files.made })
}

/// A password with the digit, upper-case, lower-case and special character that the rule requires.
fn password() -> String {
    format!("Tg1-{}", hex(&rand::random::<[u8; 16]>()))
}

fn api_key() -> String {
    hex(&rand::random::<[u8; 24]>())
}

struct DevelopmentFolder<'a> {
    folder: &'a Path,
    made: Vec<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum FileReaders {
    Everyone,
    Owner,
}

impl DevelopmentFolder<'_> {
    /// The development authority and the gate's certificate.
    fn gate(&mut self) -> Result<(), Error> {
        let ca = self.read(CA)?.unwrap_or_default();
        let server = self.read(SERVER)?.unwrap_or_default();
        let server_key = self.read(SERVER_KEY)?.unwrap_or_default();
        if is_good(&server, &server_key, &ca) {
            return Ok(());
        }
        let issuer = self.authority(&ca)?;
        let mut name = DistinguishedName::new();
        name.push(DnType::CommonName, "tollgate development");
        let hosts = ["localhost", "127.0.0.1", "::1", "tollgate"];
        let server = issue::server(name, &hosts, &issuer, KeyType::Curve);
        self.write_pair(&server.map_err(Error::Certificate)?, SERVER, SERVER_KEY)
    }

    /// The existing authority, or a new one.
    fn authority(&mut self, ca: &str) -> Result<Issuer<'static, KeyPair>, Error> {
        let key = self.read(CA_KEY)?.unwrap_or_default();
        if let (Some(der), Ok(key)) = (der(ca), KeyPair::from_pem(&key))
            && belongs(&der, &key)
            && let Ok(issuer) = Issuer::from_ca_cert_der(&der, key)
        {
            return Ok(issuer);
        }
        let mut name = DistinguishedName::new();
        name.push(DnType::OrganizationName, "Tollgate");
        // Named by number, so that a browser that trusts an older one does not confuse them.
        let title = format!(
            "Tollgate development CA {}",
            hex(&rand::random::<[u8; 4]>())
        );
        name.push(DnType::CommonName, title);
        let made = issue::authority(name, KeyType::Curve, 10 * YEAR).map_err(Error::Certificate)?;
        let key = made.key().serialize_pem();
        self.write(CA_KEY, &key, FileReaders::Owner)?;
        self.write(CA, &made.pem(), FileReaders::Everyone)?;
        let key = KeyPair::from_pem(&key).map_err(Error::Certificate)?;
        Issuer::from_ca_cert_der(made.der(), key).map_err(Error::Certificate)
    }

    /// The authority of the emulated Webapp signs once; its key is not stored.
    fn webapp(&mut self) -> Result<(), Error> {
        let ca = self.read(WEBAPP_CA)?.unwrap_or_default();
        let server = self.read(WEBAPP)?.unwrap_or_default();
        let key = self.read(WEBAPP_KEY)?.unwrap_or_default();
        if is_good(&server, &key, &ca) {
            return Ok(());
        }
        let authority = issue::webapp_authority(KeyType::Rsa).map_err(Error::Certificate)?;
        let server = issue::webapp_server(&authority, KeyType::Rsa).map_err(Error::Certificate)?;
        self.write(WEBAPP_CA, &authority.pem(), FileReaders::Everyone)?;
        self.write_pair(&server, WEBAPP, WEBAPP_KEY)
    }

    /// A secret is never overwritten, because another process may have read it.
    fn secret(&mut self, name: &str, text: fn() -> String) -> Result<(), Error> {
        let path = self.folder.join(name);
        if path.exists() {
            return Ok(());
        }
        let line = Secret::new(text() + "\n");
        let file = self.temporary(&path, line.expose(), FileReaders::Owner)?;
        match file.persist_noclobber(&path) {
            Ok(_) => self.made.push(path),
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                return Err(Error::Write {
                    path,
                    source: error.error,
                });
            }
        }
        Ok(())
    }

    fn write_pair(
        &mut self,
        pair: &CertificatePair,
        certificate: &str,
        key: &str,
    ) -> Result<(), Error> {
        self.write(key, pair.key.expose(), FileReaders::Owner)?;
        self.write(certificate, &pair.certificate, FileReaders::Everyone)
    }

    fn write(&mut self, name: &str, text: &str, readers: FileReaders) -> Result<(), Error> {
        let path = self.folder.join(name);
        let file = self.temporary(&path, text, readers)?;
        file.persist(&path).map_err(|error| Error::Write {
            path: path.clone(),
            source: error.error,
        })?;
        self.made.push(path);
        Ok(())
    }

    /// Writes the text to a temporary file in the folder, to be renamed.
    fn temporary(
        &self,
        path: &Path,
        text: &str,
        readers: FileReaders,
    ) -> Result<NamedTempFile, Error> {
        let write = || {
            // Created with access for its owner only, before anything is written.
            let mut file = NamedTempFile::new_in(self.folder)?;
            file.write_all(text.as_bytes())?;
            if readers == FileReaders::Everyone {
                fs::set_permissions(file.path(), Permissions::from_mode(0o644))?;
            }
            file.as_file().sync_all()?;
            Ok(file)
        };
        write().map_err(|source| Error::Write {
            path: path.to_owned(),
            source,
        })
    }

    fn read(&self, name: &str) -> Result<Option<String>, Error> {
        let path = self.folder.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Read { path, source }),
        }
    }
}

/// Whether the certificate does not expire soon, belongs to its key, and is signed by `authority`,
/// which does not expire soon either.
fn is_good(certificate: &str, key: &str, authority: &str) -> bool {
    let (Some(certificate), Some(authority)) = (der(certificate), der(authority)) else {
        return false;
    };
    let Ok(key) = KeyPair::from_pem(key) else {
        return false;
    };
    belongs(&certificate, &key) && lasts(&authority) && is_signed(&certificate, &authority)
}

/// Whether the certificate does not expire soon and is for this key.
fn belongs(certificate: &CertificateDer<'_>, key: &KeyPair) -> bool {
    let own = key.subject_public_key_info();
    lasts(certificate) && parsed(certificate).is_some_and(|it| it.public_key().raw == own)
}

fn lasts(certificate: &CertificateDer<'_>) -> bool {
    let soon = clock::unix_seconds() + RENEW_BEFORE;
    parsed(certificate).is_some_and(|it| it.validity().not_after.timestamp() > soon)
}

fn is_signed(certificate: &CertificateDer<'_>, authority: &CertificateDer<'_>) -> bool {
    let (Some(certificate), Some(authority)) = (parsed(certificate), parsed(authority)) else {
        return false;
    };
    certificate
        .verify_signature(Some(authority.public_key()))
        .is_ok()
}

fn parsed<'a>(der: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    let (_, parsed) = x509_parser::parse_x509_certificate(der).ok()?;
    Some(parsed)
}

fn der(pem: &str) -> Option<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(pem.as_bytes()).ok()
}
