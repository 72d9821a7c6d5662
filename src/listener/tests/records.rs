//! TLS records: versions, key updates, reads and writes of any size.

use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;

use super::secured::{Client, Folder, secured};
use super::*;

#[tokio::test]
async fn a_client_without_a_common_version_receives_an_alert() {
    let folder = Folder::new();
    let files = folder.pair("a", &["one.test"]);
    let mut settings = secured(vec![files.clone()]);
    settings.tls.as_mut().unwrap().only_tls13 = true;
    let gate = Gate::start(settings);
    let old = Client::with_versions(&[&files], &[], &[&rustls::version::TLS12]);
    let error = old.connect(&gate, "one.test").await.unwrap_err();
    assert!(error.to_string().contains("ProtocolVersion"), "{error}");
}

#[tokio::test]
async fn keys_can_be_updated_while_bodies_are_sent_in_both_directions() {
    let folder = Folder::new();
    let files = folder.pair("a", &["one.test"]);
    let gate = Gate::start(secured(vec![files.clone()]));
    let client = Client::trusting(&[&files], &["http/1.1"]);
    let mut tls = client.connect(&gate, "one.test").await.unwrap();
    let total = 3 * 1024 * 1024 + 17;
    let head = format!("POST /up HTTP/1.1\r\nHost: one.test\r\nContent-Length: {total}\r\n\r\n");
    tls.write_all(head.as_bytes()).await.unwrap();
    let mut left = total;
    while left > 0 {
        let piece = left.min(100_003);
        tls.write_all(&vec![7; piece]).await.unwrap();
        tls.get_mut().1.refresh_traffic_keys().unwrap();
        left -= piece;
    }
    tls.write_all(b"GET /large HTTP/1.1\r\nHost: one.test\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut responses = Vec::new();
    timeout(TEST_TIMEOUT, tls.read_to_end(&mut responses))
        .await
        .unwrap()
        .unwrap();
    let expected = format!("[/up {total} tls13=true]");
    assert!(memchr::memmem::find(&responses, expected.as_bytes()).is_some());
    let large = responses
        .iter()
        .rev()
        .take_while(|&&byte| byte == b'x')
        .count();
    assert_eq!(large, 32 * 1024 * 1024);
}

#[tokio::test]
async fn a_handshake_may_arrive_byte_by_byte() {
    let folder = Folder::new();
    let files = folder.pair("a", &["one.test"]);
    let gate = Gate::start(secured(vec![files.clone()]));
    let client = Client::trusting(&[&files], &["http/1.1"]);
    // A relay that forwards the client's bytes one by one.
    let relay = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (there, address) = (relay.local_addr().unwrap(), gate.address);
    gate.scope.tasks.spawn("relay", async move {
        let (client, _) = relay.accept().await.unwrap();
        let gate = TcpStream::connect(address).await.unwrap();
        gate.set_nodelay(true).unwrap();
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_gate, mut to_gate) = gate.into_split();
        let up = async {
            while let Ok(byte) = from_client.read_u8().await {
                to_gate.write_u8(byte).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let down = tokio::io::copy(&mut from_gate, &mut to_client);
        tokio::select! { () = up => {} _ = down => {} }
    });
    let tcp = TcpStream::connect(there).await.unwrap();
    let name = ServerName::try_from("one.test").unwrap();
    let connector = TlsConnector::from(Arc::new(client.config.clone()));
    let mut tls = timeout(TEST_TIMEOUT, connector.connect(name, tcp))
        .await
        .unwrap()
        .unwrap();
    tls.write_all(b"GET / HTTP/1.1\r\nHost: one.test\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut response = String::new();
    timeout(TEST_TIMEOUT, tls.read_to_string(&mut response))
        .await
        .unwrap()
        .unwrap();
    assert!(response.ends_with("[/ 0 tls13=true]"), "{response}");
}
