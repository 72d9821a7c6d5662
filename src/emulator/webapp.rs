//! The emulated Webapp: from a request to its response.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use http::header;
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::time::{Instant, sleep};

use super::counts::{RequestCounts, add};
use super::directory::EmulatedUsers;
use super::emulator_settings::Settings;
use super::faults::{FaultSwitches, Switches};
use super::issued_tokens::IssuedTokens;
use super::node_call::{DroppedConnection, NodeCall, bearer};
use super::node_reply::{Origin, Reply, forbidden, overloaded, too_many, unauthorized};
use super::node_routes::{self, Node, NodeAccess, NodeRoute, RouteError};
use super::nodes::{self, Contacts, Media, SettingsNode};
use super::rate_limits::NodeRateLimits;
use super::reply_body::Body;
use super::webapp_state::WebappState;
use crate::profiles::Role;
use crate::profiles::whatsapp::ErrorCode;
use crate::secret::Secret;

/// Everything the emulated Webapp holds. Lost when it stops.
pub(super) struct Webapp {
    pub state: WebappState,
    media: Media,
    contacts: Contacts,
    settings: SettingsNode,
    rate_limits: NodeRateLimits,
}

impl Webapp {
    pub(super) fn new(settings: Settings, authority: String) -> Self {
        let switches = Switches {
            limits: settings.limits,
            token_lifetime_seconds: settings.token_lifetime.as_secs(),
            ..Switches::default()
        };
        let (username, password) = (&settings.username, settings.password);
        Self {
            state: WebappState {
                directory: EmulatedUsers::new(username, password, settings.first_login),
                tokens: IssuedTokens::new(),
                faults: FaultSwitches::new(switches),
                counts: RequestCounts::default(),
                api_key: settings.api_key,
                started: Instant::now(),
            },
            media: Media::default(),
            contacts: Contacts::default(),
            settings: SettingsNode::new(authority),
            rate_limits: NodeRateLimits::new(),
        }
    }

