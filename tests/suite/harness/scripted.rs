//! An upstream of raw sockets, plain or TLS, that sends the bytes of a script, pauses, and ends
//! its connection in each possible way. It reads no request body. Logins get responses
//! automatically.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tollgate::emulator::certificates;

use super::login_upstream::{KEY, field_case};
use super::upstream::login;
use super::{Gateway, WEBAPP_PASSWORD, secret};

/// One step of a response.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Say(Vec<u8>),
    Pause(Duration),
    /// Reads this many bytes of the request's body.
    Take(usize),
    /// An orderly end: close_notify, FIN.
    Close,
    /// FIN alone.
    Cut,
    /// RST.
    Reset,
}

pub(crate) fn say(text: &str) -> Step {
    Step::Say(text.as_bytes().to_vec())
}

/// The response to requests outside the script, such as the gate's own probes.
pub(crate) fn not_found() -> Step {
    say("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
}

type Script = dyn Fn(&str) -> Vec<Step> + Send + Sync;

/// Lives until the test's runtime ends.
pub(crate) struct ScriptedUpstream {
    address: SocketAddr,
    is_tls: bool,
    connections: Arc<AtomicUsize>,
    folder: tempfile::TempDir,
}

trait Transport: AsyncRead + AsyncWrite + Unpin + Send {
    fn tcp(&self) -> &TcpStream;
}

impl Transport for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl Transport for tokio_rustls::server::TlsStream<TcpStream> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().0
    }
}

impl ScriptedUpstream {
    pub(crate) async fn plain(script: impl Fn(&str) -> Vec<Step> + Send + Sync + 'static) -> Self {
        Self::start(script, false).await
    }

    /// `script` returns the steps after a request with this head.
    pub(crate) async fn start(
        script: impl Fn(&str) -> Vec<Step> + Send + Sync + 'static,
        is_tls: bool,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        certificates::make(&folder.path().join("certs")).unwrap();
        secret(&folder.path().join("webapp-password"), WEBAPP_PASSWORD);
        let acceptor = is_tls.then(|| acceptor(&folder.path().join("certs")));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        let script: Arc<Script> = Arc::new(script);
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                let (script, acceptor) = (Arc::clone(&script), acceptor.clone());
                tokio::spawn(async move {
                    tcp.set_nodelay(true).unwrap();
                    match acceptor {
                        None => serve(tcp, &*script).await,
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(tcp).await {
                                serve(stream, &*script).await;
                            }
                        }
                    }
                });
            }
        });
        Self {
            address,
            is_tls,
            connections,
            folder,
        }
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// The configuration of a gate in front of it, with a plain and a TLS listener. `upstream`
    /// has more lines for that section, `rest` whole sections.
    pub(crate) fn config(&self, upstream: &str, rest: &str) -> String {
        let (scheme, trust) = match self.is_tls {
            true => (
                "https",
                "ca = \"certs/ca.pem\"\nserver_name = \"localhost\"",
            ),
            false => ("http", ""),
        };
        let url = format!("{scheme}://{}", self.address);
        let text = field_case(&url, &format!("{trust}\n{upstream}"));
        let access = "access = [\"token\", \"api_key\"]";
        let text = text.replace(access, &format!("{access}\nmax_body = \"100MB\""));
        let plain = "\n[[listener]]\naddress = \"127.0.0.1:0\"\n\n[operator]";
        format!("{}\n{rest}\n", text.replace("\n[operator]", plain))
    }

    /// A gate in front of this upstream.
    pub(crate) async fn gate(&self, upstream: &str, rest: &str) -> Gateway {
        self.gate_of(&self.config(upstream, rest)).await
    }

    /// The same with this configuration.
    pub(crate) async fn gate_of(&self, text: &str) -> Gateway {
        let folder = tempfile::tempdir().unwrap();
        let certs = folder.path().join("certs");
        std::fs::create_dir(&certs).unwrap();
        for file in std::fs::read_dir(self.folder.path().join("certs")).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), certs.join(file.file_name())).unwrap();
        }
        secret(&folder.path().join("webapp-password"), WEBAPP_PASSWORD);
        let file = folder.path().join("config.toml");
        std::fs::write(&file, text).unwrap();
        Gateway::from_file(folder, file).await
    }

    /// Writes certificates and secrets too; for a separate process.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// The header field with the configured API key.
pub(crate) fn key_field() -> String {
    format!("Authorization: Apikey {KEY}")
}

fn acceptor(certs: &Path) -> TlsAcceptor {
    let chain = CertificateDer::pem_file_iter(certs.join("server.pem")).unwrap();
    let chain: Vec<_> = chain.map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(certs.join("server.key")).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

async fn serve(mut line: impl Transport, script: &Script) {
    while let Some(head) = read_head(&mut line).await {
        if head.starts_with("POST /v1/users/login") {
            let _ = line.write_all(&login()).await;
            continue;
        }
        for step in script(&head) {
            match step {
                Step::Say(bytes) => {
                    let _ = line.write_all(&bytes).await;
                    let _ = line.flush().await;
                }
                Step::Pause(time) => tokio::time::sleep(time).await,
                Step::Take(length) => {
                    let _ = line.read_exact(&mut vec![0; length]).await;
                }
                Step::Close => {
                    let _ = line.shutdown().await;
                    return;
                }
                Step::Cut => return,
                Step::Reset => {
                    line.tcp().set_zero_linger().unwrap();
                    return;
                }
            }
        }
    }
}

async fn read_head(line: &mut impl Transport) -> Option<String> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(line.read_u8().await.ok()?);
    }
    let head = String::from_utf8(bytes).ok()?;
    if head.starts_with("POST /v1/users/login") {
        let length = head
            .to_ascii_lowercase()
            .lines()
            .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        line.read_exact(&mut vec![0; length.unwrap_or(0)])
            .await
            .ok()?;
    }
    Some(head)
}
