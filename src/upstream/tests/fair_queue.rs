//! Which client gets the next permit: examples, and properties for any order of events.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use tokio::time::Instant;

use proptest::prelude::*;

use super::{UpstreamSetup, eventually};
use crate::shares::{ShareKey, is_within_share};
use crate::upstream::fair_queue::{ClientSlot, FairQueue, WaiterId};

fn key(client: u64) -> ShareKey {
    ShareKey(client << 8)
}

fn poll(queue: &FairQueue, waiter: WaiterId) -> Option<ClientSlot> {
    match queue.poll_permit(waiter, &mut Context::from_waker(Waker::noop())) {
        Poll::Ready(slot) => Some(slot),
        Poll::Pending => None,
    }
}

fn take_all(queue: &FairQueue, client: u64) -> Vec<ClientSlot> {
    std::iter::from_fn(|| queue.try_take(key(client), false)).collect()
}

#[test]
fn a_new_client_gets_a_permit_however_many_another_one_holds() {
    let queue = FairQueue::new(64, 4);
    let first_client = take_all(&queue, 1);
    assert_eq!(
        first_client.len(),
        54,
        "no other client, and no monitoring request so far"
    );
    let waiting: Vec<_> = (0..1000).map(|_| queue.enqueue(key(1), false)).collect();
    assert!(
        queue.try_take(key(2), false).is_none(),
        "no permit without queueing while requests wait"
    );
    let other = queue.enqueue(key(2), false);
    assert!(
        poll(&queue, other).is_some(),
        "a client without a permit is served at once"
    );
    assert!(poll(&queue, waiting[0]).is_none());
}

#[test]
fn freed_permits_go_to_the_client_with_the_fewest_and_each_client_is_fifo() {
    let queue = FairQueue::new(4, 0);
    let taken_slots = take_all(&queue, 1);
    assert_eq!(taken_slots.len(), 4);
    let first_client: Vec<_> = (0..3).map(|_| queue.enqueue(key(1), false)).collect();
    let two: Vec<_> = (0..2).map(|_| queue.enqueue(key(2), false)).collect();
    let three = queue.enqueue(key(3), false);
    queue.release(taken_slots[0]);
    assert!(
        poll(&queue, two[0]).is_some(),
        "the client holds no permit and waits longest"
    );
    queue.release(taken_slots[1]);
    assert!(poll(&queue, three).is_some(), "the client holds no permit");
    queue.release(taken_slots[2]);
    assert!(poll(&queue, first_client[0]).is_some() || poll(&queue, two[1]).is_some());
    assert!(poll(&queue, first_client[2]).is_none());
    assert_eq!(queue.length().granted, 3);
}

#[test]
fn monitoring_has_a_reserve_and_no_further_priority() {
    let queue = FairQueue::new(16, 1);
    assert!(queue.try_take(key(9), true).is_some());
    let all: Vec<_> = (1..16)
        .map(|client| queue.try_take(key(client), false))
        .collect();
    assert!(
        all.iter().all(Option::is_some),
        "the reserve is in use: the other permits are available"
    );
    let first = all[0].unwrap();
    let monitoring = queue.enqueue(key(9), true);
    let other = queue.enqueue(key(20), false);
    queue.release(first);
    assert!(
        poll(&queue, other).is_some(),
        "the client holds no permit, monitoring holds one"
    );
    assert!(poll(&queue, monitoring).is_none());

    let queue = FairQueue::new(16, 1);
    queue.leave(queue.enqueue(key(9), true));
    let all: Vec<_> = (0..40)
        .map_while(|client| queue.try_take(key(client), false))
        .collect();
    assert_eq!(all.len(), 15, "one permit is reserved");
    assert!(queue.try_take(key(9), true).is_some());
}

#[test]
fn with_too_few_permits_for_a_reserve_monitoring_goes_first_every_other_time() {
    let queue = FairQueue::new(1, 0);
    let mut taken_slots = queue.try_take(key(1), false).unwrap();
    let mut others: Vec<_> = (2..5)
        .map(|client| queue.enqueue(key(client), false))
        .collect();
    let mut monitoring: Vec<_> = (0..3).map(|_| queue.enqueue(key(9), true)).collect();
    let mut order = String::new();
    for _ in 0..6 {
        queue.release(taken_slots);
        taken_slots = if let Some(slot) = monitoring.first().and_then(|first| poll(&queue, *first))
        {
            monitoring.remove(0);
            order.push('m');
            slot
        } else {
            order.push('o');
            poll(&queue, others.remove(0)).unwrap()
        };
    }
    assert_eq!(order, "momomo");
}

