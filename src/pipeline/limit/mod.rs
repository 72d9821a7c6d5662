//! Stage 3: is this client too fast? Budgets by client, peer and route class, the API
//! keys' own, login attempts, questions about unknown tokens, requests in flight.
//! Chooses no status. The surprise: a refusal costs nothing; what a request has
//! drawn from other budgets by then goes back.

mod ahead;
mod buckets;
mod draw;
mod facts;
mod in_flight;

pub use facts::{Admitted, RateFacts, TooMany};
pub use in_flight::{InFlight, Overloaded};

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use tokio::time::{Instant, sleep, timeout_at};

use self::buckets::{Buckets, NoPermit};
use self::draw::{By, Draw, Whose, of_all};
use self::in_flight::InFlightPlaces;
use crate::config::{self, Limits, Quota};
use crate::identity::Client;
use crate::metrics::{LimitOutcome, Metrics};
use crate::shares::network;
use crate::store::shared::SharedStore;

/// The key where one bucket serves all.
const ALL: u64 = 0;

/// Times that one request asks the store for permits, should others take them all.
const FILLS: usize = 8;
/// What it is told to wait when they have.
const CROWDED: Duration = Duration::from_millis(50);

/// All budgets. Built anew by a reload; what did not change keeps its state.
#[derive(Debug)]
pub struct Limiter {
    policies: Vec<Policy>,
    /// By name of the API key.
    own: Arc<DashMap<Arc<str>, Arc<Buckets>>>,
    logins_by_peer: Arc<Buckets>,
    logins_by_name: Arc<Buckets>,
    unknown_tokens: Arc<Buckets>,
    in_flight: Arc<InFlightPlaces>,
    /// Where other gates draw on the same buckets.
    store: Option<Arc<SharedStore>>,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct Policy {
    limit: config::Limit,
    buckets: Arc<Buckets>,
}

/// Whose request, and of which kind.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    pub client: &'a Client,
    pub peer: IpAddr,
    pub class: &'a str,
}

/// Which draw found its bucket empty, and when it will not.
#[derive(Clone, Copy, Debug)]
struct Empty {
    index: usize,
    wait: Duration,
}

