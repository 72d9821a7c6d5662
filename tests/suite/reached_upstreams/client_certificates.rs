//! `client_certificate` before a real TLS server, `openssl s_server`, which asks for one.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use crate::harness::program::binary;
use crate::harness::{Gateway, eventually, secret};

/// One authority for the server's certificate and for those of clients.
struct Authority(Issuer<'static, KeyPair>, String);

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self(Issuer::new(params, key), pem)
    }

    /// Writes `file.pem` and `file.key` of a certificate with this name.
    fn write(&self, folder: &Path, file: &str, name: &str) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.signed_by(&key, &self.0).unwrap().pem();
        std::fs::write(folder.join(format!("{file}.pem")), pem).unwrap();
        secret(&folder.join(format!("{file}.key")), &key.serialize_pem());
    }
}

/// `openssl s_server`, which responds to each GET with what it knows of the connection.
struct OpensslServer {
    child: Child,
    port: u16,
}

impl OpensslServer {
    fn start(folder: &Path, version: &str) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let mut command = Command::new("openssl");
        command.args(["s_server", "-www", "-quiet", "-Verify", "1"]);
        command.args(["-verify_return_error", version]);
        command.args(["-accept", &format!("127.0.0.1:{port}")]);
        for (option, file) in [
            ("-cert", "server.pem"),
            ("-key", "server.key"),
            ("-CAfile", "ca.pem"),
        ] {
            command.arg(option).arg(folder.join(file));
        }
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        let child = command.stderr(Stdio::null()).spawn().unwrap();
        Self { child, port }
    }

    async fn is_up(&self) -> bool {
        tokio::net::TcpStream::connect(("127.0.0.1", self.port))
            .await
            .is_ok()
    }
}

impl Drop for OpensslServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn config(port: u16, own: &str) -> String {
    format!(
        r#"
profile = "none"
[[listener]]
address = "127.0.0.1:0"
tls = {{ certificates = [{{ certificate = "certs/server.pem", key = "certs/server.key" }}] }}
[operator]
address = "127.0.0.1:0"
[upstream.site]
url = "https://localhost:{port}"
ca = "ca.pem"
{own}
[users]
directory = "webapp"
[[route]]
name = "all"
path = "/*"
access = "open"
"#
    )
}

const OWN: &str = "client_certificate = \"gate.pem\"\nclient_key = \"gate.key\"";

fn prepared() -> (TempDir, Authority) {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    std::fs::write(folder.path().join("ca.pem"), &authority.1).unwrap();
    authority.write(folder.path(), "server", "server");
    authority.write(folder.path(), "gate", "first-gate");
    tollgate::emulator::certificates::make(&folder.path().join("certs")).unwrap();
    (folder, authority)
}

#[tokio::test(flavor = "multi_thread")]
async fn openssl_sees_the_certificate_and_the_one_that_replaces_it() {
    let (folder, authority) = prepared();
    let server = OpensslServer::start(folder.path(), "-tls1_3");
    eventually("the server", async || server.is_up().await).await;
    let file = folder.path().join("config.toml");
    std::fs::write(&file, config(server.port, OWN)).unwrap();
    let gateway = Gateway::from_file(folder, file).await;
    let client = gateway.client();
    let shows = async |name: &str| {
        let response = client.get("/").await;
        let status = response.status();
        let text = response.text().await.unwrap();
        assert_eq!(status, 200, "{text}");
        text.contains(&format!("CN = {name}")) || text.contains(&format!("CN={name}"))
    };
    assert!(shows("first-gate").await);
    // The key comes a while after its certificate: requests go on with the old pair.
    let folder = gateway.folder.path();
    let old_key = std::fs::read(folder.join("gate.key")).unwrap();
    authority.write(folder, "gate", "second-gate");
    let key = std::fs::read_to_string(folder.join("gate.key")).unwrap();
    std::fs::write(folder.join("gate.key"), old_key).unwrap();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(shows("first-gate").await);
    std::fs::write(folder.join("gate.key"), key).unwrap();
    eventually("the new certificate", async || shows("second-gate").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_what_openssl_thinks_of_the_certificate() {
    let (folder, _) = prepared();
    let (other, stranger) = prepared();
    stranger.write(folder.path(), "stranger", "stranger");
    drop(other);
    for version in ["-tls1_2", "-tls1_3"] {
        let server = OpensslServer::start(folder.path(), version);
        eventually("the server", async || server.is_up().await).await;
        let strange = OWN.replace("gate.", "stranger.");
        for (own, expected) in [
            (
                "",
                "asks for a client certificate: set upstream.site.client_certificate",
            ),
            (
                strange.as_str(),
                "refuses the certificate in upstream.site.client_certificate",
            ),
            (OWN, ""),
        ] {
            let file = folder.path().join("config.toml");
            std::fs::write(&file, config(server.port, own)).unwrap();
            let mut command = Command::new(binary());
            let command = command.args(["check", "--connect", "--config"]).arg(&file);
            let output = command.output().unwrap();
            let text = String::from_utf8(output.stderr).unwrap();
            assert_eq!(
                output.status.success(),
                expected.is_empty(),
                "{version}: {text}"
            );
            assert!(text.contains(expected), "{version} {expected}: {text}");
        }
    }
}