#[test]
fn state_of_clients_without_requests_is_removed() {
    let queue = FairQueue::new(8, 0);
    let stays = queue.try_take(key(1), false).unwrap();
    for client in 2..10_000 {
        let slot = queue.try_take(key(client), false).unwrap();
        queue.release(slot);
    }
    let text = format!("{queue:?}");
    assert!(text.len() < 100_000, "{} characters of state", text.len());
    queue.release(stays);
}

#[derive(Clone, Debug)]
enum Event {
    /// A request of a client; whether it is a monitoring request.
    Comes(u64, bool),
    /// One of the waiting requests is cancelled.
    Leaves(usize),
    /// One of the permits is released.
    Ends(usize),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..6_u64, prop::bool::weighted(0.15)).prop_map(|(client, kind)| Event::Comes(client, kind)),
        1 => (0..1000_usize).prop_map(Event::Leaves),
        3 => (0..1000_usize).prop_map(Event::Ends),
    ]
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

struct Waiting {
    client: (u64, bool),
    id: WaiterId,
    woken: Arc<Woken>,
}

/// The expected state, checked after each event.
struct Model {
    queue: FairQueue,
    permits: usize,
    taken_slots: Vec<((u64, bool), ClientSlot)>,
    waiting: Vec<Waiting>,
}

impl Model {
    fn holds(&self, client: (u64, bool)) -> usize {
        self.taken_slots
            .iter()
            .filter(|(holder, _)| *holder == client)
            .count()
    }

    fn apply(&mut self, event: &Event) {
        match *event {
            Event::Comes(client, kind) => match self.queue.try_take(key(client), kind) {
                Some(slot) => self.taken_slots.push(((client, kind), slot)),
                None => self.waits(client, kind),
            },
            Event::Leaves(at) if !self.waiting.is_empty() => {
                let leaving = self.waiting.remove(at % self.waiting.len());
                self.queue.leave(leaving.id);
            }
            Event::Ends(at) if !self.taken_slots.is_empty() => {
                let (_, slot) = self.taken_slots.swap_remove(at % self.taken_slots.len());
                self.queue.release(slot);
            }
            _ => {}
        }
        self.collect();
    }

    fn waits(&mut self, client: u64, kind: bool) {
        let (id, woken) = (self.queue.enqueue(key(client), kind), Arc::default());
        let waker = Waker::from(Arc::clone(&woken));
        match self.queue.poll_permit(id, &mut Context::from_waker(&waker)) {
            Poll::Ready(slot) => self.taken_slots.push(((client, kind), slot)),
            Poll::Pending => self.waiting.push(Waiting {
                client: (client, kind),
                id,
                woken,
            }),
        }
    }

    /// Woken waiters take their permits; the others must have none.
    fn collect(&mut self) {
        let mut first_of: HashMap<(u64, bool), ()> = HashMap::new();
        let mut still = Vec::new();
        for waiting in std::mem::take(&mut self.waiting) {
            if waiting.woken.0.load(Ordering::Relaxed) > 0 {
                assert!(
                    !first_of.contains_key(&waiting.client),
                    "a request overtook an earlier one of its client"
                );
                let slot = poll(&self.queue, waiting.id).expect("a woken waiter has a permit");
                self.taken_slots.push((waiting.client, slot));
            } else {
                first_of.insert(waiting.client, ());
                still.push(waiting);
            }
        }
        self.waiting = still;
    }

