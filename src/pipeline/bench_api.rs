//! Single steps of a request as functions of their own, for benches and fuzz targets:
//! the pipeline calls what they call, in the same order.

use http::{HeaderMap, Version};

use super::headers;
use super::headers::trace::TraceParent;
use super::peer::Peer;
use super::reject::Rejection;
use super::stages::credential;
use crate::config::RequestRules;
use crate::via::GatewayVia;

/// Checks a request's fields and leaves those that may go up.
pub fn clean_fields(
    fields: &mut HeaderMap,
    peer: &Peer,
    authority: &str,
    rules: &RequestRules,
    via: &GatewayVia,
) -> Result<(), Rejection> {
    headers::check(fields, Version::HTTP_11, rules, via)?;
    let ours = headers::RequestFacts {
        peer,
        authority,
        client: "",
        request_id: "",
        trace: &TraceParent::of(fields),
        via: via.value(Version::HTTP_11),
        allowed: &rules.allow_fields,
    };
    let said = ours.about(fields, rules);
    *fields = headers::forwarded_headers(fields, &said);
    Ok(())
}

/// Reads the credential a client presents; whether there is one.
pub fn presents_credential(fields: &HeaderMap) -> Result<bool, Rejection> {
    credential::is_presented(fields).map_err(Rejection::BadCredential)
}
