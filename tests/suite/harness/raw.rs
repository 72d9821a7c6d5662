//! A client that sends exactly the bytes it is given.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Gateway;

pub(crate) struct Raw(pub TlsStream<TcpStream>);

/// A TLS connection to the gate that offers `protocols`.
pub(crate) async fn connected(gateway: &Gateway, protocols: &[&str]) -> TlsStream<TcpStream> {
    let pem = gateway.folder.path().join("certs/ca.pem");
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(pem).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols
        .iter()
        .map(|name| name.as_bytes().to_vec())
        .collect();
    let tcp = TcpStream::connect(gateway.addresses.listeners[0])
        .await
        .unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    connector.connect(name, tcp).await.unwrap()
}

impl Raw {
    pub(crate) async fn connect(gateway: &Gateway) -> Self {
        Self(connected(gateway, &[]).await)
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
        self.0.flush().await.unwrap();
    }

    /// All bytes until the other end closes or ten seconds have passed.
    pub(crate) async fn read_to_end(&mut self) -> String {
        let mut bytes = Vec::new();
        let read = self.0.read_to_end(&mut bytes);
        let _ = tokio::time::timeout(Duration::from_secs(10), read).await;
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The bytes that have arrived when `text` is among them or ten seconds have passed.
    pub(crate) async fn read_until(&mut self, text: &str) -> String {
        let mut bytes = Vec::new();
        let read = async {
            let mut piece = [0; 4096];
            while !String::from_utf8_lossy(&bytes).contains(text) {
                match self.0.read(&mut piece).await {
                    Ok(0) | Err(_) => break,
                    Ok(count) => bytes.extend_from_slice(&piece[..count]),
                }
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(10), read).await;
        String::from_utf8_lossy(&bytes).into_owned()
    }
}
