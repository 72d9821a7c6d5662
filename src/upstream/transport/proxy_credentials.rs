//! The gate's credentials at a proxy, which follows the file of its password.

use std::sync::Arc;

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tracing::{error, info};
use zeroize::Zeroizing;

use crate::config;
use crate::error_chain::chain;
use crate::lifecycle::ShutdownSignal;
use crate::secret::{self, Secret, SecretSource};
use crate::watched_files::{FileLook, ReloadRequests, WatchedFiles};

/// User name and password at a proxy. `Debug` does not show the password.
#[derive(Debug)]
pub(in crate::upstream) struct ProxyCredentials {
    username: String,
    source: SecretSource,
    password: ArcSwap<Secret>,
    /// For messages that name the configuration key.
    upstream: Arc<str>,
}

impl ProxyCredentials {
    /// Reads the password.
    pub(in crate::upstream) fn open(
        settings: &config::ProxyLogin,
        upstream: &Arc<str>,
    ) -> Result<Self, secret::Error> {
        let password = settings.password.read()?;
        Ok(Self {
            username: settings.username.clone(),
            source: settings.password.clone(),
            password: ArcSwap::from_pointee(password),
            upstream: Arc::clone(upstream),
        })
    }

    /// The head of a request that begins with `start` and ends with `Proxy-Authorization` (RFC 7617).
    pub(super) fn field(&self, start: &str) -> Secret {
        let password = self.password.load();
        let pair = Zeroizing::new(format!("{}:{}", self.username, password.expose()));
        let pair = Zeroizing::new(STANDARD.encode(pair.as_bytes()));
        let pair = pair.as_str();
        Secret::new(format!("{start}Proxy-Authorization: Basic {pair}\r\n\r\n"))
    }

    /// Reads the password again whenever its file has changed, until drain.
    pub(in crate::upstream) async fn watch(
        self: Arc<Self>,
        stop: ShutdownSignal,
        requests: ReloadRequests,
    ) {
        let Some(path) = self.source.file() else {
            return;
        };
        let files = WatchedFiles::new(vec![path.to_owned()]);
        let login = Arc::clone(&self);
        let reload = move |look| login.reload(look);
        tokio::select! {
            () = stop.draining() => {}
            () = files.follow(requests, reload) => {}
        }
    }

    /// Uses the new password; if the file cannot be used, the old one stays.
    fn reload(&self, look: FileLook) {
        if !look.is_changed {
            return;
        }
        let upstream = &self.upstream;
        let file = look.contents.into_file();
        match self.source.secret_of_file(&file.path, file.content) {
            Ok(password) if password == **self.password.load() => {}
            Ok(password) => {
                self.password.store(Arc::new(password));
                info!(%upstream, "the password for the upstream's proxy was read again");
            }
            Err(failure) => {
                error!(%upstream, error = %chain(&failure),
                    "keeping the old password for the upstream's proxy");
            }
        }
    }
}
