//! Several endpoints of one upstream: which one is chosen, which are left out, and how a name's addresses
//! are followed.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::RecordType;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use tokio::time::{Instant, advance, sleep};

use super::names::resolver_of;
use super::server::{Reply, Webapp};
use super::stub_dns::{DnsReply, StubDns};
use super::{TEST_TIMEOUT, UpstreamSetup, eventually, outbound};
use crate::config::{AddressResolution, BaseAddress, EjectionRules};
use crate::upstream::endpoints::EndpointState;
use crate::upstream::transport::in_flight_count::InFlightRequest;
use crate::upstream::{
    DialError, EndpointChoice, EndpointSet, ResponseTimeout, Upstream, UpstreamConnections,
    UpstreamOpening,
};

type Connections = UpstreamConnections<Empty<Bytes>>;

/// An upstream with endpoints that nobody asks.
fn setup(endpoints: u8) -> UpstreamSetup {
    let mut setup = UpstreamSetup::of("127.0.0.1:9".parse().unwrap()).without_login();
    let base = setup.settings.base.clone();
    let other = |last| BaseAddress {
        host: format!("127.0.0.{last}"),
        ..base.clone()
    };
    setup.settings.more_endpoints = (2..=endpoints).map(other).collect();
    setup.settings.endpoint_policy.ejection = Some(EjectionRules::default());
    setup
}

fn states(set: &EndpointSet) -> Vec<Arc<EndpointState>> {
    let list = set.list();
    let states = list.endpoints.iter().map(|one| Arc::clone(&one.state));
    states.collect()
}

/// How often each endpoint is chosen.
fn shares(set: &EndpointSet, choices: usize) -> HashMap<usize, usize> {
    let list = set.list();
    let mut shares = HashMap::new();
    for _ in 0..choices {
        let chosen = set.choose(&list, EndpointChoice::default()).unwrap();
        *shares.entry(chosen).or_default() += 1;
    }
    shares
}

fn fail(set: &EndpointSet, state: &Arc<EndpointState>, times: usize) {
    for _ in 0..times {
        set.responded(state, StatusCode::SERVICE_UNAVAILABLE);
    }
}

