//! What the requests of one worker share. The worker's own copy of the current rules is replaced
//! only when a reload has changed them, so that requests do not contend for the program-wide state.

use std::sync::Arc;

use parking_lot::Mutex;

use super::body::request_body::RequestBody;
use super::body::stream_watchdog::SlowStreamWatchdog;
use super::{AppState, LiveRules};
use crate::lifecycle::TaskSet;
use crate::logging::WorkerLines;
use crate::metrics::RouteCounts;
use crate::upstream::{Upstream, UpstreamConnections};

/// One version of the rules, on one worker.
#[derive(Debug)]
pub(super) struct WorkerContext {
    pub(super) app: Arc<AppState>,
    pub(super) live: Arc<LiveRules>,
    /// This worker's connections to each of `live.upstreams`, in their order.
    pub(super) connections: Vec<Arc<UpstreamConnections<RequestBody>>>,
    /// Tasks that run on this worker's runtime.
    pub(super) tasks: Arc<TaskSet>,
    pub(super) watchdog: SlowStreamWatchdog,
    /// None: logging has not been started.
    pub(super) lines: Option<Arc<WorkerLines>>,
    /// Counts of requests that match no route.
    pub(super) no_route: RouteCounts,
}

impl WorkerContext {
    fn first(app: Arc<AppState>, tasks: TaskSet, watchdog: SlowStreamWatchdog) -> Self {
        let live = app.live.load_full();
        Self {
            connections: connections(&live, &[], &tasks),
            live,
            app,
            tasks: Arc::new(tasks),
            watchdog,
            lines: WorkerLines::open(),
            no_route: RouteCounts::new(&"none".into()),
        }
    }

    /// The same context with other rules. The connections to an upstream that stays in use stay too;
    /// requests in progress keep those to one that does not.
    fn with_rules(&self, live: Arc<LiveRules>) -> Self {
        Self {
            connections: connections(&live, &self.connections, &self.tasks),
            live,
            app: Arc::clone(&self.app),
            tasks: Arc::clone(&self.tasks),
            watchdog: self.watchdog.clone(),
            lines: self.lines.clone(),
            no_route: RouteCounts::new(&"none".into()),
        }
    }
}

/// One entry per upstream of `live`: that of `before` where it belongs to the same upstream.
fn connections(
    live: &LiveRules,
    before: &[Arc<UpstreamConnections<RequestBody>>],
    tasks: &TaskSet,
) -> Vec<Arc<UpstreamConnections<RequestBody>>> {
    let of_upstream = |upstream: &Arc<Upstream>| {
        let mut before = before.iter();
        let kept = before.find(|connections| Arc::ptr_eq(connections.upstream(), upstream));
        kept.map_or_else(
            || Arc::new(UpstreamConnections::new(Arc::clone(upstream), tasks)),
            Arc::clone,
        )
    };
    live.upstreams.iter().map(of_upstream).collect()
}

/// The context with the newest rules.
#[derive(Debug)]
pub(super) struct WorkerContextCache(Mutex<Arc<WorkerContext>>);

impl WorkerContextCache {
    pub(super) fn new(app: Arc<AppState>, tasks: TaskSet, watchdog: SlowStreamWatchdog) -> Self {
        let first = WorkerContext::first(app, tasks, watchdog);
        Self(Mutex::new(Arc::new(first)))
    }

    pub(super) fn current(&self) -> Arc<WorkerContext> {
        let mut context = self.0.lock();
        let live = context.app.live.load();
        if !Arc::ptr_eq(&live, &context.live) {
            *context = Arc::new(context.with_rules(Arc::clone(&live)));
        }
        Arc::clone(&context)
    }
}
