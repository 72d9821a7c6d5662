//! One worker's view of the rules, with its own connections. Requests borrow it as a
//! whole: what all workers share is touched only when the rules have changed.

use std::sync::Arc;

use super::body::request_body::RequestBody;
use super::{AppState, LiveRules};
use crate::lifecycle::TaskSet;
use crate::logging::WorkerLines;
use crate::metrics::{Metrics, RouteCounts};
use crate::upstream::UpstreamConnections;
use crate::via::GatewayVia;
use parking_lot::Mutex;

/// One version of the rules, on one worker.
#[derive(Debug)]
pub(super) struct WorkerContext {
    pub(super) live: Arc<LiveRules>,
    /// To the upstream of `live`.
    pub(super) connections: Arc<UpstreamConnections<RequestBody>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) via: GatewayVia,
    /// None: no log has been started.
    pub(super) lines: Option<Arc<WorkerLines>>,
    /// Counts of requests that no route took.
    pub(super) no_route: RouteCounts,
}

impl WorkerContext {
    fn first(shared: &AppState, tasks: &TaskSet) -> Arc<Self> {
        let live = shared.live.load_full();
        Arc::new(Self {
            connections: connections(&live, tasks),
            live,
            metrics: Arc::clone(&shared.metrics),
            via: shared.via.clone(),
            lines: WorkerLines::open(),
            no_route: RouteCounts::new(&"none".into()),
        })
    }

    /// The same with other rules. If they name another upstream, requests under way
    /// keep the connections they have.
    fn next(&self, live: Arc<LiveRules>, tasks: &TaskSet) -> Arc<Self> {
        let is_same = Arc::ptr_eq(&live.upstream, &self.live.upstream);
        Arc::new(Self {
            connections: match is_same {
                true => Arc::clone(&self.connections),
                false => connections(&live, tasks),
            },
            live,
            metrics: Arc::clone(&self.metrics),
            via: self.via.clone(),
            lines: self.lines.clone(),
            no_route: RouteCounts::new(&"none".into()),
        })
    }
}

fn connections(live: &LiveRules, tasks: &TaskSet) -> Arc<UpstreamConnections<RequestBody>> {
    let upstream = Arc::clone(&live.upstream);
    Arc::new(UpstreamConnections::new(upstream, tasks.clone()))
}

/// The newest view.
#[derive(Debug)]
pub(super) struct WorkerContextCache(Mutex<Arc<WorkerContext>>);

impl WorkerContextCache {
    pub(super) fn new(shared: &AppState, tasks: &TaskSet) -> Self {
        Self(Mutex::new(WorkerContext::first(shared, tasks)))
    }

    pub(super) fn view(&self, shared: &AppState, tasks: &TaskSet) -> Arc<WorkerContext> {
        let mut here = self.0.lock();
        let live = shared.live.load();
        if !Arc::ptr_eq(&live, &here.live) {
            *here = here.next(Arc::clone(&live), tasks);
        }
        Arc::clone(&here)
    }
}