#[tokio::test]
async fn the_endpoint_with_fewer_requests_is_chosen_and_failing_fast_is_no_merit() {
    let upstream = setup(2).open().unwrap();
    let set = upstream.endpoints();
    let states = states(set);
    let even = shares(set, 1000);
    assert!(even[&0] > 350 && even[&1] > 350, "{even:?}");
    let busy: Vec<_> = (0..3)
        .map(|_| InFlightRequest::begin(&states[0].in_flight))
        .collect();
    assert_eq!(shares(set, 100).get(&0), None);
    fail(set, &states[1], 1);
    let shared = shares(set, 1000);
    assert!(
        shared[&0] > 350,
        "it fails at once, so it is free: {shared:?}"
    );
    set.responded(&states[1], StatusCode::NOT_FOUND);
    assert_eq!(shares(set, 100).get(&0), None);
    drop(busy);
    assert_eq!(states[0].in_flight.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn never_more_than_half_are_ejected() {
    for (count, most) in [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2)] {
        let upstream = setup(count).open().unwrap();
        let set = upstream.endpoints();
        for state in states(set) {
            fail(set, &state, 50);
        }
        let out = states(set).iter().filter(|one| one.is_ejected()).count();
        assert_eq!(out, most, "of {count}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_ejected_endpoint_gets_one_trial_and_then_its_share_little_by_little() {
    let upstream = setup(2).open().unwrap();
    let set = upstream.endpoints();
    let states = states(set);
    fail(set, &states[1], 5);
    assert_eq!(shares(set, 100).get(&1), None);
    advance(Duration::from_secs(10)).await;
    assert_eq!(shares(set, 100)[&1], 1, "the trial");
    fail(set, &states[1], 1);
    advance(Duration::from_secs(19)).await;
    assert_eq!(shares(set, 100).get(&1), None, "twice as long");
    advance(Duration::from_secs(1)).await;
    assert_eq!(shares(set, 100)[&1], 1);
    set.responded(&states[1], StatusCode::OK);
    let mut last = 0;
    for _ in 0..3 {
        let share = shares(set, 2000)[&1];
        assert!(share > last + 50, "{share} after {last}");
        last = share;
        advance(Duration::from_millis(4500)).await;
    }
    assert!(last > 700, "{last} of 2000");
}

#[tokio::test]
async fn a_client_stays_at_its_endpoint_and_only_those_of_a_lost_one_move() {
    let upstream = setup(3).open().unwrap();
    let set = upstream.endpoints();
    let list = set.list();
    let of_client = |client| {
        let choice = EndpointChoice {
            affinity: Some(client),
            ..EndpointChoice::default()
        };
        set.choose(&list, choice).unwrap()
    };
    let before: Vec<usize> = (0..300).map(of_client).collect();
    assert_eq!(before, (0..300).map(of_client).collect::<Vec<_>>());
    for endpoint in 0..3 {
        let share = before.iter().filter(|one| **one == endpoint).count();
        assert!((60..140).contains(&share), "{share} of 300 at one of three");
    }
    let name = states(set)[1].name.to_string();
    assert_eq!(set.set_drained(&name, true), Some(true));
    for (client, before) in before.iter().enumerate() {
        let now = of_client(client as u64);
        assert!(now != 1 && (now == *before || *before == 1));
    }
    assert_eq!(set.set_drained(&name, false), Some(true));
    assert_eq!(before, (0..300).map(of_client).collect::<Vec<_>>());
}

#[tokio::test]
async fn drained_endpoints_get_nothing_even_if_all_others_are_bad() {
    let upstream = setup(3).open().unwrap();
    let set = upstream.endpoints();
    let names: Vec<String> = states(set).iter().map(|one| one.name.to_string()).collect();
    assert_eq!(set.set_drained(&names[0], true), Some(true));
    assert_eq!(set.set_drained(&names[0], true), Some(false));
    assert_eq!(set.set_drained("https://elsewhere", true), None);
    for state in &states(set)[1..] {
        fail(set, state, 50);
    }
    assert_eq!(shares(set, 100).get(&0), None);
    set.set_drained(&names[1], true);
    set.set_drained(&names[2], true);
    let list = set.list();
    assert_eq!(set.choose(&list, EndpointChoice::default()), None);
    assert!(set.admit().is_err());
    assert!(set.outage().unwrap().to_string().contains("drained"));
}

/// An upstream whose endpoints are the addresses of `webapp.example`.
fn followed(webapp: &Webapp, dns: &StubDns) -> (UpstreamSetup, Arc<Upstream>) {
    let mut setup = UpstreamSetup::of(webapp.address).without_login();
    setup.settings.base.host = "webapp.example".to_owned();
    setup.settings.endpoint_policy.resolution = AddressResolution::All;
    let names = resolver_of(&setup.folder, dns);
    let opening = UpstreamOpening::new(&setup.settings, &setup.scope, &setup.metrics);
    let upstream = opening.looked_up_by(names).open().unwrap();
    (setup, upstream)
}

/// IPv4 addresses only.
fn addresses(
    ips: &[&str],
    ttl: u32,
) -> impl Fn(&str, RecordType) -> DnsReply + Send + Sync + 'static {
    let ips: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
    move |_: &str, kind| match kind {
        RecordType::A => DnsReply::Addresses(ips.clone(), ttl),
        _ => DnsReply::Nothing,
    }
}

async fn two_servers() -> [Webapp; 2] {
    let hi = |_: &super::server::Call| Reply::with(200, "", "hi");
    let first = Webapp::start_at("127.0.0.2:0".parse().unwrap(), None, hi).await;
    let port = first.address.port();
    let second = Webapp::start_at(
        SocketAddr::new("127.0.0.3".parse().unwrap(), port),
        None,
        hi,
    );
    let second = second.await;
    [first, second]
}

async fn get(connections: &Connections) {
    let request = outbound(Request::new(Empty::new()));
    let timeout = ResponseTimeout::within(TEST_TIMEOUT);
    let response = connections.send(request, timeout).await.unwrap();
    assert_eq!(response.status(), 200);
    response.into_body().collect().await.unwrap();
}

#[tokio::test]
async fn look_ups_that_fail_take_no_endpoint_away() {
    let servers = two_servers().await;
    let dns = StubDns::start(addresses(&["127.0.0.2", "127.0.0.3"], 0)).await;
    let (setup, upstream) = followed(&servers[0], &dns);
    let set = upstream.endpoints();
    assert!(set.is_unknown());
    set.known().await;
    let connections = Connections::new(Arc::clone(&upstream), &setup.scope.tasks);
    let failures: [fn(&str, RecordType) -> DnsReply; 3] = [
        |_, _| DnsReply::Code(ResponseCode::ServFail),
        |_, _| DnsReply::Code(ResponseCode::NXDomain),
        |_, _| DnsReply::Silence,
    ];
    for failure in failures {
        dns.set_script(failure);
        let until = Instant::now() + Duration::from_millis(1200);
        while Instant::now() < until {
            get(&connections).await;
            sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(set.list().endpoints.len(), 2);
        assert_eq!(set.generation(), 1);
    }
    dns.set_script(addresses(&["127.0.0.3"], 0));
    eventually("the next good answer is taken", || {
        set.list().endpoints.len() == 1
    })
    .await;
    let before = servers[0].requests();
    for _ in 0..10 {
        get(&connections).await;
    }
    assert_eq!(servers[0].requests(), before, "it has left");
    assert!(
        setup
            .metrics
            .text()
            .contains("tollgate_endpoint_look_ups_total{outcome=\"failed\",upstream=\"main\"}")
    );
}

#[tokio::test]
async fn another_order_of_the_addresses_changes_nothing() {
    let servers = two_servers().await;
    let dns = StubDns::start(addresses(&["127.0.0.2", "127.0.0.3"], 0)).await;
    let (setup, upstream) = followed(&servers[0], &dns);
    let set = upstream.endpoints();
    set.known().await;
    let connections = Connections::new(Arc::clone(&upstream), &setup.scope.tasks);
    for _ in 0..20 {
        get(&connections).await;
    }
    let opened = || servers[0].connections() + servers[1].connections();
    assert_eq!(opened(), 2);
    let (began, asked) = (Instant::now(), dns.queries().len());
    dns.set_script(addresses(&["127.0.0.3", "127.0.0.2", "127.0.0.3"], 0));
    while began.elapsed() < Duration::from_millis(2500) {
        get(&connections).await;
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(opened(), 2);
    assert_eq!(set.generation(), 1);
    // Two record types a look-up, a look-up a second.
    let asked = dns.queries().len() - asked;
    assert!((2..=8).contains(&asked), "{asked} queries in 2.5 s");
    dns.set_script(addresses(&["127.0.0.2"], 0));
    sleep(Duration::from_millis(1500)).await;
    let before = servers[1].requests();
    for _ in 0..20 {
        get(&connections).await;
    }
    assert_eq!(
        servers[1].requests(),
        before,
        "no new request after TTL + 1 s"
    );
}

#[tokio::test]
async fn requests_wait_for_the_first_addresses_and_a_new_generation_begins_with_the_known() {
    let servers = two_servers().await;
    let dns = StubDns::start(|_: &str, _| DnsReply::Silence).await;
    let (setup, upstream) = followed(&servers[0], &dns);
    assert!(upstream.endpoints().admit().is_err());
    assert!(
        upstream
            .endpoints()
            .outage()
            .unwrap()
            .to_string()
            .contains("no address")
    );
    dns.set_script(addresses(&["127.0.0.2", "127.0.0.3"], 60));
    upstream.endpoints().known().await;
    let states = states(upstream.endpoints());
    fail(upstream.endpoints(), &states[0], 5);
    // Reloaded while no name server responds.
    dns.set_script(|_: &str, _| DnsReply::Silence);
    let names = resolver_of(&setup.folder, &dns);
    let opening = UpstreamOpening::new(&setup.settings, &setup.scope, &setup.metrics);
    let next = opening.looked_up_by(names).after(&upstream).open().unwrap();
    next.endpoints().known().await;
    let list = next.endpoints().list();
    assert_eq!(list.endpoints.len(), 2);
    assert!(Arc::ptr_eq(&list.endpoints[0].state, &states[0]));
    assert!(states[0].is_ejected(), "health belongs to the endpoint");
}

#[tokio::test]
async fn what_the_operator_took_out_stays_out_when_it_leaves_and_comes_back() {
    let servers = two_servers().await;
    let both = ["127.0.0.2", "127.0.0.3"];
    let dns = StubDns::start(addresses(&both, 0)).await;
    let (_setup, upstream) = followed(&servers[0], &dns);
    let set = upstream.endpoints();
    set.known().await;
    let name = states(set)[1].name.to_string();
    set.set_drained(&name, true);
    for (ips, count) in [(&both[..1], 1), (&both[..], 2)] {
        dns.set_script(addresses(ips, 0));
        eventually("the addresses are followed", || states(set).len() == count).await;
    }
    assert!(states(set)[1].is_drained());
    set.set_drained(&name, false);
    assert!(!states(set)[1].is_drained());
}

#[tokio::test]
async fn a_lack_of_our_own_and_a_client_that_leaves_are_no_failure_of_the_endpoint() {
    let upstream = setup(2).open().unwrap();
    let set = upstream.endpoints();
    let state = &states(set)[0];
    let lacks = || std::io::Error::from_raw_os_error(24); // EMFILE
    for _ in 0..20 {
        let failure = DialError::Connect {
            address: "127.0.0.1:9".parse().unwrap(),
            failed: 1,
            source: lacks(),
        };
        set.connect_failed(state, &failure);
    }
    assert!(!state.is_ejected());
    assert_eq!(state.failures(), 0);
}

#[tokio::test]
async fn the_next_login_goes_elsewhere_than_the_one_that_failed() {
    let bad = Webapp::start(|_| Reply::with(500, "", "broken")).await;
    let good = Webapp::start(|_| Reply::login("token", 3600)).await;
    for _ in 0..6 {
        let (logins, mut setup) = (bad.requests(), UpstreamSetup::of(bad.address));
        let base = setup.settings.base.clone();
        setup.settings.more_endpoints = vec![BaseAddress {
            port: good.address.port(),
            ..base
        }];
        let session = setup.session();
        eventually("a lease", || session.usable().is_some()).await;
        assert!(bad.requests() - logins <= 1, "it went there again");
    }
}
