//! Single steps of a request, for benches and fuzz targets. They call what the pipeline calls, in the
//! same order.

use http::{HeaderMap, Version};

use super::headers;
use super::headers::trace::TraceParent;
use super::peer::Peer;
use super::reject::Rejection;
use super::stages::credential;
use crate::config::RequestRules;
use crate::via::GatewayVia;

/// Checks a request's fields, and replaces them with those that are sent to the upstream.
pub fn clean_fields(
    fields: &mut HeaderMap,
    peer: &Peer,
    authority: &str,
    rules: &RequestRules,
    via: &GatewayVia,
) -> Result<(), Rejection> {
    headers::check(fields, Version::HTTP_11, rules, via)?;
    let facts = headers::RequestFacts {
        peer,
        authority,
        client: "",
        request_id: "",
        trace: &TraceParent::of(fields),
        via: via.value(Version::HTTP_11),
        allowed: &rules.allow_fields,
    };
    let forwarded = facts.forwarded(fields, rules);
    let cleaned = headers::forwarded_fields(fields, &forwarded).to_map();
    *fields = cleaned;
    Ok(())
}

/// Whether the client presents a credential.
pub fn presents_credential(fields: &HeaderMap) -> Result<bool, Rejection> {
    credential::is_presented(fields).map_err(Rejection::BadCredential)
}
