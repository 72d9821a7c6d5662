//! Names lead to addresses without the C library's help, and half an answer is one.

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
/// Far below a server's time-out, far above what a loaded machine takes.
const SOON: Duration = Duration::from_secs(2);

pub(super) fn names(folder: &Folder, servers: &str, hosts: &str) -> DnsResolver {
    DnsResolver::from_files(
        folder.write("resolv.conf", servers),
        folder.write("hosts", hosts),
    )
}

/// Names that `dns` is asked for.
pub(super) fn asking(folder: &Folder, dns: &StubDns) -> DnsResolver {
    let mut names = names(folder, "nameserver 127.0.0.1\n", "");
    names.port = dns.port;
    names
}

#[tokio::test]
async fn addresses_are_their_own_and_the_hosts_file_is_asked_first() {
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
async fn localhost_is_this_host_even_where_no_file_says_so() {
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
async fn a_name_in_no_file_is_asked_for_and_changed_files_hold_at_once() {
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
async fn one_family_is_enough_whatever_the_other_is_answered_with() {
    let (v4, v6) = ("10.1.2.3", "fd00::7");
    let dns = StubDns::start(|_, _| DnsReply::Silence).await;
    let folder = Folder::new();
    let names = asking(&folder, &dns);
    let bad = [
        DnsReply::Silence,
        DnsReply::Nothing,
        NO_NAME,
        DnsReply::Code(ResponseCode::ServFail),
        DnsReply::Code(ResponseCode::Refused),
        DnsReply::Code(ResponseCode::NotImp),
        DnsReply::Bytes(Vec::new()),
        DnsReply::Bytes(vec![0xff; 400]),
        // A response of one question and 65,535 answers, of which none is there.
        DnsReply::Bytes(b"\x81\x80\0\x01\xff\xff\0\0\0\0".to_vec()),
        // A name that points at itself.
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
    // One that is a little late is there all the same, and comes first.
    dns.set_script(|_, kind| match kind {
        RecordType::A => DnsReply::address("10.1.2.3"),
        _ => DnsReply::Later(10, Box::new(DnsReply::address("fd00::7"))),
    });
    let both = [v6, v4].map(|ip| ip.parse::<IpAddr>().unwrap());
    assert_eq!(names.find("webapp.example").await.unwrap(), both);
}

#[tokio::test]
async fn an_answer_of_many_addresses_is_read_where_edns_allows_its_size() {
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
async fn a_bad_entry_of_resolv_conf_costs_that_entry() {
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
async fn a_server_that_is_silent_or_refuses_does_not_keep_the_next_from_being_asked() {
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
        // The one that answered is asked first from then on.
        let asked = first.questions().len();
        for _ in 0..3 {
            names.find("webapp.example").await.unwrap();
        }
        assert_eq!(first.questions().len(), asked, "{bad:?}");
        // Its port is wanted again.
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
    // Silence about one family does not end the search.
    dns.set_script(|name, kind| match (name, kind) {
        ("webapp.b.example", RecordType::A) => DnsReply::address("10.1.2.4"),
        (_, RecordType::AAAA) => DnsReply::Silence,
        _ => NO_NAME,
    });
    let found = names.find("webapp").await.unwrap();
    assert_eq!(found, ["10.1.2.4".parse::<IpAddr>().unwrap()]);
}

#[tokio::test]
async fn what_was_found_serves_on_while_servers_stay_silent() {
    let dns = StubDns::start(|_, _| DnsReply::address("10.1.2.3")).await;
    let folder = Folder::new();
    let servers = "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n";
    let mut names = names(&folder, servers, "");
    names.port = dns.port;
    names.find("webapp.example").await.unwrap();
    dns.set_script(|_, _| DnsReply::Silence);
    let found = names.find("webapp.example").await.unwrap();
    assert_eq!(found, ["10.1.2.3".parse::<IpAddr>().unwrap()]);
    // A server that says no is believed.
    dns.set_script(|_, _| NO_NAME);
    assert!(names.find("webapp.example").await.is_err());
}
