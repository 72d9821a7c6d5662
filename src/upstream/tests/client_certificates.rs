//! The gate's own certificate towards an upstream that asks for one: shown, replaced, refused.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::trust::Identity;
use super::{TEST_TIMEOUT, UpstreamSetup, eventually, outbound, sole_tls, stays};
use crate::config::{CertificateFiles, Trust};
use crate::error_chain::chain;
use crate::lifecycle::TaskSet;
use crate::upstream::{EndpointChoice, Error, ResponseTimeout, UpstreamConnections};

/// An authority for certificates of clients.
struct ClientAuthority(Issuer<'static, KeyPair>, rcgen::Certificate);

/// A certificate and its key, in PEM.
struct Pair {
    certificate: String,
    key: String,
}

impl ClientAuthority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "clients");
        let own = params.self_signed(&key).unwrap();
        Self(Issuer::new(params, key), own)
    }

    fn pair(&self, name: &str) -> Pair {
        self.pair_between(name, 2020, 2090)
    }

    fn pair_between(&self, name: &str, from: i32, to: i32) -> Pair {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(to, 1, 1);
        Pair {
            certificate: params.signed_by(&key, &self.0).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }
}

/// A server that asks for a certificate and responds with the name in it.
struct AskingServer {
    address: SocketAddr,
    identity: Identity,
    accepted: Arc<AtomicUsize>,
    closed: Arc<AtomicUsize>,
    /// Responds 403 on connections of the certificate "old".
    refuses_old: Arc<AtomicBool>,
}

impl AskingServer {
    async fn start(
        authority: &ClientAuthority,
        version: &'static SupportedProtocolVersion,
    ) -> Self {
        let identity = Identity::of("127.0.0.1");
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(authority.1.der().clone()).unwrap();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .unwrap();
        let key = PrivateKeyDer::try_from(identity.key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![identity.certificate.clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            identity,
            accepted: Arc::default(),
            closed: Arc::default(),
            refuses_old: Arc::default(),
        };
        let (accepted, closed) = (Arc::clone(&server.accepted), Arc::clone(&server.closed));
        let refuses_old = Arc::clone(&server.refuses_old);
        let tasks = TaskSet::new(Handle::current());
        let on = tasks.clone();
        tasks.spawn("asking server", async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, refuses_old) = (acceptor.clone(), Arc::clone(&refuses_old));
                let (accepted, closed) = (Arc::clone(&accepted), Arc::clone(&closed));
                on.spawn("asking connection", async move {
                    let Ok(stream) = acceptor.accept(tcp).await else {
                        return;
                    };
                    accepted.fetch_add(1, Ordering::SeqCst);
                    respond(stream, &refuses_old).await;
                    closed.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        server
    }

    /// An upstream of it that shows `pair`.
    fn setup(&self, pair: Option<&Pair>) -> UpstreamSetup {
        let mut setup = UpstreamSetup::of(self.address);
        setup.settings.base.tls = true;
        setup.settings.trust = Trust::Pins(vec![self.identity.pin()]);
        if let Some(pair) = pair {
            let files = write(&setup, pair);
            setup.settings.client_certificate = Some(files);
        }
        setup
    }
}

async fn respond(
    mut stream: tokio_rustls::server::TlsStream<tokio::net::TcpStream>,
    refuses_old: &AtomicBool,
) {
    let shown = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
    let (_, shown) = X509Certificate::from_der(&shown).unwrap();
    let name = shown.subject().iter_common_name().next().unwrap();
    let name = name.as_str().unwrap().to_owned();
    let mut head = Vec::new();
    loop {
        head.clear();
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => return,
            }
        }
        let is_refused = refuses_old.load(Ordering::SeqCst) && name == "old";
        let response = match head.starts_with(b"POST /v1/users/login") {
            true => {
                let end = crate::profiles::format_expiry(crate::clock::unix_seconds() + 86_400);
                let body = format!(
                    r#"{{"users":[{{"token":"{name}","expires_after":"{end}"}}],"meta":{{}}}}"#
                );
                let length = body.len();
                format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}")
            }
            false => {
                let status = if is_refused { 403 } else { 200 };
                let length = name.len();
                format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n\r\n{name}")
            }
        };
        if stream.write_all(response.as_bytes()).await.is_err() {
            return;
        }
        let _ = stream.flush().await;
    }
}

