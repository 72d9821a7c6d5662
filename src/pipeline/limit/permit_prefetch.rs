//! Permits of a limit that several gates share, held ahead of time: a tenth of a second's
//! worth per ask, so that most requests find one here. Without the store each gate keeps
//! to its own share of the rate (`Buckets`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use crate::identity_hasher::BuildIdentityHasher;
use crate::store::shared::{PermitRate, SharedStore};

/// What is taken at once covers this long at the steady rate.
const AHEAD: Duration = Duration::from_millis(100);
/// How long a gate keeps to its own share before it asks again.
const ALONE: Duration = Duration::from_secs(1);
/// How long requests wait for the store's answer: after that it is as good as away.
const PATIENCE: Duration = Duration::from_millis(200);
/// Permits that nobody used for so long go back.
const UNUSED: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct PermitPrefetch {
    store: Arc<SharedStore>,
    each: DashMap<u64, Arc<KeyPermits>, BuildIdentityHasher>,
    count: AtomicUsize,
    start: Instant,
    interval: Duration,
    burst: u32,
    /// Microseconds after `start` until which the store is not asked.
    alone_until: AtomicU64,
}

/// One key's permits here.
#[derive(Debug, Default)]
struct KeyPermits {
    permits: AtomicU32,
    waiting: AtomicU32,
    /// Microseconds after `Ahead::start` before which the store has none.
    empty_until: AtomicU64,
    used: AtomicU64,
    /// What the bucket is called in the store, once it has been asked for.
    name: std::sync::OnceLock<String>,
    asking: Mutex<()>,
}

/// What a request finds here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PrefetchState {
    Permit(u32),
    /// The store said so a moment ago.
    Empty(Duration),
    /// The store has to be asked.
    Nothing,
    /// The store is away.
    Alone,
}

impl PermitPrefetch {
    pub(super) fn new(store: Arc<SharedStore>, interval: Duration, burst: u32) -> Self {
        Self {
            store,
            each: DashMap::default(),
            count: AtomicUsize::new(0),
            start: Instant::now(),
            interval,
            burst,
            alone_until: AtomicU64::new(0),
        }
    }

    /// How many gates share the rate.
    pub(super) fn gates(&self) -> u32 {
        self.store.gates()
    }

    pub(super) fn take(&self, key: u64) -> PrefetchState {
        let now = self.now();
        if !self.store.is_up() || self.alone_until.load(Ordering::Relaxed) > now {
            return PrefetchState::Alone;
        }
        let Some(held) = self.each.get(&key) else {
            return PrefetchState::Nothing;
        };
        held.used.store(now, Ordering::Relaxed);
        let less = |permits: u32| permits.checked_sub(1);
        let taken = held
            .permits
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, less);
        if let Ok(before) = taken {
            return PrefetchState::Permit(before - 1);
        }
        match held.empty_until.load(Ordering::Relaxed).checked_sub(now) {
            None | Some(0) => PrefetchState::Nothing,
            Some(left) => PrefetchState::Empty(Duration::from_micros(left)),
        }
    }

    /// Drawn while the store was away, it came from this gate's share, and is not the store's.
    pub(super) fn give_back(&self, key: u64) {
        let is_alone = self.alone_until.load(Ordering::Relaxed) > self.now();
        if !is_alone && let Some(held) = self.each.get(&key) {
            held.permits.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Asks the store for permits, once for all who wait. `name` makes the bucket's name
    /// in the store, which is the same at every gate.
    pub(super) async fn fill(&self, key: u64, max_keys: usize, name: impl FnOnce() -> String) {
        let Some(held) = self.held(key, max_keys) else {
            // No room for another key: this gate's own share decides.
            self.stay_alone();
            return;
        };
        held.waiting.fetch_add(1, Ordering::AcqRel);
        let _waiting = PermitWaiter(&held.waiting);
        let _asking = held.asking.lock().await;
        let now = self.now();
        let is_settled = held.permits.load(Ordering::Acquire) > 0
            || held.empty_until.load(Ordering::Relaxed) > now
            || self.alone_until.load(Ordering::Relaxed) > now;
        if is_settled {
            return; // somebody else has asked meanwhile
        }
        let name = held.name.get_or_init(name);
        let wanted = self.at_once().max(held.waiting.load(Ordering::Acquire));
        let rate = self.rate();
        let asked = self.store.take_permits(name, rate, wanted);
        match timeout(PATIENCE, asked).await {
            Ok(Ok(permits)) => {
                if permits.taken < wanted {
                    let until = self.now() + micros(permits.wait);
                    held.empty_until.store(until, Ordering::Relaxed);
                }
                held.permits.fetch_add(permits.taken, Ordering::AcqRel);
            }
            Ok(Err(_)) | Err(_) => self.stay_alone(),
        }
    }

    /// Gives back what nobody used, and forgets keys without a use.
    pub(super) async fn sweep(&self) {
        let long_ago = self.now().saturating_sub(micros(UNUSED));
        let idle: Vec<_> = self
            .each
            .iter()
            .filter(|held| held.used.load(Ordering::Relaxed) < long_ago)
            .map(|held| (*held.key(), Arc::clone(held.value())))
            .collect();
        for (key, held) in idle {
            let unused = held.permits.swap(0, Ordering::AcqRel);
            if unused > 0
                && let Some(name) = held.name.get()
            {
                let rate = self.rate();
                // Not given back: the bucket has them again when time has filled it.
                let _ = self.store.return_permits(name, rate, unused).await;
            }
            let is_idle = |_: &u64, held: &Arc<KeyPermits>| {
                held.used.load(Ordering::Relaxed) < long_ago && Arc::strong_count(held) <= 2
            };
            if self.each.remove_if(&key, is_idle).is_some() {
                self.count.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    fn rate(&self) -> PermitRate {
        PermitRate {
            interval: self.interval,
            burst: self.burst,
        }
    }

    fn held(&self, key: u64, max_keys: usize) -> Option<Arc<KeyPermits>> {
        if let Some(held) = self.each.get(&key) {
            return Some(Arc::clone(&held));
        }
        if self.count.load(Ordering::Relaxed) >= max_keys {
            return None;
        }
        let held = self.each.entry(key).or_insert_with(|| {
            self.count.fetch_add(1, Ordering::Relaxed);
            Arc::default()
        });
        held.used.store(self.now(), Ordering::Relaxed);
        Some(Arc::clone(&held))
    }

    fn at_once(&self) -> u32 {
        let share = AHEAD.as_nanos() / self.interval.as_nanos().max(1);
        u32::try_from(share)
            .unwrap_or(u32::MAX)
            .clamp(1, self.burst)
    }

    fn stay_alone(&self) {
        let until = self.now() + micros(ALONE);
        self.alone_until.store(until, Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        micros(self.start.elapsed())
    }
}

/// Somebody who waits for permits; a client that leaves waits no longer.
struct PermitWaiter<'a>(&'a AtomicU32);

impl Drop for PermitWaiter<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX / 4)
}
