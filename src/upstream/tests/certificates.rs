//! Error messages explain faults of the upstream's TLS and name the configuration key to set.

use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use proptest::prelude::*;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, date_time_ymd};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio_rustls::TlsAcceptor;

use super::server::{Reply, Webapp};
use super::trust::{Identity, connect, serve, setup};
use super::{TEST_TIMEOUT, UpstreamSetup, outbound, refusal};
use crate::config::Trust;
use crate::error_chain::chain;
use crate::lifecycle::TaskSet;
use crate::upstream::transport::tls::certificate::{
    CertificateProblem, TrustPlace, VerifierVerdict,
};
use crate::upstream::{LoginFailure, ResponseTimeout, SendErrorKind, UpstreamConnections};

const RESPONSE_TIMEOUT: ResponseTimeout = ResponseTimeout::within(TEST_TIMEOUT);

fn self_signed(change: impl FnOnce(&mut CertificateParams)) -> (CertificateDer<'static>, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    change(&mut params);
    let certificate = params.self_signed(&key).unwrap().der().clone();
    (certificate, key)
}

/// The error of a TLS connection that is not trusted.
async fn tls_error(setup: &UpstreamSetup) -> String {
    let tls_error = connect(setup, &setup.open().unwrap()).await;
    tls_error.unwrap_err()
}

fn pin_in(tls_error: &str) -> [u8; 32] {
    let (_, rest) = tls_error.split_once("sha256//").unwrap();
    let (pin, _) = rest.split_once('"').unwrap();
    STANDARD.decode(pin).unwrap().try_into().unwrap()
}

#[tokio::test]
async fn a_self_signed_certificate_is_explained_and_the_pin_can_be_copied() {
    for is_authority in [false, true] {
        let (certificate, key) = self_signed(|params| {
            if is_authority {
                params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            }
        });
        let webapp = serve(&certificate, &key).await;
        let public = setup(&webapp, Trust::PublicAuthorities);
        let text = tls_error(&public).await;
        assert!(text.contains("self-signed"), "{text}");
        assert!(text.contains("upstream.main.pins = [\"sha256//"), "{text}");
        assert_eq!(text.contains("upstream.main.ca"), !is_authority, "{text}");
        let pinned = setup(&webapp, Trust::Pins(vec![pin_in(&text)]));
        connect(&pinned, &pinned.open().unwrap()).await.unwrap();

        // The suggested pin works; another one does not.
        let own = setup(&webapp, Trust::PublicAuthorities);
        let body = STANDARD.encode(&certificate);
        let pem = format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
        let path = own.folder.write("ca.pem", &pem);
        let mut own = own;
        own.settings.trust = Trust::Authorities(path);
        let outcome = connect(&own, &own.open().unwrap()).await;
        assert_eq!(outcome.is_ok(), !is_authority, "{outcome:?}");
        if let Err(text) = outcome {
            assert!(
                text.contains("CA:TRUE") && text.contains("upstream.main.pins"),
                "{text}"
            );
        }
    }
}

#[tokio::test]
async fn an_unknown_issuer_is_named_with_the_file_that_lacks_it() {
    let (identity, other_identity) = (Identity::of("127.0.0.1"), Identity::of("127.0.0.1"));
    let webapp = identity.serve().await;
    let mut setup = setup(&webapp, Trust::PublicAuthorities);
    let text = tls_error(&setup).await;
    assert!(
        text.contains("issued by") && text.contains("public authorities"),
        "{text}"
    );
    assert!(text.contains("upstream.main.ca"), "{text}");
    let path = setup.folder.write("ca.pem", &other_identity.authority);
    setup.settings.trust = Trust::Authorities(path);
    let text = tls_error(&setup).await;
    assert!(!text.contains("public authorities"), "{text}");
    // Both authorities have the same name.
    assert!(
        text.contains("made anew") && text.contains("ca.pem"),
        "{text}"
    );
    assert!(text.contains("upstream.main.pins"), "{text}");
    setup.settings.trust = Trust::Pins(vec![pin_in(&text)]);
    connect(&setup, &setup.open().unwrap()).await.unwrap();
}

