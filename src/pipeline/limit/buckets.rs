//! The buckets of one limit. `governor` does the arithmetic (GCRA); the store is ours,
//! because it must be bounded and must be able to take a draw back.

use std::hash::{BuildHasher as _, Hash, RandomState};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use governor::RateLimiter;
use governor::clock::Clock;
use governor::middleware::StateInformationMiddleware;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::state::keyed::ShrinkableKeyedStateStore;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::permit_prefetch::{PermitPrefetch, PrefetchState};
use super::rate_limit_headers::{PolicyHeader, RateLimitHeaders, ceil_seconds};
use crate::config::Quota;
use crate::identity_hasher::BuildIdentityHasher;
use crate::store::shared::SharedStore;

/// Lines in which requests wait. Keys may share one; that delays, never denies.
const LINES: usize = 64;
/// Parts of the map. One of them is held while it grows, or while the sweep goes through
/// it: of a million keys this makes it 16,000 at a time.
const SHARDS: usize = 64;
/// Room for this many keys is kept, used or not.
const ORDINARY: usize = 4096;

#[derive(Debug)]
pub(super) struct BucketSet {
    name: Arc<str>,
    advert: Option<Arc<PolicyHeader>>,
    quota: Quota,
    interval: Duration,
    burst: NonZeroU32,
    limiter: RateLimiter<u64, SharedBuckets, MonotonicClock, StateInformationMiddleware>,
    store: Arc<BucketStore>,
    /// Where other gates draw on the same buckets.
    ahead: Option<PermitPrefetch>,
    hasher: RandomState,
    lines: Vec<Arc<Semaphore>>,
}

impl BucketSet {
    #[cfg(test)]
    pub(super) fn new(name: Arc<str>, quota: Quota, max_keys: usize) -> Self {
        Self::over(None, name, quota, max_keys)
    }

    /// With a store, other gates draw on the same buckets.
    pub(super) fn over(
        shared: Option<Arc<SharedStore>>,
        name: Arc<str>,
        quota: Quota,
        max_keys: usize,
    ) -> Self {
        let burst = NonZeroU32::new(quota.burst).unwrap_or(NonZeroU32::MIN);
        let interval = interval(quota, burst);
        let rate = governor::Quota::with_period(interval).expect("an interval is never zero");
        let shards = if max_keys > ORDINARY { SHARDS } else { 2 };
        let store = Arc::new(BucketStore {
            each: DashMap::with_hasher_and_shard_amount(BuildIdentityHasher::default(), shards),
            known: AtomicUsize::new(0),
            max: AtomicUsize::new(max_keys),
            overflow: AtomicU64::new(0),
        });
        let clock = MonotonicClock(Instant::now());
        let limiter = RateLimiter::new(
            rate.allow_burst(burst),
            SharedBuckets(Arc::clone(&store)),
            clock,
        );
        Self {
            advert: PolicyHeader::new(&name, burst.get(), window(interval, burst.get())),
            name,
            quota,
            interval,
            burst,
            limiter,
            store,
            ahead: shared.map(|shared| PermitPrefetch::new(shared, interval, burst.get())),
            hasher: RandomState::new(),
            lines: (0..LINES.min(max_keys.max(1)))
                .map(|_| Arc::new(Semaphore::new(1)))
                .collect(),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn name_shared(&self) -> &Arc<str> {
        &self.name
    }

    pub(super) fn quota(&self) -> Quota {
        self.quota
    }

    pub(super) fn remember_at_most(&self, max_keys: usize) {
        self.store.max.store(max_keys, Ordering::Relaxed);
    }

    /// The key of a subject. A keyed hash instead of the text: names of any length
    /// that clients make up take no memory here, and 64 bits nobody can aim at do
    /// not meet by accident.
    pub(super) fn key(&self, subject: impl Hash) -> u64 {
        self.hasher.hash_one(subject)
    }

    /// Draws one; how many are left, or why there is none.
    pub(super) fn spend(&self, key: u64) -> Result<u32, NoPermit> {
        let Some(ahead) = &self.ahead else {
            return match self.limiter.check_key(&key) {
                Ok(state) => Ok(state.remaining_burst_capacity()),
                Err(until) => {
                    let wait = until.wait_time_from(self.limiter.clock().now());
                    Err(NoPermit::Until(wait))
                }
            };
        };
        // Each gate has an equal share. It is drawn on all the time, or it would be full
        // when the store goes away, and hand out a burst that nobody is owed.
        let gates = NonZeroU32::new(ahead.gates()).unwrap_or(NonZeroU32::MIN);
        let own = self.spend_share(key, gates.min(self.burst));
        match ahead.take(key) {
            PrefetchState::Permit(left) => Ok(left),
            PrefetchState::Empty(wait) => Err(NoPermit::Until(wait)),
            PrefetchState::Nothing => Err(NoPermit::Ask),
            PrefetchState::Alone => own,
        }
    }

    fn spend_share(&self, key: u64, count: NonZeroU32) -> Result<u32, NoPermit> {
        match self.limiter.check_key_n(&key, count) {
            Ok(Ok(state)) => Ok(state.remaining_burst_capacity() / count),
            Ok(Err(until)) => {
                let wait = until.wait_time_from(self.limiter.clock().now());
                Err(NoPermit::Until(wait))
            }
            // Never: it is not more than the burst.
            Err(_) => Err(NoPermit::Until(self.interval)),
        }
    }

    /// Gets permits from the store; `name` is what all gates call this bucket.
    pub(super) async fn fill(&self, key: u64, name: impl FnOnce() -> String) {
        if let Some(ahead) = &self.ahead {
            let max_keys = self.store.max.load(Ordering::Relaxed);
            ahead.fill(key, max_keys, name).await;
        }
    }

    /// Gives back what this gate has no use for.
    pub(super) async fn shrink(&self) {
        if let Some(ahead) = &self.ahead {
            ahead.sweep().await;
        }
    }

    /// Undoes a draw. One that fell into the overflow bucket, or that time has
    /// refilled long since, stays as it is: never more than was drawn.
    pub(super) fn give_back(&self, key: u64) {
        let ahead = self.ahead.as_ref();
        let shares = ahead.map_or(1, |ahead| ahead.gates().min(self.burst.get()));
        if let Some(ahead) = ahead {
            ahead.give_back(key);
        }
        let one = self.interval.saturating_mul(shares).as_nanos();
        let one = u64::try_from(one).unwrap_or(u64::MAX);
        if let Some(bucket) = self.store.each.get(&key) {
            let less = |time: u64| Some(time.saturating_sub(one));
            // Never `Err`: the closure always gives a value.
            let _ = bucket.fetch_update(Ordering::AcqRel, Ordering::Relaxed, less);
        }
    }

    /// Where those wait who find this bucket empty.
    pub(super) fn line(&self, key: u64) -> Arc<Semaphore> {
        let lines = self.lines.len() as u64;
        let index = usize::try_from(key % lines).expect("below the number of lines");
        Arc::clone(&self.lines[index])
    }

    /// Forgets full buckets; how many are left.
    pub(super) fn sweep(&self) -> usize {
        self.limiter.retain_recent();
        let (left, room) = (self.limiter.len(), self.room());
        if room > ORDINARY && left < room / 8 {
            self.store.each.shrink_to_fit();
        }
        left
    }

    /// Keys that have a bucket now.
    pub(super) fn keys(&self) -> usize {
        self.limiter.len()
    }

    /// Keys there is room for without asking for memory.
    pub(super) fn room(&self) -> usize {
        self.store.each.capacity()
    }

    pub(super) fn facts(&self, remaining: u32) -> RateLimitHeaders {
        let missing = self.burst.get().saturating_sub(remaining);
        RateLimitHeaders {
            policy: Arc::clone(&self.name),
            advert: self.advert.clone(),
            quota: self.burst.get(),
            window: window(self.interval, self.burst.get()),
            remaining,
            reset: ceil_seconds(self.interval.saturating_mul(missing)),
        }
    }
}

/// Why there is no permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoPermit {
    /// There will be one after this long.
    Until(Duration),
    /// The store that other gates draw on as well has to be asked.
    Ask,
}

/// Seconds in which an empty bucket fills.
fn window(interval: Duration, burst: u32) -> u64 {
    ceil_seconds(interval.saturating_mul(burst)).max(1)
}

/// Time between two requests at the steady rate.
fn interval(quota: Quota, burst: NonZeroU32) -> Duration {
    // `governor` counts in 64-bit nanoseconds and does not check: stay far below.
    let longest = Duration::from_nanos(u64::MAX / 8) / burst.get();
    let interval = quota.per / quota.requests.max(1);
    interval.clamp(Duration::from_nanos(1), longest)
}

/// The monotonic clock as `tokio` sees it, so that tests can hold it.
#[derive(Clone, Debug)]
struct MonotonicClock(Instant);

impl Clock for MonotonicClock {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

/// One number a key: when its bucket is full (GCRA: theoretical arrival time); 0: ever.
#[derive(Debug)]
struct BucketStore {
    each: DashMap<u64, AtomicU64, BuildIdentityHasher>,
    known: AtomicUsize,
    max: AtomicUsize,
    /// Shared by all keys that found no room. Room made by forgetting a bucket that
    /// is not full would be a fresh bucket for whoever owned it.
    overflow: AtomicU64,
}

#[derive(Debug)]
struct SharedBuckets(Arc<BucketStore>);

impl StateStore for SharedBuckets {
    type Key = u64;

