//! The gate's own questions to an upstream that something has failed at: a connection and a
//! small request, on the control runtime, so that no client pays for finding out.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, USER_AGENT, VIA};
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Uri};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::debug;

use super::breaker::Asker;
use super::connect::{DialError, Dialer};
use super::health::UpstreamHealth;
use super::login::AGENT;
use crate::causes::chain;
use crate::lifecycle::{Stop, Tasks};
use crate::metrics::{Metrics, ProbeOutcome};

/// For a connection, and for the answer: an upstream that takes longer over a question this
/// small is not well.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// Questions under way at once. One that is never answered must not keep the next from being
/// asked: it may be stuck in a connection that died with the upstream.
const AT_ONCE: usize = 6;

#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error("cannot reach the upstream")]
    Unreachable(#[source] DialError),
    #[error("the upstream closed the connection without an answer, or its answer is not HTTP")]
    Broken(#[source] hyper::Error),
    #[error("no answer from the upstream within {0:?}")]
    Late(Duration),
}

/// Asks whenever the upstream's health is in doubt; one per upstream.
#[derive(Debug)]
pub(super) struct UpstreamProber {
    own: Arc<OwnRequests>,
    tasks: Tasks,
    metrics: Arc<Metrics>,
    stop: Stop,
}

/// What requests of the gate itself to the upstream need: probes, and logins.
#[derive(Debug)]
pub(super) struct OwnRequests {
    pub(super) dialer: Arc<Dialer>,
    pub(super) host: HeaderValue,
    /// Such a request may come back to this gate, too.
    pub(super) via: HeaderValue,
    pub(super) health: Arc<UpstreamHealth>,
    /// Where to ask; None: nothing is known to be cheap.
    pub(super) probe: Option<PathAndQuery>,
    /// For the head of an answer to a probe.
    pub(super) patience: Duration,
}

impl UpstreamProber {
    pub(super) fn new(
        own: &Arc<OwnRequests>,
        tasks: &Tasks,
        stop: &Stop,
        metrics: &Arc<Metrics>,
    ) -> Self {
        Self {
            own: Arc::clone(own),
            tasks: tasks.clone(),
            metrics: Arc::clone(metrics),
            stop: stop.clone(),
        }
    }

    /// Runs until drain.
    pub(super) async fn run(self) {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        let health = Arc::clone(&self.own.health);
        let mut levels = health.levels();
        let mut asked = 0;
        // A health that was handed on: the way to the upstream may have been put right.
        health.hurry();
        while !self.stop.is_draining() {
            levels.mark_unchanged();
            let due = health.next_probe();
            tokio::select! {
                () = self.stop.draining() => return,
                _ = levels.changed() => {}
                () = sleep_until(due.unwrap_or_else(far)), if due.is_some() => {
                    health.probe_begins();
                    if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
                        self.ask(place, asked);
                        asked += 1;
                    }
                }
            }
        }
    }

    fn ask(&self, place: OwnedSemaphorePermit, nth: usize) {
        let own = Arc::clone(&self.own);
        let (metrics, stop) = (Arc::clone(&self.metrics), self.stop.clone());
        self.tasks.spawn("upstream probe", async move {
            let _place = place;
            let outcome = tokio::select! {
                outcome = own.ask(nth) => outcome,
                () = stop.draining() => return,
            };
            let health = &own.health;
            match outcome {
                Ok(()) => {
                    metrics.upstream_probes.add(ProbeOutcome::Answered);
                    health.answered();
                }
                Err(failure) => {
                    metrics.upstream_probes.add(ProbeOutcome::Failed);
                    debug!(error = %chain(&failure), "the upstream did not answer a probe");
                    match &failure {
                        ProbeError::Unreachable(_) => health.unconnected(Asker::Probe, &failure),
                        ProbeError::Broken(_) | ProbeError::Late(_) => {
                            health.unanswered(Asker::Probe, &failure);
                        }
                    }
                }
            }
        });
    }
}

impl OwnRequests {
    /// Without a credential: any answer will do, a 401 or a 404 as well. Every other question
    /// goes to the root, in case the probe's path is the only one without an answer.
    fn target(&self, nth: usize) -> Uri {
        match &self.probe {
            Some(path) if nth.is_multiple_of(2) => Uri::from(path.clone()),
            _ => Uri::from_static("/"),
        }
    }

    async fn ask(&self, nth: usize) -> Result<(), ProbeError> {
        let link = self.dialer.dial(Some(Instant::now() + LONGEST_WAIT)).await;
        let link = link.map_err(ProbeError::Unreachable)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(link))
            .await
            .map_err(ProbeError::Broken)?;
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.uri_mut() = self.target(nth);
        let headers = request.headers_mut();
        headers.insert(HOST, self.host.clone());
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        headers.insert(VIA, self.via.clone());
        let patience = self.patience.min(LONGEST_WAIT);
        let exchange = async {
            let mut answer = std::pin::pin!(sender.send_request(request));
            let mut connection = std::pin::pin!(connection);
            // The connection is driven from here: it serves one question and ends with it.
            tokio::select! {
                answer = &mut answer => return answer,
                // How it ended, the exchange is told as well.
                _ = &mut connection => {}
            }
            answer.await
        };
        match timeout(patience, Box::pin(exchange)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(failure)) => Err(ProbeError::Broken(failure)),
            Err(_) => Err(ProbeError::Late(patience)),
        }
    }
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(86_400)
}
