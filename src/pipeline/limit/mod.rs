//! Stage 3: is this client too fast? Budgets by client, peer and route class, the API
//! keys' own, requests in flight; and attempts to get in (`attempts`). Chooses no status.
//! The surprise: a refusal costs a request nothing; what it has drawn from other budgets by
//! then goes back. A refused attempt to get in keeps its cost.

mod attempts;
mod bucket_charge;
mod buckets;
mod in_flight;
mod permit_prefetch;
mod proven;
mod rate_limit_headers;

pub use attempts::{LoginHeld, LoginTry, TokenTry};
pub use in_flight::{InFlight, TooManyInFlight};
pub use rate_limit_headers::{RateAdmission, RateLimitHeaders, TooMany};

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use tokio::time::{Instant, sleep, timeout_at};

use self::attempts::AttemptLimits;
use self::buckets::{BucketSet, NoPermit};
use self::in_flight::InFlightPlaces;
use crate::config::{self, Limits, Quota};
use crate::identity::Client;
use crate::metrics::{LimitOutcome, Metrics};
use crate::shares::network;
use crate::store::shared::SharedStore;
use bucket_charge::{BucketCharge, BucketKind, LimitSubject, of_all};

/// The key where one bucket serves all.
const ALL: u64 = 0;

/// Times that one request asks the store for permits, should others take them all.
const FILLS: usize = 8;
/// What it is told to wait when they have.
const CROWDED: Duration = Duration::from_millis(50);

/// All budgets. Built anew by a reload; what did not change keeps its state.
#[derive(Debug)]
pub struct Limiter {
    policies: Vec<LimitPolicy>,
    /// By name of the API key.
    own: Arc<DashMap<Arc<str>, Arc<BucketSet>>>,
    attempts: AttemptLimits,
    in_flight: Arc<InFlightPlaces>,
    /// Where other gates draw on the same buckets.
    store: Option<Arc<SharedStore>>,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct LimitPolicy {
    limit: config::Limit,
    buckets: Arc<BucketSet>,
}

/// Whose request, and of which kind.
#[derive(Clone, Copy, Debug)]
pub struct RateSubject<'a> {
    pub client: &'a Client,
    pub peer: IpAddr,
    pub class: &'a str,
}

/// Which draw found its bucket empty, and when it will not.
#[derive(Clone, Copy, Debug)]
struct EmptyBucket {
    index: usize,
    wait: Duration,
}

impl Limiter {
    /// The budgets of `limits`. Those that `old` has with the same quota and key go on
    /// where they are: a reload must not hand out fresh ones.
    pub fn new(limits: &Limits, old: Option<&Self>, metrics: Arc<Metrics>) -> Self {
        let store = old.and_then(|old| old.store.as_ref());
        Self::over(store, limits, old, metrics)
    }

    /// The same, drawn on by all gates that share `store`.
    pub fn over(
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
                buckets: kept(
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
            own: old.map(|old| Arc::clone(&old.own)).unwrap_or_default(),
            attempts: AttemptLimits::new(store, limits, old.map(|old| &old.attempts)),
            in_flight: match old {
                Some(old) => {
                    old.in_flight.resize(limits.max_in_flight);
                    Arc::clone(&old.in_flight)
                }
                None => InFlightPlaces::new(limits.max_in_flight),
            },
            store: store.cloned(),
            metrics,
        }
    }

    /// Draws on every budget that concerns the request, or on none. Waits up to
    /// `max_wait` in all where one is empty; dropping the wait costs nothing.
    pub async fn admit(
        &self,
        subject: RateSubject<'_>,
        max_wait: Duration,
    ) -> Result<RateAdmission, TooMany> {
        let mut draws = self.draws(subject);
        let whose = LimitSubject::Request(subject);
        match self.draw_all(&mut draws, whose).await {
            Ok(admitted) => Ok(admitted),
            Err(empty) if empty.wait > max_wait => Err(self.refuse(&draws, empty)),
            Err(empty) => {
                let deadline = Instant::now() + max_wait;
                Box::pin(self.wait((&mut draws, whose), empty, deadline)).await
            }
        }
    }

