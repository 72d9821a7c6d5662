//! Which certificate a client gets: by the name it asks for.

use std::collections::HashMap;
use std::sync::Arc;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::certificates::LoadedCertificate;

/// The certificates of one listener by the names in them. Swapped whole.
#[derive(Debug)]
pub(super) struct SniResolver {
    exact: HashMap<String, Vec<Arc<CertifiedKey>>>,
    /// `*.example.org` as `example.org`.
    wildcard: HashMap<String, Vec<Arc<CertifiedKey>>>,
    /// For clients that name nothing, or nothing known.
    first: Vec<Arc<CertifiedKey>>,
}

impl SniResolver {
    /// None without a single pair.
    pub(in crate::listener) fn new(pairs: &[LoadedCertificate]) -> Option<Self> {
        let first = pairs.first()?;
        let mut names = Self {
            exact: HashMap::new(),
            wildcard: HashMap::new(),
            first: vec![Arc::clone(&first.certified)],
        };
        for pair in pairs {
            for name in &pair.names {
                let (map, name) = match name.strip_prefix("*.") {
                    Some(parent) => (&mut names.wildcard, parent),
                    None => (&mut names.exact, name.as_str()),
                };
                map.entry(name.to_ascii_lowercase())
                    .or_default()
                    .push(Arc::clone(&pair.certified));
            }
        }
        // The first name may have a second certificate, with another kind of key.
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
        // One name may have an ECDSA and an RSA certificate: the first that the client
        // can verify. None suits: the handshake fails with the first, and says why.
        let suits =
            |key: &&Arc<CertifiedKey>| key.key.choose_scheme(hello.signature_schemes()).is_some();
        found.iter().find(suits).or(found.first()).cloned()
    }
}
