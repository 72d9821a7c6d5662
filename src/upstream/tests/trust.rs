//! Which servers the gateway trusts as the upstream.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PublicKeyData as _};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use super::names::names;
use super::server::{Reply, Webapp};
use super::{Folder, TEST_TIMEOUT, UpstreamSetup, eventually, outbound, sole_tls, stays};
use crate::config::Trust;
use crate::lifecycle::TaskScope;
use crate::upstream::transport::address_book::AddressBook;
use crate::upstream::transport::address_memory::AddressMemory;
use crate::upstream::transport::tcp_dialer::TcpDialer;
use crate::upstream::transport::tls::upstream_tls::{UpstreamTls, server_name};
use crate::upstream::{Error, ResponseTimeout, SendErrorKind, Upstream, UpstreamConnections};

/// An authority and a server certificate that it signed.
pub(super) struct Identity {
    pub(super) authority: String,
    pub(super) certificate: CertificateDer<'static>,
    pub(super) key: KeyPair,
}

impl Identity {
    pub(super) fn of(name: &str) -> Self {
        let authority_key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = params.self_signed(&authority_key).unwrap().pem();
        let issuer = Issuer::new(params, authority_key);
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap().der().clone();
        Self {
            authority,
            certificate,
            key,
        }
    }

    pub(super) fn pin(&self) -> [u8; 32] {
        Sha256::digest(self.key.subject_public_key_info()).into()
    }

    pub(super) async fn serve(&self) -> Webapp {
        serve(&self.certificate, &self.key).await
    }
}

/// Presents a certificate whether or not the key belongs to it.
#[derive(Debug)]
struct FixedCertificate(Arc<CertifiedKey>);

impl ResolvesServerCert for FixedCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

pub(super) async fn serve(certificate: &CertificateDer<'static>, key: &KeyPair) -> Webapp {
    serve_at("127.0.0.1:0".parse().unwrap(), certificate, key).await
}

async fn serve_at(
    address: SocketAddr,
    certificate: &CertificateDer<'static>,
    key: &KeyPair,
) -> Webapp {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let key = provider.key_provider.load_private_key(key).unwrap();
    let certificate_resolver =
        FixedCertificate(Arc::new(CertifiedKey::new(vec![certificate.clone()], key)));
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(certificate_resolver));
    let acceptor = TlsAcceptor::from(Arc::new(config));
    Webapp::start_at(address, Some(acceptor), |_| Reply::with(200, "", "hi")).await
}

pub(super) fn setup(webapp: &Webapp, trust: Trust) -> UpstreamSetup {
    let mut setup = UpstreamSetup::of(webapp.address).without_login();
    setup.settings.base.tls = true;
    setup.settings.trust = trust;
    setup
}

/// Connects to the upstream; the error's text if it is not trusted.
pub(super) async fn connect(setup: &UpstreamSetup, upstream: &Arc<Upstream>) -> Result<(), String> {
    let connections =
        UpstreamConnections::<Empty<Bytes>>::new(Arc::clone(upstream), &setup.scope.tasks);
    let request = Request::new(Empty::new());
    match connections
        .send(
            outbound(request),
            ResponseTimeout::within(Duration::from_secs(5)),
        )
        .await
    {
        Ok(_) => Ok(()),
        Err(failure) => {
            assert_eq!(failure.kind, SendErrorKind::ConnectFailed);
            Err(crate::error_chain::chain(&failure))
        }
    }
}

#[tokio::test]
async fn a_pinned_key_is_trusted_and_no_other() {
    let identity = Identity::of("whatever.example");
    let webapp = identity.serve().await;
    let good = setup(&webapp, Trust::Pins(vec![[7; 32], identity.pin()]));
    connect(&good, &good.open().unwrap()).await.unwrap();
    let bad = setup(&webapp, Trust::Pins(vec![[7; 32]]));
    let message = connect(&bad, &bad.open().unwrap()).await.unwrap_err();
    assert!(message.contains("not pinned"), "{message}");
    let certificate_resolver = format!("sha256//{}", STANDARD.encode(identity.pin()));
    assert!(message.contains(&certificate_resolver), "{message}");
}

#[tokio::test]
async fn a_pinned_certificate_without_its_key_is_not_trusted() {
    let identity = Identity::of("127.0.0.1");
    let thief = KeyPair::generate().unwrap();
    let webapp = serve(&identity.certificate, &thief).await;
    let setup = setup(&webapp, Trust::Pins(vec![identity.pin()]));
    let message = connect(&setup, &setup.open().unwrap()).await;
    assert!(
        message.is_err(),
        "a certificate without its key proves nothing"
    );
}

