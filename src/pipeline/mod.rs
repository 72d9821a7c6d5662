//! One request from start to end; one file per stage, in the order of work. Owns
//! `Live`, the part of the program that a reload replaces as a whole. Knows nothing
//! of sockets: the listener hands it requests, `upstream` carries them on.

mod access_log;
mod bench_api;
mod body;
#[cfg(fuzzing)]
pub mod fuzz_api;
mod headers;
mod limit;
mod peer;
mod reject;
mod stages;
mod users_node;
mod worker_context;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::request::Parts;
use http::{Method, Response, StatusCode};
use hyper::body::Incoming;
use tracing::warn;

pub use bench_api::{clean_fields, presents_credential};
pub use body::client_body::ClientBody;
pub use body::request_body::RequestBody;
pub use body::response_body::ResponseBody;
pub use body::stream_watchdog::SlowStreamWatchdog;
pub use limit::{
    InFlight, Limiter, LoginHeld, LoginTry, RateAdmission, RateLimitHeaders, RateSubject, TokenTry,
    TooMany, TooManyInFlight,
};
pub use peer::{LastToken, Peer, TlsFacts};
pub use reject::{ErrorMapping, Rejection};
pub use stages::credential::CredentialFault;
pub use stages::introspect::{TokenIntrospection, keep_probe_tried};
pub use stages::route::RouteTable;

use crate::config::{self, Config, Route, Target, UsersCall};
use crate::identity::{Client, KeyRing, KeySet, UserDirectory};
use crate::lifecycle::TaskSet;
use crate::metrics::Metrics;
use crate::secret::Secret;
use crate::token::{TokenDigest, TokenStore};
use crate::upstream::Upstream;
use crate::via::GatewayVia;
use access_log::entry::AccessLogEntry;
use stages::authenticate::{AuthenticatedClient, authenticate};
use stages::forward::Forwarder;
use stages::introspect::Introspected;
use stages::respond::{AdmittedRequest, credential_source};
use worker_context::{WorkerContext, WorkerContextCache};

/// The rules as they stand; replaced whole by a reload.
#[derive(Debug)]
pub struct LiveRules {
    pub config: Arc<Config>,
    pub routes: RouteTable,
    pub keys: KeySet,
    /// Keys made at run time; the same through all reloads.
    pub ring: Arc<KeyRing>,
    pub limiter: Arc<Limiter>,
    pub upstream: Arc<Upstream>,
}

/// What all workers share.
#[derive(Debug)]
pub struct AppState {
    pub live: ArcSwap<LiveRules>,
    /// None when the Webapp owns the users.
    pub users: Option<Arc<UserDirectory>>,
    pub tokens: Arc<TokenStore>,
    pub questions: Arc<TokenIntrospection>,
    pub metrics: Arc<Metrics>,
    /// The gate's name in `Via`.
    pub via: GatewayVia,
    /// The log has told of a proxy's word about its client that cannot be read.
    pub told_unreadable: AtomicBool,
}

impl AppState {
    /// Where a request came from. What a trusted proxy says that is no address is counted,
    /// and the first is told of.
    fn origin(&self, head: &Parts, peer: &Peer, rules: &config::RequestRules) -> IpAddr {
        let origin = headers::origin(&head.headers, peer, &rules.trusted_proxies);
        let Some(text) = origin.unreadable else {
            return origin.ip;
        };
        self.metrics.invalid_forwarded_addresses.inc();
        if !self.told_unreadable.swap(true, Ordering::Relaxed) {
            let text: String = text.chars().take(64).collect();
            warn!(
                proxy = %peer.ip(),
                ?text,
                "a trusted proxy names no address in X-Forwarded-For or Forwarded: its clients are counted as the proxy itself; tollgate_invalid_forwarded_addresses_total counts such requests"
            );
        }
        origin.ip
    }
}

/// One worker's pipeline: the shared rules, its own connections.
#[derive(Debug)]
pub struct Pipeline {
    shared: Arc<AppState>,
    newest: WorkerContextCache,
    flows: SlowStreamWatchdog,
    tasks: Arc<TaskSet>,
}

