//! The last stage of calls to the users node: answered here, or passed on with an eye on what
//! the answer means.

use http::request::Parts;
use http::{HeaderMap, Response};

use super::attempted_user::TriedUser;
use super::own_users::UsersNode;
use super::relay::RelayedCall;
use crate::config::UsersCall;
use crate::pipeline::access_log::entry::AccessLogEntry;
use crate::pipeline::body::client_body::ClientBody;
use crate::pipeline::body::response_body::ResponseBody;
use crate::pipeline::peer::Peer;
use crate::pipeline::reject::Rejection;
use crate::pipeline::stages::credential::basic;
use crate::pipeline::stages::respond::AdmittedRequest;
use crate::pipeline::worker_context::WorkerContext;
use crate::pipeline::{LiveRules, Pipeline};

impl Pipeline {
    /// Answers one call.
    pub(in crate::pipeline) async fn users_call(
        &self,
        here: &WorkerContext,
        (ready, kind): (&AdmittedRequest<'_>, UsersCall),
        (head, body): (&Parts, ClientBody),
        (peer, record): (&Peer, &mut AccessLogEntry),
    ) -> Result<Response<ResponseBody>, Rejection> {
        if kind == UsersCall::Login
            && let Some(tried) = self.tried_user(ready.live, &head.headers)
        {
            record.tried_user(tried);
        }
        let body = ready.bounded(body)?;
        record.body(body.handle());
        if let Some(users) = &self.shared.users {
            let node = UsersNode {
                users,
                tokens: &self.shared.tokens,
                limiter: &ready.live.limiter,
                metrics: &self.shared.metrics,
                settings: &ready.live.config.users,
                meta: ready.live.config.profile.meta,
            };
            return node.answer(&ready.call(kind, head), body).await;
        }
        let request = ready.inbound(head, &body, peer, record);
        let way = self.way(here, ready);
        let relay = RelayedCall {
            way: &way,
            tokens: &self.shared.tokens,
            limiter: &ready.live.limiter,
            questions: &self.shared.questions,
            metrics: &self.shared.metrics,
            settings: &ready.live.config.users,
        };
        let call = ready.call(kind, head);
        let answer = relay
            .answer(&call, &ready.who, (request, body), record)
            .await?;
        if kind == UsersCall::Login && answer.status().is_success() {
            let credential = basic(&head.headers).map_err(Rejection::BadLogin)?;
            record.tried_user(TriedUser::known(&credential.username));
        }
        Ok(answer)
    }

    /// Who logs in, for the access line; None: the credential is none.
    fn tried_user(&self, live: &LiveRules, headers: &HeaderMap) -> Option<TriedUser> {
        let name = basic(headers).ok()?.username;
        let is_known = match &self.shared.users {
            Some(users) => users.show(&name).is_some(),
            // Whom the Webapp has let in through this gate within a week.
            None => live.limiter.knows_user(&name),
        };
        Some(match is_known {
            true => TriedUser::known(&name),
            false => TriedUser::unknown(&name),
        })
    }
}
