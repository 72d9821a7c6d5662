//! One request from its head to its response. Owns `LiveRules`, the part of the program that a reload
//! replaces as a whole. Knows no sockets: the listener hands it requests, and `upstream` carries them
//! on. Start with `Pipeline::handle`; the stages run in this order:
//!
//! ```text
//! 1 route          the target and the fields  -> Route        stages/route.rs
//! 2 authenticate   the credential             -> Client       stages/authenticate.rs
//! 3 admit          the rate limits            -> permits      stages/admit.rs, limit/
//! 4 inject         the upstream's credential  -> Outbound     stages/inject.rs
//! 5 forward        send, repeat once          -> Response     stages/forward.rs
//!   or users_node  login, logout, users       -> Response     users_node/
//! 6 respond        request id, access log                     stages/respond.rs
//! ```
//!
//! Any stage may fail with a `Rejection`, which has one table of statuses (`reject`).

mod access_log;
mod bench_api;
mod body;
mod credential_fault;
#[cfg(fuzzing)]
pub mod fuzz_api;
mod grpc;
mod headers;
mod host_table;
mod limit;
mod peer;
mod reject;
mod request_context;
mod route_rewrite;
mod route_table;
mod route_tree;
mod stages;
mod users_node;
mod worker_context;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::request::Parts;
use http::{Method, Response};
use hyper::body::Incoming;

pub use access_log::logged_body::LoggedResponseBody;
pub use bench_api::{clean_fields, presents_credential};
pub use body::client_body::ClientBody;
pub use body::client_response_body::ResponseBody;
pub use body::request_body::RequestBody;
pub use body::stream_watchdog::SlowStreamWatchdog;
pub use credential_fault::CredentialFault;
pub use limit::{
    InFlightPermit, IntrospectionAttempt, Limiter, LoginAttempt, LoginLimited, RateAdmission,
    RateLimitHeaders, RateSubject, TooMany, TooManyInFlight,
};
pub use peer::{LastToken, Peer, TlsFacts};
pub use reject::{ErrorMapping, Rejection};
pub use route_table::{RouteTable, RouteUpstream};
pub use stages::introspect::keep_probe_tried;
pub use stages::token_introspection::TokenIntrospection;

use crate::config::{Config, Target};
use crate::identity::{KeyRing, KeySet, UserDirectory};
use crate::lifecycle::TaskSet;
use crate::metrics::Metrics;
use crate::token::TokenStore;
use crate::upstream::Upstream;
use crate::via::GatewayVia;
use access_log::entry::AccessLogEntry;
use stages::admit::admit;
use stages::authenticate::authenticate;
use stages::forward::forward;
use stages::options;
use stages::respond::{RefusalForm, reject, respond};
use stages::route::route;
use users_node::users_call::users_call;
use worker_context::{WorkerContext, WorkerContextCache};

/// The current rules; a reload replaces them as a whole.
#[derive(Debug)]
pub struct LiveRules {
    pub config: Arc<Config>,
    pub routes: Arc<RouteTable>,
    pub keys: KeySet,
    /// API keys made at run time; they survive all reloads.
    pub ring: Arc<KeyRing>,
    pub limiter: Arc<Limiter>,
    /// In the order of `Config::upstreams`.
    pub upstreams: Vec<Arc<Upstream>>,
}

impl LiveRules {
    /// The upstream of this name.
    pub fn upstream(&self, name: &str) -> Option<&Arc<Upstream>> {
        self.upstreams
            .iter()
            .find(|upstream| *upstream.name == *name)
    }

    /// The upstream that has the users, with `users.directory = "webapp"`.
    pub fn users_upstream(&self) -> &Arc<Upstream> {
        &self.upstreams[self.config.users_upstream]
    }
}

/// What all workers share.
#[derive(Debug)]
pub struct AppState {
    pub live: ArcSwap<LiveRules>,
    /// None when the upstream owns the users.
    pub users: Option<Arc<UserDirectory>>,
    pub tokens: Arc<TokenStore>,
    pub introspection: Arc<TokenIntrospection>,
    pub metrics: Arc<Metrics>,
    /// The gateway's name in `Via`.
    pub via: GatewayVia,
    /// Whether a trusted proxy without a readable client address has been logged.
    pub unreadable_origin_logged: AtomicBool,
}