    pub(super) async fn handle(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, DroppedConnection> {
        let (parts, body) = request.into_parts();
        let path = node_routes::segments(parts.uri.path());
        let _in_flight = self.state.counts.enter(parts.uri.path());
        let is_login = path == ["v1", "users", "login"] && parts.method == Method::POST;
        let switches = if is_login {
            add(&self.state.counts.logins);
            self.state.faults.draw_login()
        } else {
            self.state.faults.draw()
        };
        if switches.refuse_connections {
            return Err(DroppedConnection);
        }
        if switches.hang {
            return pending().await;
        }
        let echoed = switches.echo.then(|| parts.headers.clone());
        let mut reply = self.reply(parts, body, path, switches).await?;
        if let Some(echoed) = &echoed {
            reply = reply.echo(echoed);
        }
        if reply.status == StatusCode::UNAUTHORIZED {
            add(&self.state.counts.responses_401);
        }
        if reply.status == StatusCode::TOO_MANY_REQUESTS {
            add(&self.state.counts.responses_429);
        }
        let reply = reply.misbehave(&switches);
        Ok(reply.into_response(switches.clock_offset_seconds))
    }

    async fn reply(
        &self,
        parts: Parts,
        body: Incoming,
        path: Vec<String>,
        switches: Switches,
    ) -> Result<Reply, DroppedConnection> {
        if switches.not_ready {
            return Ok(not_ready());
        }
        let names: Vec<&str> = path.iter().map(String::as_str).collect();
        let route = match node_routes::find(&parts.method, &names) {
            Ok(route) => route,
            Err(error) => return Ok(not_routed(error)),
        };
        if names == ["v1", "users", "login"] {
            if switches.limits && !self.rate_limits.admit(route.node) {
                return Ok(too_many());
            }
            return nodes::login(&self.state, &parts.headers, body, &switches).await;
        }
        sleep(Duration::from_millis(switches.response_delay_ms)).await;
        let user = match self.admit(&parts, route, &switches) {
            Ok(user) => user,
            Err(reply) => return Ok(*reply),
        };
        let call = NodeCall {
            method: parts.method,
            path,
            query: parts.uri.query().unwrap_or_default().to_owned(),
            headers: parts.headers,
            body,
            route,
            switches,
            user,
        };
        Ok(self.dispatch(call).await)
    }

    /// Everything that can refuse a request before its node, in the known order of the real Webapp:
    /// limits, credential, role, Coreapp. Returns the user.
    fn admit(
        &self,
        parts: &Parts,
        route: NodeRoute,
        switches: &Switches,
    ) -> Result<Arc<str>, Box<Reply>> {
        if switches.respond_429 > 0 || switches.limits && !self.rate_limits.admit(route.node) {
            return Err(Box::new(too_many()));
        }
        if switches.respond_503 > 0 {
            return Err(Box::new(overloaded()));
        }
        let user = if route.access == NodeAccess::Open {
            Arc::from("")
        } else {
            let found = self.authenticate(parts, route, switches);
            found.ok_or_else(|| Box::new(unauthorized()))?
        };
        if route.access == NodeAccess::Admin
            && self.state.directory.role(&user) != Some(Role::Admin)
        {
            return Err(Box::new(forbidden("Only an admin may do this")));
        }
        if route.origin != Origin::Webapp && switches.overload {
            return Err(Box::new(overloaded()));
        }
        if route.origin != Origin::Webapp && switches.coreapp_down {
            return Err(Box::new(Reply::error(
                Origin::Webapp,
                StatusCode::INTERNAL_SERVER_ERROR,
                ErrorCode::Internal,
                "Connection timed out. Please check if wacore is running",
            )));
        }
        Ok(user)
    }

    fn authenticate(
        &self,
        parts: &Parts,
        route: NodeRoute,
        switches: &Switches,
    ) -> Option<Arc<str>> {
        let text = parts.headers.get(header::AUTHORIZATION)?.to_str().ok()?;
        let (scheme, rest) = text.split_once(' ')?;
        if switches.respond_401 > 0 {
            return None;
        }
        if let Some(token) = bearer(&parts.headers) {
            let user = self.state.tokens.find(token, self.state.now(switches))?;
            // The token of a deleted user is invalid, even one minted meanwhile.
            return self.state.directory.role(&user).map(|_| user);
        }
        let takes_key =
            route.access == NodeAccess::Monitoring && scheme.eq_ignore_ascii_case("apikey");
        let right = Secret::new(rest.trim());
        (takes_key && self.state.api_key.as_ref() == Some(&right)).then(|| Arc::from(""))
    }

    async fn dispatch(&self, call: NodeCall) -> Reply {
        match call.route.node {
            Node::Page => nodes::page(),
            Node::Users => nodes::users(&self.state, call).await,
            Node::Contacts => self.contacts.respond(call).await,
            Node::Messages => nodes::messages(call).await,
            Node::Media => self.media.respond(call).await,
            Node::Health | Node::Stats | Node::Metrics | Node::Support => {
                nodes::monitoring(&self.state, &call)
            }
            Node::Settings => self.settings.settings(call).await,
            Node::Account | Node::Stickerpacks | Node::Groups | Node::Services => {
                nodes::various(call).await
            }
            Node::Certificates => self.settings.certificates(call).await,
        }
    }
}

fn not_ready() -> Reply {
    Reply::error(
        Origin::Webapp,
        StatusCode::SERVICE_UNAVAILABLE,
        ErrorCode::NotReady,
        "Service is starting, please try again",
    )
}

fn not_routed(error: RouteError) -> Reply {
    match error {
        RouteError::Path => Reply::not_found(Origin::Webapp, "No such node"),
        RouteError::Method => Reply::error(
            Origin::Webapp,
            StatusCode::METHOD_NOT_ALLOWED,
            ErrorCode::InvalidRequest,
            "Method is not allowed here",
        ),
    }
}
