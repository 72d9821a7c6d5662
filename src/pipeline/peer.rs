//! The other end of a connection.

use std::net::{IpAddr, SocketAddr};

use crate::identity::{Client, ClientId};
use crate::secret::Secret;
use crate::shares::network;
use crate::token::TokenDigest;
use parking_lot::{Mutex, MutexGuard};

/// Who connected, and where. One per connection, shared by its requests.
#[derive(Clone, Debug)]
pub struct Peer {
    pub address: SocketAddr,
    /// Our end of the connection.
    pub local: SocketAddr,
    /// None on a plaintext listener.
    pub tls: Option<TlsFacts>,
    pub last_token: LastToken,
}

/// The last good token of a connection and its digest: most requests carry the same one as the
/// request before, and comparing costs less than a digest.
#[derive(Debug, Default)]
pub struct LastToken(Mutex<Option<(Secret, TokenDigest)>>);

impl LastToken {
    /// The digest of `text`, if it is the token that was noted.
    pub(super) fn digest(&self, text: &str) -> Option<TokenDigest> {
        let last = self.lock();
        let (token, digest) = last.as_ref()?;
        token.is(text).then_some(*digest)
    }

    /// Only of tokens that were accepted: others are not worth the memory.
    pub(super) fn note(&self, text: &str, digest: TokenDigest) {
        *self.lock() = Some((Secret::new(text), digest));
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Secret, TokenDigest)>> {
        self.0.lock()
    }
}

impl Clone for LastToken {
    /// Knows none: it is for another connection.
    fn clone(&self) -> Self {
        Self::default()
    }
}

/// What the handshake agreed on.
#[derive(Clone, Debug)]
pub struct TlsFacts {
    pub is_tls13: bool,
}

impl Peer {
    /// The address without port, IPv4-mapped IPv6 folded back to IPv4.
    pub fn ip(&self) -> IpAddr {
        self.address.ip().to_canonical()
    }

    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }
}

/// Whose share a request draws on: its client's, or that of its network where nobody
/// was asked.
pub(super) fn sharer(client: &Client, peer: IpAddr) -> (ClientId<'_>, Option<(u8, u64)>) {
    let network = matches!(client, Client::Open).then(|| network(peer));
    (client.id(), network)
}
