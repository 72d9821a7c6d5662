//! The settings of the emulator.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::issue::{self, KeyType};
use super::{Error, certificates};
use crate::config;
use crate::secret::{Secret, SecretSource};

#[derive(Clone, Debug)]
pub struct Settings {
    pub address: SocketAddr,
    /// The control port has no authentication.
    pub control: SocketAddr,
    /// Name of the preset account.
    pub username: String,
    pub password: Secret,
    /// The first login must change the password, as with a new Webapp.
    pub first_login: bool,
    pub api_key: Option<Secret>,
    pub token_lifetime: Duration,
    pub tls: Tls,
    /// The Webapp's own rate limits.
    pub limits: bool,
}

#[derive(Clone, Debug)]
pub enum Tls {
    /// Plain HTTP, which the real Webapp never speaks.
    Plain,
    /// Authority and certificate created at the start, in memory only.
    InMemory,
    Pem {
        /// The server's certificate chain.
        certificate: String,
        key: Secret,
        authority: String,
    },
}

impl Settings {
    /// Free ports on loopback, TLS in memory, no limits.
    pub fn for_tests() -> Self {
        let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self {
            address: anywhere,
            control: anywhere,
            username: "admin".to_owned(),
            password: Secret::new("Webapp-Passw0rd!"),
            first_login: false,
            api_key: Some(Secret::new("webapp-api-key-for-tests")),
            token_lifetime: Duration::from_secs(604_800),
            tls: Tls::InMemory,
            limits: false,
        }
    }

    /// The settings of the configuration, with the files that `certificates::make` has created.
    pub fn open(config: &config::Emulator) -> Result<Self, Error> {
        let file = |name: &str| config.folder.join(name);
        let secret = |name| SecretSource::File(file(name)).read().map_err(Error::Secret);
        Ok(Self {
            address: config.address,
            control: config.control,
            password: secret(certificates::WEBAPP_PASSWORD)?,
            api_key: Some(secret(certificates::WEBAPP_API_KEY)?),
            token_lifetime: config.token_lifetime,
            tls: Tls::Pem {
                certificate: read(&file(certificates::WEBAPP))?,
                key: Secret::new(read(&file(certificates::WEBAPP_KEY))?),
                authority: read(&file(certificates::WEBAPP_CA))?,
            },
            limits: true,
            ..Self::for_tests()
        })
    }
}

fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })
}

impl Tls {
    /// The configuration of the listener, and the authority that a client should trust.
    pub(super) fn accept(&self) -> Result<(Option<Arc<ServerConfig>>, String), Error> {
        match self {
            Self::Plain => Ok((None, String::new())),
            Self::InMemory => {
                let made = issue::webapp_authority(KeyType::Curve).map_err(Error::Certificate)?;
                let server = issue::webapp_server(&made, KeyType::Curve);
                let server = server.map_err(Error::Certificate)?;
                let config = server_config(&server.certificate, &server.key)?;
                Ok((Some(config), made.pem()))
            }
            Self::Pem {
                certificate,
                key,
                authority,
            } => Ok((Some(server_config(certificate, key)?), authority.clone())),
        }
    }
}

fn server_config(certificate: &str, key: &Secret) -> Result<Arc<ServerConfig>, Error> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect();
    let chain = chain.map_err(Error::NotPem)?;
    let key = PrivateKeyDer::from_pem_slice(key.expose().as_bytes()).map_err(Error::NotPem)?;
    // Explicit, because a test may not have installed a default provider.
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(Error::Tls)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(Error::Tls)?;
    // The Webapp speaks HTTP/1.1 only (protocol sheet, section 4).
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
