//! Endpoints at run time: list, drain, put back in use, for requests with the operator's token.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::header::ALLOW;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::Full;
use serde::Deserialize;
use serde_json::{Value, json};

use super::key_admin::{AdminCallRejection, admit, body, refusal, to_response};
use crate::secret::SecretSource;
use crate::upstream::{EndpointReport, EndpointSet};

const ALLOWED: &str = "GET, POST";

/// Administration of endpoints.
#[derive(Clone)]
pub struct EndpointAdmin {
    /// The endpoints of each upstream that is in use now.
    pub upstreams: Arc<dyn Fn() -> Vec<Arc<EndpointSet>> + Send + Sync>,
}

impl fmt::Debug for EndpointAdmin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndpointAdmin").finish_non_exhaustive()
    }
}

/// What the operator asks for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EndpointChange {
    upstream: String,
    /// As listed.
    endpoint: String,
    drained: bool,
}

/// Whether a path belongs to the administration of endpoints.
pub(super) fn is_endpoint_path(path: &str) -> bool {
    path == "/endpoints"
}

/// Responds to a call to `/endpoints`.
pub(super) async fn respond<B>(
    request: Request<B>,
    admin: &EndpointAdmin,
    token: Option<&SecretSource>,
) -> Response<Full<Bytes>>
where
    B: Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
{
    to_response(decide(request, admin, token).await)
}

async fn decide<B>(
    request: Request<B>,
    admin: &EndpointAdmin,
    token: Option<&SecretSource>,
) -> Result<(StatusCode, Value), AdminCallRejection>
where
    B: Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
{
    admit(request.headers(), token)?;
    match *request.method() {
        Method::GET => {
            let all = (admin.upstreams)();
            let reports = all.iter().flat_map(|set| set.report());
            let listed: Vec<Value> = reports.map(|report| listed(&report)).collect();
            Ok((StatusCode::OK, json!({ "endpoints": listed })))
        }
        Method::POST => change(&body(request).await?, &(admin.upstreams)()),
        _ => {
            let mut refusal = refusal(StatusCode::METHOD_NOT_ALLOWED, format!("only {ALLOWED}"));
            refusal.header = Some((ALLOW, HeaderValue::from_static(ALLOWED)));
            Err(refusal)
        }
    }
}

fn change(
    body: &[u8],
    upstreams: &[Arc<EndpointSet>],
) -> Result<(StatusCode, Value), AdminCallRejection> {
    let wanted: EndpointChange = serde_json::from_slice(body)
        .map_err(|error| refusal(StatusCode::BAD_REQUEST, error.to_string()))?;
    let mut upstreams = upstreams.iter();
    let set = upstreams.find(|set| **set.name() == *wanted.upstream);
    let set = set.ok_or_else(|| {
        let text = format!("there is no upstream \"{}\"", wanted.upstream);
        refusal(StatusCode::NOT_FOUND, text)
    })?;
    if !set.has_several() {
        let text = format!(
            "upstream \"{}\" has one endpoint, whose requests would go nowhere",
            wanted.upstream
        );
        return Err(refusal(StatusCode::CONFLICT, text));
    }
    if set.set_drained(&wanted.endpoint, wanted.drained).is_none() {
        let reports = set.report();
        let known: Vec<&str> = reports.iter().map(|report| &*report.endpoint).collect();
        let text = format!(
            "upstream \"{}\" has no endpoint \"{}\"; it has {}",
            wanted.upstream,
            wanted.endpoint,
            known.join(", ")
        );
        return Err(refusal(StatusCode::NOT_FOUND, text));
    }
    let reports = set.report().into_iter();
    let changed = reports.filter(|report| *report.endpoint == *wanted.endpoint);
    let changed: Vec<Value> = changed.map(|report| listed(&report)).collect();
    Ok((StatusCode::OK, json!({ "endpoints": changed })))
}

fn listed(report: &EndpointReport) -> Value {
    json!({
        "upstream": &*report.upstream,
        "endpoint": &*report.endpoint,
        "drained": report.is_drained,
        "in_flight": report.in_flight,
        "trouble": report.trouble,
    })
}
