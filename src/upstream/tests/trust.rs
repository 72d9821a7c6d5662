//! Whom the gate believes to be the upstream.

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
use super::{Folder, PATIENCE, Surroundings, eventually, stays};
use crate::config::Trust;
use crate::lifecycle::TaskScope;
use crate::upstream::transport::address_book::AddressBook;
use crate::upstream::transport::address_memory::AddressMemory;
use crate::upstream::transport::dialer::Dialer;
use crate::upstream::transport::tls::trust::UpstreamTls;
use crate::upstream::{Error, ResponseTimeout, SendErrorKind, Upstream, UpstreamConnections};

/// An authority and a server certificate of its making.
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

/// Shows a certificate whether or not the key belongs to it.
#[derive(Debug)]
struct Shows(Arc<CertifiedKey>);

impl ResolvesServerCert for Shows {
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
    let shown = Shows(Arc::new(CertifiedKey::new(vec![certificate.clone()], key)));
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(shown));
    let acceptor = TlsAcceptor::from(Arc::new(config));
    Webapp::start_at(address, Some(acceptor), |_| Reply::with(200, "", "hi")).await
}

pub(super) fn around(webapp: &Webapp, trust: Trust) -> Surroundings {
    let mut around = Surroundings::of(webapp.address).without_login();
    around.settings.base.tls = true;
    around.settings.trust = trust;
    around
}

/// Whether a new connection to the upstream is believed; the error's text if not.
pub(super) async fn believes(
    around: &Surroundings,
    upstream: &Arc<Upstream>,
) -> Result<(), String> {
    let connections =
        UpstreamConnections::<Empty<Bytes>>::new(Arc::clone(upstream), &around.scope.tasks);
    let request = Request::new(Empty::new());
    match connections
        .send(request, ResponseTimeout::within(Duration::from_secs(5)))
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
async fn a_pinned_key_is_believed_and_no_other() {
    let identity = Identity::of("whatever.example");
    let webapp = identity.serve().await;
    let good = around(&webapp, Trust::Pins(vec![[7; 32], identity.pin()]));
    believes(&good, &good.open().unwrap()).await.unwrap();
    let bad = around(&webapp, Trust::Pins(vec![[7; 32]]));
    let why = believes(&bad, &bad.open().unwrap()).await.unwrap_err();
    assert!(why.contains("not pinned"), "{why}");
    let shown = format!("sha256//{}", STANDARD.encode(identity.pin()));
    assert!(why.contains(&shown), "{why}");
}

#[tokio::test]
async fn a_pinned_certificate_without_its_key_is_not_believed() {
    let identity = Identity::of("127.0.0.1");
    let thief = KeyPair::generate().unwrap();
    let webapp = serve(&identity.certificate, &thief).await;
    let around = around(&webapp, Trust::Pins(vec![identity.pin()]));
    let why = believes(&around, &around.open().unwrap()).await;
    assert!(why.is_err(), "a certificate is public, it proves nothing");
}

#[tokio::test]
async fn a_private_authority_is_believed_and_strangers_are_not() {
    let (identity, stranger) = (Identity::of("127.0.0.1"), Identity::of("127.0.0.1"));
    let webapp = identity.serve().await;
    let mut around = around(&webapp, Trust::PublicAuthorities);
    assert!(believes(&around, &around.open().unwrap()).await.is_err());

    let path = around.folder.write("ca.pem", &identity.authority);
    around.settings.trust = Trust::Authorities(path);
    believes(&around, &around.open().unwrap()).await.unwrap();
    around.folder.write("ca.pem", &stranger.authority);
    assert!(believes(&around, &around.open().unwrap()).await.is_err());
}

#[tokio::test]
async fn the_name_in_the_certificate_counts_and_can_be_said() {
    let identity = Identity::of("webapp.internal");
    let webapp = identity.serve().await;
    let mut around = around(&webapp, Trust::PublicAuthorities);
    let path = around.folder.write("ca.pem", &identity.authority);
    around.settings.trust = Trust::Authorities(path);
    assert!(believes(&around, &around.open().unwrap()).await.is_err());
    around.settings.server_name = Some("webapp.internal".to_owned());
    believes(&around, &around.open().unwrap()).await.unwrap();
    around.settings.server_name = Some("not a name".to_owned());
    assert!(matches!(around.open(), Err(Error::Trust { .. })));
}

#[tokio::test]
async fn authorities_follow_their_file_and_a_bad_file_changes_nothing() {
    let (identity, stranger) = (Identity::of("127.0.0.1"), Identity::of("127.0.0.1"));
    let webapp = identity.serve().await;
    let mut around = around(&webapp, Trust::PublicAuthorities);
    let path = around.folder.write("ca.pem", "nothing in here");
    around.settings.trust = Trust::Authorities(path.clone());
    assert!(matches!(around.open(), Err(Error::Trust { .. })));

    around.folder.write("ca.pem", &stranger.authority);
    let upstream = around.open().unwrap();
    assert!(believes(&around, &upstream).await.is_err());
    let current = || Arc::as_ptr(&upstream.dialer.tls.as_ref().unwrap().current().0);
    let first = current();
    around
        .folder
        .write("ca.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n");
    stays("the old authorities", || current() == first).await;
    around.folder.write("ca.pem", &identity.authority);
    eventually("the new authorities", || current() != first).await;
    believes(&around, &upstream).await.unwrap();
}

#[tokio::test]
async fn an_address_whose_tls_is_broken_is_passed_over() {
    let identity = Identity::of("127.0.0.1");
    let webapp = identity.serve().await;
    let port = webapp.address.port();
    let stranger = Identity::of("127.0.0.1");
    // Closes at once; says nothing; has another's key.
    let closing = TcpListener::bind(("127.0.0.2", port)).await.unwrap();
    let scope = TaskScope::new(tokio::runtime::Handle::current());
    scope.spawn("closes", async move {
        while let Ok((tcp, _)) = closing.accept().await {
            drop(tcp);
        }
    });
    let _silent = TcpListener::bind(("127.0.0.3", port)).await.unwrap();
    let address = format!("127.0.0.4:{port}").parse().unwrap();
    let _other = serve_at(address, &stranger.certificate, &stranger.key).await;
    for (bad, most) in [("127.0.0.2", 500), ("127.0.0.4", 500), ("127.0.0.3", 1500)] {
        let folder = Folder::new();
        let hosts = format!("{bad} webapp.example\n127.0.0.1 webapp.example\n");
        let upstream: Arc<str> = "main".into();
        let trust = Trust::Pins(vec![identity.pin()]);
        let dialer = Dialer {
            port,
            book: AddressBook::new("webapp.example", names(&folder, "", &hosts), &scope),
            memory: AddressMemory::default(),
            tls: Some(Arc::new(
                UpstreamTls::open(&trust, "webapp.example", &upstream).unwrap(),
            )),
            limit: PATIENCE,
            upstream,
        };
        for most in [most, 300] {
            let began = Instant::now();
            dialer.dial(None).await.unwrap();
            let took = began.elapsed();
            assert!(took < Duration::from_millis(most), "{bad}: {took:?}");
        }
    }
}
