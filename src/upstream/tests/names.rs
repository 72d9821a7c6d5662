//! Name look-ups without the C library; addresses of one family are enough.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::RecordType;
use tokio::time::Instant;

use super::Folder;
use super::stub_dns::{DnsReply, NO_NAME, StubDns};
use crate::dns::DnsResolver;
use crate::error_chain::chain;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Far below a name server's timeout, far above the delay of a loaded machine.
const SOON: Duration = Duration::from_secs(2);

pub(super) fn names(folder: &Folder, servers: &str, hosts: &str) -> DnsResolver {
    DnsResolver::from_files(
        folder.write("resolv.conf", servers),
        folder.write("hosts", hosts),
    )
}

/// A resolver that queries `dns`.
pub(super) fn resolver_of(folder: &Folder, dns: &StubDns) -> DnsResolver {
    let mut names = names(folder, "nameserver 127.0.0.1\n", "");
    names.port = dns.port;
    names
}

#[tokio::test]
async fn ip_literals_need_no_look_up_and_the_hosts_file_comes_first() {
    let folder = Folder::new();
    let hosts = "10.0.0.7 webapp.internal webapp # the first\n10.0.0.300 webapp\n\
        10.0.0.8 webapp\nfd00::7 webapp\n";
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
async fn localhost_is_loopback_without_a_hosts_file() {
    let folder = Folder::new();
    let missing = |name: &str| folder.0.join(name);
    let names = DnsResolver::from_files(missing("resolv.conf"), missing("hosts"));
    for name in ["localhost", "LocalHost.", "a.localhost"] {
        assert!(names.find(name).await.unwrap().contains(&LOOPBACK));
    }
    let message = chain(&names.find("other").await.unwrap_err());
    assert!(message.contains("no name server in"), "{message}");
}

#[tokio::test]
async fn other_names_are_looked_up_and_changed_files_apply_at_once() {
    let address = Ipv4Addr::new(10, 1, 2, 3);
    let dns = StubDns::start(move |name, kind| match (name, kind) {
        ("webapp.example.net", RecordType::A) => DnsReply::Addresses(vec![address.into()], 60),
        ("webapp.example.net", _) => DnsReply::Nothing,
        _ => NO_NAME,
    })
    .await;
    let folder = Folder::new();
    let servers =
        "nameserver 127.0.0.1\nsearch example.net\noptions timeout:1 attempts:1 ndots:2\n";
    let mut names = names(&folder, servers, "");
    names.port = dns.port;
    for name in ["webapp.example.net", "webapp"] {
        assert_eq!(names.find(name).await.unwrap(), [address], "{name}");
    }
    let message = chain(&names.find("nothing.example.net").await.unwrap_err());
    assert!(message.contains("know no address"), "{message}");

    folder.write("hosts", "10.9.9.9 webapp\n");
    let noted: IpAddr = "10.9.9.9".parse().unwrap();
    assert_eq!(names.find("webapp").await.unwrap(), [noted]);
    folder.write("resolv.conf", "# no server any more\n");
    assert!(names.find("webapp.example.net").await.is_err());
}

#[tokio::test]
async fn one_address_family_is_enough_whatever_the_other_replies() {
    let (v4, v6) = ("10.1.2.3", "fd00::7");
    let dns = StubDns::start(|_, _| DnsReply::Silence).await;
    let folder = Folder::new();
    let names = resolver_of(&folder, &dns);
    let bad = [
        DnsReply::Silence,
        DnsReply::Nothing,
        NO_NAME,
        DnsReply::Code(ResponseCode::ServFail),
        DnsReply::Code(ResponseCode::Refused),
        DnsReply::Code(ResponseCode::NotImp),
        DnsReply::Bytes(Vec::new()),
        DnsReply::Bytes(vec![0xff; 400]),
        // A response that announces 65,535 answers and contains none.
        DnsReply::Bytes(b"\x81\x80\0\x01\xff\xff\0\0\0\0".to_vec()),
        // A compressed name that points at itself.
        DnsReply::Bytes(b"\x81\x80\0\x01\0\x01\0\0\0\0\xc0\x0c\0\x01\0\x01".to_vec()),
    ];
    for other in bad {
        for (good, address) in [(RecordType::A, v4), (RecordType::AAAA, v6)] {
            let reply = other.clone();
            dns.set_script(move |_, kind| {
                if kind == good {
                    DnsReply::address(address)
                } else {
                    reply.clone()
                }
            });
            let began = Instant::now();
            let found = names.find("webapp.example").await.unwrap();
            assert_eq!(found, [address.parse::<IpAddr>().unwrap()], "{other:?}");
            assert!(began.elapsed() < SOON, "{other:?}: {:?}", began.elapsed());
        }
    }
    // A family that is a little late is still used, and comes first.
    dns.set_script(|_, kind| match kind {
        RecordType::A => DnsReply::address("10.1.2.3"),
        _ => DnsReply::Later(10, Box::new(DnsReply::address("fd00::7"))),
    });
    let both = [v6, v4].map(|ip| ip.parse::<IpAddr>().unwrap());
    assert_eq!(names.find("webapp.example").await.unwrap(), both);
}

#[tokio::test]
async fn a_reply_of_many_addresses_is_read_where_edns_allows_its_size() {
    let all: Vec<IpAddr> = (1..=32).map(|at| [10, 1, 2, at].into()).collect();
    let reply = DnsReply::Addresses(all.clone(), 60);
    let dns = StubDns::start(move |_, kind| match kind {
        RecordType::A => reply.clone(),
        _ => DnsReply::Nothing,
    })
    .await;
    let folder = Folder::new();
    let mut names = names(&folder, "nameserver 127.0.0.1\noptions edns0\n", "");
    names.port = dns.port;
    let found = names.find("webapp.example").await.unwrap();
    assert_eq!(found.len(), all.len());
}

#[tokio::test]
async fn a_bad_entry_of_resolv_conf_disables_only_that_entry() {
    let dns = StubDns::start(|name, kind| match (name, kind) {
        ("webapp.good.example", RecordType::A) => DnsReply::address("10.1.2.3"),
        _ => NO_NAME,
    })
    .await;
    let folder = Folder::new();
    for bad in [
        "search bad..domain good.example\nnameserver 127.0.0.1\n",
        "search good.example bad..domain\noptions frobnicate ndots:x\nnameserver 127.0.0.1\n",
        "nameserver not-an-address\nnameserver 127.0.0.1\nsearch good.example\n",
        "nameserver fe80::1%eth0\nnameserver 127.0.0.1 # ours\nnonsense\nsearch good.example\n",
        "domain bad..domain\nsearch good.example\nnameserver 127.0.0.1\nnameserver\n",
    ] {
        let mut names = names(&folder, bad, "ten.0.0.1 webapp\n");
        names.port = dns.port;
        let found = names.find("webapp").await.unwrap();
        assert_eq!(found, ["10.1.2.3".parse::<IpAddr>().unwrap()], "{bad}");
    }
}

#[tokio::test]
async fn the_next_server_is_queried_when_one_is_silent_or_refuses() {
    let good = StubDns::start(|_, _| DnsReply::address("10.1.2.3")).await;
    for bad in [
        DnsReply::Silence,
        DnsReply::Code(ResponseCode::Refused),
        DnsReply::Code(ResponseCode::ServFail),
    ] {
        let set_script = bad.clone();
        let first = format!("127.0.0.2:{}", good.port).parse().unwrap();
        let first = StubDns::start_at(first, move |_, _| set_script.clone()).await;
        let folder = Folder::new();
        let servers = "nameserver 127.0.0.2\nnameserver 127.0.0.1\n";
        let mut names = names(&folder, servers, "");
        names.port = good.port;
        let began = Instant::now();
        names.find("webapp.example").await.unwrap();
        assert!(began.elapsed() < SOON, "{bad:?}: {:?}", began.elapsed());
        // The server that replied is queried first from then on.
        let queries = first.queries().len();
        for _ in 0..3 {
            names.find("webapp.example").await.unwrap();
        }
        assert_eq!(first.queries().len(), queries, "{bad:?}");
        // The port is used again below.
        first.end().await;
    }
}

#[tokio::test]
async fn families_of_different_names_are_not_mixed() {
    let dns = StubDns::start(|name, kind| match (name, kind) {
        ("webapp.a.example", RecordType::A) => DnsReply::address("10.1.2.3"),
        ("webapp.b.example", RecordType::AAAA) => DnsReply::address("fd00::7"),
        ("webapp.a.example" | "webapp.b.example", _) => DnsReply::Nothing,
        _ => NO_NAME,
    })
    .await;
    let folder = Folder::new();
    let servers = "nameserver 127.0.0.1\nsearch a.example b.example\n";
    let mut names = names(&folder, servers, "");
    names.port = dns.port;
    let found = names.find("webapp").await.unwrap();
    assert_eq!(found, ["10.1.2.3".parse::<IpAddr>().unwrap()]);
    // No reply for one family does not end the search.
    dns.set_script(|name, kind| match (name, kind) {
        ("webapp.b.example", RecordType::A) => DnsReply::address("10.1.2.4"),
        (_, RecordType::AAAA) => DnsReply::Silence,
        _ => NO_NAME,
    });
    let found = names.find("webapp").await.unwrap();
    assert_eq!(found, ["10.1.2.4".parse::<IpAddr>().unwrap()]);
}

#[tokio::test]
async fn found_addresses_stay_in_use_while_servers_are_silent() {
    let dns = StubDns::start(|_, _| DnsReply::address("10.1.2.3")).await;
    let folder = Folder::new();
    let servers = "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n";
    let mut names = names(&folder, servers, "");
    names.port = dns.port;
    names.find("webapp.example").await.unwrap();
    dns.set_script(|_, _| DnsReply::Silence);
    let found = names.find("webapp.example").await.unwrap();
    assert_eq!(found, ["10.1.2.3".parse::<IpAddr>().unwrap()]);
    // A negative reply counts.
    dns.set_script(|_, _| NO_NAME);
    assert!(names.find("webapp.example").await.is_err());
}
