//! Rate limits: by client, peer and route class, and those of single API keys; requests in flight
//! (`in_flight`); and authentication attempts (`attempts`). Chooses no status. A refused request is
//! not charged: what it has taken from other limits by then is refunded. A refused attempt stays
//! charged to its sender. Start with `Limiter::admit`.

mod attempts;
mod bucket_charge;
mod buckets;
mod in_flight;
mod permit_prefetch;
mod proven;
mod rate_limit_headers;

pub use attempts::{IntrospectionAttempt, LoginAttempt, LoginLimited};
pub use in_flight::{InFlightPermit, TooManyInFlight};
pub use rate_limit_headers::{RateAdmission, RateLimitHeaders, TooMany};

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use tokio::time::{Instant, sleep, timeout_at};

use self::attempts::AttemptLimits;
use self::buckets::{BucketSet, NoPermit};
use self::in_flight::InFlightLimit;
use crate::config::{self, LimitKey, Limits, Quota};
use crate::identity::Client;
use crate::metrics::{LimitOutcome, Metrics};
use crate::shares::network;
use crate::store::shared::SharedStore;
use bucket_charge::{BucketCharge, BucketKind, LimitSubject, shared_by_all};

/// The key of a limit that has one bucket for all.
const SINGLE_KEY: u64 = 0;

/// How often one request asks the store for permits if others take them first.
const MAX_FILLS: usize = 8;
/// How long a request waits after that.
const CROWDED_WAIT: Duration = Duration::from_millis(50);

/// All limits. A reload builds a new one; limits that did not change keep their state.
#[derive(Debug)]
pub struct Limiter {
    policies: Vec<LimitPolicy>,
    /// Limits of single API keys, by the key's name.
    by_api_key: Arc<DashMap<Arc<str>, Arc<BucketSet>>>,
    attempts: AttemptLimits,
    in_flight: Arc<InFlightLimit>,
    /// None unless other gateways share the buckets.
    store: Option<Arc<SharedStore>>,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct LimitPolicy {
    limit: config::Limit,
    buckets: Arc<BucketSet>,
}

/// The sender of a request, and the class of its route.
#[derive(Clone, Copy, Debug)]
pub struct RateSubject<'a> {
    pub client: &'a Client,
    pub peer: IpAddr,
    pub class: &'a str,
    /// Upstream and class: the key of limits by class.
    pub class_bucket: &'a str,
    /// The upstream that the request goes to; None: the gateway answers it.
    pub upstream: Option<&'a str>,
}

/// The charge that found its bucket empty, and the time until the next permit.
#[derive(Clone, Copy, Debug)]
struct EmptyBucket {
    index: usize,
    wait: Duration,
}

impl Limiter {
    /// The limits of `limits`. Those that `old` has with the same quota and key keep their buckets:
    /// a reload must not refill them.
    pub fn new(limits: &Limits, old: Option<&Self>, metrics: Arc<Metrics>) -> Self {
        let store = old.and_then(|old| old.store.as_ref());
        Self::with_store(store, limits, old, metrics)
    }

    /// The same, with buckets that all gateways with `store` share.
    pub fn with_store(
        store: Option<&Arc<SharedStore>>,
        limits: &Limits,
        old: Option<&Self>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let policy = |limit: &config::Limit| {
            let policies = old.iter().flat_map(|old| &old.policies);
            let mut same = policies
                .filter(|policy| policy.limit.name == limit.name && policy.limit.key == limit.key);
            LimitPolicy {
                buckets: reused_or_new(
                    store,
                    same.next().map(|old| &old.buckets),
                    &limit.name,
                    limit.quota,
                    limits.max_keys,
                ),
                limit: limit.clone(),
            }
        };
        Self {
            policies: limits.policies.iter().map(policy).collect(),
            by_api_key: old
                .map(|old| Arc::clone(&old.by_api_key))
                .unwrap_or_default(),
            attempts: AttemptLimits::new(store, limits, old.map(|old| &old.attempts)),
            in_flight: match old {
                Some(old) => {
                    old.in_flight.resize(limits.max_in_flight);
                    Arc::clone(&old.in_flight)
                }
                None => InFlightLimit::new(limits.max_in_flight),
            },
            store: store.cloned(),
            metrics,
        }
    }

