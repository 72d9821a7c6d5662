//! Probes ask as requests do: the same proxy, SNI, `Host` and certificate.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ResolvesServerCertUsingSni, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use super::raw_proxy::RawProxy;
use super::{connections, get, setup};
use crate::config::{CertificateFiles, Trust};
use crate::upstream::health::breaker::FailureSource;
use crate::upstream::tests::server::{Call, Reply, Webapp};
use crate::upstream::tests::trust::Identity;
use crate::upstream::tests::{TEST_TIMEOUT, eventually};

/// Takes handshakes that ask for `site.internal` and show a certificate of its authority.
fn acceptor(identity: &Identity) -> TlsAcceptor {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_slice(identity.authority.as_bytes());
    roots.add(authority.unwrap()).unwrap();
    let clients =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let key = PrivateKeyDer::try_from(identity.key.serialize_der()).unwrap();
    let key = provider.key_provider.load_private_key(key).unwrap();
    let mut sites = ResolvesServerCertUsingSni::new();
    let certified = CertifiedKey::new(vec![identity.certificate.clone()], key);
    sites.add("site.internal", certified).unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients.build().unwrap())
        .with_cert_resolver(Arc::new(sites));
    TlsAcceptor::from(Arc::new(config))
}

fn script(call: &Call) -> Reply {
    match call.head.starts_with("POST /v1/users/login") {
        _ if !call.has_line("host: site.internal") => Reply::with(404, "", "the default site"),
        true => Reply::login("token", 86_400),
        false => Reply::with(200, "", "hi"),
    }
}

#[tokio::test]
async fn logins_probes_and_requests_take_the_same_way() {
    let identity = Identity::of("site.internal");
    let any = "127.0.0.1:0".parse().unwrap();
    let webapp = Webapp::start_at(any, Some(acceptor(&identity)), script).await;
    let proxy = RawProxy::to(webapp.address).await;
    let mut setup = setup(proxy.address, true);
    let settings = &mut setup.settings;
    settings.base.tls = true;
    settings.base.host = "10.99.99.99".to_owned();
    settings.host = Some("site.internal".to_owned());
    settings.server_name = Some("site.internal".to_owned());
    settings.probe = Some("/probe".parse().unwrap());
    settings.trust = Trust::Authorities(setup.folder.write("ca.pem", &identity.authority));
    // The same authority has signed it; as a client the gate may show it too.
    let der = STANDARD.encode(&identity.certificate);
    let pem = format!("-----BEGIN CERTIFICATE-----\n{der}\n-----END CERTIFICATE-----\n");
    settings.client_certificate = Some(CertificateFiles {
        certificate: setup.folder.write("gate.pem", &pem),
        key: setup
            .folder
            .write("gate.key", &identity.key.serialize_pem()),
    });
    let connections = connections(&setup);
    let upstream = connections.upstream();
    let lease = upstream.shared_session().unwrap().lease();
    let lease = tokio::time::timeout(TEST_TIMEOUT, lease).await.unwrap();
    lease.unwrap();
    assert_eq!(get(&connections).await.unwrap(), (200, "hi".to_owned()));
    // The gate's own probe of an upstream that is in doubt.
    let failure = std::io::Error::other("made up");
    for _ in 0..20 {
        let sole = upstream.endpoints().sole().unwrap();
        sole.state
            .health
            .connect_failed(FailureSource::Request, &failure);
    }
    eventually("the probe has succeeded", || {
        upstream.endpoints().has_quiet()
    })
    .await;
    let calls = webapp.calls();
    let probes = calls
        .iter()
        .filter(|call| !call.head.contains("authorization: "));
    assert!(probes.count() >= 1, "{calls:?}");
    for call in &calls {
        assert!(call.has_line("host: site.internal"), "{}", call.head);
    }
    for head in proxy.heads() {
        assert!(head.starts_with("CONNECT 10.99.99.99:4443 "), "{head}");
    }
}