/// A login attempt that was let through.
#[must_use = "say so when the login succeeds, or it counts like a failed one"]
#[derive(Debug)]
pub struct LoginTry {
    draws: [Draw; 2],
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
        let max_keys = limits.max_keys;
        let kept = |old: Option<&Arc<Buckets>>, name: &str, quota: Quota| match old {
            Some(old) if old.quota() == quota => {
                old.remember_at_most(max_keys);
                Arc::clone(old)
            }
            _ => Arc::new(Buckets::over(store.cloned(), name.into(), quota, max_keys)),
        };
        let policy = |limit: &config::Limit| {
            let policies = old.iter().flat_map(|old| &old.policies);
            let mut same = policies
                .filter(|policy| policy.limit.name == limit.name && policy.limit.key == limit.key);
            Policy {
                buckets: kept(
                    same.next().map(|old| &old.buckets),
                    &limit.name,
                    limit.quota,
                ),
                limit: limit.clone(),
            }
        };
        let by_peer = old.map(|old| &old.logins_by_peer);
        let by_name = old.map(|old| &old.logins_by_name);
        let unknown = old.map(|old| &old.unknown_tokens);
        Self {
            policies: limits.policies.iter().map(policy).collect(),
            own: old.map(|old| Arc::clone(&old.own)).unwrap_or_default(),
            logins_by_peer: kept(by_peer, "logins_by_peer", limits.logins_by_peer),
            logins_by_name: kept(by_name, "logins_by_name", limits.logins_by_name),
            unknown_tokens: kept(unknown, "unknown_tokens", limits.unknown_tokens),
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
        subject: Subject<'_>,
        max_wait: Duration,
    ) -> Result<Admitted, TooMany> {
        let mut draws = self.draws(subject);
        let whose = Whose::Request(subject);
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
        (draws, whose): (&mut [Draw], Whose<'_>),
        mut empty: Empty,
        deadline: Instant,
    ) -> Result<Admitted, TooMany> {
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
                    self.metrics.limited.add(LimitOutcome::Waited);
                    return Ok(admitted);
                }
                Err(still) => empty = still,
            }
        }
    }

    async fn last_try(&self, draws: &mut [Draw], whose: Whose<'_>) -> Result<Admitted, TooMany> {
        match self.draw_all(draws, whose).await {
            Ok(admitted) => {
                self.metrics.limited.add(LimitOutcome::Waited);
                Ok(admitted)
            }
            Err(empty) => Err(self.refuse(draws, empty)),
        }
    }

    /// Lets a login attempt through to the password check. Counted at once, by peer
    /// and by name, or a burst of guesses would pass before the first has failed;
    /// given back by `LoginTry::succeeded`, or a fleet behind one address, or on one
    /// user, would lock itself out by logging in. So only failures add up.
    pub async fn admit_login(&self, peer: IpAddr, name: &str) -> Result<LoginTry, TooMany> {
        let by_peer = self.logins_by_peer.key(network(peer));
        let by_name = self.logins_by_name.key(name);
        let mut draws = [
            Draw::new(&self.logins_by_peer, by_peer, By::Peer),
            Draw::new(&self.logins_by_name, by_name, By::Name),
        ];
        match self.draw_all(&mut draws, Whose::Login(peer, name)).await {
            Ok(_) => Ok(LoginTry { draws }),
            Err(empty) => Err(self.refuse(&draws, empty)),
        }
    }

    /// Lets one question about an unknown token through to the Webapp.
    pub async fn admit_unknown_token(&self) -> Result<(), TooMany> {
        let mut draws = [of_all(&self.unknown_tokens, By::Nothing)];
        let drawn = self.draw_all(&mut draws, Whose::Anybody).await;
        drawn.map(drop).map_err(|empty| self.refuse(&draws, empty))
    }

    /// A place inside the gate.
    pub fn in_flight(&self) -> Result<InFlight, Overloaded> {
        self.in_flight.enter()
    }

    /// Forgets keys whose buckets are full again. To be called every few seconds.
    pub fn sweep(&self) {
        let fixed = [
            &self.logins_by_peer,
            &self.logins_by_name,
            &self.unknown_tokens,
        ];
        let policies = self.policies.iter().map(|policy| &policy.buckets);
        for buckets in policies.chain(fixed) {
            let keys = buckets.sweep();
            let gauge = self.metrics.limit_keys.with_label_values(&[buckets.name()]);
            gauge.set(i64::try_from(keys).unwrap_or(i64::MAX));
        }
        self.own.retain(|_, buckets| buckets.sweep() > 0);
    }

    /// Gives permits of shared limits back that this gate has no use for.
    pub async fn tidy(&self) {
        let own: Vec<_> = self.own.iter().map(|own| Arc::clone(own.value())).collect();
        let fixed = [
            &self.logins_by_peer,
            &self.logins_by_name,
            &self.unknown_tokens,
        ];
        let policies = self.policies.iter().map(|policy| &policy.buckets);
        for buckets in policies.chain(fixed).chain(&own) {
            buckets.tidy().await;
        }
    }

    fn draws(&self, subject: Subject<'_>) -> Vec<Draw> {
        let mut draws = Vec::with_capacity(self.policies.len() + 1);
        if let Client::Key(key) = subject.client
            && let Some(quota) = key.limit
        {
            draws.push(of_all(&self.own(&key.name, quota), By::ApiKey));
        }
        let counting = self.policies.iter().filter(|policy| {
            let classes = &policy.limit.classes;
            classes.is_empty() || classes.iter().any(|class| **class == *subject.class)
        });
        draws.extend(
            counting.map(|Policy { limit, buckets }| Draw::of_limit(buckets, limit, subject)),
        );
        draws
    }

    fn own(&self, name: &Arc<str>, quota: Quota) -> Arc<Buckets> {
        if let Some(known) = self.own.get(name)
            && known.quota() == quota
        {
            return Arc::clone(&known);
        }
        let store = self.store.clone();
        let fresh = || Arc::new(Buckets::over(store.clone(), "api_key".into(), quota, 1));
        let mut known = self.own.entry(Arc::clone(name)).or_insert_with(fresh);
        if known.quota() != quota {
            *known = fresh();
        }
        Arc::clone(&known)
    }

    /// One from each bucket, or none from any; gets permits from the store where this
    /// gate has none left.
    async fn draw_all(&self, draws: &mut [Draw], whose: Whose<'_>) -> Result<Admitted, Empty> {
        match self.draw_here(draws) {
            Ok(admitted) => Ok(admitted),
            Err((index, NoPermit::Until(wait))) => Err(Empty { index, wait }),
            // Seldom, and large: not to be paid for by every request's memory.
            Err((index, NoPermit::Ask)) => Box::pin(self.fill_and_draw(draws, whose, index)).await,
        }
    }

    async fn fill_and_draw(
        &self,
        draws: &mut [Draw],
        whose: Whose<'_>,
        mut index: usize,
    ) -> Result<Admitted, Empty> {
        for _ in 0..FILLS {
            draws[index].fill(whose).await;
            match self.draw_here(draws) {
                Ok(admitted) => return Ok(admitted),
                Err((index, NoPermit::Until(wait))) => return Err(Empty { index, wait }),
                Err((next, NoPermit::Ask)) => index = next,
            }
        }
        Err(Empty {
            index,
            wait: CROWDED,
        })
    }

    fn draw_here(&self, draws: &mut [Draw]) -> Result<Admitted, (usize, NoPermit)> {
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
                    self.metrics.limited.add(LimitOutcome::DryRun);
                }
                Err(none) => {
                    draws[..index].iter_mut().for_each(Draw::give_back);
                    return Err((index, none));
                }
            }
        }
        let facts = tightest.map(|(index, remaining)| draws[index].buckets.facts(remaining));
        Ok(Admitted { facts })
    }

    fn refuse(&self, draws: &[Draw], empty: Empty) -> TooMany {
        self.metrics.limited.add(LimitOutcome::Refused);
        TooMany::new(&draws[empty.index].buckets, empty.wait)
    }
}

impl LoginTry {
    /// The password was right: the attempt does not count.
    pub fn succeeded(mut self) {
        self.draws.iter_mut().for_each(Draw::give_back);
    }
}

#[cfg(test)]
mod tests;
