//! The other end of a connection.

use std::net::{IpAddr, SocketAddr};

use crate::identity::{Client, ClientId};
use crate::shares::network;

/// Who connected, and where. One per connection, shared by its requests.
#[derive(Clone, Debug)]
pub struct Peer {
    pub address: SocketAddr,
    /// Our end of the connection.
    pub local: SocketAddr,
    /// None on a plaintext listener.
    pub tls: Option<TlsFacts>,
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
