use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;

use super::*;

/// A TLS client that trusts only `authority`.
pub(super) fn trusting(authority: &str) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    let der = CertificateDer::from_pem_slice(authority.as_bytes()).unwrap();
    roots.add(der).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

pub(super) async fn page_over_tls(emulator: &Emulator, name: &'static str) -> String {
    let stream = TcpStream::connect(emulator.address()).await.unwrap();
    let name = ServerName::try_from(name).unwrap();
    let connector = trusting(emulator.authority_pem());
    let mut stream = connector.connect(name, stream).await.unwrap();
    let call = b"GET / HTTP/1.1\r\nhost: webapp\r\nconnection: close\r\n\r\n";
    stream.write_all(call).await.unwrap();
    let mut text = Vec::new();
    stream.read_to_end(&mut text).await.unwrap();
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn the_emulator_serves_tls_with_its_own_authority() {
    let scope = TaskScope::new(Handle::current());
    let emulator = Emulator::start(Settings::for_tests(), &scope);
    let emulator = emulator.await.unwrap();
    for name in ["localhost", "127.0.0.1", "webapp"] {
        let text = page_over_tls(&emulator, name).await;
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    }
    let (_, pem) = x509_parser::pem::parse_x509_pem(emulator.authority_pem().as_bytes()).unwrap();
    let authority = pem.parse_x509().unwrap();
    let expected = "C=US, ST=CA, L=Menlo Park, O=WhatsApp Inc, \
                    OU=Enterprise Client - AutoGen CA";
    assert_eq!(authority.subject().to_string(), expected);
    let validity = authority.validity();
    let life = validity.not_after.timestamp() - validity.not_before.timestamp();
    assert_eq!(life, 365 * 86_400);
}

#[tokio::test]
async fn plain_http_on_the_tls_port_gets_no_response_and_causes_no_failure() {
    let scope = TaskScope::new(Handle::current());
    let emulator = Emulator::start(Settings::for_tests(), &scope);
    let emulator = emulator.await.unwrap();
    let mut stream = TcpStream::connect(emulator.address()).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text).await;
    assert!(!text.starts_with(b"HTTP/"));
    let page = page_over_tls(&emulator, "localhost").await;
    assert!(page.starts_with("HTTP/1.1 200"));
}
