//! The last stage of calls to the users node: answered here, or passed on with an eye on what
//! the answer means.

use http::request::Parts;
use http::{HeaderMap, Response};

use super::answer_body::ResponseBody;
use super::client_body::ClientBody;
use super::credential::basic;
use super::here::WorkerContext;
use super::peer::Peer;
use super::ready::AdmittedRequest;
use super::record::AccessLogEntry;
use super::reject::Rejection;
use super::relay::RelayedCall;
use super::tried_user::TriedUser;
use super::users_node::UsersNode;
use super::{LiveRules, Pipeline};
use crate::config::UsersCall;

impl Pipeline {
    /// Answers one call.
    pub(super) async fn users_call(
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
