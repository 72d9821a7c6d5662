//! The counts of one route, found once and not by name for each request.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus::{Histogram, IntCounter};

use super::Metrics;

/// A route's counts. Each is made at its first use: most routes never see most classes.
#[derive(Debug)]
pub struct RouteCounts {
    route: Arc<str>,
    by_class: [OnceLock<IntCounter>; CLASSES.len()],
    seconds: OnceLock<Histogram>,
}

/// `none`: the client left before there was an answer.
const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

impl RouteCounts {
    pub fn new(route: &Arc<str>) -> Self {
        Self {
            route: Arc::clone(route),
            by_class: Default::default(),
            seconds: OnceLock::new(),
        }
    }

    /// One request more.
    pub fn add(&self, metrics: &Metrics, status: Option<u16>, took: Duration) {
        let class = usize::from(status.map_or(0, |status| status / 100)).min(CLASSES.len() - 1);
        let labels = [&*self.route, CLASSES[class]];
        self.by_class[class]
            .get_or_init(|| metrics.requests.with_label_values(&labels))
            .inc();
        self.seconds
            .get_or_init(|| metrics.request_seconds.with_label_values(&labels[..1]))
            .observe(took.as_secs_f64());
    }
}
