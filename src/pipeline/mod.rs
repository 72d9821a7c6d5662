//! One request from start to end; one file per stage, in the order of work. Owns
//! `Live`, the part of the program that a reload replaces as a whole. Knows nothing
//! of sockets: the listener hands it requests, `upstream` carries them on.

mod answer_body;
mod authenticate;
mod forward;
#[cfg(fuzzing)]
pub mod fuzzed;
mod headers;
mod inject;
mod limit;
mod pace;
mod path;
mod peer;
mod ready;
mod record;
mod reject;
mod relay;
mod request_body;
mod route;
mod scrub;
mod steps;
mod streaming;
mod trace;
mod unknown;
mod users_node;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::request::Parts;
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::time::Instant;

pub use answer_body::Body;
pub use limit::{Admitted, InFlight, Limiter, LoginTry, Overloaded, RateFacts, Subject, TooMany};
pub use peer::{Peer, TlsFacts};
pub use reject::{Face, Rejection};
pub use request_body::RequestBody;
pub use route::RouteTable;
pub use steps::{clean_fields, presents_credential};
pub use streaming::Flows;
pub use unknown::Questions;

use crate::config::{Config, Target};
use crate::identity::{KeyRing, Keys, Users};
use crate::lifecycle::Tasks;
use crate::metrics::Metrics;
use crate::secret::Secret;
use crate::token::{TokenDigest, TokenStore};
use crate::upstream::{Connections, Upstream};
use authenticate::{Authenticated, authenticate};
use forward::Way;
use inject::{Carried, Stripped};
use ready::{Ready, carried};
use record::Record;
use relay::Relay;
use trace::Trace;
use unknown::Asked;
use users_node::UsersNode;

/// The rules as they stand; replaced whole by a reload.
#[derive(Debug)]
pub struct Live {
    pub config: Arc<Config>,
    pub routes: RouteTable,
    pub keys: Keys,
    /// Keys made at run time; the same through all reloads.
    pub ring: Arc<KeyRing>,
    pub limiter: Arc<Limiter>,
    pub upstream: Arc<Upstream>,
}

/// What all workers share.
#[derive(Debug)]
pub struct Shared {
    pub live: ArcSwap<Live>,
    /// None when the Webapp owns the users.
    pub users: Option<Users>,
    pub tokens: Arc<TokenStore>,
    pub questions: Arc<Questions>,
    pub metrics: Arc<Metrics>,
}

/// One worker's pipeline: the shared rules, its own connections.
#[derive(Debug)]
pub struct Pipeline {
    shared: Arc<Shared>,
    connections: Mutex<Arc<Wired>>,
    flows: Flows,
    tasks: Tasks,
}

/// Connections, and the upstream they lead to.
#[derive(Debug)]
struct Wired {
    upstream: Arc<Upstream>,
    connections: Connections<RequestBody>,
}

impl Pipeline {
    /// `tasks` run on this worker's runtime.
    pub fn new(shared: Arc<Shared>, tasks: Tasks, flows: Flows) -> Self {
        let upstream = Arc::clone(&shared.live.load().upstream);
        let connections = Mutex::new(Arc::new(Wired::new(upstream, &tasks, &shared.metrics)));
        Self {
            shared,
            connections,
            flows,
            tasks,
        }
    }

    /// Answers one request. Never fails: a refusal is an answer too.
    pub async fn handle(&self, request: Request<Incoming>, peer: &Peer) -> Response<Body> {
        // One version of the rules for the whole request, even if a reload lands now.
        let live = self.shared.live.load_full();
        let line = (request.method(), request.uri().path());
        let trace = Trace::of(request.headers());
        let log = live.config.log.access;
        let mut record = Record::open(&self.shared.metrics, line, peer, trace, log);
        let outcome = self.run(live, request, peer, &mut record).await;
        let mut response = outcome.unwrap_or_else(|rejection| {
            record.rejected(&rejection);
            rejection.into_response()
        });
        headers::put_request_id(response.headers_mut(), record.id());
        record.status(response.status());
        response.map(|body| body.watched_by(record))
    }

    async fn run(
        &self,
        live: Arc<Live>,
        request: Request<Incoming>,
        peer: &Peer,
        record: &mut Record,
    ) -> Result<Response<Body>, Rejection> {
        record.hold(
            live.limiter
                .in_flight()
                .map_err(|_| Rejection::Overloaded)?,
        );
        let (head, body) = request.into_parts();
        headers::check(&head.headers, head.version, &live.config.http)?;
        let path = path::checked(&head.uri)?;
        let origin = headers::origin(&head.headers, peer, &live.config.http.trusted_proxies);
        record.peer(origin);

        let host = headers::host(&head.uri, &head.headers);
        let route = Arc::clone(live.routes.find(&host, path, &head.method)?);
        record.route(&route);
        if route.target == Target::Closed {
            return Err(Rejection::NoRoute);
        }

        let line = (&head.method, path, &head.headers);
        let ask = |token, digest| self.ask(&live, token, digest);
        let who = authenticate(&live, &self.shared.tokens, &route, line, ask).await?;
        record.client(&who.client);

        let subject = limit::Subject {
            client: &who.client,
            peer: origin,
            class: &route.class,
        };
        let admitted = live.limiter.admit(subject, route.max_wait).await;
        let admitted = admitted.map_err(|limit| Rejection::TooMany(Box::new(limit)))?;

        let deadline = Instant::now() + route.timeout;
        let ready = Ready {
            live,
            route,
            who,
            peer: origin,
            deadline,
        };
        let mut answer = self.target(ready, (head, body), peer, record).await?;
        if let Some(facts) = admitted.facts {
            facts.put(answer.headers_mut());
        }
        Ok(answer)
    }

