//! The buckets of one limit. `governor` does the arithmetic (GCRA). The state store is our own, since
//! it must be bounded and able to refund a charge.

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
use super::rate_limit_headers::{PolicyHeaders, RateLimitHeaders, TooMany, ceil_seconds};
use crate::clock;
use crate::config::Quota;
use crate::identity_hasher::BuildIdentityHasher;
use crate::store::shared::{PermitRate, SharedStore};

/// Queues in which requests wait. Keys may share one, which delays requests but never refuses them.
const WAIT_QUEUES: usize = 64;
/// Shards of the map. One shard is locked while it grows, or while the sweep visits it: with a million
/// keys these are 16,000 keys at a time.
const SHARDS: usize = 64;
/// Capacity below which a map is never shrunk.
const MIN_CAPACITY: usize = 4096;

#[derive(Debug)]
pub(super) struct BucketSet {
    name: Arc<str>,
    policy_headers: Option<Arc<PolicyHeaders>>,
    quota: Quota,
    interval: Duration,
    burst: NonZeroU32,
    limiter: RateLimiter<u64, SharedBuckets, MonotonicClock, StateInformationMiddleware>,
    store: Arc<BucketStore>,
    /// None unless other gateways share these buckets.
    prefetch: Option<PermitPrefetch>,
    hasher: RandomState,
    wait_queues: Vec<Arc<Semaphore>>,
}

impl BucketSet {
    #[cfg(test)]
    pub(super) fn new(name: Arc<str>, quota: Quota, max_keys: usize) -> Self {
        Self::with_store(None, name, quota, max_keys)
    }

