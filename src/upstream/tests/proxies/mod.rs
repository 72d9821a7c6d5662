//! An upstream behind an HTTP proxy: what the proxy is told, what it may answer, and who sees its login.

mod bad_answers;
mod probes;
mod raw_proxy;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivateKeyDer;
use tokio::net::TcpListener;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;

use raw_proxy::{ProxyReply, RawProxy};

use super::server::{Call, Reply, Webapp};
use super::trust::Identity;
use super::{TEST_TIMEOUT, UpstreamSetup, eventually, outbound};
use crate::config::{ProxyConfig, ProxyLogin, Trust};
use crate::error_chain::chain;
use crate::secret::SecretSource;
use crate::upstream::{DialError, ResponseTimeout, SendErrorKind, UpstreamConnections};

const PASSWORD: &str = "proxy-canary-5ecret";

/// An upstream `webapp.invalid`, whose name only the proxy knows.
fn setup(proxy: SocketAddr, has_login: bool) -> UpstreamSetup {
    let mut setup = UpstreamSetup::of("127.0.0.1:4443".parse().unwrap());
    setup.settings.base.host = "webapp.invalid".to_owned();
    let login = has_login.then(|| ProxyLogin {
        username: "gate".to_owned(),
        password: SecretSource::File(setup.folder.write("proxy-password", PASSWORD)),
    });
    setup.settings.proxy = Some(ProxyConfig {
        host: proxy.ip().to_string(),
        port: proxy.port(),
        login,
    });
    setup
}

fn basic(password: &str) -> String {
    let pair = STANDARD.encode(format!("gate:{password}"));
    format!("Proxy-Authorization: Basic {pair}")
}

type Connections = UpstreamConnections<Empty<Bytes>>;

fn connections(setup: &UpstreamSetup) -> Connections {
    UpstreamConnections::new(setup.open().unwrap(), &setup.scope.tasks)
}

/// Status and body, or the error.
async fn get(connections: &Connections) -> Result<(u16, String), (SendErrorKind, String)> {
    let request = outbound(Request::new(Empty::new()));
    let timeout = ResponseTimeout::within(TEST_TIMEOUT);
    let response = connections.send(request, timeout).await;
    let response = response.map_err(|failure| (failure.kind, chain(&failure)))?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    Ok((status, String::from_utf8(body.to_vec()).unwrap()))
}

fn script(call: &Call) -> Reply {
    match call.head.starts_with("POST /v1/users/login") {
        true => Reply::login("token", 86_400),
        false => Reply::with(200, "", "hi"),
    }
}

