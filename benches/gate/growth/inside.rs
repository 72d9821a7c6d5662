//! Growth of parts of the library, without a whole gate.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Method;
use tollgate::config::{
    Access, AllowedFields, Limit, LimitKey, Limits, PathPattern, Quota, Route, Segment, Target,
};
use tollgate::config::{DirectoryKind, UnknownTokens, UsersConfig};
use tollgate::identity::Client;
use tollgate::metrics::Metrics;
use tollgate::pipeline::{Limiter, RateSubject, RouteTable, RouteUpstream};
use tollgate::profiles::Role;
use tollgate::token::{GrantRequest, TokenDigest, TokenOrigin, TokenStore};

use super::{Point, resident};

const ROUNDS: usize = 5;
const TIMED: usize = 200_000;
const TOKENS: &[usize] = &[1, 100, 10_000, 100_000, 1_000_000, 10_000_000];
const ROUTES: &[usize] = &[10, 100, 1_000, 10_000];
const KEYS: &[usize] = &[1, 100, 10_000, 100_000, 1_000_000];

/// ns per call, the best of a few rounds; `each` gets numbers in no order.
fn timed(size: usize, mut each: impl FnMut(usize)) -> f64 {
    let round = |each: &mut dyn FnMut(usize)| {
        let begin = Instant::now();
        for step in 0..TIMED {
            each(step.wrapping_mul(0x9e37_79b9_7f4a_7c15_usize) % size);
        }
        begin.elapsed().as_nanos() as f64 / TIMED as f64
    };
    (0..ROUNDS)
        .map(|_| round(&mut each))
        .fold(f64::INFINITY, f64::min)
}

fn memory() -> u64 {
    resident(std::process::id())
}

fn bytes_per(before: u64, size: usize) -> f64 {
    let grown = memory().saturating_sub(before) * 1024;
    if size < 1_000_000 {
        f64::NAN
    } else {
        grown as f64 / size as f64
    }
}

fn settings() -> UsersConfig {
    UsersConfig {
        directory: DirectoryKind::Gateway,
        unknown_tokens: UnknownTokens::Reject,
        token_lifetime: Duration::from_secs(604_800),
        max_tokens_per_user: 20_000_000,
        at_token_cap: tollgate::config::AtTokenCap::EndOldest,
        on_password_change: tollgate::config::OnPasswordChange::EndOthers,
        max_tokens: 20_000_000,
        first_admin: None,
        hashing_slots: 1,
        ..UsersConfig::default()
    }
}

fn token(index: usize) -> String {
    format!("tg_{index:043}")
}

pub(super) fn tokens() -> Vec<Point> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let point = |size: usize| {
        let before = memory();
        let store = TokenStore::new(&settings(), Metrics::new());
        runtime.block_on(async {
            for index in 0..size {
                let user = format!("user-{}", index / 10);
                let wanted = GrantRequest {
                    user: &user,
                    role: Some(Role::User),
                    lifetime: Duration::from_secs(604_800),
                    origin: TokenOrigin::Minted,
                    epoch: store.epoch(&user),
                    revision: None,
                };
                store
                    .insert(TokenDigest::of(&token(index)), wanted)
                    .await
                    .unwrap();
            }
        });
        let memory = bytes_per(before, size);
        let texts: Vec<String> = (0..TIMED.min(size))
            .map(|index| token(index * (size / TIMED).max(1)))
            .collect();
        let time = timed(texts.len(), |index| {
            let digest = TokenDigest::of(&texts[index]);
            assert!(black_box(store.find(&digest)).is_some());
        });
        Point {
            size,
            values: vec![time, memory],
        }
    };
    TOKENS.iter().map(|size| point(*size)).collect()
}

fn route(index: usize) -> Route {
    let literal = |text: String| Segment::Literal(text);
    Route {
        name: format!("r{index}").into(),
        hosts: Arc::default(),
        path: PathPattern(Arc::from([
            literal("v1".to_owned()),
            literal(format!("group{}", index % 100)),
            literal(format!("node{index}")),
            Segment::One("id".to_owned()),
        ])),
        methods: Arc::from([Method::GET]),
        access: Arc::from([Access::Token]),
        target: Target::Upstream,
        upstream: "main".into(),
        strip_prefix: None,
        preserve_host: false,
        class: "other".into(),
        monitoring: false,
        max_body: 1,
        first_byte_timeout: None,
        timeout: Duration::from_secs(60),
        max_wait: Duration::ZERO,
        allow_fields: AllowedFields::default(),
    }
}

pub(super) fn routes() -> Vec<Point> {
    let point = |size: usize| {
        let routes: Vec<_> = (0..size).map(route).map(Arc::new).collect();
        let table = RouteTable::new(&routes, |_| RouteUpstream::default());
        let paths: Vec<String> = (0..size)
            .map(|index| format!("/v1/group{}/node{index}/17", index % 100))
            .collect();
        let time = timed(size, |index| {
            assert!(black_box(table.find("localhost", &paths[index], &Method::GET)).is_ok());
        });
        Point {
            size,
            values: vec![time],
        }
    };
    ROUTES.iter().map(|size| point(*size)).collect()
}

pub(super) fn keys() -> Vec<Point> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let plenty = Quota {
        requests: 1_000_000,
        per: Duration::from_secs(1),
        burst: 1_000_000,
    };
    let limits = Limits {
        policies: vec![Limit {
            name: "by-client".into(),
            key: LimitKey::Client,
            classes: Vec::new(),
            quota: plenty,
            dry_run: false,
        }],
        logins_by_peer: plenty,
        logins_by_name: plenty,
        unknown_tokens: plenty,
        unknown_tokens_by_peer: plenty,
        max_keys: 2_000_000,
        max_in_flight: 1_000,
    };
    let point = |size: usize| {
        let clients: Vec<Client> = (0..size)
            .map(|index| Client::User {
                name: format!("user-{index}").into(),
                role: Some(Role::User),
            })
            .collect();
        let before = memory();
        let limiter = Limiter::new(&limits, None, Metrics::new());
        let ask = |index: usize| {
            let subject = RateSubject {
                client: &clients[index],
                peer: IpAddr::V4(Ipv4Addr::LOCALHOST),
                class: "other",
                class_bucket: "main/other",
                upstream: Some("main"),
            };
            let admitted = runtime.block_on(limiter.admit(subject, Duration::ZERO));
            assert!(black_box(admitted).is_ok());
        };
        (0..size).for_each(ask);
        let memory = bytes_per(before, size);
        Point {
            size,
            values: vec![timed(size, ask), memory],
        }
    };
    KEYS.iter().map(|size| point(*size)).collect()
}