impl Pipeline {
    /// `tasks` run on this worker's runtime.
    pub fn new(shared: Arc<AppState>, tasks: TaskSet, flows: SlowStreamWatchdog) -> Self {
        Self {
            newest: WorkerContextCache::new(&shared, &tasks),
            shared,
            flows,
            tasks: Arc::new(tasks),
        }
    }

    /// Answers one request. Never fails: a refusal is an answer too.
    pub async fn handle(
        &self,
        head: &Parts,
        body: Incoming,
        peer: &Peer,
    ) -> Response<ResponseBody> {
        // One version of the rules for the whole request, even if a reload lands now.
        let here = self.newest.view(&self.shared, &self.tasks);
        let body = ClientBody::new(body, head.version, &self.tasks);
        let mut record = AccessLogEntry::open(&here, head, peer);
        let outcome = self.run(&here, (head, body), peer, &mut record).await;
        let mut response = outcome.unwrap_or_else(|rejection| {
            record.rejected(&rejection);
            let pause = here.live.upstream.health().pause();
            rejection.into_response(&here.live.config.profile.errors, record.id(), pause)
        });
        if head.method == Method::HEAD {
            body::response_body::omit(&mut response);
        }
        headers::put_request_id(response.headers_mut(), record.id());
        record.status(response.status());
        response.map(|body| body.watched_by(record))
    }

    /// The answer to a request that the listener refuses; `head`: what could be read of it.
    pub fn refuse(
        &self,
        head: Option<&Parts>,
        rejection: Rejection,
        peer: &Peer,
    ) -> Response<ResponseBody> {
        let here = self.newest.view(&self.shared, &self.tasks);
        let mut record = match head {
            Some(head) => AccessLogEntry::open(&here, head, peer),
            None => AccessLogEntry::open_unread(&here, peer),
        };
        record.rejected(&rejection);
        let mut response = rejection.into_response(
            &here.live.config.profile.errors,
            record.id(),
            Duration::ZERO,
        );
        headers::put_request_id(response.headers_mut(), record.id());
        record.status(response.status());
        response.map(|body| body.watched_by(record))
    }

    async fn run(
        &self,
        here: &Arc<WorkerContext>,
        (head, body): (&Parts, ClientBody),
        peer: &Peer,
        record: &mut AccessLogEntry,
    ) -> Result<Response<ResponseBody>, Rejection> {
        let live = &*here.live;
        let place = live.limiter.in_flight();
        record.hold(place.map_err(|_| Rejection::Overloaded)?);
        headers::check(&head.headers, head.version, &live.config.http, &here.via)?;
        if let Some(answer) = stages::options::of_the_server(head) {
            return Ok(answer);
        }
        let path = stages::request_target::checked(&head.uri)?;
        let origin = self.shared.origin(head, peer, &live.config.http);
        record.peer(origin);

        let host = headers::host(&head.uri, &head.headers);
        let route = live.routes.find(&host, path, &head.method)?;
        record.route(route);
        if route.target == Target::Closed {
            return Err(Rejection::NoRoute);
        }
        stages::request_target::check_query(&head.uri, &route.allow_fields)?;

        let line = (&head.method, path, &head.headers);
        let ask = |token, digest| Box::pin(self.ask(here, origin, token, digest));
        let who = authenticate(
            live,
            &self.shared.tokens,
            route,
            line,
            &peer.last_token,
            ask,
        )
        .await?;
        record.client(&who.client);
        record.claim_place(&who.client)?;

        let admitted = admit(live, route, &who.client, origin).await?;

        let allowed = || live.routes.allowed(&host, path);
        if let Some(answer) = stages::options::of_the_last_hop(head, allowed)? {
            return Ok(answer);
        }

        let ready = AdmittedRequest {
            live,
            route,
            who,
            peer: origin,
            via: here.via.value(head.version),
            deadline: record.opened() + route.timeout,
        };
        let mut answer = match route.target {
            Target::UsersNode(kind) => {
                let ready = (&ready, kind);
                Box::pin(self.users_call(here, ready, (head, body), (peer, record))).await?
            }
            _ => {
                self.send_up(here, &ready, (head, body), (peer, record))
                    .await?
            }
        };
        admitted.put(answer.headers_mut());
        Ok(answer)
    }

