//! Upstreams with which HTTP/2 is spoken, and calls of gRPC through the gate.

mod grpc;
mod repeats;

use crate::harness::login_upstream::KEY;
use crate::harness::sha256;

/// A configuration with an API key for all paths.
fn config(sections: &str) -> String {
    format!(
        r#"
profile = "none"
workers = 1
[[listener]]
address = "127.0.0.1:0"
tls = {{ certificates = [{{ certificate = "certs/server.pem", key = "certs/server.key" }}] }}
[operator]
address = "127.0.0.1:0"
[store]
path = "memory"
[drain]
wait = "0s"
[log]
format = "text"
[[api_key]]
name = "caller"
sha256 = "{digest}"
paths = "/*"
{sections}
"#,
        digest = sha256(KEY)
    )
}