#[tokio::test]
async fn a_wrong_name_and_wrong_dates_are_explained() {
    let identity = Identity::of("webapp.internal");
    let webapp = identity.serve().await;
    let mut named = setup(&webapp, Trust::PublicAuthorities);
    let path = named.folder.write("ca.pem", &identity.authority);
    named.settings.trust = Trust::Authorities(path);
    let text = tls_error(&named).await;
    assert!(
        text.contains("is for webapp.internal and not for 127.0.0.1"),
        "{text}"
    );
    assert!(text.contains("upstream.main.server_name"), "{text}");

    for (from, to, expected) in [
        (2001, 2002, "ended at 2002-01-01T00:00:00Z"),
        (2090, 2091, "not valid before 2090-01-01T00:00:00Z"),
    ] {
        let (certificate, key) = self_signed(|params| {
            params.not_before = date_time_ymd(from, 1, 1);
            params.not_after = date_time_ymd(to, 1, 1);
        });
        let webapp = serve(&certificate, &key).await;
        let mut dated = setup(&webapp, Trust::PublicAuthorities);
        let body = STANDARD.encode(&certificate);
        let pem = format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
        dated.settings.trust = Trust::Authorities(dated.folder.write("ca.pem", &pem));
        let text = tls_error(&dated).await;
        assert!(text.contains(expected), "{text}");
    }
}

/// `openssl x509 -req` without extensions.
const VERSION_ONE: &str = "MIIBHTCBxQIUDpMolJrMGNwwp2xNfPgGSnp//XkwCgYIKoZIzj0EAwIwETEPMA0GA1UEAwwGd2ViYXBwMCAXDTI2MTEzMDE0MjQxOFoYDzIxMjYxMTA2MTQyNDE4WjARMQ8wDQYDVQQDDAZ3ZWJhcHAwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAARvc0C0yZu4BKUR6JZfiZaxx4pFAvU6sN9l55QMhj7PQLb486jyAj6J1e8FJeN5KGp9xhajzfqIu0sXvbdAU58nMAoGCCqGSM49BAMCA0cAMEQCICYTbxPXbrEBjKfmPj5HGxT8WqlcTQs0wwdA4nFsmNJuAiBn1xjedJ77Ul5u3Kfqr06UsC5AfS904WJxfWjoPaTBew==";
/// `openssl req -x509 -newkey rsa:1024`.
const SHORT_RSA: &str = "MIICCzCCAXSgAwIBAgIUBCqL5c7m9lPTbwYZWSVhnVTCxJswDQYJKoZIhvcNAQELBQAwETEPMA0GA1UEAwwGd2ViYXBwMCAXDTI2MTEzMDE0MjQxOVoYDzIxMjYxMTA2MTQyNDE5WjARMQ8wDQYDVQQDDAZ3ZWJhcHAwgZ8wDQYJKoZIhvcNAQEBBQADgY0AMIGJAoGBAKpGMGKoEpO1tLaVTyXcYLubfOQq7kukbi2VTDuV0GzggmnwSeehyvx+KQhtKrCZHDLtnRsdCz7oMq+f9NrBptzlH+xW8k7XhXXx/+0sGx0Y2AM2z6mWxVAgt0sIqipl+gTWXO/WqDKrt43efK3G0FecwcK2eeAwlNn2zOr+aPitAgMBAAGjXjBcMB0GA1UdDgQWBBRpiXmTIWZiTqHEXmqEvuKE7Nz9czAfBgNVHSMEGDAWgBRpiXmTIWZiTqHEXmqEvuKE7Nz9czAPBgNVHREECDAGhwR/AAABMAkGA1UdEwQCMAAwDQYJKoZIhvcNAQELBQADgYEACOpygrLp1oUlV7EEgdZiPa2oM2ZKLyaSVOK/nX4Cq/GtXydUhvsdNbYJABCq0K6BrlOImNpzScX1DMKLWN5oTqigUJo6lGcnX+iGm7v0w0K6KWYz5W7y+EF6TitT4dK9OCfWyLQ0ZkdlRyO0z6rRWSk6gj+XpTUGRrE7sx893TE=";