    /// Charges every limit that concerns the request, or none. Waits up to `max_wait` in total for
    /// empty buckets. A request that is dropped while it waits is not charged.
    pub async fn admit(
        &self,
        subject: RateSubject<'_>,
        max_wait: Duration,
    ) -> Result<RateAdmission, TooMany> {
        let mut charges = self.charges(subject);
        let subject = LimitSubject::Request(subject);
        match self.charge_all(&mut charges, subject).await {
            Ok(admission) => Ok(admission),
            Err(empty) if empty.wait > max_wait => Err(self.refuse(&charges, empty)),
            Err(empty) => {
                let deadline = Instant::now() + max_wait;
                Box::pin(self.wait(&mut charges, subject, empty, deadline)).await
            }
        }
    }

    /// Waits in the bucket's queue. Only the first request of a queue sleeps, so no request wakes up to
    /// find the bucket empty, and none overtakes another.
    async fn wait(
        &self,
        charges: &mut [BucketCharge],
        subject: LimitSubject<'_>,
        mut empty: EmptyBucket,
        deadline: Instant,
    ) -> Result<RateAdmission, TooMany> {
        let mut head_of_queue = None;
        let mut queue_index = usize::MAX;
        loop {
            if queue_index != empty.index {
                drop(head_of_queue.take());
                let charge = &charges[empty.index];
                let queue = charge.buckets.wait_queue(charge.key);
                let Ok(permit) = timeout_at(deadline, queue.acquire_owned()).await else {
                    return self.last_try(charges, subject).await;
                };
                head_of_queue = Some(permit);
                queue_index = empty.index;
            }
            if Instant::now() + empty.wait > deadline {
                return self.last_try(charges, subject).await;
            }
            sleep(empty.wait).await;
            match self.charge_all(charges, subject).await {
                Ok(admission) => {
                    self.metrics.limit_exceeded.add(LimitOutcome::Waited);
                    return Ok(admission);
                }
                Err(still_empty) => empty = still_empty,
            }
        }
    }

    async fn last_try(
        &self,
        charges: &mut [BucketCharge],
        subject: LimitSubject<'_>,
    ) -> Result<RateAdmission, TooMany> {
        match self.charge_all(charges, subject).await {
            Ok(admission) => {
                self.metrics.limit_exceeded.add(LimitOutcome::Waited);
                Ok(admission)
            }
            Err(empty) => Err(self.refuse(charges, empty)),
        }
    }

    /// A permit for one request in flight.
    pub fn in_flight(&self) -> Result<InFlightPermit, TooManyInFlight> {
        self.in_flight.acquire()
    }

    /// Removes full buckets. To be called every few seconds.
    pub fn sweep(&self) {
        let fixed = self.attempts.buckets();
        let policies = self.policies.iter().map(|policy| &policy.buckets);
        for buckets in policies.chain(fixed) {
            buckets.sweep();
        }
        self.by_api_key.retain(|_, buckets| buckets.sweep() > 0);
        self.attempts.sweep();
    }

    /// Updates the gauges of keys, just before a scrape.
    pub fn refresh_gauges(&self) {
        let fixed = self.attempts.buckets();
        let policies = self.policies.iter().map(|policy| &policy.buckets);
        for buckets in policies.chain(fixed) {
            let gauge = self.metrics.limit_keys.with_label_values(&[buckets.name()]);
            gauge.set(i64::try_from(buckets.keys()).unwrap_or(i64::MAX));
        }
    }

    /// Returns unused permits of shared limits to the store.
    pub async fn shrink(&self) {
        let by_api_key = self.by_api_key.iter();
        let by_api_key: Vec<_> = by_api_key.map(|entry| Arc::clone(entry.value())).collect();
        let fixed = self.attempts.buckets();
        let policies = self.policies.iter().map(|policy| &policy.buckets);
        for buckets in policies.chain(fixed).chain(&by_api_key) {
            buckets.shrink().await;
        }
    }

    fn charges(&self, subject: RateSubject<'_>) -> Vec<BucketCharge> {
        let mut charges = Vec::with_capacity(self.policies.len() + 1);
        if let Client::Key(key) = subject.client
            && let Some(quota) = key.limit
        {
            let buckets = self.buckets_of_api_key(&key.name, quota);
            charges.push(shared_by_all(&buckets, BucketKind::ApiKey));
        }
        let applying = self.policies.iter().filter(|policy| {
            let classes = &policy.limit.classes;
            let is_of_class =
                classes.is_empty() || classes.iter().any(|class| **class == *subject.class);
            is_of_class && (policy.limit.key != LimitKey::Upstream || subject.upstream.is_some())
        });
        charges.extend(
            applying.map(|LimitPolicy { limit, buckets }| {
                BucketCharge::of_limit(buckets, limit, subject)
            }),
        );
        charges
    }

