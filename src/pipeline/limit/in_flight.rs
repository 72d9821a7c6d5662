//! Limits the requests in flight. The first half of the permits is for all requests alike; the second
//! half is divided among clients, and among upstreams where there are several, so that neither one
//! client nor one upstream that does not respond can take all permits. The client is known only after
//! authentication, so a permit is claimed for its client later.

use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::shares::{SharePermit, SharePool};

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many requests in flight")]
pub struct TooManyInFlight;

/// The permits of the gateway; they survive reloads.
#[derive(Debug)]
pub(super) struct InFlightLimit {
    count: AtomicUsize,
    max: AtomicUsize,
    shares: Arc<SharePool>,
    upstream_shares: Arc<SharePool>,
}

/// The permit of one request, until dropped.
#[derive(Debug)]
pub struct InFlightPermit {
    limit: Arc<InFlightLimit>,
    /// Half of the permits were taken: this one counts as its client's.
    is_crowded: bool,
    shares: Option<Box<InFlightShares>>,
}

/// By whom a permit is held.
#[derive(Debug, Default)]
struct InFlightShares {
    client: Option<SharePermit>,
    upstream: Option<SharePermit>,
}

impl InFlightLimit {
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            count: AtomicUsize::new(0),
            max: AtomicUsize::new(max),
            shares: SharePool::new(),
            upstream_shares: SharePool::new(),
        })
    }

    pub(super) fn resize(&self, max: usize) {
        self.max.store(max, Ordering::Relaxed);
    }

    pub(super) fn acquire(self: &Arc<Self>) -> Result<InFlightPermit, TooManyInFlight> {
        let max = self.max.load(Ordering::Relaxed);
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        // Gives the count back when it is dropped.
        let permit = InFlightPermit {
            limit: Arc::clone(self),
            is_crowded: count >= max / 2,
            shares: None,
        };
        if count >= max {
            return Err(TooManyInFlight);
        }
        Ok(permit)
    }
}

impl InFlightPermit {
    /// Whether half of the permits were taken, so that it must be claimed.
    pub fn is_crowded(&self) -> bool {
        self.is_crowded
    }

    /// Counts the permit as one of `client`'s, if half of the permits were taken.
    pub fn claim(&mut self, client: impl Hash) -> Result<(), TooManyInFlight> {
        if !self.is_crowded {
            return Ok(());
        }
        let free = self.free();
        let place = &mut self.shares.get_or_insert_default().client;
        take(&self.limit.shares, place, client, free)
    }

    /// Counts the permit as one for requests to `upstream`, if half of the permits were taken.
    pub fn claim_for_upstream(&mut self, upstream: &str) -> Result<(), TooManyInFlight> {
        if !self.is_crowded {
            return Ok(());
        }
        let free = self.free();
        let place = &mut self.shares.get_or_insert_default().upstream;
        take(&self.limit.upstream_shares, place, upstream, free)
    }

    /// The free permits, including this request's own.
    fn free(&self) -> usize {
        let count = self.limit.count.load(Ordering::Relaxed);
        let max = self.limit.max.load(Ordering::Relaxed);
        (max + 1).saturating_sub(count)
    }
}

/// Fills an empty `place`.
fn take(
    pool: &Arc<SharePool>,
    place: &mut Option<SharePermit>,
    owner: impl Hash,
    free: usize,
) -> Result<(), TooManyInFlight> {
    if place.is_none() {
        let share = pool.take_of_free(pool.key(owner), free);
        *place = Some(share.ok_or(TooManyInFlight)?);
    }
    Ok(())
}

impl Drop for InFlightPermit {
    fn drop(&mut self) {
        self.limit.count.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acquire_many(limit: &Arc<InFlightLimit>, client: &str, tries: usize) -> Vec<InFlightPermit> {
        let acquire = |_| {
            let mut permit = limit.acquire().ok()?;
            permit.claim(client).ok()?;
            Some(permit)
        };
        (0..tries).filter_map(acquire).collect()
    }

    #[test]
    fn one_client_cannot_take_all_permits_and_two_share_the_second_half() {
        let limit = InFlightLimit::new(180);
        let greedy = acquire_many(&limit, "greedy", 1000);
        assert_eq!(greedy.len(), 90 + 75);
        let honest = acquire_many(&limit, "honest", 1000);
        assert_eq!(honest.len(), 8);
        drop(greedy);
        assert_eq!(acquire_many(&limit, "honest", 100).len(), 100);
        drop(honest);
        assert_eq!(limit.count.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn upstreams_that_do_not_respond_leave_permits_for_the_others() {
        let limit = InFlightLimit::new(180);
        let take = |upstream: &'static str| {
            let limit = Arc::clone(&limit);
            let mut clients = 0_u32..;
            std::iter::from_fn(move || {
                let mut permit = limit.acquire().ok()?;
                permit.claim(clients.next()).ok()?;
                permit.claim_for_upstream(upstream).ok()?;
                Some(permit)
            })
        };
        let one: Vec<_> = take("one").take(1000).collect();
        assert_eq!(one.len(), 90 + 75);
        let two: Vec<_> = take("two").take(1000).collect();
        assert!(!two.is_empty());
        assert!(take("healthy").next().is_some());
        drop((one, two));
        assert_eq!(limit.count.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_first_half_is_not_counted_by_client() {
        let limit = InFlightLimit::new(100);
        let mut first = limit.acquire().unwrap();
        first.claim("client").unwrap();
        assert!(first.shares.is_none());
        limit.resize(1);
        assert!(limit.acquire().is_err());
        drop(first);
        assert!(limit.acquire().is_ok());
    }
}
