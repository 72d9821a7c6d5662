//! Errors of a start.

use std::net::SocketAddr;

use crate::config::Problems;
use crate::{admin, identity, listener, store, upstream};

/// Why the program could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Problems of the configuration, and of files it names.
    #[error(transparent)]
    Unusable(#[from] Problems),
    #[error("cannot open listener {address}")]
    Listener {
        address: SocketAddr,
        #[source]
        source: listener::Error,
    },
    #[error("cannot open the operator's listener {address}")]
    Operator {
        address: SocketAddr,
        #[source]
        source: admin::Error,
    },
    #[error("cannot set up the upstream")]
    Upstream(#[from] upstream::Error),
    #[error("another upstream would have the users (users.upstream): this takes a restart")]
    UsersUpstream,
    #[error("cannot open the store")]
    Store(#[source] store::OpenError),
    #[error("cannot use the shared store")]
    SharedStore(#[source] store::shared::SharedOpenError),
    #[error("cannot load the store")]
    Load(#[source] store::StoreUnavailable),
    #[error("told to stop while waiting for the store")]
    Stopped,
    #[error("cannot use [store] {key}")]
    SealKey {
        key: &'static str,
        #[source]
        source: store::BadSealKey,
    },
    #[error("cannot set up the user directory")]
    Users(#[source] identity::Error),
    #[cfg(feature = "emulator")]
    #[error("cannot start the emulator")]
    Emulator(#[source] crate::emulator::Error),
    #[error("cannot start a worker thread")]
    Worker(#[source] std::io::Error),
    #[error("cannot make the control runtime")]
    Runtime(#[source] std::io::Error),
    #[error("cannot listen for signals")]
    Signals(#[source] std::io::Error),
}

impl Error {
    /// `Problems` stay unwrapped: the config watcher adds their lines.
    pub(super) fn boxed(self) -> Box<dyn std::error::Error + Send + Sync> {
        match self {
            Self::Unusable(problems) => problems.into(),
            other => other.into(),
        }
    }
}
