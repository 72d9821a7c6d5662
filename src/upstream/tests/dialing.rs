//! Connecting: addresses are tried in a race, and results are remembered.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::RecordType;
use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};

use super::names::{names, resolver_of};
use super::stub_dns::{DnsReply, NO_NAME, StubDns};
use super::{Folder, TEST_TIMEOUT, eventually};
use crate::dns::DnsResolver;
use crate::error_chain::chain;
use crate::lifecycle::TaskScope;
use crate::upstream::DialError;
use crate::upstream::transport::address_book::AddressBook;
use crate::upstream::transport::address_memory::AddressMemory;
use crate::upstream::transport::tcp_dialer::TcpDialer;

/// Delay that a loaded machine may add.
const SLACK: Duration = Duration::from_millis(200);
const DELAY: Duration = Duration::from_millis(250);

fn dialer(names: DnsResolver, port: u16, limit: Duration) -> TcpDialer {
    let scope = TaskScope::new(Handle::current());
    TcpDialer {
        port,
        book: AddressBook::new("webapp.example", names, &scope),
        memory: AddressMemory::default(),
        proxy: None,
        tls: None,
        server_name: None,
        has_prior_knowledge: false,
        limit,
        upstream: "main".into(),
    }
}

async fn dial_time(dialer: &TcpDialer) -> Duration {
    let began = Instant::now();
    dialer.dial(None).await.unwrap();
    began.elapsed()
}

/// An address that does not respond: its accept queue is full.
struct SilentAddress(#[expect(dead_code, reason = "only kept open")] (Socket, Vec<TcpStream>));

impl SilentAddress {
    fn at(address: SocketAddr) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&address.into()).unwrap();
        socket.listen(0).unwrap();
        let connect = || TcpStream::connect_timeout(&address, Duration::from_millis(100));
        let filling = std::iter::from_fn(|| connect().ok()).collect();
        Self((socket, filling))
    }
}

