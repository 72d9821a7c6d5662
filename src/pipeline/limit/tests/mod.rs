mod attempts;
mod bounds;
mod wait_queue;

use std::net::{Ipv4Addr, Ipv6Addr};

use http::HeaderMap;
use tokio::time::advance;

use super::*;
use crate::config::{ApiKey, Limit, LimitKey};
use crate::profiles::Role;

const SECOND: Duration = Duration::from_secs(1);
const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const OTHER_PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

fn quota(requests: u32, burst: u32) -> Quota {
    Quota {
        requests,
        per: SECOND,
        burst,
    }
}

fn policy(name: &str, key: LimitKey, quota: Quota) -> Limit {
    Limit {
        name: name.into(),
        key,
        classes: Vec::new(),
        quota,
        dry_run: false,
    }
}

fn limits(policies: Vec<Limit>) -> Limits {
    Limits {
        policies,
        logins_by_peer: quota(1, 5),
        logins_by_name: quota(1, 3),
        unknown_tokens: quota(1, 2),
        unknown_tokens_by_peer: quota(1, 2),
        max_keys: 1000,
        max_in_flight: 2,
    }
}

fn limiter(policies: Vec<Limit>) -> Limiter {
    Limiter::new(&limits(policies), None, Metrics::new())
}

fn user(name: &str) -> Client {
    Client::User {
        name: name.into(),
        role: Some(Role::User),
    }
}

fn key(name: &str, limit: Option<Quota>) -> Client {
    Client::Key(Arc::new(ApiKey {
        name: name.into(),
        digests: Vec::new(),
        expires: None,
        role: Role::User,
        paths: Vec::new(),
        upstreams: Vec::new(),
        methods: Vec::new(),
        limit,
    }))
}

fn subject<'a>(client: &'a Client, class: &'a str) -> RateSubject<'a> {
    RateSubject {
        client,
        peer: PEER,
        class,
        class_bucket: class,
        upstream: None,
    }
}

/// How many of `tries` requests are admitted without a wait.
async fn admitted(limiter: &Limiter, subject: RateSubject<'_>, tries: usize) -> usize {
    let mut count = 0;
    for _ in 0..tries {
        count += usize::from(limiter.admit(subject, Duration::ZERO).await.is_ok());
    }
    count
}

#[tokio::test(start_paused = true)]
async fn a_burst_is_admitted_and_then_the_steady_rate() {
    let limiter = limiter(vec![policy("clients", LimitKey::Client, quota(50, 150))]);
    let anna = user("anna");
    assert_eq!(
        admitted(&limiter, subject(&anna, "messages"), 200).await,
        150
    );
    advance(SECOND).await;
    assert_eq!(
        admitted(&limiter, subject(&anna, "messages"), 200).await,
        50
    );
    assert_eq!(
        admitted(&limiter, subject(&user("bert"), "messages"), 200).await,
        150
    );
    assert_eq!(
        limiter.metrics.limit_exceeded.value(LimitOutcome::Refused),
        250
    );
}

#[tokio::test(start_paused = true)]
async fn a_user_and_a_key_of_one_name_have_two_buckets_and_open_clients_count_by_address() {
    let limiter = limiter(vec![policy("clients", LimitKey::Client, quota(1, 1))]);
    for client in [user("a"), key("a", None), Client::Open] {
        assert_eq!(admitted(&limiter, subject(&client, "x"), 2).await, 1);
    }
    let elsewhere = RateSubject {
        peer: OTHER_PEER,
        ..subject(&Client::Open, "x")
    };
    assert_eq!(admitted(&limiter, elsewhere, 2).await, 1);
}