    fn buckets_of_api_key(&self, name: &Arc<str>, quota: Quota) -> Arc<BucketSet> {
        if let Some(known) = self.by_api_key.get(name)
            && known.quota() == quota
        {
            return Arc::clone(&known);
        }
        let store = self.store.clone();
        let new = || {
            let buckets = BucketSet::with_store(store.clone(), "api_key".into(), quota, 1);
            Arc::new(buckets)
        };
        let mut known = self.by_api_key.entry(Arc::clone(name)).or_insert_with(new);
        if known.quota() != quota {
            *known = new();
        }
        Arc::clone(&known)
    }

    /// Charges each bucket, or none. Fetches permits from the store where this gateway has none left.
    async fn charge_all(
        &self,
        charges: &mut [BucketCharge],
        subject: LimitSubject<'_>,
    ) -> Result<RateAdmission, EmptyBucket> {
        match self.charge_local(charges) {
            Ok(admission) => Ok(admission),
            Err((index, NoPermit::Until(wait))) => Err(EmptyBucket { index, wait }),
            // Rare, and a large future: boxed, so that other requests do not pay for its size.
            Err((index, NoPermit::AskStore)) => {
                Box::pin(self.fill_and_charge(charges, subject, index)).await
            }
        }
    }

    async fn fill_and_charge(
        &self,
        charges: &mut [BucketCharge],
        subject: LimitSubject<'_>,
        mut index: usize,
    ) -> Result<RateAdmission, EmptyBucket> {
        for _ in 0..MAX_FILLS {
            charges[index].fill(subject).await;
            match self.charge_local(charges) {
                Ok(admission) => return Ok(admission),
                Err((index, NoPermit::Until(wait))) => return Err(EmptyBucket { index, wait }),
                Err((next, NoPermit::AskStore)) => index = next,
            }
        }
        Err(EmptyBucket {
            index,
            wait: CROWDED_WAIT,
        })
    }

    /// Charges each bucket with the permits that this gateway has, or none.
    fn charge_local(
        &self,
        charges: &mut [BucketCharge],
    ) -> Result<RateAdmission, (usize, NoPermit)> {
        let mut tightest = None;
        let mut fewest = u32::MAX;
        for index in 0..charges.len() {
            let charge = &mut charges[index];
            match charge.buckets.charge(charge.key) {
                Ok(remaining) => {
                    charge.charged();
                    let is_tighter = tightest.is_none() || remaining < fewest;
                    if is_tighter && !charge.is_dry_run {
                        tightest = Some(index);
                        fewest = remaining;
                    }
                }
                Err(NoPermit::Until(_)) if charge.is_dry_run => {
                    self.metrics.limit_exceeded.add(LimitOutcome::DryRun);
                }
                Err(no_permit) => {
                    // A refused attempt stays charged to its sender.
                    let is_refused = matches!(no_permit, NoPermit::Until(_));
                    charges[..index]
                        .iter_mut()
                        .filter(|charge| !(is_refused && charge.is_not_refunded))
                        .for_each(BucketCharge::refund);
                    return Err((index, no_permit));
                }
            }
        }
        Ok(RateAdmission {
            headers: tightest.map(|index| charges[index].buckets.headers(fewest)),
        })
    }

    fn refuse(&self, charges: &[BucketCharge], empty: EmptyBucket) -> TooMany {
        self.metrics.limit_exceeded.add(LimitOutcome::Refused);
        charges[empty.index].buckets.too_many(empty.wait)
    }
}

/// The buckets of one limit: the `old` ones if their quota is the same.
fn reused_or_new(
    store: Option<&Arc<SharedStore>>,
    old: Option<&Arc<BucketSet>>,
    name: &str,
    quota: Quota,
    max_keys: usize,
) -> Arc<BucketSet> {
    match old {
        Some(old) if old.quota() == quota => {
            old.set_max_keys(max_keys);
            Arc::clone(old)
        }
        _ => Arc::new(BucketSet::with_store(
            store.cloned(),
            name.into(),
            quota,
            max_keys,
        )),
    }
}

/// The IPv6 /48 of a peer, which is what one organisation is usually assigned: 65,536 networks.
fn site(peer: IpAddr) -> Option<u64> {
    match peer.to_canonical() {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => Some((address.to_bits() >> 80) as u64),
    }
}

#[cfg(test)]
mod tests;