    /// The last stage of most requests.
    async fn send_up(
        &self,
        here: &WorkerContext,
        ready: &AdmittedRequest<'_>,
        (head, body): (&Parts, ClientBody),
        (peer, record): (&Peer, &mut AccessLogEntry),
    ) -> Result<Response<ResponseBody>, Rejection> {
        let body = ready.bounded(body)?;
        record.body(body.handle());
        let request = ready.inbound(head, &body, peer, record);
        let way = self.way(here, ready);
        let source = credential_source(&way, &ready.who);
        let answer = way.forward(&request, body, source, record).await?;
        if answer.status() == StatusCode::UNAUTHORIZED {
            self.evict(&ready.who).await;
        }
        Ok(answer)
    }

    fn way<'a>(&'a self, here: &'a WorkerContext, ready: &AdmittedRequest<'a>) -> Forwarder<'a> {
        Forwarder {
            upstream: &ready.live.upstream,
            connections: &here.connections,
            settings: &ready.live.config.upstream,
            http: &ready.live.config.http,
            route: ready.route,
            share: ready.share(),
            flows: &self.flows,
            deadline: ready.deadline,
        }
    }

    /// A 401 to the client's own bearer is a verdict on its token.
    async fn evict(&self, who: &AuthenticatedClient) {
        if let (Some(digest), Some(_)) = (&who.digest, &who.bearer) {
            self.shared.tokens.revoke(digest).await;
        }
    }

    /// Puts a token the gate has never seen to the Webapp, once for all who ask.
    async fn ask(
        &self,
        here: &Arc<WorkerContext>,
        peer: IpAddr,
        token: Secret,
        digest: TokenDigest,
    ) -> Result<Introspected, Rejection> {
        if stages::introspect::is_hopeless(&here.live) {
            return Ok(Introspected::Unknown);
        }
        let (question, waiting) = match self.shared.questions.turn(digest) {
            stages::introspect::FlightRole::Refused => return Ok(Introspected::Unknown),
            stages::introspect::FlightRole::Wait(waiting) => {
                return stages::introspect::wait(waiting).await;
            }
            stages::introspect::FlightRole::Put(question, waiting) => (question, waiting),
        };
        let attempt = here.live.limiter.admit_unknown_token(peer).await;
        let attempt = attempt.map_err(|limit| Rejection::TooMany(Box::new(limit)))?;
        let asking = Arc::clone(here);
        let tokens = Arc::clone(&self.shared.tokens);
        // A task of its own: the client may leave, others wait for the same answer.
        self.tasks.spawn("unknown token", async move {
            let verdict =
                stages::introspect::put(&asking, &tokens, *question.digest(), &token).await;
            if matches!(verdict, stages::introspect::IntrospectionVerdict::Known(_)) {
                attempt.succeeded();
            }
            question.complete(verdict);
        });
        stages::introspect::wait(waiting).await
    }
}

/// Takes a permit of each limit that applies. Logins are limited further on, once it is known
/// who tries.
async fn admit(
    live: &LiveRules,
    route: &Route,
    client: &Client,
    peer: IpAddr,
) -> Result<RateAdmission, Rejection> {
    if route.target == Target::UsersNode(UsersCall::Login) {
        return Ok(RateAdmission::default());
    }
    let subject = limit::RateSubject {
        client,
        peer,
        class: &route.class,
    };
    let admitted = live.limiter.admit(subject, route.max_wait).await;
    admitted.map_err(|limit| Rejection::TooMany(Box::new(limit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_future<'a, F: Future>(
        _: impl FnOnce(&'a Pipeline, &'a Parts, Incoming, &'a Peer) -> F,
    ) -> usize {
        size_of::<F>()
    }

    /// Both are moved and kept once a request. What is rare belongs in a box of its own.
    #[test]
    fn a_request_and_its_record_stay_small() {
        let (future, record) = (
            size_of_future(Pipeline::handle),
            size_of::<AccessLogEntry>(),
        );
        assert!(
            future <= 3_050,
            "the future of a request takes {future} bytes"
        );
        assert!(
            record <= 320,
            "the record of a request takes {record} bytes"
        );
    }
}
