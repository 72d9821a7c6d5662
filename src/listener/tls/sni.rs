//! Chooses the certificate by the server name (SNI) that the client asks for.

use std::collections::HashMap;
use std::sync::Arc;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::loaded_certificate::LoadedCertificate;

/// The certificates of one listener by their DNS names. Replaced as a whole on reload.
#[derive(Debug)]
pub(super) struct SniResolver {
    exact: HashMap<String, Vec<Arc<CertifiedKey>>>,
    /// `*.example.org` as `example.org`.
    wildcard: HashMap<String, Vec<Arc<CertifiedKey>>>,
    /// For clients that send no name, or an unknown one.
    first: Vec<Arc<CertifiedKey>>,
}

impl SniResolver {
    /// None if there is no certificate.
    pub(super) fn new(certificates: &[LoadedCertificate]) -> Option<Self> {
        let first = certificates.first()?;
        let mut names = Self {
            exact: HashMap::new(),
            wildcard: HashMap::new(),
            first: vec![Arc::clone(&first.certified)],
        };
        for certificate in certificates {
            for name in &certificate.names {
                let (map, name) = match name.strip_prefix("*.") {
                    Some(parent) => (&mut names.wildcard, parent),
                    None => (&mut names.exact, name.as_str()),
                };
                map.entry(name.to_ascii_lowercase())
                    .or_default()
                    .push(Arc::clone(&certificate.certified));
            }
        }
        // Its first name may have a second certificate, with another kind of key.
        if let Some(name) = first.names.first() {
            names.first = names.find(&name.to_ascii_lowercase()).to_vec();
        }
        Some(names)
    }

    fn find(&self, name: &str) -> &[Arc<CertifiedKey>] {
        let wildcard = || self.wildcard.get(name.split_once('.')?.1);
        self.exact
            .get(name)
            .or_else(wildcard)
            .unwrap_or(&self.first)
    }
}

impl ResolvesServerCert for SniResolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let found = match hello.server_name() {
            Some(name) => self.find(&name.to_ascii_lowercase()),
            None => &self.first,
        };
        // A name may have an ECDSA and an RSA certificate: use the first that the client can
        // verify. If it can verify none, the handshake fails with the first and says why.
        let suits =
            |key: &&Arc<CertifiedKey>| key.key.choose_scheme(hello.signature_schemes()).is_some();
        found.iter().find(suits).or(found.first()).cloned()
    }
}
