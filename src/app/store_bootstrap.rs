//! Opens the store at the start, and hands its contents to the parts they belong to.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Error;
use crate::config::{self, Config, DirectoryKind, StorePlace};
use crate::identity::{FirstAdminStatus, Hasher, KeyRing, UserDirectory};
use crate::lifecycle::TaskScope;
use crate::metrics::Metrics;
use crate::store::shared::SharedStore;
use crate::store::{SealKey, SealingKeys, Store, StoreBackend, StoreContents, TokenOrigin};
use crate::token::{RevokeCause, TokenStore};
use crate::upstream::SealedLeaseStore;

/// Between two polls of the disk.
const DISK_POLL: Duration = Duration::from_secs(1);
/// A start that takes longer is logged.
const FIRST_PROGRESS: Duration = Duration::from_secs(1);
const MAX_PROGRESS_INTERVAL: Duration = Duration::from_secs(60);

/// The open store, and its contents at the start.
#[derive(Debug)]
pub(super) struct StoreBootstrap {
    store: StoreBackend,
    contents: Mutex<StoreContents>,
    seal: Option<Arc<SealingKeys>>,
    /// Of a shared store: replicas must be registered before it connects.
    ring: Option<Arc<KeyRing>>,
    scope: TaskScope,
    /// Ends a start that waits for a disk, or for a shared store.
    quit: CancellationToken,
}

pub(super) async fn open(
    config: &Config,
    seal: Option<Arc<SealingKeys>>,
    scope: &TaskScope,
    metrics: &Arc<Metrics>,
    quit: &CancellationToken,
) -> Result<StoreBootstrap, Error> {
    let (store, contents) = match &config.store.place {
        StorePlace::Memory => (
            StoreBackend::Local(Arc::new(Store::Memory)),
            StoreContents::default(),
        ),
        StorePlace::Shared(settings) => {
            let shared = SharedStore::new(settings.as_ref().clone(), Arc::clone(metrics));
            (
                StoreBackend::Shared(Arc::new(shared)),
                StoreContents::default(),
            )
        }
        StorePlace::File(path) => {
            let (path, metrics) = (path.clone(), Arc::clone(metrics));
            // After a crash redb checks the whole file.
            let opened = tokio::task::spawn_blocking(move || Store::open(&path, &metrics));
            let opened = with_progress_log(&config.store, opened);
            let opened = quit.run_until_cancelled(opened).await;
            let opened = opened.ok_or(Error::Stopped)?;
            let opened = opened.expect("opening catches what panics");
            let (store, contents) = opened.map_err(Error::Store)?;
            let store = Arc::new(store.with_timeout(config.store.timeout));
            (StoreBackend::Local(store), contents)
        }
    };
    let ring = store.shared().map(KeyRing::sharing);
    Ok(StoreBootstrap {
        ring,
        scope: scope.clone(),
        quit: quit.clone(),
        store,
        contents: Mutex::new(contents),
        seal,
    })
}

/// Awaits `work`, the opening of a file, without a limit: no start is possible without it. Logs
/// progress at growing intervals.
async fn with_progress_log<T>(settings: &config::StoreConfig, work: impl Future<Output = T>) -> T {
    let StorePlace::File(path) = &settings.place else {
        return work.await;
    };
    let mut work = pin!(work);
    let mut waited = Duration::ZERO;
    let mut pause = FIRST_PROGRESS;
    loop {
        if let Ok(done) = timeout(pause, &mut work).await {
            return done;
        }
        waited += pause;
        let (path, seconds) = (path.display(), waited.as_secs());
        match waited < settings.timeout {
            true => info!(%path, seconds, "the store is not open yet"),
            false => warn!(%path, seconds,
                "the store is not open yet; the disk may be unresponsive"),
        }
        pause = waited.min(MAX_PROGRESS_INTERVAL);
    }
}

/// Ends the tokens that a first admin got with its password before the configured one.
pub(super) async fn end_old_tokens(first_admin: Option<&FirstAdminStatus>, tokens: &TokenStore) {
    if let Some(FirstAdminStatus::Configured { username }) = first_admin {
        tokens.end_at_once(username, RevokeCause::Logout).await;
    }
}

pub(super) fn seal(settings: &config::StoreConfig) -> Result<Option<Arc<SealingKeys>>, Error> {
    let Some(key) = &settings.key else {
        return Ok(None);
    };
    let wrong = |key| move |source| Error::SealKey { key, source };
    let key = SealKey::read(key).map_err(wrong("key"))?;
    let old = settings.old_key.as_ref().map(SealKey::read).transpose();
    let old = old.map_err(wrong("old_key"))?;
    Ok(Some(Arc::new(SealingKeys::new(key, old))))
}