#[tokio::test]
async fn a_private_authority_is_trusted_and_others_are_not() {
    let (identity, other_identity) = (Identity::of("127.0.0.1"), Identity::of("127.0.0.1"));
    let webapp = identity.serve().await;
    let mut setup = setup(&webapp, Trust::PublicAuthorities);
    assert!(connect(&setup, &setup.open().unwrap()).await.is_err());

    let path = setup.folder.write("ca.pem", &identity.authority);
    setup.settings.trust = Trust::Authorities(path);
    connect(&setup, &setup.open().unwrap()).await.unwrap();
    setup.folder.write("ca.pem", &other_identity.authority);
    assert!(connect(&setup, &setup.open().unwrap()).await.is_err());
}

#[tokio::test]
async fn the_certificates_name_is_checked_and_server_name_overrides_it() {
    let identity = Identity::of("webapp.internal");
    let webapp = identity.serve().await;
    let mut setup = setup(&webapp, Trust::PublicAuthorities);
    let path = setup.folder.write("ca.pem", &identity.authority);
    setup.settings.trust = Trust::Authorities(path);
    assert!(connect(&setup, &setup.open().unwrap()).await.is_err());
    setup.settings.server_name = Some("webapp.internal".to_owned());
    connect(&setup, &setup.open().unwrap()).await.unwrap();
    setup.settings.server_name = Some("not a name".to_owned());
    assert!(matches!(setup.open(), Err(Error::Trust { .. })));
}

#[tokio::test]
async fn authorities_follow_their_file_and_a_bad_file_changes_nothing() {
    let (identity, other_identity) = (Identity::of("127.0.0.1"), Identity::of("127.0.0.1"));
    let webapp = identity.serve().await;
    let mut setup = setup(&webapp, Trust::PublicAuthorities);
    let path = setup.folder.write("ca.pem", "nothing in here");
    setup.settings.trust = Trust::Authorities(path.clone());
    assert!(matches!(setup.open(), Err(Error::Trust { .. })));

    setup.folder.write("ca.pem", &other_identity.authority);
    let upstream = setup.open().unwrap();
    assert!(connect(&setup, &upstream).await.is_err());
    let current = || Arc::as_ptr(&sole_tls(&upstream).current());
    let first = current();
    setup
        .folder
        .write("ca.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n");
    stays("the old authorities", || current() == first).await;
    setup.folder.write("ca.pem", &identity.authority);
    eventually("the new authorities", || current() != first).await;
    connect(&setup, &upstream).await.unwrap();
}

#[tokio::test]
async fn an_address_with_broken_tls_is_skipped() {
    let identity = Identity::of("127.0.0.1");
    let webapp = identity.serve().await;
    let port = webapp.address.port();
    let other_identity = Identity::of("127.0.0.1");
    // One closes at once, one sends nothing, one has another key.
    let closing = TcpListener::bind(("127.0.0.2", port)).await.unwrap();
    let scope = TaskScope::new(tokio::runtime::Handle::current());
    scope.spawn("closes", async move {
        while let Ok((tcp, _)) = closing.accept().await {
            drop(tcp);
        }
    });
    let _silent = TcpListener::bind(("127.0.0.3", port)).await.unwrap();
    let address = format!("127.0.0.4:{port}").parse().unwrap();
    let _other = serve_at(address, &other_identity.certificate, &other_identity.key).await;
    for (bad, max_millis) in [("127.0.0.2", 500), ("127.0.0.4", 500), ("127.0.0.3", 1500)] {
        let folder = Folder::new();
        let hosts = format!("{bad} webapp.example\n127.0.0.1 webapp.example\n");
        let upstream: Arc<str> = "main".into();
        let mut settings = UpstreamSetup::of(webapp.address).settings;
        settings.trust = Trust::Pins(vec![identity.pin()]);
        settings.base.host = "webapp.example".to_owned();
        let dialer = TcpDialer {
            port,
            book: AddressBook::new("webapp.example", names(&folder, "", &hosts), &scope),
            memory: AddressMemory::default(),
            proxy: None,
            tls: Some(Arc::new(UpstreamTls::open(&settings).unwrap())),
            server_name: Some(server_name(&settings, &settings.base).unwrap()),
            has_prior_knowledge: false,
            limit: TEST_TIMEOUT,
            upstream,
        };
        for max_millis in [max_millis, 300] {
            let began = Instant::now();
            dialer.dial(None).await.unwrap();
            let took = began.elapsed();
            assert!(took < Duration::from_millis(max_millis), "{bad}: {took:?}");
        }
    }
}
