//! Single stages of a request, timed by criterion. benches/README.md says how to keep a
//! baseline and compare with it.
#![expect(
    clippy::unwrap_used,
    reason = "a bench that cannot go on says so by a panic"
)]
#![expect(clippy::disallowed_methods, reason = "benches read the clock")]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use tollgate::config::{
    AllowedFields, DirectoryKind, Limit, LimitKey, Limits, ProfileRouting, Quota, RequestRules,
    UnknownTokens, UsersConfig, shipped_routes,
};
use tollgate::identity::Client;
use tollgate::metrics::Metrics;
use tollgate::pipeline::{
    Limiter, Peer, RateSubject, RouteTable, RouteUpstream, clean_fields, presents_credential,
};
use tollgate::profiles::{Profile, Role};
use tollgate::token::{GrantRequest, Token, TokenDigest, TokenOrigin, TokenStore};
use tollgate::via::GatewayVia;

const TOKENS: usize = 10_000;
const CLIENTS: usize = 10_000;

fn settings() -> UsersConfig {
    UsersConfig {
        directory: DirectoryKind::Gateway,
        unknown_tokens: UnknownTokens::Reject,
        token_lifetime: Duration::from_secs(604_800),
        max_tokens_per_user: TOKENS,
        at_token_cap: tollgate::config::AtTokenCap::EndOldest,
        on_password_change: tollgate::config::OnPasswordChange::EndOthers,
        max_tokens: TOKENS,
        first_admin: None,
        hashing_slots: 1,
        ..UsersConfig::default()
    }
}

/// A store with ten thousand tokens, and their texts.
fn filled() -> (Arc<TokenStore>, Vec<String>) {
    let store = TokenStore::new(&settings(), Metrics::new());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let texts = (0..TOKENS).map(|index| {
        let token = Token::mint();
        let user = format!("user-{}", index / 10);
        let wanted = GrantRequest {
            user: &user,
            role: Some(Role::User),
            lifetime: Duration::from_secs(604_800),
            origin: TokenOrigin::Minted,
            epoch: store.epoch(&user),
            revision: None,
        };
        let taken = runtime.block_on(store.insert(token.digest(), wanted));
        taken.unwrap();
        token.secret().expose().to_owned()
    });
    let texts = texts.collect();
    (store, texts)
}

fn look_up(store: &TokenStore, texts: &[String], step: u64) {
    let text = &texts[usize::try_from(step).unwrap().wrapping_mul(7_919) % texts.len()];
    assert!(black_box(store.find(&TokenDigest::of(text))).is_some());
}

fn token_look_up(c: &mut Criterion) {
    let (store, texts) = filled();
    let mut group = c.benchmark_group("token look-up");
    group.throughput(Throughput::Elements(1));
    group.bench_function("one thread", |bencher| {
        let mut step = 0;
        bencher.iter(|| {
            step += 1;
            look_up(&store, &texts, step);
        });
    });
    // Time for one look-up on each of two threads: as on one, where nothing is shared.
    group.bench_function("two threads", |bencher| {
        bencher.iter_custom(|count| {
            let begin = Instant::now();
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| (0..count).for_each(|step| look_up(&store, &texts, step)));
                }
            });
            begin.elapsed()
        });
    });
    group.finish();
}

fn route_match(c: &mut Criterion) {
    let routing = ProfileRouting::everywhere("main".into());
    let routes = shipped_routes(Profile::DEFAULT, &[routing]).into_iter();
    let routes: Vec<_> = routes.map(Arc::new).collect();
    let table = RouteTable::new(&routes, |_| RouteUpstream::default());
    let mut group = c.benchmark_group("route match");
    for (name, method, path) in [
        ("short", Method::POST, "/v1/messages"),
        ("parameters", Method::GET, "/v1/stickerpacks/p1/stickers/7"),
    ] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| black_box(table.find("gate.example.org", path, &method)).is_ok());
        });
    }
    group.bench_function("none", |bencher| {
        bencher.iter(|| black_box(table.find("gate.example.org", "/v2/no", &Method::GET)).is_err());
    });
    group.finish();
}

fn fields(all: &[(&'static str, &'static str)]) -> HeaderMap {
    let named = |(name, value): &(&'static str, &'static str)| {
        (
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        )
    };
    all.iter().map(named).collect()
}