fn write(setup: &UpstreamSetup, pair: &Pair) -> CertificateFiles {
    CertificateFiles {
        certificate: setup.folder.write("gate.pem", &pair.certificate),
        key: setup.folder.write("gate.key", &pair.key),
    }
}

type Connections = UpstreamConnections<Empty<Bytes>>;

fn connections(setup: &UpstreamSetup) -> Connections {
    UpstreamConnections::new(setup.open().unwrap(), &setup.scope.tasks)
}

/// The name that the server has seen, or the error.
async fn shown(connections: &Connections) -> Result<String, String> {
    let request = outbound(Request::new(Empty::new()));
    let timeout = ResponseTimeout::within(TEST_TIMEOUT);
    let response = connections.send(request, timeout).await;
    let response = response.map_err(|failure| chain(&failure))?;
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    match status.as_u16() {
        200 => Ok(String::from_utf8(body.to_vec()).unwrap()),
        other => Err(other.to_string()),
    }
}

#[tokio::test]
async fn logins_and_requests_show_the_certificate() {
    let authority = ClientAuthority::new();
    for version in [&TLS12, &TLS13] {
        let server = AskingServer::start(&authority, version).await;
        let setup = server.setup(Some(&authority.pair("gate")));
        let connections = connections(&setup);
        connections.upstream().reach().await.unwrap();
        let lease = connections.upstream().shared_session().unwrap().lease();
        let lease = tokio::time::timeout(TEST_TIMEOUT, lease).await.unwrap();
        assert_eq!(lease.unwrap().secret.expose(), "gate");
        assert_eq!(shown(&connections).await.unwrap(), "gate");
        setup.scope.stop.drain();
    }
}

#[tokio::test]
async fn a_missing_or_refused_certificate_is_explained() {
    let (authority, stranger) = (ClientAuthority::new(), ClientAuthority::new());
    for version in [&TLS12, &TLS13] {
        let server = AskingServer::start(&authority, version).await;
        let refused = stranger.pair("stranger");
        let ended = authority.pair_between("ended", 2001, 2002);
        for (pair, expected) in [
            (
                None,
                &["asks for a client certificate", "main.client_certificate"][..],
            ),
            (Some(&refused), &["refuses the certificate", "CN=stranger"]),
            (Some(&ended), &["CN=ended", "has ended at 2002-01-01"]),
        ] {
            let setup = server.setup(pair).without_login();
            let text = shown(&connections(&setup)).await.unwrap_err();
            let reached = setup.open().unwrap().reach().await.unwrap_err();
            assert_eq!(reached.key(), "client_certificate", "{reached:?}");
            for text in [text, chain(&reached)] {
                for part in expected {
                    assert!(text.contains(part), "{version:?} {part}: {text}");
                }
            }
        }
    }
}

