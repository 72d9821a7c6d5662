//! Names lead to addresses without the C library's help.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::{RData, Record, RecordType};
use tokio::net::{TcpListener, UdpSocket};

use super::Folder;
use crate::lifecycle::Tasks;
use crate::names::Names;
use crate::upstream::connect::Dialer;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn names(folder: &Folder, servers: &str, hosts: &str) -> Names {
    Names::from_files(
        folder.write("resolv.conf", servers),
        folder.write("hosts", hosts),
    )
}

/// A server that knows one name.
async fn server(name: &'static str, address: Ipv4Addr) -> (u16, Arc<AtomicUsize>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let port = socket.local_addr().unwrap().port();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let serve = async move {
        let mut bytes = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut bytes).await {
            count.fetch_add(1, Ordering::Relaxed);
            let mut message = Message::from_vec(&bytes[..length]).unwrap().into_response();
            message.metadata.recursion_available = true;
            let query = message.queries[0].clone();
            if query.name().to_string() != format!("{name}.") {
                message.metadata.response_code = ResponseCode::NXDomain;
            } else if query.query_type() == RecordType::A {
                let data = RData::from(IpAddr::V4(address));
                message.add_answer(Record::from_rdata(query.name().clone(), 60, data));
            }
            let _ = socket.send_to(&message.to_vec().unwrap(), from).await;
        }
    };
    Tasks::new(tokio::runtime::Handle::current()).spawn("name server", serve);
    (port, asked)
}

#[tokio::test]
async fn addresses_are_their_own_and_the_hosts_file_is_asked_first() {
    let folder = Folder::new();
    let hosts = "10.0.0.7 webapp.internal webapp # the first\n10.0.0.8 webapp\nfd00::7 webapp\n";
    let names = names(&folder, "", hosts);
    for literal in ["127.0.0.1", "::1", "fe80::1"] {
        let found = names.find(literal).await.unwrap();
        assert_eq!(found, [literal.parse::<IpAddr>().unwrap()]);
    }
    let all = ["10.0.0.7", "10.0.0.8", "fd00::7"].map(|ip| ip.parse::<IpAddr>().unwrap());
    assert_eq!(names.find("WebApp").await.unwrap(), all);
    assert_eq!(names.find("webapp.internal").await.unwrap(), all[..1]);
    for bad in ["no-such-host", "a..b", ""] {
        assert!(names.find(bad).await.is_err(), "{bad}");
    }
}

#[tokio::test]
async fn localhost_is_this_host_even_where_no_file_says_so() {
    let folder = Folder::new();
    let missing = |name: &str| folder.0.join(name);
    let names = Names::from_files(missing("resolv.conf"), missing("hosts"));
    assert!(names.find("localhost").await.unwrap().contains(&LOOPBACK));
    assert!(names.find("other").await.is_err());
}

#[tokio::test]
async fn a_name_in_no_file_is_asked_for_and_changed_files_hold_at_once() {
    let address = Ipv4Addr::new(10, 1, 2, 3);
    let (port, asked) = server("webapp.example.net", address).await;
    let folder = Folder::new();
    let servers =
        "nameserver 127.0.0.1\nsearch example.net\noptions timeout:1 attempts:1 ndots:2\n";
    let mut names = names(&folder, servers, "");
    names.port = port;
    for name in ["webapp.example.net", "webapp", "webapp"] {
        assert_eq!(names.find(name).await.unwrap(), [address], "{name}");
    }
    let count = asked.load(Ordering::Relaxed);
    assert!((2..=4).contains(&count), "one answer serves many: {count}");
    assert!(names.find("nothing.example.net").await.is_err());

    folder.write("hosts", "10.9.9.9 webapp\n");
    let noted: IpAddr = "10.9.9.9".parse().unwrap();
    assert_eq!(names.find("webapp").await.unwrap(), [noted]);
    folder.write("resolv.conf", "# no server any more\n");
    assert!(names.find("webapp.example.net").await.is_err());
}

#[tokio::test]
async fn each_address_of_a_name_is_tried() {
    let listener = TcpListener::bind("127.0.0.3:0").await.unwrap();
    let folder = Folder::new();
    let hosts = "127.0.0.2 webapp\n127.0.0.3 webapp\n";
    let dialer = Dialer {
        host: "webapp".to_owned(),
        port: listener.local_addr().unwrap().port(),
        names: names(&folder, "", hosts),
        tls: None,
        limit: super::PATIENCE,
    };
    assert!(dialer.dial(None).await.is_ok(), "the second one listens");
}
