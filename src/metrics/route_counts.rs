//! The counters of one route, looked up once instead of by name for each request.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus::{Histogram, IntCounter};

use super::Metrics;

/// The counters of one route. Each is created at its first use, because most routes never see
/// most status classes.
#[derive(Debug)]
pub struct RouteCounts {
    route: Arc<str>,
    by_class: [OnceLock<IntCounter>; CLASSES.len()],
    seconds: OnceLock<Histogram>,
}

/// Status classes; `none`: the client disconnected before there was a response.
const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

impl RouteCounts {
    pub fn new(route: &Arc<str>) -> Self {
        Self {
            route: Arc::clone(route),
            by_class: Default::default(),
            seconds: OnceLock::new(),
        }
    }

    /// Counts one finished request.
    pub fn add(&self, metrics: &Metrics, status: Option<u16>, elapsed: Duration) {
        let class = usize::from(status.map_or(0, |status| status / 100)).min(CLASSES.len() - 1);
        let labels = [&*self.route, CLASSES[class]];
        self.by_class[class]
            .get_or_init(|| metrics.requests.with_label_values(&labels))
            .inc();
        self.seconds
            .get_or_init(|| metrics.request_seconds.with_label_values(&labels[..1]))
            .observe(elapsed.as_secs_f64());
    }
}