#[test]
fn old_certificate_formats_and_expired_issuers_are_explained() {
    let wanted = ServerName::try_from("127.0.0.1").unwrap();
    let expected = |shown: &CertificateDer<'_>, error: &CertificateError| {
        let verdict = VerifierVerdict {
            upstream: &"main".into(),
            place: &TrustPlace::PublicAuthorities,
            error,
            now: UnixTime::now(),
        };
        CertificateProblem::find(shown, &wanted, verdict)
            .unwrap()
            .to_string()
    };
    let read = |text: &str| CertificateDer::from(STANDARD.decode(text).unwrap());
    let unknown = CertificateError::UnknownIssuer;
    let text = expected(&read(VERSION_ONE), &unknown);
    assert!(
        text.contains("before version 3") && text.contains("pins"),
        "{text}"
    );
    let text = expected(&read(SHORT_RSA), &unknown);
    assert!(
        text.contains("1024 bits") && !text.contains("pins"),
        "{text}"
    );
    for error in [CertificateError::Expired, CertificateError::NotValidYet] {
        let text = expected(&self_signed(|_| {}).0, &error);
        assert!(text.contains("an authority's"), "{text}");
    }
}

proptest! {
    /// A certificate with changed bytes: it causes no panic, and injects nothing
    /// into the log.
    #[test]
    fn a_garbled_certificate_is_described_in_one_line(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = STANDARD.decode(SHORT_RSA).unwrap();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let verdict = VerifierVerdict {
            upstream: &"main".into(),
            place: &TrustPlace::PublicAuthorities,
            error: &CertificateError::UnknownIssuer,
            now: UnixTime::now(),
        };
        let wanted = ServerName::try_from("127.0.0.1").unwrap();
        let problem = CertificateProblem::find(&bytes.into(), &wanted, verdict);
        if let Some(text) = problem.map(|problem| problem.to_string()) {
            prop_assert!(!text.contains(char::is_control) && text.len() < 1000, "{text}");
        }
    }
}

#[tokio::test]
async fn names_in_a_certificate_cannot_inject_log_lines() {
    let (certificate, key) = self_signed(|params| {
        let name = "evil\ntime=now level=error";
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::NoCa;
    });
    let webapp = serve(&certificate, &key).await;
    let text = tls_error(&setup(&webapp, Trust::PublicAuthorities)).await;
    assert!(!text.contains('\n'), "{text}");
}

/// A server that sends `bytes` on each connection after its first read.
async fn server_sending(bytes: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    TaskSet::new(Handle::current()).spawn("says a thing", async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let _ = tcp.read(&mut [0; 4096]).await;
            let _ = tcp.write_all(bytes).await;
        }
    });
    address
}

async fn failure(address: SocketAddr, tls: bool) -> (SendErrorKind, String) {
    let mut setup = UpstreamSetup::of(address).without_login();
    setup.settings.base.tls = tls;
    let upstream = setup.open().unwrap();
    let connections = UpstreamConnections::<Empty<Bytes>>::new(upstream, &setup.scope.tasks);
    let failure = connections
        .send(outbound(Request::new(Empty::new())), RESPONSE_TIMEOUT)
        .await;
    let failure = failure.unwrap_err();
    (failure.kind, chain(&failure))
}

#[tokio::test]
async fn the_wrong_protocol_on_a_port_is_explained() {
    for (bytes, expected) in [
        (
            &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
            "url must begin with http://",
        ),
        (b"220 mail.example ESMTP\r\n", "does not speak TLS"),
        (b"", "closed the connection during the handshake"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "TLS 1.2 or 1.3"),
        (b"\x15\x03\x03\x00\x02\x02\x28", "in common"),
        (b"\x15\x03\x03\x00\x02\x02\x70", "upstream.main.server_name"),
    ] {
        let (kind, text) = failure(server_sending(bytes).await, true).await;
        assert_eq!(kind, SendErrorKind::ConnectFailed);
        assert!(text.contains(expected), "{expected}: {text}");
    }
    for alert in [
        &b"\x15\x03\x01\x00\x02\x02\x46"[..],
        b"\x15\x03\x03\x00\x02\x02\x0a",
    ] {
        let (kind, text) = failure(server_sending(alert).await, false).await;
        assert_eq!(kind, SendErrorKind::Protocol);
        assert!(
            text.contains("upstream.main.url must begin with https://"),
            "{text}"
        );
    }
    let identity = Identity::of("127.0.0.1");
    let webapp = identity.serve().await;
    let (_, text) = failure(webapp.address, false).await;
    assert!(
        text.contains("upstream.main.url must begin with https://"),
        "{text}"
    );
}

