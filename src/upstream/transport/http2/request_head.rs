//! The head of a request in HTTP/2 (RFC 9113, 8.3.1), and how its body is delimited.

use bytes::Bytes;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderName, Request, Uri, Version};

use crate::upstream::transport::outbound_request::OutboundFields;

/// Why a request cannot be sent in HTTP/2.
#[derive(Debug, thiserror::Error)]
#[error("the request's Host or target cannot be sent in HTTP/2")]
pub(in crate::upstream) struct UnsendableHead;

/// Fields that HTTP/2 does not have (RFC 9113, 8.2.2), and `Host`, which goes as `:authority`.
fn is_of_http1(name: &str) -> bool {
    matches!(
        name,
        "host"
            | "connection"
            | "keep-alive"
            | "proxy-connection"
            | "transfer-encoding"
            | "upgrade"
            | "http2-settings"
            | "te"
    )
}

/// The head. `is_tls`: the connection's, for `:scheme`.
pub(in crate::upstream) fn request_head(
    method: &http::Method,
    target: &str,
    fields: &OutboundFields<'_>,
    is_tls: bool,
) -> Result<Request<()>, UnsendableHead> {
    let host = fields.get("host").ok_or(UnsendableHead)?;
    let authority = Authority::try_from(host.as_bytes()).map_err(|_| UnsendableHead)?;
    let path = PathAndQuery::from_maybe_shared(Bytes::copy_from_slice(target.as_bytes()));
    let mut uri = http::uri::Parts::default();
    uri.scheme = Some(if is_tls { Scheme::HTTPS } else { Scheme::HTTP });
    uri.authority = Some(authority);
    uri.path_and_query = Some(path.map_err(|_| UnsendableHead)?);
    let mut request = Request::new(());
    *request.method_mut() = method.clone();
    *request.uri_mut() = Uri::from_parts(uri).map_err(|_| UnsendableHead)?;
    *request.version_mut() = Version::HTTP_2;
    let headers = request.headers_mut();
    for (name, value) in fields.iter() {
        let is_trailers = name == "te" && value.as_bytes().eq_ignore_ascii_case(b"trailers");
        if is_of_http1(name) && !is_trailers {
            continue;
        }
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| UnsendableHead)?;
        headers.append(name, value.clone());
    }
    Ok(request)
}