fn acceptor(identity: &Identity) -> TlsAcceptor {
    let key = PrivateKeyDer::try_from(identity.key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![identity.certificate.clone()], key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

#[tokio::test]
async fn a_login_and_requests_go_through_the_tunnel_and_only_the_proxy_sees_its_login() {
    let identity = Identity::of("webapp.invalid");
    for has_tls in [false, true] {
        let tls = has_tls.then(|| acceptor(&identity));
        let webapp = Webapp::start_at("127.0.0.1:0".parse().unwrap(), tls, script).await;
        let proxy = RawProxy::to(webapp.address).await;
        let mut setup = setup(proxy.address, true);
        setup.settings.base.tls = has_tls;
        let authorities = setup.folder.write("ca.pem", &identity.authority);
        setup.settings.trust = Trust::Authorities(authorities);
        let connections = connections(&setup);
        let lease = connections.upstream().shared_session().unwrap().lease();
        let lease = tokio::time::timeout(TEST_TIMEOUT, lease).await.unwrap();
        lease.unwrap();
        for _ in 0..3 {
            assert_eq!(get(&connections).await.unwrap(), (200, "hi".to_owned()));
        }
        let heads = proxy.heads();
        assert_eq!(heads.len(), 2, "one for the login, one is kept: {heads:?}");
        for head in heads {
            let lines: Vec<_> = head.trim_end().lines().collect();
            let target = "webapp.invalid:4443";
            let expected = [
                format!("CONNECT {target} HTTP/1.1"),
                format!("Host: {target}"),
                basic(PASSWORD),
            ];
            assert_eq!(lines, expected);
        }
        for call in webapp.calls() {
            let head = call.head.to_ascii_lowercase();
            assert!(!head.contains("proxy-"), "{head}");
            assert!(call.has_line("host: webapp.invalid:4443"), "{head}");
        }
        setup.scope.stop.drain();
    }
}

#[tokio::test]
async fn a_407_of_the_upstream_is_its_response_and_gets_no_login() {
    let webapp = Webapp::start(|_| {
        let challenge = "Proxy-Authenticate: Basic realm=\"x\"\r\n";
        Reply::with(407, challenge, "who?")
    })
    .await;
    let proxy = RawProxy::to(webapp.address).await;
    let setup = setup(proxy.address, true).without_login();
    let connections = connections(&setup);
    for _ in 0..2 {
        assert_eq!(get(&connections).await.unwrap(), (407, "who?".to_owned()));
    }
    assert_eq!(webapp.requests(), 2);
    for call in webapp.calls() {
        assert!(!call.head.to_ascii_lowercase().contains("proxy-"));
    }
}

#[tokio::test]
async fn every_form_of_a_good_answer_opens_the_tunnel() {
    let webapp = Webapp::start(|_| Reply::with(200, "", "hi")).await;
    let whole = |text: &str| vec![text.as_bytes().to_vec()];
    let letters = b"HTTP/1.1 200 OK\r\nVia: 1.1 proxy\r\n\r\n".map(|byte| vec![byte]);
    for pieces in [
        whole("HTTP/1.0 200 Connection established\r\nProxy-agent: tinyproxy/1.11\r\n\r\n"),
        whole("HTTP/1.1 200\r\n\r\n"),
        whole("HTTP/1.1 204 No Content\r\n\r\n"),
        whole("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"),
        whole(
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        ),
        whole("HTTP/1.1 200 OK\n\n"),
        whole(&format!(
            "HTTP/1.1 200 OK\r\nX: {}\r\n\r\n",
            "x".repeat(16_000)
        )),
        letters.to_vec(),
    ] {
        let shown = String::from_utf8_lossy(&pieces[0])
            .chars()
            .take(40)
            .collect::<String>();
        let proxy = RawProxy::start(ProxyReply::Tunnel(pieces, webapp.address)).await;
        let setup = setup(proxy.address, false).without_login();
        let outcome = get(&connections(&setup)).await;
        assert_eq!(outcome.unwrap(), (200, "hi".to_owned()), "{shown}");
        assert!(!proxy.heads()[0].contains("Proxy-Authorization"));
    }
}

#[tokio::test]
async fn a_proxy_that_hangs_is_a_timeout_that_says_where() {
    let half = "HTTP/1.1 200 OK\r\nX";
    let whole = "HTTP/1.1 200 OK\r\n\r\n";
    for (bytes, has_tls, expected) in [
        ("", false, "does not answer CONNECT"),
        (half, true, "does not answer CONNECT"),
        (whole, true, "does not answer the TLS handshake"),
    ] {
        let proxy = RawProxy::start(ProxyReply::Hang(bytes.into())).await;
        let mut setup = setup(proxy.address, true).without_login();
        setup.settings.base.tls = has_tls;
        setup.settings.connect_timeout = Duration::from_millis(400);
        let (kind, text) = get(&connections(&setup)).await.unwrap_err();
        assert_eq!(kind, SendErrorKind::ConnectTimeout);
        assert!(text.contains(expected), "{expected}: {text}");
        assert!(
            text.contains("webapp.invalid:4443 through the proxy"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn a_proxy_that_cannot_be_reached_is_told_as_such() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = closed.local_addr().unwrap();
    drop(closed);
    for host in ["127.0.0.1", "no-such-proxy.invalid"] {
        let mut setup = setup(address, false).without_login();
        setup.settings.proxy.as_mut().unwrap().host = host.to_owned();
        let connections = connections(&setup);
        let failure = connections.upstream().reach().await.unwrap_err();
        assert!(
            matches!(failure, DialError::ProxyUnreachable { .. }),
            "{failure:?}"
        );
        assert_eq!(failure.key(), "proxy");
        let text = chain(&failure);
        assert!(
            text.contains("upstream.main.proxy") && text.contains(host),
            "{text}"
        );
    }
}

#[tokio::test]
async fn a_replaced_password_goes_to_the_proxy_and_a_bad_file_changes_nothing() {
    let webapp = Webapp::start(|_| Reply::with(200, "", "hi").then_close()).await;
    let proxy = RawProxy::to(webapp.address).await;
    let setup = setup(proxy.address, true).without_login();
    let connections = connections(&setup);
    get(&connections).await.unwrap();
    setup.folder.write("proxy-password", "");
    sleep(Duration::from_millis(2500)).await;
    get(&connections).await.unwrap();
    assert!(
        proxy
            .heads()
            .iter()
            .all(|head| head.contains(&basic(PASSWORD)))
    );
    setup.folder.write("proxy-password", "another");
    let deadline = tokio::time::Instant::now() + TEST_TIMEOUT;
    while !proxy.heads().last().unwrap().contains(&basic("another")) {
        assert!(tokio::time::Instant::now() < deadline, "still the old");
        get(&connections).await.unwrap();
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn an_upstream_with_a_proxy_and_one_without_share_no_connection() {
    let webapp = Webapp::start(|_| Reply::with(200, "", "hi")).await;
    let proxies = [
        RawProxy::to(webapp.address).await,
        RawProxy::to(webapp.address).await,
    ];
    let setups = proxies
        .each_ref()
        .map(|proxy| setup(proxy.address, false).without_login());
    let direct = UpstreamSetup::of(webapp.address).without_login();
    let [first, second] = setups.each_ref().map(connections);
    let direct = connections(&direct);
    for _ in 0..300 {
        for upstream in [&first, &direct, &second] {
            get(upstream).await.unwrap();
        }
    }
    assert_eq!(webapp.connections(), 3);
    eventually("one tunnel each", || {
        proxies.iter().all(|proxy| proxy.heads().len() == 1)
    })
    .await;
}