    /// The last stage: answered here, or sent up.
    async fn target(
        &self,
        ready: Ready,
        (head, body): (Parts, Incoming),
        peer: &Peer,
        record: &mut Record,
    ) -> Result<Response<Body>, Rejection> {
        let body = ready.bounded(body)?;
        record.body(body.handle());
        if let (Target::UsersNode(kind), Some(users)) = (ready.route.target, &self.shared.users) {
            let node = UsersNode {
                users,
                tokens: &self.shared.tokens,
                limiter: &ready.live.limiter,
                metrics: &self.shared.metrics,
                settings: &ready.live.config.users,
            };
            return node.answer(&ready.call(kind, &head), body).await;
        }
        let request = ready.stripped(&head, &body, peer, record);
        self.send_up(&ready, &head, (&request, body), record).await
    }

    async fn send_up(
        &self,
        ready: &Ready,
        head: &Parts,
        (request, body): (&Stripped, RequestBody),
        record: &mut Record,
    ) -> Result<Response<Body>, Rejection> {
        let Ready {
            live, route, who, ..
        } = ready;
        let wired = self.wired(&live.upstream);
        let way = Way {
            upstream: &wired.upstream,
            connections: &wired.connections,
            settings: &live.config.upstream,
            http: &live.config.http,
            route,
            metrics: &self.shared.metrics,
            flows: &self.flows,
            deadline: ready.deadline,
        };
        if let Target::UsersNode(kind) = route.target {
            let relay = Relay {
                way: &way,
                tokens: &self.shared.tokens,
                limiter: &live.limiter,
                metrics: &self.shared.metrics,
            };
            let call = ready.call(kind, head);
            return relay.answer(&call, who, (request, body), record).await;
        }
        let carried = carried(&way, who).await?;
        let answer = way.forward(request, body, carried, record).await?;
        self.evict(&answer, who).await;
        Ok(answer)
    }

    /// A 401 to the client's own bearer is a verdict on its token.
    async fn evict(&self, answer: &Response<Body>, who: &Authenticated) {
        if let (401, Some(digest), Some(_)) = (answer.status().as_u16(), &who.digest, &who.bearer) {
            self.shared.tokens.revoke(digest).await;
        }
    }

    fn wired(&self, upstream: &Arc<Upstream>) -> Arc<Wired> {
        let mut wired = self
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&wired.upstream, upstream) {
            // A reload changed the upstream; requests under way keep the connections they have.
            let new = Wired::new(Arc::clone(upstream), &self.tasks, &self.shared.metrics);
            *wired = Arc::new(new);
        }
        Arc::clone(&wired)
    }

    /// Puts a token the gate has never seen to the Webapp, once for all who ask.
    async fn ask(
        &self,
        live: &Arc<Live>,
        token: Secret,
        digest: TokenDigest,
    ) -> Result<Asked, Rejection> {
        let (question, waiting) = match self.shared.questions.turn(digest) {
            unknown::Turn::Refused => return Ok(Asked::Unknown),
            unknown::Turn::Wait(waiting) => return unknown::wait(waiting).await,
            unknown::Turn::Put(question, waiting) => (question, waiting),
        };
        let limit = live.limiter.admit_unknown_token().await;
        limit.map_err(|limit| Rejection::TooMany(Box::new(limit)))?;
        let wired = self.wired(&live.upstream);
        let tokens = Arc::clone(&self.shared.tokens);
        let first_byte = live
            .config
            .upstream
            .first_byte_timeout
            .min(Duration::from_secs(10));
        // A task of its own: the client may leave, others wait for the same answer.
        self.tasks.spawn("unknown token", async move {
            let verdict = match probe(&wired, &token, first_byte).await {
                Some(status) => unknown::learn(&tokens, *question.digest(), &token, status).await,
                None => unknown::Verdict::NoAnswer,
            };
            question.settle(verdict);
        });
        unknown::wait(waiting).await
    }
}

impl Wired {
    fn new(upstream: Arc<Upstream>, tasks: &Tasks, metrics: &Arc<Metrics>) -> Self {
        let connections =
            Connections::new(Arc::clone(&upstream), tasks.clone(), Arc::clone(metrics));
        Self {
            upstream,
            connections,
        }
    }
}

/// Puts a client's token to the Webapp; None when it could not say.
async fn probe(wired: &Wired, token: &Secret, first_byte: Duration) -> Option<http::StatusCode> {
    let _turn = wired.upstream.turn().await.ok()?;
    forward::ask(&wired.connections, &Carried::bearer(token), first_byte).await
}