    /// Waits in line: of those who wait for one bucket only the first sleeps for it,
    /// so nobody is woken to find it empty, and nobody overtakes in the line.
    async fn wait(
        &self,
        (draws, whose): (&mut [BucketCharge], LimitSubject<'_>),
        mut empty: EmptyBucket,
        deadline: Instant,
    ) -> Result<RateAdmission, TooMany> {
        let mut turn = None;
        loop {
            if turn.as_ref().is_none_or(|(index, _)| *index != empty.index) {
                drop(turn.take());
                let draw = &draws[empty.index];
                let line = draw.buckets.line(draw.key);
                let Ok(place) = timeout_at(deadline, line.acquire_owned()).await else {
                    return self.last_try(draws, whose).await;
                };
                turn = Some((empty.index, place));
            }
            if Instant::now() + empty.wait > deadline {
                return self.last_try(draws, whose).await;
            }
            sleep(empty.wait).await;
            match self.draw_all(draws, whose).await {
                Ok(admitted) => {
                    self.metrics.limit_exceeded.add(LimitOutcome::Waited);
                    return Ok(admitted);
                }
                Err(still) => empty = still,
            }
        }
    }

    async fn last_try(
        &self,
        draws: &mut [BucketCharge],
        whose: LimitSubject<'_>,
    ) -> Result<RateAdmission, TooMany> {
        match self.draw_all(draws, whose).await {
            Ok(admitted) => {
                self.metrics.limit_exceeded.add(LimitOutcome::Waited);
                Ok(admitted)
            }
            Err(empty) => Err(self.refuse(draws, empty)),
        }
    }

    /// A place inside the gate.
    pub fn in_flight(&self) -> Result<InFlight, TooManyInFlight> {
        self.in_flight.enter()
    }

    /// Forgets keys whose buckets are full again. To be called every few seconds.
    pub fn sweep(&self) {
        let fixed = self.attempts.buckets();
        let policies = self.policies.iter().map(|policy| &policy.buckets);
        for buckets in policies.chain(fixed) {
            buckets.sweep();
        }
        self.own.retain(|_, buckets| buckets.sweep() > 0);
        self.attempts.sweep();
    }

    /// Sets the numbers of keys, just before a scrape.
    pub fn refresh_gauges(&self) {
        let fixed = self.attempts.buckets();
        let policies = self.policies.iter().map(|policy| &policy.buckets);
        for buckets in policies.chain(fixed) {
            let gauge = self.metrics.limit_keys.with_label_values(&[buckets.name()]);
            gauge.set(i64::try_from(buckets.keys()).unwrap_or(i64::MAX));
        }
    }

    /// Gives permits of shared limits back that this gate has no use for.
    pub async fn shrink(&self) {
        let own: Vec<_> = self.own.iter().map(|own| Arc::clone(own.value())).collect();
        let fixed = self.attempts.buckets();
        let policies = self.policies.iter().map(|policy| &policy.buckets);
        for buckets in policies.chain(fixed).chain(&own) {
            buckets.shrink().await;
        }
    }

    fn draws(&self, subject: RateSubject<'_>) -> Vec<BucketCharge> {
        let mut draws = Vec::with_capacity(self.policies.len() + 1);
        if let Client::Key(key) = subject.client
            && let Some(quota) = key.limit
        {
            draws.push(of_all(&self.own(&key.name, quota), BucketKind::ApiKey));
        }
        let counting = self.policies.iter().filter(|policy| {
            let classes = &policy.limit.classes;
            classes.is_empty() || classes.iter().any(|class| **class == *subject.class)
        });
        draws.extend(
            counting.map(|LimitPolicy { limit, buckets }| {
                BucketCharge::of_limit(buckets, limit, subject)
            }),
        );
        draws
    }

    fn own(&self, name: &Arc<str>, quota: Quota) -> Arc<BucketSet> {
        if let Some(known) = self.own.get(name)
            && known.quota() == quota
        {
            return Arc::clone(&known);
        }
        let store = self.store.clone();
        let fresh = || Arc::new(BucketSet::over(store.clone(), "api_key".into(), quota, 1));
        let mut known = self.own.entry(Arc::clone(name)).or_insert_with(fresh);
        if known.quota() != quota {
            *known = fresh();
        }
        Arc::clone(&known)
    }

    /// One from each bucket, or none from any; gets permits from the store where this
    /// gate has none left.
    async fn draw_all(
        &self,
        draws: &mut [BucketCharge],
        whose: LimitSubject<'_>,
    ) -> Result<RateAdmission, EmptyBucket> {
        match self.draw_here(draws) {
            Ok(admitted) => Ok(admitted),
            Err((index, NoPermit::Until(wait))) => Err(EmptyBucket { index, wait }),
            // Seldom, and large: not to be paid for by every request's memory.
            Err((index, NoPermit::Ask)) => Box::pin(self.fill_and_draw(draws, whose, index)).await,
        }
    }

    async fn fill_and_draw(
        &self,
        draws: &mut [BucketCharge],
        whose: LimitSubject<'_>,
        mut index: usize,
    ) -> Result<RateAdmission, EmptyBucket> {
        for _ in 0..FILLS {
            draws[index].fill(whose).await;
            match self.draw_here(draws) {
                Ok(admitted) => return Ok(admitted),
                Err((index, NoPermit::Until(wait))) => return Err(EmptyBucket { index, wait }),
                Err((next, NoPermit::Ask)) => index = next,
            }
        }
        Err(EmptyBucket {
            index,
            wait: CROWDED,
        })
    }

    fn draw_here(&self, draws: &mut [BucketCharge]) -> Result<RateAdmission, (usize, NoPermit)> {
        let mut tightest: Option<(usize, u32)> = None;
        for index in 0..draws.len() {
            let draw = &mut draws[index];
            match draw.buckets.spend(draw.key) {
                Ok(remaining) => {
                    draw.spent();
                    let is_tighter = tightest.is_none_or(|(_, least)| remaining < least);
                    if is_tighter && !draw.is_dry_run {
                        tightest = Some((index, remaining));
                    }
                }
                Err(NoPermit::Until(_)) if draw.is_dry_run => {
                    self.metrics.limit_exceeded.add(LimitOutcome::DryRun);
                }
                Err(none) => {
                    // An attempt that is refused keeps what it has cost its sender by then.
                    let is_over = matches!(none, NoPermit::Until(_));
                    let back = draws[..index].iter_mut();
                    back.filter(|draw| !(is_over && draw.is_kept))
                        .for_each(BucketCharge::give_back);
                    return Err((index, none));
                }
            }
        }
        let facts = tightest.map(|(index, remaining)| draws[index].buckets.facts(remaining));
        Ok(RateAdmission { facts })
    }

    fn refuse(&self, draws: &[BucketCharge], empty: EmptyBucket) -> TooMany {
        self.metrics.limit_exceeded.add(LimitOutcome::Refused);
        TooMany::new(&draws[empty.index].buckets, empty.wait)
    }
}

/// The buckets of one limit: `old` ones with the same quota go on where they are.
fn kept(
    store: Option<&Arc<SharedStore>>,
    old: Option<&Arc<BucketSet>>,
    name: &str,
    quota: Quota,
    max_keys: usize,
) -> Arc<BucketSet> {
    match old {
        Some(old) if old.quota() == quota => {
            old.remember_at_most(max_keys);
            Arc::clone(old)
        }
        _ => Arc::new(BucketSet::over(
            store.cloned(),
            name.into(),
            quota,
            max_keys,
        )),
    }
}

/// What one organisation is usually given of IPv6: a /48, which is 65,536 networks.
fn site(peer: IpAddr) -> Option<u64> {
    match peer.to_canonical() {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => Some((address.to_bits() >> 80) as u64),
    }
}

#[cfg(test)]
mod tests;