/// Responds over TLS and closes the connection without close_notify.
async fn ending_abruptly(identity: &Identity, response: String) -> SocketAddr {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let key = PrivateKeyDer::try_from(identity.key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![identity.certificate.clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    TaskSet::new(Handle::current()).spawn("ends abruptly", async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(tcp).await else {
                continue;
            };
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(response.as_bytes()).await;
            let _ = stream.flush().await;
        }
    });
    address
}

const LONG: usize = 100_000;

fn framed(body: &str) -> [(String, bool); 5] {
    let length = body.len();
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    [
        (
            format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}"),
            true,
        ),
        (format!("{chunked}{length:x}\r\n{body}\r\n0\r\n\r\n"), true),
        (
            format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
                length + 1
            ),
            false,
        ),
        (format!("{chunked}{length:x}\r\n{body}\r\n"), false),
        (format!("HTTP/1.1 200 OK\r\n\r\n{body}"), false),
    ]
}

#[tokio::test]
async fn a_response_is_complete_by_its_length_without_close_notify() {
    let identity = Identity::of("127.0.0.1");
    for body in ["hi".to_owned(), "x".repeat(LONG)] {
        for (response, is_whole) in framed(&body) {
            let head = response[..60.min(response.len())].to_owned();
            let address = ending_abruptly(&identity, response).await;
            let mut setup = UpstreamSetup::of(address).without_login();
            setup.settings.base.tls = true;
            setup.settings.trust = Trust::Pins(vec![identity.pin()]);
            let upstream = setup.open().unwrap();
            let connections =
                UpstreamConnections::<Empty<Bytes>>::new(upstream, &setup.scope.tasks);
            let response = connections
                .send(outbound(Request::new(Empty::new())), RESPONSE_TIMEOUT)
                .await;
            let outcome = response.unwrap().into_body().collect().await;
            assert_eq!(outcome.is_ok(), is_whole, "{head}");
            if let Ok(whole) = outcome {
                assert_eq!(whole.to_bytes(), body.as_bytes());
            }
        }
    }
}

#[tokio::test]
async fn the_response_to_a_login_is_read_the_same_way() {
    let identity = Identity::of("127.0.0.1");
    let end = crate::profiles::format_expiry(crate::clock::unix_seconds() + 86_400);
    let body = format!(r#"{{"users":[{{"token":"t","expires_after":"{end}"}}],"meta":{{}}}}"#);
    for (response, is_whole) in framed(&body) {
        let address = ending_abruptly(&identity, response.clone()).await;
        let mut setup = UpstreamSetup::of(address);
        setup.settings.base.tls = true;
        setup.settings.trust = Trust::Pins(vec![identity.pin()]);
        let session = setup.session();
        if is_whole {
            let lease = tokio::time::timeout(TEST_TIMEOUT, session.lease()).await;
            assert!(lease.unwrap().is_ok(), "{response}");
        } else {
            let refused = format!("{:?}", refusal(&session).await);
            assert!(
                refused.contains(&format!("{:?}", LoginFailure::Unusable)),
                "{response}: {refused}"
            );
        }
        setup.scope.stop.drain();
    }
    // The same with close_notify: that is a regular end.
    let (head, _) = framed(&body)[4].clone();
    let webapp = Webapp::start(move |_| Reply::raw(head.clone()).then_close()).await;
    let setup = UpstreamSetup::of(webapp.address);
    let session = setup.session();
    let lease = tokio::time::timeout(TEST_TIMEOUT, session.lease()).await;
    assert!(lease.unwrap().is_ok());
}