impl StoreBootstrap {
    fn take<T>(&self, part: impl FnOnce(&mut StoreContents) -> T) -> T {
        part(&mut self.contents.lock())
    }

    /// The directory; None when the upstream owns the users.
    pub(super) async fn users(
        &self,
        settings: &config::UsersConfig,
    ) -> Result<(Option<UserDirectory>, Option<FirstAdminStatus>), Error> {
        let store = match &self.store {
            StoreBackend::Shared(shared) => return self.load_users(shared, settings).await,
            StoreBackend::Local(store) => store,
        };
        if settings.directory == DirectoryKind::Upstream {
            return Ok((None, None));
        }
        let hasher = Hasher::new(settings.hashing_slots, Handle::current());
        let records = self.take(|contents| std::mem::take(&mut contents.users));
        let users = UserDirectory::open(settings, hasher, Arc::clone(store), records);
        let (users, admin) = users.await.map_err(Error::Users)?;
        Ok((Some(users), Some(admin)))
    }

    /// The directory that all gateways share. Connects the store, since the replicas are
    /// registered now.
    async fn load_users(
        &self,
        shared: &Arc<SharedStore>,
        settings: &config::UsersConfig,
    ) -> Result<(Option<UserDirectory>, Option<FirstAdminStatus>), Error> {
        let hasher = Hasher::new(settings.hashing_slots, Handle::current());
        let users = match settings.directory {
            DirectoryKind::Upstream => None,
            DirectoryKind::Gateway => Some(UserDirectory::sharing(hasher, shared)),
        };
        let started = shared.start(&self.scope);
        let started = self.quit.run_until_cancelled(started).await;
        started.ok_or(Error::Stopped)?.map_err(Error::SharedStore)?;
        let admin = match &users {
            None => None,
            Some(users) => Some(
                users
                    .ensure_first_admin(settings)
                    .await
                    .map_err(Error::Users)?,
            ),
        };
        Ok((users, admin))
    }

    /// The store, if it is one that gateways share.
    pub(super) fn shared(&self) -> Option<&Arc<SharedStore>> {
        self.store.shared()
    }

    /// The tokens, loaded. Tokens of one kind of directory are not valid with the other.
    pub(super) async fn tokens(
        &self,
        config: &Config,
        users: Option<&UserDirectory>,
        metrics: &Arc<Metrics>,
    ) -> Result<Arc<TokenStore>, Error> {
        let settings = &config.users;
        let metrics = Arc::clone(metrics);
        let store = match &self.store {
            StoreBackend::Shared(shared) => {
                let tasks = &self.scope.tasks;
                return Ok(TokenStore::sharing(shared, tasks, settings, metrics));
            }
            StoreBackend::Local(store) => store,
        };
        let tokens = TokenStore::over(Arc::clone(store), settings, metrics);
        let known: Option<HashSet<String>> = users.map(UserDirectory::names);
        let origin = match &known {
            Some(_) => TokenOrigin::Minted,
            None => TokenOrigin::Learned,
        };
        let is_known = move |user: &str| known.as_ref().is_none_or(|known| known.contains(user));
        let loaded = self.quit.run_until_cancelled(tokens.load(origin, is_known));
        let loaded = loaded.await.ok_or(Error::Stopped)?;
        loaded.map_err(Error::Load)?;
        self.watch(store);
        Ok(tokens)
    }

    /// Polls the store, so that a hung disk is logged even without traffic.
    fn watch(&self, store: &Arc<Store>) {
        if store.is_memory() {
            return;
        }
        let (store, stop) = (Arc::clone(store), self.scope.stop.clone());
        self.scope.spawn("store watch", async move {
            let mut tick = interval(DISK_POLL);
            tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
            loop {
                tokio::select! {
                    () = stop.draining() => return,
                    _ = tick.tick() => drop(store.trouble()),
                }
            }
        });
    }

    /// The keys that were made at run time.
    pub(super) fn ring(&self) -> Arc<KeyRing> {
        match (&self.ring, &self.store) {
            (Some(ring), _) => Arc::clone(ring),
            (None, StoreBackend::Shared(shared)) => KeyRing::sharing(shared),
            (None, StoreBackend::Local(store)) => {
                let records = self.take(|contents| std::mem::take(&mut contents.keys));
                KeyRing::new(Arc::clone(store), records)
            }
        }
    }

    /// Stores the upstream's token; None: the operator has given no key to seal it with.
    pub(super) fn sealed_leases(&self) -> Option<SealedLeaseStore> {
        let seal = self.seal.as_ref()?;
        let leases = self.take(|contents| contents.leases.clone());
        Some(SealedLeaseStore::new(
            self.store.clone(),
            Arc::clone(seal),
            leases,
        ))
    }

    pub(super) async fn close(&self) {
        self.store.close().await;
    }
}
