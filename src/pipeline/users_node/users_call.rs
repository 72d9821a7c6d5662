//! The last stage of a call to the users node: answered by the gateway's own directory, or relayed to
//! the upstream.

use http::{HeaderMap, Response};

use super::own_users::{UsersNode, UsersNodeCall};
use super::relay::RelayedCall;
use crate::config::UsersCall;
use crate::pipeline::access_log::attempted_user::AttemptedUser;
use crate::pipeline::body::client_body::ClientBody;
use crate::pipeline::body::client_response_body::ResponseBody;
use crate::pipeline::reject::Rejection;
use crate::pipeline::request_context::RequestContext;
use crate::pipeline::stages::authenticate::AuthenticatedClient;
use crate::pipeline::stages::bound_body::bound_body;
use crate::pipeline::stages::credential::basic;
use crate::pipeline::stages::inject::Inbound;
use crate::pipeline::stages::upstream_exchange::Forwarder;
use crate::pipeline::worker_context::WorkerContext;

/// Answers one call.
pub(in crate::pipeline) async fn users_call(
    request: &mut RequestContext<'_>,
    client: &AuthenticatedClient,
    kind: UsersCall,
    body: ClientBody,
) -> Result<Response<ResponseBody>, Rejection> {
    let head = request.head;
    if kind == UsersCall::Login
        && let Some(user) = attempted_user(request.worker, &head.headers)
    {
        request.entry.set_attempted_user(user);
    }
    let body = bound_body(request, body)?;
    let app = &request.worker.app;
    let live = request.live();
    let call = UsersNodeCall {
        kind,
        client: &client.client,
        token: client.digest,
        origin: request.origin,
        route: request.route,
        path: request.path,
        headers: &head.headers,
    };
    if let Some(users) = &app.users {
        let node = UsersNode {
            users,
            tokens: &app.tokens,
            limiter: &live.limiter,
            metrics: &app.metrics,
            settings: &live.config.users,
            meta: live.config.profile.meta,
        };
        return node.answer(&call, body).await;
    }
    let inbound = Inbound::new(request, &client.client, body.handle());
    let relay = RelayedCall {
        forwarder: &Forwarder::new(request, &client.client),
        app,
        live,
        call,
    };
    let response = relay.answer(client, inbound, body, request.entry).await?;
    if kind == UsersCall::Login && response.status().is_success() {
        let credential = basic(&head.headers).map_err(Rejection::BadLogin)?;
        let user = AttemptedUser::known(&credential.username);
        request.entry.set_attempted_user(user);
    }
    Ok(response)
}

/// The user name of a login, for the access log; None when the credential is malformed.
fn attempted_user(worker: &WorkerContext, headers: &HeaderMap) -> Option<AttemptedUser> {
    let name = basic(headers).ok()?.username;
    let is_known = match &worker.app.users {
        Some(users) => users.show(&name).is_some(),
        // The upstream has accepted a login of this user through this gateway within a week.
        None => worker.live.limiter.knows_user(&name),
    };
    Some(match is_known {
        true => AttemptedUser::known(&name),
        false => AttemptedUser::unknown(&name),
    })
}
