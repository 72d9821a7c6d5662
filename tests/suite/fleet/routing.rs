//! Rows U17 and U18 of the field cases: prefixes and host names. Requests to upstreams at one address
//! keep to their own connections (U5).

use futures_util::{StreamExt as _, stream};
use http::Request;

use super::{Echoed, LOGIN, common, config, echo, get, get_http2};
use crate::harness::login_upstream::KEY;
use crate::harness::raw::connected;
use crate::harness::received::{exchange, exchange_http2};
use crate::harness::{Gateway, sha256};

/// `a` at its host and below it, `b` behind a prefix, `c` for everything else.
async fn by_host_and_path() -> Gateway {
    let (a, b, c) = (echo("a").await, echo("b").await, echo("c").await);
    let text = config(&format!(
        r#"
[upstream.a]
url = "http://{a}"
{LOGIN}
[upstream.b]
url = "http://{b}"
{LOGIN}
[upstream.c]
url = "http://{c}"
{LOGIN}
[[route]]
name = "host"
upstream = "a"
hosts = ["A.gate.internal", "*.below.gate.internal."]
path = "/*"
access = "api_key"
preserve_host = true
[[route]]
name = "prefix"
upstream = "b"
path = "/api/*"
strip_prefix = "/api"
access = "api_key"
[[route]]
name = "deep"
upstream = "b"
path = "/one/{{id}}/x"
strip_prefix = "/one"
access = "api_key"
[[route]]
name = "rest"
upstream = "c"
path = "/*"
access = "api_key"
"#,
        a = a.address,
        b = b.address,
        c = c.address
    ));
    Gateway::of_text(&text).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_ends_at_a_segments_border_and_the_rest_passes_byte_for_byte() {
    let gateway = by_host_and_path().await;
    for (target, name, upward) in [
        ("/api", "b", "/"),
        ("/api/", "b", "/"),
        ("/api?x=1", "b", "/?x=1"),
        ("/api/?x=1", "b", "/?x=1"),
        (
            "/api/a%20b;v=1/%C3%A9~/?q=%2F",
            "b",
            "/a%20b;v=1/%C3%A9~/?q=%2F",
        ),
        ("/%61pi/a", "b", "/a"),
        ("/ap%69?y", "b", "/?y"),
        ("/api/api/x", "b", "/api/x"),
        ("/one/7/x", "b", "/7/x"),
        ("http://localhost/api/a?b", "b", "/a?b"),
        ("/apiary", "c", "/apiary"),
        ("/apiary/api", "c", "/apiary/api"),
        ("/API/x", "c", "/API/x"),
        ("/one/7/y", "c", "/one/7/y"),
    ] {
        let echoed = get(&gateway, target, "localhost").await;
        let seen = (&*echoed.name, &*echoed.target);
        assert_eq!(seen, (name, upward), "{target}");
        let prefix = match target {
            "/one/7/x" => Some("/one"),
            _ if name == "b" => Some("/api"),
            _ => None,
        };
        assert_eq!(echoed.field("x-forwarded-prefix"), prefix, "{target}");
    }
    // Two parsers could read these differently: refused, with a prefix as without one.
    for target in [
        "/api/a%2Fb",
        "/api//c",
        "/api/../x",
        "//api",
        "/api/%2e%2e/x",
    ] {
        assert_eq!(
            get(&gateway, target, "localhost").await.status,
            400,
            "{target}"
        );
    }
    let http2 = get_http2(&gateway, "/api?x=1", "localhost").await;
    assert_eq!((&*http2.name, &*http2.target), ("b", "/?x=1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_is_the_same_in_capitals_with_a_port_and_with_a_dot() {
    let gateway = by_host_and_path().await;
    let hosts = [
        ("a.gate.internal", "a"),
        ("A.Gate.INTERNAL", "a"),
        ("a.gate.internal:8443", "a"),
        ("a.gate.internal.", "a"),
        ("a.gate.internal.:8443", "a"),
        ("x.below.gate.internal", "a"),
        ("Y.x.below.gate.internal:1", "a"),
        ("below.gate.internal", "c"),
        ("xbelow.gate.internal", "c"),
        ("a.gate.internal.example.org", "c"),
        ("b.gate.internal", "c"),
    ];
    for (host, name) in hosts {
        let one = get(&gateway, "/x", host).await;
        let absolute = get(&gateway, &format!("http://{host}/x"), host).await;
        let two = get_http2(&gateway, "/x", host).await;
        for (what, echoed) in [("field", one), ("target", absolute), ("h2", two)] {
            assert_eq!(echoed.name, name, "{host} {what}");
            assert_eq!(echoed.target, "/x", "{host} {what}");
            let kept = (name == "a").then(|| host.to_ascii_lowercase());
            let upward = echoed.field("host").unwrap();
            match kept {
                Some(kept) => assert_eq!(upward, kept, "{what}: as the client sent it"),
                None => assert!(upward.starts_with("127.0.0.1:"), "{what}: {upward}"),
            }
        }
    }
    // Two hosts: refused.
    let two = get(&gateway, "http://a.gate.internal/x", "other.example").await;
    assert_eq!(two.status, 400);
    // A prefix at any host, except where a route above takes the host.
    assert_eq!(
        get(&gateway, "/api/x", "a.gate.internal").await.target,
        "/api/x"
    );
    assert_eq!(get(&gateway, "/api/x", "b.gate.internal").await.name, "b");
}

const RESTRICTED: &str = "restricted-key-0123456789";

/// `north` for all hosts below `gate.internal` but `south`'s own with its prefix; `rest` for all others.
async fn with_profile() -> Gateway {
    let (north, south, rest) = (echo("north").await, echo("south").await, echo("rest").await);
    let text = common(&format!(
        r#"
[upstream.rest]
url = "http://{rest}"
{LOGIN}
path_prefix = "/"
[upstream.north]
url = "http://{north}"
{LOGIN}
hosts = ["north.gate.internal", "*.gate.internal"]
[upstream.south]
url = "http://{south}"
{LOGIN}
hosts = "south.gate.internal"
path_prefix = "/south"
[[route]]
name = "support.show"
upstream = "north"
target = "closed"
[[limit]]
name = "nodes"
rate = "1/m burst 5"
[[limit]]
name = "whole"
key = "upstream"
rate = "1/m burst 8"
[[api_key]]
name = "restricted"
sha256 = "{digest}"
paths = "/*"
upstreams = ["north", "south"]
"#,
        rest = rest.address,
        north = north.address,
        south = south.address,
        digest = sha256(RESTRICTED)
    ));
    Gateway::of_text(&text).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_profiles_routes_lead_to_the_upstream_of_the_host_or_prefix() {
    let gateway = with_profile().await;
    for (host, path, name, target) in [
        ("north.gate.internal", "/v1/health", "north", "/v1/health"),
        ("x.gate.internal", "/v1/health", "north", "/v1/health"),
        (
            "south.gate.internal",
            "/south/v1/health?a",
            "south",
            "/v1/health?a",
        ),
        // The wildcard takes what the exact host does not.
        ("south.gate.internal", "/v1/health", "north", "/v1/health"),
        ("other.example", "/v1/health", "rest", "/v1/health"),
    ] {
        let echoed = get(&gateway, path, host).await;
        let seen = (&*echoed.name, &*echoed.target);
        assert_eq!(seen, (name, target), "{host}{path}");
        let token = format!("bearer token of {name}");
        assert_eq!(echoed.field("authorization"), Some(&*token));
        assert!(echoed.field("host").unwrap().starts_with("127.0.0.1:"));
    }
    let status = async |host| get(&gateway, "/v1/support", host).await.status;
    assert_eq!(status("north.gate.internal").await, 404, "closed there");
    assert_ne!(status("other.example").await, 404, "and not here");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_by_class_counts_each_upstream_by_itself() {
    let gateway = with_profile().await;
    let status = async |host| get(&gateway, "/v1/health", host).await.status;
    for _ in 0..5 {
        assert_eq!(status("north.gate.internal").await, 200);
    }
    assert_eq!(status("north.gate.internal").await, 429);
    assert_eq!(status("other.example").await, 200);
    // Another class of the same upstream has permits, until those of the whole upstream are spent.
    let send = async || get(&gateway, "/v1/support", "rest.example").await.status;
    let other = async || {
        let request = format!(
            "POST /v1/messages HTTP/1.1\r\nHost: north.gate.internal\r\nContent-Length: 2\r\n\
             Authorization: Apikey {KEY}\r\n\r\n{{}}"
        );
        let tls = connected(&gateway, &["http/1.1"]).await;
        exchange(tls, request.as_bytes(), false).await.status
    };
    assert_eq!(send().await, 200);
    for _ in 0..3 {
        assert_eq!(other().await, 200);
    }
    assert_eq!(other().await, 429);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_key_may_be_for_some_upstreams_only() {
    let gateway = with_profile().await;
    let status = async |host: &str, path: &str| {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nX-Api-Key: {RESTRICTED}\r\n\r\n");
        let tls = connected(&gateway, &["http/1.1"]).await;
        exchange(tls, request.as_bytes(), false).await.status
    };
    assert_eq!(status("north.gate.internal", "/v1/health").await, 200);
    assert_eq!(status("south.gate.internal", "/south/v1/health").await, 200);
    assert_eq!(status("other.example", "/v1/health").await, 403);
    assert_eq!(status("other.example", "/v1/support").await, 403);
    // Over HTTP/2 `Host` may differ from `:authority`: neither leads past the restriction.
    for (authority, host) in [
        ("other.example", "north.gate.internal"),
        ("north.gate.internal", "other.example"),
    ] {
        let request = Request::builder()
            .uri(format!("https://{authority}/v1/health"))
            .header("host", host)
            .header("x-api-key", RESTRICTED)
            .body(())
            .unwrap();
        let response = exchange_http2(&gateway, request).await;
        assert_eq!(response.status, 400, "{authority} {host}");
    }
}

/// Row U5: what differs here is the login; connections belong to an upstream, not to an address.
#[tokio::test(flavor = "multi_thread")]
async fn upstreams_at_one_address_share_no_connection() {
    let both = super::shared_server().await;
    let text = config(&format!(
        r#"
[upstream.x]
url = "http://{address}"
login = {{ username = "user-x", password = {{ file = "webapp-password" }} }}
[upstream.y]
url = "http://{address}"
login = {{ username = "user-y", password = {{ file = "webapp-password" }} }}
[[route]]
name = "x"
upstream = "x"
path = "/x/*"
access = "api_key"
[[route]]
name = "y"
upstream = "y"
path = "/y/*"
access = "api_key"
"#,
        address = both.address
    ));
    let gateway = Gateway::of_text(&text).await;
    let gateway = &gateway;
    let send = async |turn: usize| {
        let path = ["/x/1", "/y/1"][turn % 2];
        let echoed: Echoed = get(gateway, path, "localhost").await;
        assert_eq!(echoed.status, 200);
        let token = format!("bearer token for user-{}", &path[1..2]);
        assert_eq!(echoed.field("authorization"), Some(&*token));
    };
    let requests = stream::iter(0..1000).map(send);
    requests.buffer_unordered(16).collect::<()>().await;
    assert_eq!(both.mixed(), 0, "a connection carried requests of both");
}