/// A listener, and silent addresses with its port.
async fn among_silent(good: &str, silent: &[String]) -> (TcpListener, Vec<SilentAddress>) {
    let listener = TcpListener::bind((good, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let at = |ip: &String| SilentAddress::at(format!("{ip}:{port}").parse().unwrap());
    let silent = silent.iter().map(at).collect();
    (listener, silent)
}

fn port(listener: &TcpListener) -> u16 {
    listener.local_addr().unwrap().port()
}

#[tokio::test]
async fn a_missing_ipv6_reply_costs_fifty_milliseconds_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dns = StubDns::start(|_, kind| match kind {
        RecordType::A => DnsReply::address("127.0.0.1"),
        _ => DnsReply::Silence,
    })
    .await;
    let folder = Folder::new();
    let dialer = dialer(resolver_of(&folder, &dns), port(&listener), TEST_TIMEOUT);
    let first = dial_time(&dialer).await;
    assert!(first < Duration::from_millis(100) + SLACK, "{first:?}");
    for _ in 0..5 {
        assert!(
            dial_time(&dialer).await < SLACK,
            "the missing family is remembered"
        );
    }
    // UDP's own retry may repeat the query, but no further connection causes one.
    let queries = dns.queries();
    assert_eq!(
        queries
            .iter()
            .filter(|queries| queries.ends_with(" A"))
            .count(),
        1
    );
}

#[tokio::test]
async fn the_next_address_is_tried_after_a_delay_and_the_good_one_first_afterwards() {
    let (listener, _silent) = among_silent("127.0.0.3", &["127.0.0.2".into()]).await;
    let folder = Folder::new();
    let hosts = "127.0.0.2 webapp.example\n127.0.0.3 webapp.example\n";
    let dialer = dialer(names(&folder, "", hosts), port(&listener), TEST_TIMEOUT);
    let first = dial_time(&dialer).await;
    assert!(first >= DELAY && first < DELAY + SLACK, "{first:?}");
    for _ in 0..5 {
        let later = dial_time(&dialer).await;
        assert!(later < SLACK, "{later:?}");
    }
}

#[tokio::test]
async fn a_good_address_is_found_among_twenty() {
    let ips: Vec<String> = (2..22).map(|at| format!("127.0.1.{at}")).collect();
    let (good, bad) = ips.split_last().unwrap();
    let (listener, _silent) = among_silent(good, bad).await;
    let all: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
    let dns = StubDns::start(move |_, kind| match kind {
        RecordType::A => DnsReply::Addresses(all.clone(), 60),
        _ => DnsReply::Nothing,
    })
    .await;
    let folder = Folder::new();
    let limit = Duration::from_secs(4);
    let dialer = dialer(resolver_of(&folder, &dns), port(&listener), limit);
    let first = dial_time(&dialer).await;
    assert!(first < limit, "{first:?}");
    let later = dial_time(&dialer).await;
    assert!(later < SLACK, "{later:?}");
}

#[tokio::test]
async fn a_refused_attempt_costs_no_time_and_is_named_in_the_error() {
    let listener = TcpListener::bind("127.0.0.3:0").await.unwrap();
    let folder = Folder::new();
    let hosts = "::1 webapp.example\n127.0.0.2 webapp.example\n127.0.0.3 webapp.example\n";
    let dialer = dialer(names(&folder, "", hosts), port(&listener), TEST_TIMEOUT);
    let first = dial_time(&dialer).await;
    assert!(first < DELAY, "{first:?}");
    drop(listener);
    let failure = dialer.dial(None).await.unwrap_err();
    assert!(matches!(failure, DialError::Connect { .. }));
    let message = chain(&failure);
    assert!(
        message.contains("127.0.0.3") && message.contains("2 other addresses"),
        "{message}"
    );
    // Remembered failures keep no address from being tried.
    let again = TcpListener::bind(("127.0.0.2", dialer.port)).await.unwrap();
    dialer.dial(None).await.unwrap();
    drop(again);
}

#[tokio::test]
async fn a_dial_timeout_names_the_step_that_was_late() {
    let limit = Duration::from_millis(400);
    let (listener, _silent) = among_silent("127.0.0.4", &["127.0.0.2".into()]).await;
    let folder = Folder::new();
    let hosts = names(&folder, "", "127.0.0.2 webapp.example\n");
    let silent = dialer(hosts, port(&listener), limit);
    let message = chain(&silent.dial(None).await.unwrap_err());
    assert!(
        message.contains("127.0.0.2") && message.contains("does not answer"),
        "{message}"
    );

    let dns = StubDns::start(|_, _| DnsReply::Silence).await;
    let silent_dns = dialer(resolver_of(&folder, &dns), port(&listener), limit);
    let message = chain(&silent_dns.dial(None).await.unwrap_err());
    assert!(
        message.contains("name servers") && message.contains("resolv.conf"),
        "{message}"
    );
}

#[tokio::test]
async fn stale_addresses_serve_while_name_servers_are_silent_and_new_ones_are_found() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let other = TcpListener::bind(("127.0.0.2", port(&listener)))
        .await
        .unwrap();
    let short = |ip: &str| DnsReply::Addresses(vec![ip.parse().unwrap()], 1);
    let dns = StubDns::start(move |_, kind| match kind {
        RecordType::A => short("127.0.0.1"),
        _ => DnsReply::Nothing,
    })
    .await;
    let folder = Folder::new();
    let dialer = dialer(resolver_of(&folder, &dns), port(&listener), TEST_TIMEOUT);
    dial_time(&dialer).await;
    listener.accept().await.unwrap();
    dns.set_script(|_, _| DnsReply::Silence);
    sleep(Duration::from_millis(1100)).await;
    let stale = dial_time(&dialer).await;
    assert!(stale < Duration::from_millis(300) + SLACK, "{stale:?}");
    listener.accept().await.unwrap();
    let next = dial_time(&dialer).await;
    assert!(
        next < SLACK,
        "a query in progress is waited for once: {next:?}"
    );
    listener.accept().await.unwrap();
    // The servers are back, with another address.
    dns.set_script(move |_, kind| match kind {
        RecordType::A => short("127.0.0.2"),
        _ => DnsReply::Nothing,
    });
    let deadline = Instant::now() + TEST_TIMEOUT * 2;
    let moved = async {
        while Instant::now() < deadline {
            dial_time(&dialer).await;
            sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        accepted = other.accept() => drop(accepted.unwrap()),
        () = moved => panic!("the new address is never used"),
    }
    // A negative reply counts, even if there are stale addresses.
    dns.set_script(|_, _| NO_NAME);
    sleep(Duration::from_millis(1100)).await;
    let failure = dialer.dial(None).await.unwrap_err();
    assert!(
        matches!(failure, DialError::Resolve { .. }),
        "{}",
        chain(&failure)
    );
}

#[tokio::test]
async fn addresses_that_all_fail_are_looked_up_again_before_their_ttl() {
    let listener = TcpListener::bind("127.0.0.3:0").await.unwrap();
    let long = |ip: &str| DnsReply::Addresses(vec![ip.parse().unwrap()], 86_400);
    let dns = StubDns::start(move |_, kind| match kind {
        RecordType::A => long("127.0.0.2"),
        _ => DnsReply::Nothing,
    })
    .await;
    let folder = Folder::new();
    let dialer = dialer(resolver_of(&folder, &dns), port(&listener), TEST_TIMEOUT);
    assert!(dialer.dial(None).await.is_err());
    dns.set_script(move |_, kind| match kind {
        RecordType::A => long("127.0.0.3"),
        _ => DnsReply::Nothing,
    });
    let deadline = Instant::now() + TEST_TIMEOUT;
    while dialer.dial(None).await.is_err() {
        assert!(
            Instant::now() < deadline,
            "the name was not looked up again"
        );
        sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn a_late_dns_reply_is_used_and_dials_share_one_look_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dns = StubDns::start(|_, _| NO_NAME).await;
    let folder = Folder::new();
    let dialer = dialer(resolver_of(&folder, &dns), port(&listener), TEST_TIMEOUT);
    for _ in 0..20 {
        let failure = dialer.dial(None).await.unwrap_err();
        assert!(matches!(failure, DialError::Resolve { .. }));
    }
    assert!(dns.queries().len() <= 6, "{:?}", dns.queries());
    dns.set_script(|_, kind| match kind {
        RecordType::A => DnsReply::Later(50, Box::new(DnsReply::address("127.0.0.1"))),
        _ => DnsReply::Nothing,
    });
    sleep(Duration::from_millis(1100)).await;
    let before = dns.queries().len();
    let (one, two, three) = tokio::join!(dialer.dial(None), dialer.dial(None), dialer.dial(None));
    assert!(one.is_ok() && two.is_ok() && three.is_ok());
    assert_eq!(dns.queries().len(), before + 2);
}

/// Row U7 of the field cases: whatever the answer was while the name was missing.
#[tokio::test]
async fn a_name_that_appears_is_used_without_a_reload() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let reachable = async |dialer: &TcpDialer, what: &str| {
        let deadline = Instant::now() + TEST_TIMEOUT;
        while dialer.dial(None).await.is_err() {
            assert!(Instant::now() < deadline, "{what}: never found");
            sleep(Duration::from_millis(100)).await;
        }
    };
    for missing in [
        NO_NAME,
        DnsReply::Nothing,
        DnsReply::Code(ResponseCode::ServFail),
        DnsReply::Code(ResponseCode::Refused),
    ] {
        let what = format!("{missing:?}");
        let dns = StubDns::start(move |_, _| missing.clone()).await;
        let folder = Folder::new();
        let dialer = dialer(resolver_of(&folder, &dns), port(&listener), TEST_TIMEOUT);
        for _ in 0..3 {
            assert!(dialer.dial(None).await.is_err(), "{what}");
        }
        dns.set_script(|_, kind| match kind {
            RecordType::A => DnsReply::address("127.0.0.1"),
            _ => DnsReply::Nothing,
        });
        reachable(&dialer, &what).await;
    }
    // In the hosts file.
    let folder = Folder::new();
    let dialer = dialer(names(&folder, "", ""), port(&listener), TEST_TIMEOUT);
    assert!(dialer.dial(None).await.is_err());
    folder.write("hosts", "127.0.0.1 webapp.example\n");
    reachable(&dialer, "hosts").await;
}

#[tokio::test]
async fn a_late_family_joins_the_race() {
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let silent: SocketAddr = format!("127.0.0.2:{}", port(&listener)).parse().unwrap();
    let _silent = SilentAddress::at(silent);
    let dns = StubDns::start(|_, kind| match kind {
        RecordType::A => DnsReply::address("127.0.0.2"),
        _ => DnsReply::Later(400, Box::new(DnsReply::address("::1"))),
    })
    .await;
    let folder = Folder::new();
    let dialer = dialer(resolver_of(&folder, &dns), port(&listener), TEST_TIMEOUT);
    let first = dial_time(&dialer).await;
    let delay = Duration::from_millis(400);
    assert!(first >= delay && first < delay + SLACK, "{first:?}");
    let later = dial_time(&dialer).await;
    assert!(later < SLACK, "the good family goes first: {later:?}");
}

#[tokio::test]
async fn a_cancelled_dial_does_not_end_the_look_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dns =
        StubDns::start(|_, _| DnsReply::Later(300, Box::new(DnsReply::address("127.0.0.1")))).await;
    let folder = Folder::new();
    let dialer = dialer(resolver_of(&folder, &dns), port(&listener), TEST_TIMEOUT);
    let deadline = Instant::now() + Duration::from_millis(20);
    assert!(dialer.dial(Some(deadline)).await.is_err());
    eventually("asked", || dns.queries().len() == 2).await;
    sleep(Duration::from_millis(500)).await;
    assert!(dial_time(&dialer).await < SLACK);
    assert_eq!(dns.queries().len(), 2);
}
