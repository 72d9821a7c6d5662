//! An emulated Webapp for the first run and for tests: the captured protocol with tokens, users, rate
//! limits and TLS of its own, and a switch for each way it can fail (`faults`). It is independent of
//! the gateway and sends no messages. Start at `webapp.rs`; `nodes/` has one file per family of nodes.
//!
//! Its clock can be wrong on purpose, so it never uses the time of `clock` without the offset.

pub mod certificates;
mod control;
mod counts;
mod directory;
mod emulator_settings;
mod faults;
mod issue;
mod issued_tokens;
mod node_call;
mod node_reply;
mod node_routes;
mod nodes;
mod rate_limits;
mod reply_body;
mod scripted;
mod server;
mod webapp;
mod webapp_state;

#[cfg(test)]
mod tests;

pub use emulator_settings::{Settings, Tls};
pub use faults::{
    ExpiryForm, FailLogins, Gateway, Health, LoginResponse, LogoutScope, Switches, TokenForm,
};

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tracing::info;

use crate::lifecycle::{ShutdownSignal, TaskScope};
use server::ListenContext;
use webapp::Webapp;

/// Why the emulator cannot start, or its files cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen at {address}")]
    Bind {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("cannot make a certificate")]
    Certificate(#[source] rcgen::Error),
    #[error("the certificate is not PEM, or holds none")]
    NotPem(#[source] rustls::pki_types::pem::Error),
    #[error("cannot use the certificate and its key")]
    Tls(#[source] rustls::Error),
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot read a secret of the emulator")]
    Secret(#[source] crate::secret::Error),
}

/// A running emulator. It runs until its scope stops it, even if this handle is dropped.
pub struct Emulator {
    address: SocketAddr,
    control_address: SocketAddr,
    authority: String,
    webapp: Arc<Webapp>,
    stop: ShutdownSignal,
}

impl Emulator {
    /// Binds both ports and serves them until drain.
    pub async fn start(settings: Settings, scope: &TaskScope) -> Result<Self, Error> {
        let (tls, authority) = settings.tls.accept()?;
        let (listener, address) = bind(settings.address).await?;
        let (control, control_address) = bind(settings.control).await?;
        let webapp = Arc::new(Webapp::new(settings, authority.clone()));
        let scope = scope.child();
        let context = ListenContext {
            webapp: Arc::clone(&webapp),
            tls: tls.map(TlsAcceptor::from),
            scope: scope.clone(),
        };
        scope.spawn("emulator", server::listen(listener, context.clone()));
        let listen_for_control = server::listen_for_control(control, context);
        scope.spawn("emulator control port", listen_for_control);
        info!(%address, control = %control_address, "emulator: a pretend Webapp is running");
        Ok(Self {
            address,
            control_address,
            authority,
            webapp,
            stop: scope.stop,
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn control_address(&self) -> SocketAddr {
        self.control_address
    }

    /// The certificate of its authority in PEM; empty without TLS.
    pub fn authority_pem(&self) -> &str {
        &self.authority
    }

    /// Where it listens and which files in `folder` a client needs. `address`: its own, for people.
    pub fn summary(&self, folder: &Path, address: &str) -> String {
        format!(
            "\ntollgate {} emulate\n\n  webapp    https://{address}  (authority: {})\n  login     admin, password in {}\n  switches  http://{}\n\n",
            env!("CARGO_PKG_VERSION"),
            folder.join(certificates::WEBAPP_CA).display(),
            folder.join(certificates::WEBAPP_PASSWORD).display(),
            self.control_address,
        )
    }

    /// Ends the emulator and its connections at once, as a crash would.
    pub fn stop(&self) {
        self.stop.abort();
    }
}

impl fmt::Debug for Emulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Emulator")
            .field("address", &self.address)
            .field("control_address", &self.control_address)
            .finish_non_exhaustive()
    }
}

async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), Error> {
    let failed = |source| Error::Bind { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// Lower-case hexadecimal.
fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 0x0F]);
    digits
        .map(|digit| char::from(DIGITS[usize::from(digit)]))
        .collect()
}