#[test]
fn ipv6_peers_of_one_64_count_as_one_and_mapped_ipv4_is_ipv4() {
    let v6 = |text: &str| IpAddr::V6(text.parse::<Ipv6Addr>().unwrap());
    assert_eq!(network(v6("2001:db8::1")), network(v6("2001:db8::ffff:2")));
    assert_ne!(network(v6("2001:db8::1")), network(v6("2001:db8:0:1::1")));
    assert_eq!(network(v6("::ffff:192.0.2.1")), network(PEER));
    assert_ne!(network(PEER), network(OTHER_PEER));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_by_one_limit_is_not_charged_to_the_others() {
    let limiter = limiter(vec![
        policy("clients", LimitKey::Client, quota(1, 10)),
        policy("classes", LimitKey::Class, quota(1, 2)),
    ]);
    let anna = user("anna");
    assert_eq!(admitted(&limiter, subject(&anna, "full"), 100).await, 2);
    assert_eq!(admitted(&limiter, subject(&anna, "b"), 100).await, 2);
    for class in ["c", "d", "e"] {
        assert_eq!(admitted(&limiter, subject(&anna, class), 5).await, 2);
    }
    let refused = limiter.admit(subject(&anna, "f"), Duration::ZERO).await;
    assert_eq!(&*refused.unwrap_err().policy, "clients");
}

#[tokio::test(start_paused = true)]
async fn sends_cannot_starve_monitoring() {
    let limiter = limiter(vec![policy("classes", LimitKey::Class, quota(20, 60))]);
    let anna = user("anna");
    assert_eq!(
        admitted(&limiter, subject(&anna, "messages"), 1000).await,
        60
    );
    assert_eq!(
        admitted(&limiter, subject(&anna, "monitoring"), 60).await,
        60
    );
}

#[tokio::test(start_paused = true)]
async fn a_policy_counts_only_its_classes() {
    let mut messages = policy("messages", LimitKey::Class, quota(1, 1));
    messages.classes = vec!["messages".into()];
    let limiter = limiter(vec![messages]);
    let anna = user("anna");
    assert_eq!(admitted(&limiter, subject(&anna, "messages"), 3).await, 1);
    assert_eq!(admitted(&limiter, subject(&anna, "other"), 3).await, 3);
    let free = limiter.admit(subject(&anna, "other"), Duration::ZERO).await;
    assert!(free.unwrap().headers.is_none());
}

#[tokio::test(start_paused = true)]
async fn an_api_key_has_its_own_limit_in_addition() {
    let limiter = limiter(vec![policy("clients", LimitKey::Client, quota(1, 50))]);
    let slow = key("slow", Some(quota(1, 2)));
    assert_eq!(admitted(&limiter, subject(&slow, "x"), 10).await, 2);
    let refused = limiter.admit(subject(&slow, "x"), Duration::ZERO).await;
    assert_eq!(&*refused.unwrap_err().policy, "api_key");
    // Another quota is another bucket.
    let faster = key("slow", Some(quota(1, 3)));
    assert_eq!(admitted(&limiter, subject(&faster, "x"), 10).await, 3);
    assert_eq!(
        admitted(&limiter, subject(&key("free", None), "x"), 10).await,
        10
    );
    advance(SECOND * 60).await;
    limiter.sweep();
    assert!(limiter.by_api_key.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_counts_and_admits() {
    let mut dry = policy("dry", LimitKey::Client, quota(1, 2));
    dry.dry_run = true;
    let limiter = limiter(vec![dry]);
    let anna = user("anna");
    assert_eq!(admitted(&limiter, subject(&anna, "x"), 10).await, 10);
    assert_eq!(
        limiter.metrics.limit_exceeded.value(LimitOutcome::DryRun),
        8
    );
    assert_eq!(
        limiter.metrics.limit_exceeded.value(LimitOutcome::Refused),
        0
    );
}

#[tokio::test(start_paused = true)]
async fn the_tightest_limit_is_advertised_in_the_fields_of_the_draft() {
    let limiter = limiter(vec![
        policy("wide", LimitKey::Client, quota(100, 1000)),
        policy("messages", LimitKey::Class, quota(50, 150)),
    ]);
    let anna = user("anna");
    admitted(&limiter, subject(&anna, "messages"), 137).await;
    let admitted = limiter
        .admit(subject(&anna, "messages"), Duration::ZERO)
        .await;
    let mut headers = HeaderMap::new();
    admitted.unwrap().headers.unwrap().put(&mut headers);
    assert_eq!(headers["ratelimit-policy"], "\"messages\";q=150;w=3");
    assert_eq!(headers["ratelimit"], "\"messages\";r=12;t=3");
    for _ in 0..12 {
        limiter
            .admit(subject(&anna, "messages"), Duration::ZERO)
            .await
            .unwrap();
    }
    let refused = limiter
        .admit(subject(&anna, "messages"), Duration::ZERO)
        .await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.retry_after, SECOND);
    refused.headers.put(&mut headers);
    assert_eq!(headers["ratelimit"], "\"messages\";r=0;t=1");
    let keeps = |name: &str| !headers[name].is_sensitive();
    assert_eq!(
        (keeps("ratelimit"), keeps("ratelimit-policy")),
        (false, true),
        "only repeated values belong in HTTP/2's dynamic table"
    );
    assert_eq!(refused.to_string(), "limit messages is reached");
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_rounded_up_and_correct() {
    let limiter = limiter(vec![policy(
        "slow",
        LimitKey::Client,
        Quota {
            requests: 2,
            per: SECOND * 5,
            burst: 1,
        },
    )]);
    let anna = user("anna");
    assert_eq!(admitted(&limiter, subject(&anna, "x"), 1).await, 1);
    let refused = limiter.admit(subject(&anna, "x"), Duration::ZERO).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.retry_after, SECOND * 3);
    advance(refused.retry_after).await;
    assert_eq!(admitted(&limiter, subject(&anna, "x"), 1).await, 1);
}

#[test]
fn requests_in_flight_are_limited_and_a_reload_keeps_the_count() {
    let limiter = limiter(Vec::new());
    let one = limiter.in_flight().unwrap();
    let two = limiter.in_flight().unwrap();
    assert_eq!(limiter.in_flight().unwrap_err(), TooManyInFlight);
    let reloaded = Limiter::new(&limits(Vec::new()), Some(&limiter), Metrics::new());
    assert!(reloaded.in_flight().is_err());
    drop((one, two));
    assert!(reloaded.in_flight().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_reload_keeps_the_buckets_of_limits_that_did_not_change() {
    let same = || policy("same", LimitKey::Client, quota(1, 2));
    let mut other = policy("other", LimitKey::Peer, quota(1, 3));
    let old = limiter(vec![same(), other.clone()]);
    let anna = user("anna");
    assert_eq!(admitted(&old, subject(&anna, "x"), 5).await, 2);
    other.quota = quota(1, 4);
    let new = Limiter::new(&limits(vec![other, same()]), Some(&old), Metrics::new());
    assert_eq!(admitted(&new, subject(&anna, "x"), 5).await, 0);
    assert_eq!(admitted(&new, subject(&user("bert"), "x"), 5).await, 2);
    assert_eq!(admitted(&new, subject(&user("carl"), "x"), 5).await, 2);
    for _ in 0..3 {
        let _failed = new.admit_login(PEER, "anna").await.unwrap();
    }
    assert!(old.admit_login(PEER, "anna").await.is_err());
    let good = old.admit_login(OTHER_PEER, "anna").await.unwrap();
    good.succeeded();
    assert!(new.attempts.is_proven(OTHER_PEER, "anna"));
}