    /// With a store, the buckets are shared with other gateways.
    pub(super) fn with_store(
        shared: Option<Arc<SharedStore>>,
        name: Arc<str>,
        quota: Quota,
        max_keys: usize,
    ) -> Self {
        let burst = NonZeroU32::new(quota.burst).unwrap_or(NonZeroU32::MIN);
        let interval = interval(quota, burst);
        let rate = governor::Quota::with_period(interval).expect("an interval is never zero");
        let shards = if max_keys > MIN_CAPACITY { SHARDS } else { 2 };
        let store = Arc::new(BucketStore {
            buckets: DashMap::with_hasher_and_shard_amount(BuildIdentityHasher::default(), shards),
            count: AtomicUsize::new(0),
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
            policy_headers: PolicyHeaders::new(&name, burst.get(), window(interval, burst.get())),
            name,
            quota,
            interval,
            burst,
            limiter,
            store,
            prefetch: shared.map(|shared| {
                PermitPrefetch::new(
                    shared,
                    PermitRate {
                        interval,
                        burst: burst.get(),
                    },
                )
            }),
            hasher: RandomState::new(),
            wait_queues: (0..WAIT_QUEUES.min(max_keys.max(1)))
                .map(|_| Arc::new(Semaphore::new(1)))
                .collect(),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn quota(&self) -> Quota {
        self.quota
    }

    pub(super) fn set_max_keys(&self, max_keys: usize) {
        self.store.max.store(max_keys, Ordering::Relaxed);
    }

    /// The key of a subject, a keyed hash: names of any length take no memory here, and clients cannot
    /// construct collisions.
    pub(super) fn key(&self, subject: impl Hash) -> u64 {
        self.hasher.hash_one(subject)
    }

    /// Charges one permit; the number left, or why there is none.
    pub(super) fn charge(&self, key: u64) -> Result<u32, NoPermit> {
        let Some(prefetch) = &self.prefetch else {
            return match self.limiter.check_key(&key) {
                Ok(state) => Ok(state.remaining_burst_capacity()),
                Err(until) => {
                    let wait = until.wait_time_from(self.limiter.clock().now());
                    Err(NoPermit::Until(wait))
                }
            };
        };
        // This gateway's equal share is charged even while the store is up. Otherwise the share would be
        // full when the store fails, and admit an additional burst.
        let gates = NonZeroU32::new(prefetch.gates()).unwrap_or(NonZeroU32::MIN);
        let own = self.charge_share(key, gates.min(self.burst));
        match prefetch.take(key) {
            PrefetchState::Permit(left) => Ok(left),
            PrefetchState::Empty(wait) => Err(NoPermit::Until(wait)),
            PrefetchState::Unknown => Err(NoPermit::AskStore),
            PrefetchState::StoreAway => own,
        }
    }

    fn charge_share(&self, key: u64, count: NonZeroU32) -> Result<u32, NoPermit> {
        match self.limiter.check_key_n(&key, count) {
            Ok(Ok(state)) => Ok(state.remaining_burst_capacity() / count),
            Ok(Err(until)) => {
                let wait = until.wait_time_from(self.limiter.clock().now());
                Err(NoPermit::Until(wait))
            }
            // Never: the count is not larger than the burst.
            Err(_) => Err(NoPermit::Until(self.interval)),
        }
    }

    /// Fetches permits from the store. `name`: of this bucket in the store.
    pub(super) async fn fill(&self, key: u64, name: impl FnOnce() -> String) {
        if let Some(prefetch) = &self.prefetch {
            let max_keys = self.store.max.load(Ordering::Relaxed);
            prefetch.fill(key, max_keys, name).await;
        }
    }

    /// Returns unused permits to the store.
    pub(super) async fn shrink(&self) {
        if let Some(prefetch) = &self.prefetch {
            prefetch.sweep().await;
        }
    }

    /// Undoes a charge. A charge to the overflow bucket, and one that the bucket has regained since, is
    /// not refunded: a refund is never more than what was charged.
    pub(super) fn refund(&self, key: u64) {
        let prefetch = self.prefetch.as_ref();
        let shares = prefetch.map_or(1, |prefetch| prefetch.gates().min(self.burst.get()));
        if let Some(prefetch) = prefetch {
            prefetch.refund(key);
        }
        let one = self.interval.saturating_mul(shares).as_nanos();
        let one = u64::try_from(one).unwrap_or(u64::MAX);
        if let Some(bucket) = self.store.buckets.get(&key) {
            let earlier = |time: u64| Some(time.saturating_sub(one));
            // Never `Err`: the closure always gives a value.
            let _ = bucket.fetch_update(Ordering::AcqRel, Ordering::Relaxed, earlier);
        }
    }

    /// The queue of the requests that wait for this bucket.
    pub(super) fn wait_queue(&self, key: u64) -> Arc<Semaphore> {
        let count = self.wait_queues.len() as u64;
        let index = usize::try_from(key % count).expect("below the number of queues");
        Arc::clone(&self.wait_queues[index])
    }

    /// Removes full buckets; the number left.
    pub(super) fn sweep(&self) -> usize {
        self.limiter.retain_recent();
        let left = self.limiter.len();
        let capacity = self.capacity();
        if capacity > MIN_CAPACITY && left < capacity / 8 {
            self.store.buckets.shrink_to_fit();
        }
        left
    }

    /// Number of keys that have a bucket.
    pub(super) fn keys(&self) -> usize {
        self.limiter.len()
    }

    /// Number of keys for which memory is allocated.
    pub(super) fn capacity(&self) -> usize {
        self.store.buckets.capacity()
    }

    pub(super) fn headers(&self, remaining: u32) -> RateLimitHeaders {
        let missing = self.burst.get().saturating_sub(remaining);
        RateLimitHeaders {
            policy: Arc::clone(&self.name),
            policy_headers: self.policy_headers.clone(),
            quota: self.burst.get(),
            window: window(self.interval, self.burst.get()),
            remaining,
            reset: ceil_seconds(self.interval.saturating_mul(missing)),
        }
    }

    /// The refusal of a request that found its bucket empty; the next permit comes after `wait`.
    pub(super) fn too_many(&self, wait: Duration) -> TooMany {
        let seconds = ceil_seconds(wait).max(1);
        TooMany {
            retry_after: Duration::from_secs(seconds),
            policy: Arc::clone(&self.name),
            headers: RateLimitHeaders {
                reset: seconds,
                ..self.headers(0)
            },
        }
    }
}

/// Why there is no permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoPermit {
    /// The next one comes after this time.
    Until(Duration),
    /// The shared store has to be asked.
    AskStore,
}

/// Seconds in which an empty bucket fills.
fn window(interval: Duration, burst: u32) -> u64 {
    ceil_seconds(interval.saturating_mul(burst)).max(1)
}

/// Time between two requests at the steady rate.
fn interval(quota: Quota, burst: NonZeroU32) -> Duration {
    // `governor` counts in 64-bit nanoseconds without overflow checks: stay far below the limit.
    let longest = Duration::from_nanos(u64::MAX / 8) / burst.get();
    let interval = quota.per / quota.requests.max(1);
    interval.clamp(Duration::from_nanos(1), longest)
}

/// `tokio`'s monotonic clock, which tests can pause.
#[derive(Clone, Debug)]
struct MonotonicClock(Instant);

impl Clock for MonotonicClock {
    type Instant = Duration;

    fn now(&self) -> Duration {
        clock::now().duration_since(self.0)
    }
}

/// One number per key: the time when its bucket is full (GCRA's theoretical arrival time); 0: always.
#[derive(Debug)]
struct BucketStore {
    buckets: DashMap<u64, AtomicU64, BuildIdentityHasher>,
    count: AtomicUsize,
    max: AtomicUsize,
    /// Shared by all keys beyond `max`. Evicting a bucket that is not full instead would give its owner
    /// a full one.
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
        if let Some(bucket) = store.buckets.get(key) {
            return replace(&bucket, decide);
        }
        let max = store.max.load(Ordering::Relaxed);
        let increment = |count| (count < max).then_some(count + 1);
        let slot = store
            .count
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, increment);
        if slot.is_err() {
            return replace(&store.overflow, decide);
        }
        match store.buckets.entry(*key) {
            Entry::Occupied(bucket) => {
                store.count.fetch_sub(1, Ordering::Relaxed);
                replace(bucket.get(), decide)
            }
            Entry::Vacant(vacant) => {
                // The key may have used the overflow bucket until now, so it starts with that state.
                let start = store.overflow.load(Ordering::Acquire);
                replace(&vacant.insert(AtomicU64::new(start)), decide)
            }
        }
    }
}

impl ShrinkableKeyedStateStore<u64> for SharedBuckets {
    fn retain_recent(&self, drop_below: Nanos) {
        let mut removed = 0;
        self.0.buckets.retain(|_, bucket| {
            let is_recent = *bucket.get_mut() > drop_below.as_u64();
            removed += usize::from(!is_recent);
            is_recent
        });
        self.0.count.fetch_sub(removed, Ordering::Relaxed);
    }

    fn len(&self) -> usize {
        self.0.count.load(Ordering::Relaxed)
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
