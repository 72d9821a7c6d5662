//! The sockets of one listener, one per worker.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

use crate::config;
use crate::listener::Error;

/// Length of the accept queue; the kernel may apply a lower limit of its own.
const BACKLOG: i32 = 4096;

/// All sockets of one listener. They share an address; the kernel distributes connections.
#[derive(Debug)]
pub struct BoundSockets {
    address: SocketAddr,
    sockets: Vec<TcpListener>,
}

/// Binds one socket per worker. With port 0 all use the port that the first was given.
pub fn bind(settings: &config::Listener, workers: usize) -> Result<BoundSockets, Error> {
    let wanted = settings.address;
    let failed = |source: io::Error| match source.kind() {
        ErrorKind::AddrInUse => Error::Busy { address: wanted },
        _ => Error::Socket {
            address: wanted,
            source,
        },
    };
    if wanted.port() != 0 {
        // With a shared port a second instance would start unnoticed; this bind fails then.
        drop(open(wanted, SocketSharing::Exclusive).map_err(failed)?);
    }
    let first = open(wanted, SocketSharing::Workers).map_err(failed)?;
    let address = first.local_addr().map_err(failed)?;
    let mut sockets = vec![first];
    for _ in 1..workers {
        sockets.push(open(address, SocketSharing::Workers).map_err(failed)?);
    }
    Ok(BoundSockets { address, sockets })
}

#[derive(Clone, Copy, PartialEq)]
enum SocketSharing {
    Exclusive,
    Workers,
}

fn open(address: SocketAddr, sharing: SocketSharing) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // A restart must not wait for the connections of the last run to time out.
    socket.set_reuse_address(true)?;
    if sharing == SocketSharing::Workers {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    if sharing == SocketSharing::Workers {
        // Small responses must not wait for the peer's delayed acknowledgement. Accepted
        // sockets inherit the option.
        socket.set_tcp_nodelay(true)?;
        socket.set_nonblocking(true)?;
        socket.listen(BACKLOG)?;
    }
    Ok(socket.into())
}

impl BoundSockets {
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// One socket for each worker, to be moved to its runtime.
    pub fn into_sockets(self) -> Vec<TcpListener> {
        self.sockets
    }
}
