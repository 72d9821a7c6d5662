//! The upstream's API key: what monitoring nodes carry in place of the session's lease.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::header::AUTHORIZATION;
use http::{HeaderValue, StatusCode};
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::{error, info};
use zeroize::Zeroizing;

use super::login::lease::Lease;
use crate::clock::Deadline;
use crate::config;
use crate::error_chain::chain;
use crate::lifecycle::ShutdownSignal;
use crate::metrics::UpstreamMetrics;
use crate::profiles;
use crate::secret::{self, Secret, SecretSource};
use crate::watched_files::{FileLook, ReloadRequests, WatchedFiles};

/// An API key ends when the operator changes it, not by time.
const NO_END: Duration = Duration::from_secs(10 * 365 * 86_400);

/// A key that was refused is tried again after this.
const RETRY_AFTER_REFUSAL: Duration = Duration::from_secs(60);

/// The key in use, and whether the upstream takes it.
#[derive(Debug)]
pub(super) struct UpstreamApiKey {
    upstream: Arc<str>,
    source: Option<SecretSource>,
    current: ArcSwapOption<Lease>,
    /// Something else can be carried in its place.
    has_login: bool,
    is_refused: AtomicBool,
    /// The last read of its file failed.
    is_unreadable: AtomicBool,
    next_try: Mutex<Instant>,
    metrics: Arc<UpstreamMetrics>,
}

impl UpstreamApiKey {
    pub(super) fn new(
        settings: &config::UpstreamConfig,
        key: Option<Lease>,
        metrics: &Arc<UpstreamMetrics>,
    ) -> Self {
        metrics.upstream_api_key_refused.set(0);
        Self {
            upstream: Arc::clone(&settings.name),
            source: settings.api_key.clone(),
            current: ArcSwapOption::new(key.map(Arc::new)),
            has_login: settings.login.is_some(),
            is_refused: AtomicBool::new(false),
            is_unreadable: AtomicBool::new(false),
            next_try: Mutex::new(Instant::now()),
            metrics: Arc::clone(metrics),
        }
    }

    /// The key for a monitoring request. None: there is no key, or the upstream refuses it and the
    /// request carries the session's token. Once a minute one request tries a refused key again.
    pub(super) fn get(&self) -> Option<Arc<Lease>> {
        let key = self.current.load_full()?;
        let is_usable =
            !self.is_refused.load(Ordering::Relaxed) || !self.has_login || self.may_try();
        is_usable.then_some(key)
    }

    fn may_try(&self) -> bool {
        let mut next = self.next_try.lock();
        let is_due = Instant::now() >= *next;
        if is_due {
            *next = Instant::now() + RETRY_AFTER_REFUSAL;
        }
        is_due
    }

    /// Records the status of a response to a request that carried `key`.
    pub(super) fn note(&self, key: &Lease, status: StatusCode) {
        let is_current = self
            .current
            .load()
            .as_ref()
            .is_some_and(|current| current.secret == key.secret);
        if !is_current {
            return;
        }
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            self.refused(status);
        } else if !status.is_server_error() && self.is_refused.load(Ordering::Relaxed) {
            self.accepted();
        }
    }

    /// An error once, not a warning for each request.
    fn refused(&self, status: StatusCode) {
        let next = Instant::now() + RETRY_AFTER_REFUSAL;
        *self.next_try.lock() = next;
        if self.is_refused.swap(true, Ordering::Relaxed) {
            return;
        }
        self.metrics.upstream_api_key_refused.set(1);
        let instead = match self.has_login {
            true => "monitoring requests carry the session's token instead",
            false => "there is no login that could do instead",
        };
        let source = self.source.as_ref().map(ToString::to_string);
        error!(
            upstream = %self.upstream,
            status = status.as_u16(),
            source,
            "the upstream refuses the API key: write a good one into its place; {instead}"
        );
    }

    fn accepted(&self) {
        if self.is_refused.swap(false, Ordering::Relaxed) {
            self.metrics.upstream_api_key_refused.set(0);
            info!(upstream = %self.upstream, "the upstream takes the API key again");
        }
    }

    /// One line for the operator while the key is refused.
    pub(super) fn trouble(&self) -> Option<String> {
        let is_refused = self.is_refused.load(Ordering::Relaxed);
        is_refused.then(|| format!("upstream {}: it refuses the API key", self.upstream))
    }

    /// Reads the key again whenever its file has changed, until drain.
    pub(super) async fn watch(self: Arc<Self>, stop: ShutdownSignal, requests: ReloadRequests) {
        let Some(path) = self.source.as_ref().and_then(SecretSource::file) else {
            return;
        };
        let files = WatchedFiles::new(vec![path.to_owned()]);
        let key = Arc::clone(&self);
        let reload = move |look| key.reload(look);
        tokio::select! {
            () = stop.draining() => {}
            () = files.follow(requests, reload) => {}
        }
    }

    /// Uses a new key; if the file cannot be used, the old one stays.
    fn reload(&self, look: FileLook) {
        let Some(source) = self.source.as_ref().filter(|_| look.is_changed) else {
            return;
        };
        let file = look.contents.into_file();
        match api_key_of(source.secret_of_file(&file.path, file.content)) {
            Ok(key) => self.replace(key),
            Err(failure) => {
                self.is_unreadable.store(true, Ordering::Relaxed);
                error!(upstream = %self.upstream, error = %chain(&failure),
                    "keeping the old API key");
            }
        }
    }

    fn replace(&self, key: Lease) {
        let old = self.current.load();
        let is_new = old.as_ref().is_none_or(|old| old.secret != key.secret);
        if self.is_unreadable.swap(false, Ordering::Relaxed) || is_new {
            info!(upstream = %self.upstream, "upstream API key read again");
        }
        if is_new {
            self.current.store(Some(Arc::new(key)));
            // Whether the upstream accepts the new key is not known yet.
            self.is_refused.store(false, Ordering::Relaxed);
            self.metrics.upstream_api_key_refused.set(0);
        }
    }
}

/// Why a text is no API key.
#[derive(Debug, thiserror::Error)]
pub enum BadApiKey {
    #[error("the key cannot be read")]
    Unreadable(#[source] secret::Error),
    #[error("a key has 12 to 128 characters, this one {length}")]
    Length { length: usize },
    #[error("the key cannot be sent in a header")]
    NotText,
}

/// What requests carry; `key` as its source was read.
pub(super) fn api_key_of(key: Result<Secret, secret::Error>) -> Result<Lease, BadApiKey> {
    let key = key.map_err(BadApiKey::Unreadable)?;
    let length = key.expose().chars().count();
    if !profiles::API_KEY_LENGTH.contains(&length) {
        return Err(BadApiKey::Length { length });
    }
    let text = Zeroizing::new(format!("Apikey {}", key.expose()));
    let mut value = HeaderValue::from_str(&text).map_err(|_| BadApiKey::NotText)?;
    value.set_sensitive(true);
    let headers = vec![(AUTHORIZATION, value)];
    Ok(Lease::new(0, Deadline::after(NO_END), headers, key))
}