    fn measure_and_replace<T, F, E>(&self, key: &u64, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let store = &self.0;
        if let Some(bucket) = store.each.get(key) {
            return replace(&bucket, decide);
        }
        let most = store.max.load(Ordering::Relaxed);
        let more = |known| (known < most).then_some(known + 1);
        let room = store
            .known
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        if room.is_err() {
            return replace(&store.overflow, decide);
        }
        match store.each.entry(*key) {
            Entry::Occupied(bucket) => {
                store.known.fetch_sub(1, Ordering::Relaxed);
                replace(bucket.get(), decide)
            }
            Entry::Vacant(place) => {
                // A key may have drawn on the overflow until now: it starts from there.
                let from = store.overflow.load(Ordering::Acquire);
                replace(&place.insert(AtomicU64::new(from)), decide)
            }
        }
    }
}

impl ShrinkableKeyedStateStore<u64> for SharedBuckets {
    fn retain_recent(&self, drop_below: Nanos) {
        let mut forgotten = 0;
        self.0.each.retain(|_, bucket| {
            let is_recent = *bucket.get_mut() > drop_below.as_u64();
            forgotten += usize::from(!is_recent);
            is_recent
        });
        self.0.known.fetch_sub(forgotten, Ordering::Relaxed);
    }

    fn len(&self) -> usize {
        self.0.known.load(Ordering::Relaxed)
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn replace<T, F, E>(bucket: &AtomicU64, decide: F) -> Result<T, E>
where
    F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
{
    let mut before = bucket.load(Ordering::Acquire);
    loop {
        let known = (before != 0).then(|| Nanos::from(before));
        let (outcome, after) = decide(known)?;
        let exchanged = bucket.compare_exchange_weak(
            before,
            after.as_u64(),
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        match exchanged {
            Ok(_) => return Ok(outcome),
            Err(now) => before = now,
        }
    }
}