#[tokio::test]
async fn upstreams_at_one_address_never_share_a_connection() {
    let authority = ClientAuthority::new();
    let server = AskingServer::start(&authority, &TLS13).await;
    let setups = ["x", "y"].map(|name| server.setup(Some(&authority.pair(name))).without_login());
    let upstreams = setups.each_ref().map(connections);
    for number in 0..1000 {
        let at = number % 2;
        assert_eq!(shown(&upstreams[at]).await.unwrap(), ["x", "y"][at]);
    }
    assert_eq!(server.accepted.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_replaced_pair_is_shown_soon_and_old_connections_end_without_a_failed_request() {
    let authority = ClientAuthority::new();
    let server = AskingServer::start(&authority, &TLS13).await;
    let setup = server.setup(Some(&authority.pair("old"))).without_login();
    let connections = connections(&setup);
    assert_eq!(shown(&connections).await.unwrap(), "old");
    // One stays idle, one is always busy.
    let _ = tokio::join!(shown(&connections), shown(&connections));
    write(&setup, &authority.pair("new"));
    let began = Instant::now();
    while shown(&connections).await.unwrap() == "old" {
        assert!(began.elapsed() < Duration::from_secs(8), "still the old");
        sleep(Duration::from_millis(10)).await;
    }
    server.refuses_old.store(true, Ordering::SeqCst);
    for _ in 0..50 {
        assert_eq!(shown(&connections).await.unwrap(), "new");
    }
    let closed = || server.closed.load(Ordering::SeqCst) >= 2;
    eventually("the old connections are closed", closed).await;
}

#[tokio::test]
async fn a_pair_that_cannot_be_used_leaves_the_old_in_use() {
    let authority = ClientAuthority::new();
    let server = AskingServer::start(&authority, &TLS13).await;
    let old = authority.pair("old");
    let setup = server.setup(Some(&old)).without_login();
    let connections = connections(&setup);
    let tls = || sole_tls(connections.upstream());
    let first = tls().current();
    let is_first = || Arc::ptr_eq(&first, &tls().current());
    let other = authority.pair("other");
    setup.folder.write("gate.key", &other.key);
    stays("the key of another certificate", is_first).await;
    let ended = authority.pair_between("ended", 2001, 2002);
    write(&setup, &ended);
    stays("an ended certificate", is_first).await;
    std::fs::remove_file(setup.folder.0.join("gate.key")).unwrap();
    stays("a missing key", is_first).await;
    assert_eq!(shown(&connections).await.unwrap(), "old");
    write(&setup, &authority.pair("new"));
    eventually("the new pair", || !is_first()).await;
    assert_eq!(shown(&connections).await.unwrap(), "new");
}

#[tokio::test]
async fn changed_authorities_judge_new_connections_and_leave_the_others() {
    let (identity, other) = (Identity::of("127.0.0.1"), Identity::of("127.0.0.1"));
    let webapp = identity.serve().await;
    let mut setup = super::trust::setup(&webapp, Trust::PublicAuthorities);
    let path = setup.folder.write("ca.pem", &identity.authority);
    setup.settings.trust = Trust::Authorities(path);
    let connections = connections(&setup);
    assert_eq!(shown(&connections).await.unwrap(), "hi");
    let tls = || sole_tls(connections.upstream());
    let first = tls().current();
    setup.folder.write("ca.pem", &other.authority);
    eventually("the new authorities", || {
        !Arc::ptr_eq(&first, &tls().current())
    })
    .await;
    sleep(Duration::from_millis(1500)).await; // the sweep of idle connections
    assert_eq!(webapp.ended(), 0);
    assert_eq!(shown(&connections).await.unwrap(), "hi");
    let request = outbound(Request::new(Empty::new()));
    let timeout = ResponseTimeout::within(TEST_TIMEOUT);
    let chosen = connections.choose(EndpointChoice::default()).unwrap();
    let failure = connections
        .send_fresh(chosen, request, timeout)
        .await
        .unwrap_err();
    assert!(chain(&failure).contains("ca.pem"));
}

#[tokio::test]
async fn a_pair_that_cannot_be_used_at_the_start_is_explained() {
    let authority = ClientAuthority::new();
    let server = AskingServer::start(&authority, &TLS13).await;
    let (pair, other) = (authority.pair("gate"), authority.pair("other"));
    let locked =
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMA==\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let bad_key = "-----BEGIN PRIVATE KEY-----\nMA==\n-----END PRIVATE KEY-----\n";
    for (certificate, key, at, expected) in [
        (
            pair.certificate.as_str(),
            other.key.as_str(),
            "client_key",
            "does not belong",
        ),
        (
            &pair.certificate,
            locked,
            "client_key",
            "needs a passphrase",
        ),
        (&pair.certificate, bad_key, "client_key", "cannot be used"),
        (
            "garbage",
            &pair.key,
            "client_certificate",
            "holds no certificate",
        ),
        (
            &pair.key,
            &pair.key,
            "client_certificate",
            "holds no certificate",
        ),
    ] {
        let pair = Pair {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
        };
        let setup = server.setup(Some(&pair)).without_login();
        let error = setup.open().unwrap_err();
        assert!(
            matches!(error, Error::ClientCertificate { .. }),
            "{error:?}"
        );
        assert_eq!(error.key(), at, "{error:?}");
        let text = chain(&error);
        assert!(text.contains(expected) && text.contains("gate."), "{text}");
    }
}
