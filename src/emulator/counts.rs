//! Counters of requests, for tests and for the metrics nodes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

/// Paths counted separately; the others share an entry.
const MAX_PATHS: usize = 4096;
const OTHER: &str = "(other paths)";

#[derive(Debug, Default)]
pub(super) struct RequestCounts {
    pub requests: AtomicU64,
    pub logins: AtomicU64,
    pub logins_granted: AtomicU64,
    pub responses_401: AtomicU64,
    pub responses_429: AtomicU64,
    pub connections: AtomicU64,
    in_flight: AtomicUsize,
    most_in_flight: AtomicUsize,
    paths: Mutex<BTreeMap<String, u64>>,
}

/// Counts a request as in flight until dropped.
pub(super) struct RequestInFlight<'a>(&'a RequestCounts);

impl RequestCounts {
    pub(super) fn enter(&self, path: &str) -> RequestInFlight<'_> {
        add(&self.requests);
        let now = self.in_flight.fetch_add(1, Ordering::AcqRel) + 1;
        self.most_in_flight.fetch_max(now, Ordering::AcqRel);
        let mut paths = self.paths.lock();
        if let Some(count) = paths.get_mut(path) {
            *count += 1;
        } else {
            let path = if paths.len() < MAX_PATHS { path } else { OTHER };
            *paths.entry(path.to_owned()).or_default() += 1;
        }
        drop(paths);
        RequestInFlight(self)
    }

    /// Requests whose path begins with `prefix`.
    pub(super) fn with_prefix(&self, prefix: &str) -> u64 {
        let paths = self.paths.lock();
        let mine = paths.iter().filter(|(path, _)| path.starts_with(prefix));
        mine.map(|(_, count)| count).sum()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }

    pub(super) fn most_in_flight(&self) -> usize {
        self.most_in_flight.load(Ordering::Acquire)
    }

    pub(super) fn read(count: &AtomicU64) -> u64 {
        count.load(Ordering::Relaxed)
    }

    /// Resets all counters; requests in flight stay counted.
    pub(super) fn reset(&self) {
        for count in [
            &self.requests,
            &self.logins,
            &self.logins_granted,
            &self.responses_401,
            &self.responses_429,
            &self.connections,
        ] {
            count.store(0, Ordering::Relaxed);
        }
        self.most_in_flight
            .store(self.in_flight(), Ordering::Release);
        self.paths.lock().clear();
    }

    pub(super) fn show(&self) -> serde_json::Value {
        let read = Self::read;
        serde_json::json!({
            "requests": read(&self.requests),
            "logins": read(&self.logins),
            "logins_granted": read(&self.logins_granted),
            "responses_401": read(&self.responses_401),
            "responses_429": read(&self.responses_429),
            "connections": read(&self.connections),
            "in_flight": self.in_flight(),
            "most_in_flight": self.most_in_flight(),
            "paths": *self.paths.lock(),
        })
    }
}

pub(super) fn add(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}

impl Drop for RequestInFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}
