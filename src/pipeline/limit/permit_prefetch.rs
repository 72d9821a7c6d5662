//! Permits of shared limits, fetched in advance: enough for a tenth of a second per request to the
//! store, so that most requests find one here. Without the store, each gateway keeps to its own share
//! of the rate (`BucketSet`).
//!
//! The requests that wait for one key are served in turns, not as a single flight: a fetch does not
//! produce one result for all, but a number of permits, each for one request.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use crate::identity_hasher::BuildIdentityHasher;
use crate::store::shared::{PermitRate, SharedStore};

/// One fetch covers this time at the steady rate.
const PREFETCH_TIME: Duration = Duration::from_millis(100);
/// How long the gateway keeps to its own share before it asks the store again.
const FALLBACK_TIME: Duration = Duration::from_secs(1);
/// How long requests wait for the store; after that it counts as away.
const STORE_TIMEOUT: Duration = Duration::from_millis(200);
/// Permits that were not used for this long are returned.
const UNUSED_LIFETIME: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct PermitPrefetch {
    store: Arc<SharedStore>,
    keys: DashMap<u64, Arc<KeyPermits>, BuildIdentityHasher>,
    count: AtomicUsize,
    start: Instant,
    rate: PermitRate,
    /// Microseconds after `start` until which the store is not asked.
    fallback_until: AtomicU64,
}

/// The prefetched permits of one key.
#[derive(Debug, Default)]
struct KeyPermits {
    permits: AtomicU32,
    waiting: AtomicU32,
    /// Microseconds after `PermitPrefetch::start` until which the store has none.
    empty_until: AtomicU64,
    /// Microseconds after `PermitPrefetch::start` of the last use.
    last_used: AtomicU64,
    /// The bucket's name in the store, once it has been needed.
    name: std::sync::OnceLock<String>,
    fetch: Mutex<()>,
}

/// What a request finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PrefetchState {
    Permit(u32),
    /// The store had none a moment ago.
    Empty(Duration),
    /// The store has to be asked.
    Unknown,
    /// The store is away.
    StoreAway,
}

impl PermitPrefetch {
    pub(super) fn new(store: Arc<SharedStore>, rate: PermitRate) -> Self {
        Self {
            store,
            keys: DashMap::default(),
            count: AtomicUsize::new(0),
            start: Instant::now(),
            rate,
            fallback_until: AtomicU64::new(0),
        }
    }

    /// Number of gateways that share the rate.
    pub(super) fn gates(&self) -> u32 {
        self.store.gates()
    }

    pub(super) fn take(&self, key: u64) -> PrefetchState {
        let now = self.now();
        if !self.store.is_up() || self.fallback_until.load(Ordering::Relaxed) > now {
            return PrefetchState::StoreAway;
        }
        let Some(key_permits) = self.keys.get(&key) else {
            return PrefetchState::Unknown;
        };
        key_permits.last_used.store(now, Ordering::Relaxed);
        let decrement = |permits: u32| permits.checked_sub(1);
        let taken =
            key_permits
                .permits
                .fetch_update(Ordering::AcqRel, Ordering::Relaxed, decrement);
        if let Ok(before) = taken {
            return PrefetchState::Permit(before - 1);
        }
        match key_permits
            .empty_until
            .load(Ordering::Relaxed)
            .checked_sub(now)
        {
            None | Some(0) => PrefetchState::Unknown,
            Some(left) => PrefetchState::Empty(Duration::from_micros(left)),
        }
    }

    /// Refunds one permit. While the store is away, the permit came from this gateway's own share.
    pub(super) fn refund(&self, key: u64) {
        let is_store_away = self.fallback_until.load(Ordering::Relaxed) > self.now();
        if !is_store_away && let Some(key_permits) = self.keys.get(&key) {
            key_permits.permits.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Fetches permits for all requests that wait for this key. `name` makes the bucket's name in the
    /// store, which is the same at every gateway.
    pub(super) async fn fill(&self, key: u64, max_keys: usize, name: impl FnOnce() -> String) {
        let Some(key_permits) = self.key_permits(key, max_keys) else {
            // No more keys are kept: the gateway's own share decides.
            self.fall_back();
            return;
        };
        key_permits.waiting.fetch_add(1, Ordering::AcqRel);
        let _waiting = PermitWaiter(&key_permits.waiting);
        let _fetch = key_permits.fetch.lock().await;
        let now = self.now();
        let is_settled = key_permits.permits.load(Ordering::Acquire) > 0
            || key_permits.empty_until.load(Ordering::Relaxed) > now
            || self.fallback_until.load(Ordering::Relaxed) > now;
        if is_settled {
            return; // another request has fetched meanwhile
        }
        let name = key_permits.name.get_or_init(name);
        let wanted = self
            .fetch_size()
            .max(key_permits.waiting.load(Ordering::Acquire));
        let fetch = self.store.take_permits(name, self.rate, wanted);
        match timeout(STORE_TIMEOUT, fetch).await {
            Ok(Ok(permits)) => {
                if permits.taken < wanted {
                    let until = self.now() + micros(permits.wait);
                    key_permits.empty_until.store(until, Ordering::Relaxed);
                }
                key_permits
                    .permits
                    .fetch_add(permits.taken, Ordering::AcqRel);
            }
            Ok(Err(_)) | Err(_) => self.fall_back(),
        }
    }

    /// Returns unused permits to the store, and removes unused keys.
    pub(super) async fn sweep(&self) {
        let oldest = self.now().saturating_sub(micros(UNUSED_LIFETIME));
        let idle: Vec<_> = self
            .keys
            .iter()
            .filter(|key_permits| key_permits.last_used.load(Ordering::Relaxed) < oldest)
            .map(|key_permits| (*key_permits.key(), Arc::clone(key_permits.value())))
            .collect();
        for (key, key_permits) in idle {
            let unused = key_permits.permits.swap(0, Ordering::AcqRel);
            if unused > 0
                && let Some(name) = key_permits.name.get()
            {
                // If this fails, the bucket in the store regains the permits with time.
                let _ = self.store.return_permits(name, self.rate, unused).await;
            }
            let is_idle = |_: &u64, key_permits: &Arc<KeyPermits>| {
                key_permits.last_used.load(Ordering::Relaxed) < oldest
                    && Arc::strong_count(key_permits) <= 2
            };
            if self.keys.remove_if(&key, is_idle).is_some() {
                self.count.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    fn key_permits(&self, key: u64, max_keys: usize) -> Option<Arc<KeyPermits>> {
        if let Some(key_permits) = self.keys.get(&key) {
            return Some(Arc::clone(&key_permits));
        }
        if self.count.load(Ordering::Relaxed) >= max_keys {
            return None;
        }
        let key_permits = self.keys.entry(key).or_insert_with(|| {
            self.count.fetch_add(1, Ordering::Relaxed);
            Arc::default()
        });
        key_permits.last_used.store(self.now(), Ordering::Relaxed);
        Some(Arc::clone(&key_permits))
    }

    fn fetch_size(&self) -> u32 {
        let share = PREFETCH_TIME.as_nanos() / self.rate.interval.as_nanos().max(1);
        u32::try_from(share)
            .unwrap_or(u32::MAX)
            .clamp(1, self.rate.burst)
    }

    fn fall_back(&self) {
        let until = self.now() + micros(FALLBACK_TIME);
        self.fallback_until.store(until, Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        micros(self.start.elapsed())
    }
}

/// Counts one waiting request, until it is dropped.
struct PermitWaiter<'a>(&'a AtomicU32);

impl Drop for PermitWaiter<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX / 4)
}
