//! Requests inside the gate at once. The first half of the places is for whoever comes;
//! the second half is divided among clients, so that one client alone cannot fill the
//! gate. Which client it is, is known only after authentication.

use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::shares::{SharePermit, SharePool};

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many requests in flight")]
pub struct TooManyInFlight;

/// The places of one gate; they outlive a reload.
#[derive(Debug)]
pub(super) struct InFlightPlaces {
    inside: AtomicUsize,
    most: AtomicUsize,
    shared: Arc<SharePool>,
}

/// A request inside the gate, until dropped.
#[derive(Debug)]
pub struct InFlight {
    places: Arc<InFlightPlaces>,
    /// The gate was half full: the place counts as its client's.
    is_crowded: bool,
    share: Option<Box<SharePermit>>,
}

impl InFlightPlaces {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            inside: AtomicUsize::new(0),
            most: AtomicUsize::new(most),
            shared: SharePool::new(),
        })
    }

    pub(super) fn resize(&self, most: usize) {
        self.most.store(most, Ordering::Relaxed);
    }

    pub(super) fn enter(self: &Arc<Self>) -> Result<InFlight, TooManyInFlight> {
        let most = self.most.load(Ordering::Relaxed);
        let inside = self.inside.fetch_add(1, Ordering::Relaxed);
        let place = InFlight {
            places: Arc::clone(self),
            is_crowded: inside >= most / 2,
            share: None,
        };
        if inside >= most {
            return Err(TooManyInFlight);
        }
        Ok(place)
    }
}

impl InFlight {
    /// Counts the place as one of `client`'s, where that matters.
    pub fn claim(&mut self, client: impl Hash) -> Result<(), TooManyInFlight> {
        if !self.is_crowded || self.share.is_some() {
            return Ok(());
        }
        let InFlightPlaces {
            inside,
            most,
            shared,
        } = &*self.places;
        let (inside, most) = (inside.load(Ordering::Relaxed), most.load(Ordering::Relaxed));
        // With this one's own.
        let free = (most + 1).saturating_sub(inside);
        let share = shared.take_of_free(shared.key(client), free);
        self.share = Some(Box::new(share.ok_or(TooManyInFlight)?));
        Ok(())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.places.inside.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inside(places: &Arc<InFlightPlaces>, client: &str, tries: usize) -> Vec<InFlight> {
        let enter = |_| {
            let mut place = places.enter().ok()?;
            place.claim(client).ok()?;
            Some(place)
        };
        (0..tries).filter_map(enter).collect()
    }

    #[test]
    fn one_client_cannot_fill_the_gate_and_two_share_its_second_half() {
        let places = InFlightPlaces::new(180);
        let greedy = inside(&places, "greedy", 1000);
        assert_eq!(greedy.len(), 90 + 75);
        let honest = inside(&places, "honest", 1000);
        assert_eq!(honest.len(), 8);
        drop(greedy);
        assert_eq!(inside(&places, "honest", 100).len(), 100);
        drop(honest);
        assert_eq!(places.inside.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_gate_with_room_does_not_ask_who_it_is() {
        let places = InFlightPlaces::new(100);
        let mut first = places.enter().unwrap();
        first.claim("client").unwrap();
        assert!(first.share.is_none());
        places.resize(1);
        assert!(places.enter().is_err());
        drop(first);
        assert!(places.enter().is_ok());
    }
}
