//! TLS: certificates by server name and their reload, versions, ALPN, handshakes.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;
use crate::config::{CertificateFiles, ListenerTls};
use crate::metrics::ReloadResult;
use crate::watched_files::{ReloadRequests, ReloadSignal};

/// A folder with certificates.
pub(super) struct Folder(TempDir);

impl Folder {
    pub(super) fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A self-signed pair for `names` in `<folder>/<at>.crt` and `.key`.
    pub(super) fn pair(&self, at: &str, names: &[&str]) -> CertificateFiles {
        self.pair_until(at, names, 2100)
    }

    fn pair_until(&self, at: &str, names: &[&str], year: i32) -> CertificateFiles {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().unwrap();
        let files = CertificateFiles {
            certificate: self.path(&format!("{at}.crt")),
            key: self.path(&format!("{at}.key")),
        };
        std::fs::write(&files.certificate, params.self_signed(&key).unwrap().pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }
}

pub(super) fn secured(certificates: Vec<CertificateFiles>) -> config::Listener {
    config::Listener {
        tls: Some(ListenerTls {
            certificates,
            only_tls13: false,
        }),
        ..settings()
    }
}

fn certificate(path: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(path).unwrap()
}

pub(super) struct Client {
    pub(super) config: ClientConfig,
}

impl Client {
    pub(super) fn trusting(files: &[&CertificateFiles], alpn: &[&str]) -> Self {
        Self::with_versions(files, alpn, rustls::ALL_VERSIONS)
    }