const ORDINARY: &[(&str, &str)] = &[
    ("host", "gate.example.org"),
    ("user-agent", "service/1.4"),
    ("accept", "application/json"),
    ("accept-encoding", "gzip, br"),
    ("content-type", "application/json"),
    ("content-length", "120"),
    (
        "authorization",
        "Bearer tg_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE",
    ),
];
const CROWDED: &[(&str, &str)] = &[
    ("connection", "keep-alive, x-private"),
    ("keep-alive", "timeout=5"),
    ("x-private", "1"),
    ("x-forwarded-for", "203.0.113.9, 198.51.100.2"),
    ("x-forwarded-proto", "http"),
    ("forwarded", "for=203.0.113.9"),
    ("x-real-ip", "203.0.113.9"),
    ("te", "trailers"),
    ("cookie", "a=b; c=d"),
    (
        "traceparent",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    ),
];

fn header_hygiene(c: &mut Criterion) {
    let peer = Peer {
        address: SocketAddr::from(([192, 0, 2, 7], 40_000)),
        local: SocketAddr::from(([192, 0, 2, 1], 443)),
        tls: None,
        last_token: tollgate::pipeline::LastToken::default(),
    };
    let rules = RequestRules {
        trusted_proxies: Vec::new(),
        allow_underscores: false,
        allow_fields: AllowedFields::default(),
        min_body_rate: 500,
    };
    let via = GatewayVia::random();
    let ordinary = fields(ORDINARY);
    let crowded = fields(&[ORDINARY, CROWDED].concat());
    let mut group = c.benchmark_group("header hygiene");
    for (name, from) in [("7 fields", &ordinary), ("17 fields", &crowded)] {
        group.bench_function(name, |bencher| {
            bencher.iter_batched_ref(
                || from.clone(),
                |fields| clean_fields(fields, &peer, "gate.example.org", &rules, &via).unwrap(),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

fn limiter(c: &mut Criterion) {
    let plenty = Quota {
        requests: 1_000_000_000,
        per: Duration::from_secs(1),
        burst: 1_000_000_000,
    };
    let policy = |name: &str, key| Limit {
        name: name.into(),
        key,
        classes: Vec::new(),
        quota: plenty,
        dry_run: false,
    };
    let limits = Limits {
        policies: vec![
            policy("nodes", LimitKey::Class),
            policy("by-client", LimitKey::Client),
        ],
        logins_by_peer: plenty,
        logins_by_name: plenty,
        unknown_tokens: plenty,
        unknown_tokens_by_peer: plenty,
        max_keys: 2 * CLIENTS,
        max_in_flight: 1_000,
    };
    let limiter = Limiter::new(&limits, None, Metrics::new());
    let client = |index| Client::User {
        name: format!("user-{index}").into(),
        role: Some(Role::User),
    };
    let clients: Vec<Client> = (0..CLIENTS).map(client).collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let mut group = c.benchmark_group("limiter");
    for (name, clients) in [
        ("one client", &clients[..1]),
        ("10,000 clients", &clients[..]),
    ] {
        group.bench_function(name, |bencher| {
            let mut step = 0_usize;
            bencher.iter(|| {
                step = step.wrapping_add(7_919);
                let subject = RateSubject {
                    client: &clients[step % clients.len()],
                    peer: IpAddr::V4(Ipv4Addr::LOCALHOST),
                    class: "nodes",
                    class_bucket: "main/nodes",
                    upstream: Some("main"),
                };
                let admitted = runtime.block_on(limiter.admit(subject, Duration::ZERO));
                assert!(black_box(admitted).is_ok());
            });
        });
    }
    group.finish();
}

fn credential_parse(c: &mut Criterion) {
    let mut group = c.benchmark_group("credential parse");
    let bearer = fields(ORDINARY);
    let key = fields(&[("authorization", "Apikey 0123456789abcdef0123456789abcdef")]);
    let wrong = fields(&[("authorization", "Negotiate YII=")]);
    for (name, fields) in [("bearer", &bearer), ("key", &key), ("refused", &wrong)] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| black_box(presents_credential(black_box(fields))).is_ok());
        });
    }
    group.finish();
}

criterion_group!(
    stages,
    token_look_up,
    route_match,
    header_hygiene,
    limiter,
    credential_parse
);
criterion_main!(stages);
