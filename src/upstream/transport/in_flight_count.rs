//! Counts the requests to one server that have not ended.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use prometheus::IntGauge;

/// The requests to one server that have not ended, bodies included.
#[derive(Debug)]
pub(in crate::upstream) struct InFlightCount {
    count: AtomicUsize,
    /// Shows the same number; None: it is not shown.
    gauge: Option<IntGauge>,
}

impl InFlightCount {
    pub(in crate::upstream) fn new(gauge: Option<IntGauge>) -> Arc<Self> {
        Arc::new(Self {
            count: AtomicUsize::new(0),
            gauge,
        })
    }

    pub(in crate::upstream) fn get(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}

/// Counts a request for as long as it lives.
pub(in crate::upstream) struct InFlightRequest(Arc<InFlightCount>);

impl InFlightRequest {
    pub(in crate::upstream) fn begin(count: &Arc<InFlightCount>) -> Self {
        count.count.fetch_add(1, Ordering::Relaxed);
        if let Some(gauge) = &count.gauge {
            gauge.inc();
        }
        Self(Arc::clone(count))
    }
}

impl Drop for InFlightRequest {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
        if let Some(gauge) = &self.0.gauge {
            gauge.dec();
        }
    }
}

impl fmt::Debug for InFlightRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("InFlightRequest").finish()
    }
}