    pub(super) fn with_versions(
        files: &[&CertificateFiles],
        alpn: &[&str],
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> Self {
        let mut roots = RootCertStore::empty();
        for files in files {
            roots.add(certificate(&files.certificate)).unwrap();
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
        Self { config }
    }

    pub(super) async fn connect(
        &self,
        gate: &Gate,
        name: &str,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(gate.address).await?;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let connector = TlsConnector::from(Arc::new(self.config.clone()));
        timeout(TEST_TIMEOUT, connector.connect(name, tcp))
            .await
            .unwrap()
    }

    async fn request(&self, gate: &Gate, name: &str) -> std::io::Result<String> {
        let mut tls = self.connect(gate, name).await?;
        let request = format!("GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n");
        tls.write_all(request.as_bytes()).await?;
        let mut response = String::new();
        timeout(TEST_TIMEOUT, tls.read_to_string(&mut response))
            .await
            .unwrap()?;
        Ok(response)
    }
}

fn leaf(tls: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    tls.get_ref().1.peer_certificates().unwrap()[0]
        .clone()
        .into_owned()
}

#[tokio::test]
async fn each_server_name_gets_its_certificate_and_unknown_ones_the_first() {
    let folder = Folder::new();
    let first = folder.pair("first", &["one.test"]);
    let wild = folder.pair("wild", &["*.two.test", "two.test"]);
    let gate = Gate::start(secured(vec![first.clone(), wild.clone()]));
    let client = Client::trusting(&[&first, &wild], &[]);
    let expected = [
        ("one.test", &first),
        ("a.two.test", &wild),
        ("TWO.test", &wild),
    ];
    for (name, files) in expected {
        let tls = client.connect(&gate, name).await.unwrap();
        assert_eq!(leaf(&tls), certificate(&files.certificate), "{name}");
    }
    let unknown_name = client.connect(&gate, "three.test").await.unwrap_err();
    assert!(
        unknown_name.to_string().contains("not valid for name"),
        "{unknown_name}"
    );
    assert!(client.connect(&gate, "a.b.two.test").await.is_err());
    eventually("refusals are counted", || {
        gate.ends(ConnectionEnd::Handshake) == 2
    })
    .await;
}

#[tokio::test]
async fn both_tls_versions_are_accepted_unless_only_1_3_is_configured() {
    let folder = Folder::new();
    let files = folder.pair("a", &["one.test"]);
    let old = Client::with_versions(&[&files], &[], &[&rustls::version::TLS12]);
    let new = Client::with_versions(&[&files], &[], &[&rustls::version::TLS13]);
    let mut settings = secured(vec![files.clone()]);
    let gate = Gate::start(settings.clone());
    let response = old.request(&gate, "one.test").await.unwrap();
    assert!(response.ends_with("[/ 0 tls13=false]"), "{response}");
    let response = new.request(&gate, "one.test").await.unwrap();
    assert!(response.ends_with("[/ 0 tls13=true]"), "{response}");

    settings.tls.as_mut().unwrap().only_tls13 = true;
    gate.tls
        .as_ref()
        .unwrap()
        .replace(settings.tls.as_ref().unwrap())
        .unwrap();
    assert!(old.request(&gate, "one.test").await.is_err());
    assert!(new.request(&gate, "one.test").await.is_ok());
}

#[tokio::test]
async fn a_client_that_stops_reading_over_tls_is_disconnected() {
    let folder = Folder::new();
    let files = folder.pair("a", &["one.test"]);
    let mut settings = secured(vec![files.clone()]);
    settings.idle_timeout = Duration::from_millis(400);
    let gate = Gate::start(settings);
    let client = Client::trusting(&[&files], &["http/1.1"]);
    let mut tls = client.connect(&gate, "one.test").await.unwrap();
    tls.write_all(b"GET /large HTTP/1.1\r\nHost: one.test\r\n\r\n")
        .await
        .unwrap();
    eventually("it is closed", || gate.ends(ConnectionEnd::Idle) == 1).await;
}

#[tokio::test]
async fn the_post_quantum_group_is_used_when_the_client_has_it() {
    let folder = Folder::new();
    let files = folder.pair("a", &["one.test"]);
    let gate = Gate::start(secured(vec![files.clone()]));
    let tls = Client::trusting(&[&files], &[])
        .connect(&gate, "one.test")
        .await
        .unwrap();
    let group = tls
        .get_ref()
        .1
        .negotiated_key_exchange_group()
        .unwrap()
        .name();
    assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
}

#[tokio::test]
async fn alpn_prefers_http2() {
    let folder = Folder::new();
    let files = folder.pair("a", &["one.test"]);
    let gate = Gate::start(secured(vec![files.clone()]));
    let cases: &[(&[&str], Option<&[u8]>)] = &[
        (&["http/1.1", "h2"], Some(b"h2")),
        (&["http/1.1"], Some(b"http/1.1")),
        (&[], None),
    ];
    for (offered, chosen) in cases {
        let tls = Client::trusting(&[&files], offered)
            .connect(&gate, "one.test")
            .await
            .unwrap();
        assert_eq!(tls.get_ref().1.alpn_protocol(), *chosen);
    }
}

#[tokio::test]
async fn a_changed_symlink_is_noticed_and_a_bad_certificate_keeps_the_old_one() {
    let folder = Folder::new();
    for version in ["v1", "v2", "bad"] {
        std::fs::create_dir(folder.path(version)).unwrap();
        folder.pair(&format!("{version}/tls"), &["one.test"]);
    }
    std::fs::copy(folder.path("v1/tls.key"), folder.path("bad/tls.key")).unwrap();
    let switch = |to: &str| {
        symlink(to, folder.path("new")).unwrap();
        std::fs::rename(folder.path("new"), folder.path("current")).unwrap();
    };
    switch("v1");
    let current = CertificateFiles {
        certificate: folder.path("current/tls.crt"),
        key: folder.path("current/tls.key"),
    };
    let (v1, v2) = (folder.path("v1/tls.crt"), folder.path("v2/tls.crt"));
    let trusted = [&v1, &v2].map(|path| CertificateFiles {
        certificate: path.clone(),
        key: path.clone(),
    });
    let client = Client::trusting(&[&trusted[0], &trusted[1]], &[]);
    let gate = Gate::start(secured(vec![current]));
    let tls = Arc::clone(gate.tls.as_ref().unwrap());
    gate.scope.tasks.spawn(
        "certificates",
        tls.watch(gate.scope.stop.clone(), ReloadRequests::never()),
    );
    let reloads = |outcome| gate.metrics.certificate_reloads.value(outcome);

    assert_eq!(
        leaf(&client.connect(&gate, "one.test").await.unwrap()),
        certificate(&v1)
    );
    switch("bad");
    eventually("the bad certificate is refused", || {
        reloads(ReloadResult::Refused) == 1
    })
    .await;
    assert_eq!(
        leaf(&client.connect(&gate, "one.test").await.unwrap()),
        certificate(&v1)
    );
    switch("v2");
    eventually("the good certificate is in use", || {
        reloads(ReloadResult::Applied) == 1
    })
    .await;
    assert_eq!(
        leaf(&client.connect(&gate, "one.test").await.unwrap()),
        certificate(&v2)
    );
    assert_eq!(reloads(ReloadResult::Refused), 1);
    gate.scope.stop.drain();
    gate.ended().await;
}

#[tokio::test]
async fn sighup_reads_certificates_at_once() {
    let folder = Folder::new();
    let files = folder.pair("a", &["one.test"]);
    let metrics = Metrics::new();
    let tls = ServerTls::open(secured(vec![files]).tls.as_ref().unwrap(), &metrics).unwrap();
    let signal = ReloadSignal::default();
    let scope = TaskScope::new(Handle::current());
    scope.spawn(
        "certificates",
        tls.watch(scope.stop.clone(), signal.subscribe()),
    );
    signal.send();
    eventually("looked", || {
        metrics.certificate_reloads.value(ReloadResult::Unchanged) == 1
    })
    .await;
    scope.stop.drain();
    timeout(TEST_TIMEOUT, scope.tasks.wait()).await.unwrap();
}

#[tokio::test]
async fn an_unusable_certificate_is_refused_with_its_file_and_what_to_do() {
    let folder = Folder::new();
    let (one, two) = (
        folder.pair("one", &["one.test"]),
        folder.pair("two", &["two.test"]),
    );
    let empty = folder.path("empty");
    std::fs::write(&empty, "nothing here").unwrap();
    let broken = folder.path("broken");
    std::fs::write(&broken, "-----BEGIN CERTIFICATE-----\n???\n").unwrap();
    let missing = folder.path("missing");
    let cases = [
        (
            &one.certificate,
            &two.key,
            "does not belong to the certificate",
        ),
        (&missing, &one.key, "cannot read"),
        (&empty, &one.key, "no certificate in"),
        (&one.certificate, &empty, "no private key in"),
        (&broken, &one.key, "not well-formed PEM"),
    ];
    for (certificate, key, expected) in cases {
        let pair = CertificateFiles {
            certificate: certificate.clone(),
            key: key.clone(),
        };
        let settings = secured(vec![pair]).tls.unwrap();
        let refused = ServerTls::open(&settings, &Metrics::new())
            .unwrap_err()
            .to_string();
        assert!(refused.contains(expected), "{refused}");
        assert!(
            refused.contains(folder.0.path().to_str().unwrap()),
            "{refused}"
        );
    }
}

#[tokio::test]
async fn an_expired_certificate_is_used_and_its_expiry_is_a_metric() {
    let folder = Folder::new();
    let files = folder.pair_until("old", &["one.test"], 2001);
    let gate = Gate::start(secured(vec![files.clone()]));
    let name = files.certificate.display().to_string();
    let expiry = &gate.metrics.certificate_expiry;
    assert_eq!(expiry.with_label_values(&[&name]).get(), 978_307_200);
    let refused = Client::trusting(&[&files], &[])
        .connect(&gate, "one.test")
        .await;
    assert!(refused.unwrap_err().to_string().contains("expired"));

    let next = folder.pair("next", &["one.test"]);
    let tls = gate.tls.as_ref().unwrap();
    tls.replace(secured(vec![next.clone()]).tls.as_ref().unwrap())
        .unwrap();
    assert!(
        Client::trusting(&[&next], &[])
            .connect(&gate, "one.test")
            .await
            .is_ok()
    );
    assert!(
        !gate.metrics.text().contains("old.crt"),
        "its expiry is removed from the metrics too"
    );
}

#[tokio::test]
async fn a_handshake_that_takes_too_long_is_ended() {
    let folder = Folder::new();
    let files = folder.pair("a", &["one.test"]);
    let gate = Gate::start(config::Listener {
        handshake_timeout: Duration::from_millis(200),
        ..secured(vec![files])
    });
    let mut raw = gate.connect().await;
    raw.send([0x16, 0x03, 0x01]).await;
    assert_eq!(raw.rest().await, "");
    assert_eq!(gate.ends(ConnectionEnd::HandshakeTimeout), 1);
    let response = gate.exchange("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(
        response.starts_with("HTTP/1.1 400 Bad Request\r\n"),
        "{response:?}"
    );
    let response = gate.exchange("\0\0\0\0\0").await;
    assert!(response.len() < 20, "an alert at most: {response:?}");
    eventually("not TLS is counted", || {
        gate.ends(ConnectionEnd::Handshake) == 2
    })
    .await;
}