    fn check(&self, reserve: usize, is_monitored: bool) -> Result<(), TestCaseError> {
        prop_assert!(self.taken_slots.len() <= self.permits);
        prop_assert_eq!(self.queue.length().waiting, self.waiting.len());
        let monitoring = self
            .taken_slots
            .iter()
            .filter(|((_, kind), _)| *kind)
            .count();
        let reserved = if is_monitored {
            reserve.saturating_sub(monitoring)
        } else {
            0
        };
        let open = (self.permits - self.taken_slots.len()).saturating_sub(reserved);
        for waiting in &self.waiting {
            let holds = self.holds(waiting.client);
            prop_assert!(
                !is_within_share(holds, open, self.permits),
                "a request waits although a permit is free"
            );
            let is_reserved = waiting.client.1 && monitoring < reserve;
            prop_assert!(!is_reserved || self.taken_slots.len() == self.permits);
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn no_request_waits_while_a_permit_is_available_to_it(
        permits in 1..20_usize,
        events in prop::collection::vec(event(), 1..300),
    ) {
        let reserve = if permits >= 4 { (permits / 16).max(1) } else { 0 };
        let queue = FairQueue::new(permits, reserve);
        let mut model = Model { queue, permits, taken_slots: Vec::new(), waiting: Vec::new() };
        let mut is_monitored = false;
        for event in &events {
            is_monitored |= matches!(event, Event::Comes(_, true));
            model.apply(event);
            model.check(reserve, is_monitored)?;
        }
        // When all requests have ended, all permits are free again.
        for waiting in std::mem::take(&mut model.waiting) {
            model.queue.leave(waiting.id);
        }
        for (_, slot) in std::mem::take(&mut model.taken_slots) {
            model.queue.release(slot);
        }
        for client in 100..100 + (permits - if is_monitored { reserve } else { 0 }) as u64 {
            prop_assert!(model.queue.try_take(key(client), false).is_some());
        }
    }

    /// While a client waits, the next permit never goes to a client that holds more permits.
    #[test]
    fn a_freed_permit_goes_to_the_waiting_client_that_holds_the_fewest(
        permits in 1..20_usize,
        clients in prop::collection::vec(0..8_u64, 1..200),
        ends in prop::collection::vec(0..1000_usize, 1..100),
    ) {
        let queue = FairQueue::new(permits, 0);
        let mut model = Model { queue, permits, taken_slots: Vec::new(), waiting: Vec::new() };
        for client in clients {
            model.apply(&Event::Comes(client, false));
        }
        for end in ends {
            let Some(at) = end.checked_rem(model.taken_slots.len()) else { break };
            let (ending, _) = model.taken_slots[at];
            let holds = |model: &Model, client| {
                model.holds(client) - usize::from(client == ending)
            };
            let fewest = model.waiting.iter().map(|waiting| holds(&model, waiting.client)).min();
            let before = model.taken_slots.len();
            model.apply(&Event::Ends(end));
            if let (Some(fewest), true) = (fewest, model.taken_slots.len() == before) {
                let (winner, _) = *model.taken_slots.last().unwrap();
                prop_assert_eq!(model.holds(winner) - 1, fewest);
            }
        }
    }
}

#[tokio::test]
async fn a_queue_timeout_reports_when_the_queue_will_have_advanced() {
    let mut setup = UpstreamSetup::of(([127, 0, 0, 1], 9).into()).without_login();
    setup.settings.concurrency = 1;
    setup.settings.queue_timeout = Duration::from_millis(300);
    let upstream = setup.open().unwrap();
    let (one, other) = (upstream.permits().key(1), upstream.permits().key(2));
    let taken_slots = upstream.acquire_permit(one, false).await.unwrap();
    let refused = upstream.acquire_permit(other, false).await.unwrap_err();
    assert_eq!(
        refused.retry_after,
        Duration::from_secs(1),
        "no other request waits"
    );

    let waiting: Vec<_> = (0..40)
        .map(|_| {
            let upstream = Arc::clone(&upstream);
            let leaves = Duration::from_millis(600);
            Box::pin(async move {
                tokio::time::timeout(leaves, upstream.permits().acquire(one, false)).await
            })
        })
        .collect();
    let all = futures_util::future::join_all(waiting);
    let late = async {
        eventually("queued", || {
            setup
                .metrics
                .upstream("main")
                .upstream_requests_queued
                .get()
                == 40
        })
        .await;
        upstream.acquire_permit(other, false).await
    };
    let (_, late) = tokio::join!(all, late);
    assert!(late.is_err());
    assert_eq!(
        setup
            .metrics
            .upstream("main")
            .upstream_requests_queued
            .get(),
        0
    );
    drop(taken_slots);
    let permit = upstream.acquire_permit(other, false).await.unwrap();
    assert!(permit.park().is_ok(), "a slow stream releases its permit");
    assert!(upstream.acquire_permit(one, false).await.is_ok());
}

#[tokio::test]
async fn a_request_does_not_wait_for_a_permit_beyond_its_deadline() {
    let mut setup = UpstreamSetup::of(([127, 0, 0, 1], 9).into()).without_login();
    setup.settings.concurrency = 1;
    setup.settings.queue_timeout = Duration::from_secs(60);
    let upstream = setup.open().unwrap();
    let (one, other) = (upstream.permits().key(1), upstream.permits().key(2));
    let _taken = upstream.acquire_permit(one, false).await.unwrap();
    for millis in [0, 200] {
        let began = Instant::now();
        let deadline = began + Duration::from_millis(millis);
        let refused = upstream.permits().acquire_by(other, false, deadline);
        let refused = refused.await.unwrap_err();
        assert!(refused.waited < Duration::from_secs(5), "{refused}");
        assert!(began.elapsed() >= Duration::from_millis(millis));
    }
}