impl AppState {
    pub fn new(
        live: LiveRules,
        users: Option<Arc<UserDirectory>>,
        tokens: Arc<TokenStore>,
        via: GatewayVia,
        metrics: &Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Self {
            live: ArcSwap::from_pointee(live),
            users,
            tokens,
            introspection: Arc::new(TokenIntrospection::default()),
            metrics: Arc::clone(metrics),
            via,
            unreadable_origin_logged: AtomicBool::new(false),
        })
    }
}

/// One worker's pipeline.
#[derive(Debug)]
pub struct Pipeline {
    contexts: WorkerContextCache,
}

impl Pipeline {
    /// `tasks` run on this worker's runtime.
    pub fn new(app: Arc<AppState>, tasks: TaskSet, watchdog: SlowStreamWatchdog) -> Self {
        Self {
            contexts: WorkerContextCache::new(app, tasks, watchdog),
        }
    }

    /// Answers one request. Never fails: a rejection is a response too.
    pub async fn handle(
        &self,
        head: &Parts,
        body: Incoming,
        peer: &Peer,
    ) -> Response<LoggedResponseBody> {
        // One version of the rules for the whole request, even if a reload happens meanwhile.
        let worker = self.contexts.current();
        let body = ClientBody::new(body, head.version, &worker.tasks);
        let mut entry = AccessLogEntry::open(&worker, head, peer);
        let outcome = run(&worker, head, body, peer, &mut entry).await;
        let mut response = outcome.unwrap_or_else(|rejection| {
            let pause = entry.upstream_pause();
            let format = &worker.live.config.profile.errors;
            let form = RefusalForm::of(Some(head));
            reject(rejection, &mut entry, format, form, pause)
        });
        if head.method == Method::HEAD {
            body::client_response_body::omit_body(&mut response);
        }
        respond(response, entry)
    }

    /// The response to a request that the listener rejects. `head`: None if it could not be read.
    pub fn refuse(
        &self,
        head: Option<&Parts>,
        rejection: Rejection,
        peer: &Peer,
    ) -> Response<LoggedResponseBody> {
        let worker = self.contexts.current();
        let mut entry = match head {
            Some(head) => AccessLogEntry::open(&worker, head, peer),
            None => AccessLogEntry::open_unread(&worker, peer),
        };
        let format = &worker.live.config.profile.errors;
        let form = RefusalForm::of(head);
        let response = reject(rejection, &mut entry, format, form, Duration::ZERO);
        respond(response, entry)
    }
}

/// All stages of one request.
async fn run(
    worker: &Arc<WorkerContext>,
    head: &Parts,
    body: ClientBody,
    peer: &Peer,
    entry: &mut AccessLogEntry,
) -> Result<Response<ResponseBody>, Rejection> {
    let live = &worker.live;
    let in_flight = live.limiter.in_flight();
    entry.set_in_flight(in_flight.map_err(|_| Rejection::Overloaded)?);
    headers::check(
        &head.headers,
        head.version,
        &live.config.http,
        &worker.app.via,
    )?;
    if let Some(response) = options::answer_for_server(head) {
        return Ok(response);
    }

    let mut request = route(worker, head, peer, entry)?;

    let client = authenticate(&request).await?;
    request.entry.set_client(&client.client);
    request.entry.claim_in_flight(&client.client)?;

    let admission = admit(&request, &client.client).await?;
    if let Some(response) = options::answer_as_last_hop(&request)? {
        return Ok(response);
    }

    let mut response = match request.route.target {
        Target::UsersNode(call) => Box::pin(users_call(&mut request, &client, call, body)).await?,
        _ => forward(&mut request, &client, body).await?,
    };
    admission.put(response.headers_mut());
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_future<'a, F: Future>(
        _: impl FnOnce(&'a Pipeline, &'a Parts, Incoming, &'a Peer) -> F,
    ) -> usize {
        size_of::<F>()
    }

    /// Both are allocated once per request. Rare state belongs in a box of its own.
    #[test]
    fn the_future_and_the_log_entry_of_a_request_stay_small() {
        let future = size_of_future(Pipeline::handle);
        let entry = size_of::<AccessLogEntry>();
        assert!(
            future <= 3_050,
            "the future of a request takes {future} bytes"
        );
        assert!(
            entry <= 320,
            "the log entry of a request takes {entry} bytes"
        );
    }
}
