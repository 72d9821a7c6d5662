//! The peer of a connection: its address, TLS facts and last token.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};

use crate::identity::{Client, ClientId};
use crate::secret::Secret;
use crate::shares::network;
use crate::token::TokenDigest;
use parking_lot::Mutex;

/// The other end of a connection. One per connection, shared by its requests.
#[derive(Clone, Debug)]
pub struct Peer {
    pub address: SocketAddr,
    /// The gateway's end of the connection.
    pub local: SocketAddr,
    /// None on a plaintext listener.
    pub tls: Option<TlsFacts>,
    pub last_token: LastToken,
}

/// The last token of a connection, accepted or not, and its digest. Most requests carry the same token
/// as the request before, and a comparison costs less than a digest.
#[derive(Debug, Default)]
pub struct LastToken(Mutex<Option<DigestedToken>>);

#[derive(Debug)]
struct DigestedToken {
    token: Secret,
    digest: TokenDigest,
}

impl LastToken {
    /// The digest of `text`, which is remembered.
    pub(super) fn digest_of(&self, text: &str) -> TokenDigest {
        let mut last = self.0.lock();
        if let Some(last) = last.as_ref().filter(|last| last.token.is(text)) {
            return last.digest;
        }
        let digest = TokenDigest::of(text);
        let token = Secret::new(text);
        *last = Some(DigestedToken { token, digest });
        digest
    }
}

impl Clone for LastToken {
    /// An empty one: the copy is for another connection.
    fn clone(&self) -> Self {
        Self::default()
    }
}

/// What the TLS handshake negotiated.
#[derive(Clone, Debug)]
pub struct TlsFacts {
    pub is_tls13: bool,
}

impl Peer {
    /// The address without its port; an IPv4-mapped IPv6 address becomes IPv4.
    pub fn ip(&self) -> IpAddr {
        self.address.ip().to_canonical()
    }

    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }
}

/// The owner of the share that a request counts against: its client, or the network of `origin` on a
/// route without authentication.
pub(super) fn share_owner(client: &Client, origin: IpAddr) -> (ClientId<'_>, Option<(u8, u64)>) {
    let network = matches!(client, Client::Open).then(|| network(origin));
    (client.id(), network)
}

/// Appends an address in its usual spelling. Each request writes several; `fmt` takes about ten
/// times as many instructions for an IPv4 address.
pub(super) fn put_address(text: &mut Vec<u8>, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => {
            let mut digits = itoa::Buffer::new();
            for (index, octet) in ip.octets().into_iter().enumerate() {
                if index > 0 {
                    text.push(b'.');
                }
                text.extend_from_slice(digits.format(octet).as_bytes());
            }
        }
        // Writing to memory cannot fail.
        IpAddr::V6(ip) => drop(write!(text, "{ip}")),
    }
}
