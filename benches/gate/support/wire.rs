//! Blocking HTTP/1.1 over one kept connection, with or without TLS.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

pub(crate) trait Bytes: Read + Write + Send {}
impl<T: Read + Write + Send> Bytes for T {}

pub(crate) struct Wire {
    stream: Box<dyn Bytes>,
    kept: Vec<u8>,
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

impl Wire {
    pub(crate) fn plain(port: u16) -> Self {
        Self::over(tcp(port))
    }

    pub(crate) fn tls(port: u16, client: &Arc<ClientConfig>) -> Self {
        let name = ServerName::try_from("localhost").unwrap();
        let session = ClientConnection::new(Arc::clone(client), name).unwrap();
        Self::over(StreamOwned::new(session, tcp(port)))
    }

    fn over(stream: impl Bytes + 'static) -> Self {
        Self {
            stream: Box::new(stream),
            kept: Vec::new(),
        }
    }

    pub(crate) fn ask(&mut self, request: &[u8]) -> Answer {
        self.stream.write_all(request).unwrap();
        self.stream.flush().unwrap();
        self.kept.clear();
        let mut piece = [0; 32 * 1024];
        loop {
            let count = self.stream.read(&mut piece).unwrap();
            assert!(count > 0, "the gate closed the connection");
            self.kept.extend_from_slice(&piece[..count]);
            if let Some((status, body)) = whole(&self.kept) {
                return Answer {
                    status,
                    body: self.kept[body..].to_vec(),
                };
            }
        }
    }

    /// Logs in at the gate; returns the token.
    pub(crate) fn log_in(&mut self, user: &str, password: &str) -> String {
        let basic = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        let request = format!(
            "POST /v1/users/login HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic {basic}\r\nContent-Length: 0\r\n\r\n"
        );
        let answer = self.ask(request.as_bytes());
        assert_eq!(
            answer.status,
            200,
            "{}",
            String::from_utf8_lossy(&answer.body)
        );
        let answer: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        answer["users"][0]["token"].as_str().unwrap().to_owned()
    }
}

/// The status of the response in `bytes` and the start of its body, if it is complete.
pub(crate) fn whole(bytes: &[u8]) -> Option<(u16, usize)> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let (_, length) = head.split_once("content-length:").expect(&head);
    let length: usize = length.lines().next().unwrap().trim().parse().unwrap();
    let status = head[9..12].parse().unwrap();
    (bytes.len() >= end + 4 + length).then_some((status, end + 4))
}

fn tcp(port: u16) -> TcpStream {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Trusts the development CA in `folder`.
pub(crate) fn trusting(folder: &Path, protocols: &[&str]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_file(folder.join("certs/ca.pem")).unwrap();
    roots.add(authority).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = protocols
        .iter()
        .map(|name| name.as_bytes().to_vec())
        .collect();
    Arc::new(client)
}

/// A request as services send them.
pub(crate) fn request(method: &str, path: &str, token: &str, body: &str) -> Vec<u8> {
    let length = match body.len() {
        0 => String::new(),
        length => format!("Content-Type: application/json\r\nContent-Length: {length}\r\n"),
    };
    format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nUser-Agent: bench/1\r\nAccept: application/json\r\nAccept-Encoding: gzip, br\r\n{length}\r\n{body}"
    )
    .into_bytes()
}
