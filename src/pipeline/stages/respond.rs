//! The last stage of every request: its outcome becomes the response that the listener sends.

use std::time::Duration;

use http::Response;
use http::request::Parts;

use crate::pipeline::access_log::entry::AccessLogEntry;
use crate::pipeline::access_log::logged_body::LoggedResponseBody;
use crate::pipeline::body::client_response_body::ResponseBody;
use crate::pipeline::grpc;
use crate::pipeline::headers;
use crate::pipeline::reject::Rejection;
use crate::profiles::ErrorFormat;

/// What kind of response a rejected request gets.
#[derive(Clone, Copy, Debug)]
pub(in crate::pipeline) enum RefusalForm {
    Http,
    Grpc,
}

impl RefusalForm {
    /// None: the head could not be read.
    pub(in crate::pipeline) fn of(head: Option<&Parts>) -> Self {
        match head.is_some_and(grpc::is_call) {
            true => Self::Grpc,
            false => Self::Http,
        }
    }
}

/// The response to a rejected request. `pause`: time until the gateway tries a failed upstream again;
/// zero: the upstream has not failed.
pub(in crate::pipeline) fn reject(
    rejection: Rejection,
    entry: &mut AccessLogEntry,
    format: &ErrorFormat,
    form: RefusalForm,
    pause: Duration,
) -> Response<ResponseBody> {
    entry.rejected(&rejection);
    let response = match form {
        RefusalForm::Http => rejection.into_response(format, entry.id(), pause),
        RefusalForm::Grpc => rejection.into_call_response(format, entry.id(), pause),
    };
    response.map(ResponseBody::full)
}

/// Adds the request id, and hands the entry to the body, which closes it.
pub(in crate::pipeline) fn respond(
    mut response: Response<ResponseBody>,
    mut entry: Box<AccessLogEntry>,
) -> Response<LoggedResponseBody> {
    headers::put_request_id(response.headers_mut(), entry.id());
    entry.set_status(response.status());
    response.map(|body| LoggedResponseBody::new(body, entry))
}
