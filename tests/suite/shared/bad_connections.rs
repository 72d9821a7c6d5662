//! The connection to the store is slow, cut during many changes, or carries invalid replies.

use std::ops::Range;
use std::time::{Duration, Instant};

use serde_json::json;

use super::faults::{Load, all_have, has, known, refuses_what_needs_the_store, works_again};
use super::{gate, status, store};
use crate::harness::client::verdict;
use crate::harness::faulty_link::{FaultyLink, LinkState};
use crate::harness::redis::RedisServer;
use crate::harness::{ADMIN, ADMIN_PASSWORD, Client, Gateway, Setup, emulator, eventually};

const PASSWORD: &str = "Worker-Passw0rd!";
/// Slow, but within the gates' timeout of a second.
const SLOW: Range<u64> = 300..800;
/// Limits that query the store all the time, and that the tests' load does not exceed.
const LIMITS: &str = "[limits]\nlogins_by_peer = \"1000/s burst 1000\"\n\
    [[limit]]\nname = \"nodes\"\nkey = \"class\"\nrate = \"900/s\"\nburst = 300\n";

fn limited() -> Setup {
    Setup::default()
        .upstream("min_login_interval = \"10ms\"\nlogins_per_hour = 1000")
        .rest(LIMITS)
}

async fn worker(gate: &Gateway, admin: &Client) -> Client {
    let wanted = json!({ "username": "worker", "password": PASSWORD });
    assert_eq!(admin.post("/v1/users", &wanted).await.status(), 201);
    gate.client().logged_in("worker", PASSWORD).await
}

/// Whether a login worked; if not, checks that the response says when to retry.
async fn logs_in(gate: &Gateway) -> bool {
    let login = gate.client().login(ADMIN, ADMIN_PASSWORD).await;
    if login.status() == 200 {
        return true;
    }
    assert!(login.headers().contains_key("retry-after"));
    assert_eq!(verdict(login).await, (503, 1011));
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_store_slows_logins_and_nothing_else() {
    let (webapp, server) = (emulator().await, RedisServer::start());
    let line = FaultyLink::before(server.port).await;
    let mut gates = Vec::new();
    for _ in 0..3 {
        let store_section = store(&line.url(), "").replace("\"2s\"", "\"1s\"");
        gates.push(gate(&webapp, limited(), &store_section).await);
    }
    let clients = known(&gates).await;
    let out = worker(&gates[0], &clients[0]).await;
    let client_at_second = gates[1].client().with_token(out.token.as_ref().unwrap());
    assert_eq!(status(&client_at_second).await, 200);
    let load = Load::of(&clients);
    line.set(LinkState::Slow(SLOW));
    let begin = Instant::now();
    let [one, two, three] = [&gates[0], &gates[1], &gates[2]].map(logs_in);
    let (one, two, three) = tokio::join!(one, two, three);
    println!("slow store: three logins in {:?}", begin.elapsed());
    assert!(one || two || three, "a slow store is not unavailable");
    let end = out.post("/v1/users/logout", &json!({})).await;
    assert_eq!(end.status(), 200);
    eventually("the logout applies at another gate", async || {
        status(&client_at_second).await == 401
    })
    .await;
    let unknown = gates[2].client().with_token("tg_nobody_has_seen_this");
    let response = status(&unknown).await;
    assert!(response == 401 || response == 503, "{response}");
    assert!(gates.iter().all(|gate| has(gate, "tollgate_store_up 1")));
    let slow = load.median();
    println!("slow store: requests with known tokens took {slow:?}");
    assert!(slow < Duration::from_millis(SLOW.start), "{slow:?}");
    // Slower than the timeout: treated as down.
    line.set(LinkState::Slow(3000..4000));
    all_have(&gates, "tollgate_store_up 0").await;
    refuses_what_needs_the_store(&gates[0]).await;
    line.set(LinkState::Good);
    works_again(&gates).await;
    assert_eq!(
        status(&client_at_second).await,
        401,
        "the token stays revoked"
    );
    let (good, bad) = load.end().await;
    assert!(good > 20 && bad == 0, "{bad} of {good} failed");
    assert_eq!(webapp.login_count(), 1, "a slow store causes no login");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_loading_its_data_is_waited_for() {
    // Each key takes a millisecond to load, and the server responds to clients meanwhile.
    let slowly = ["--key-load-delay", "1000"];
    let often = ["--loading-process-events-interval-bytes", "1024"];
    let mut server = RedisServer::with(&[slowly, often].concat());
    let webapp = emulator().await;
    let mut gates = Vec::new();
    for _ in 0..3 {
        gates.push(gate(&webapp, super::brisk(), &store(&server.url(), "")).await);
    }
    let clients = known(&gates).await;
    let fill = "for i = 1, 3000 do redis.call('SET', 'filler:' .. i, string.rep('x', 64)) end";
    let _: Option<String> = server.query(&["EVAL", fill, "0"]);
    let _: String = server.query(&["SAVE"]);
    let load = Load::of(&clients);
    server.kill();
    server.start_again();
    for gate in &gates {
        eventually("the gate reports what it waits for", async || {
            let ready = reqwest::get(gate.operator_url("/readyz")).await.unwrap();
            assert_eq!(ready.status(), 200, "known tokens are valid");
            ready.text().await.unwrap().contains("loading")
        })
        .await;
    }
    refuses_what_needs_the_store(&gates[0]).await;
    works_again(&gates).await;
    let (good, bad) = load.end().await;
    assert!(good > 20 && bad == 0, "{bad} of {good} failed");
    for gate in &gates {
        assert!(
            has(gate, "tollgate_store_invalidations_total 0"),
            "no record is lost"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_that_missed_more_than_the_stream_keeps_looks_up_everything_again() {
    let (webapp, server) = (emulator().await, RedisServer::start());
    let line = FaultyLink::before(server.port).await;
    let mut gates = Vec::new();
    for url in [server.url(), line.url()] {
        gates.push(gate(&webapp, super::brisk(), &store(&url, "")).await);
    }
    let clients = known(&gates).await;
    let out = worker(&gates[0], &clients[0]).await;
    let client_at_second = gates[1].client().with_token(out.token.as_ref().unwrap());
    assert_eq!(status(&client_at_second).await, 200);
    let load = Load::of(&clients);
    line.set(LinkState::Cut);
    all_have(&gates[1..], "tollgate_store_up 0").await;
    let end = out.post("/v1/users/logout", &json!({})).await;
    assert_eq!(end.status(), 200);
    let deletion = clients[0].request(reqwest::Method::DELETE, "/v1/users/worker");
    assert_eq!(deletion.send().await.unwrap().status(), 200);
    for _ in 0..3 {
        let _ = gates[0].client().logged_in(ADMIN, ADMIN_PASSWORD).await;
    }
    // The stream no longer has the changes that the cut-off gate has missed.
    let _: u32 = server.query(&["XTRIM", "{tollgate}:changes", "MAXLEN", "1"]);
    assert_eq!(
        status(&client_at_second).await,
        200,
        "the gate cannot know of the logout yet"
    );
    line.set(LinkState::Good);
    all_have(&gates[1..], "tollgate_store_up 1").await;
    assert_eq!(
        status(&client_at_second).await,
        401,
        "the token is refused from then on"
    );
    assert!(has(&gates[1], "tollgate_store_invalidations_total 1"));
    assert!(has(&gates[0], "tollgate_store_invalidations_total 0"));
    let login = gates[1].client().login("worker", PASSWORD).await;
    assert_eq!(login.status(), 401, "the user is deleted at that gate too");
    let (good, bad) = load.end().await;
    assert!(good > 20 && bad == 0, "{bad} of {good} failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_store_replies_admit_no_unknown_token_and_refuse_no_known_client() {
    let (webapp, server) = (emulator().await, RedisServer::start());
    let line = FaultyLink::before(server.port).await;
    let store_section = store(&line.url(), "").replace("\"2s\"", "\"500ms\"");
    let gates = [gate(&webapp, super::brisk(), &store_section).await];
    let clients = known(&gates).await;
    let load = Load::of(&clients);
    let endless = [b"-ERR ".as_slice(), &[b'x'; 100_000], b"\r\n"].concat();
    let nonsense: [&[u8]; 13] = [
        b"+OK\r\n",
        b":7\r\n",
        b"$-1\r\n",
        b"*-1\r\n",
        b"*0\r\n",
        b"*2\r\n$2\r\nok\r\n",
        b"*5\r\n$2\r\nok\r\n:1\r\n:-1\r\n+\xff\xfe\r\n*0\r\n",
        b"*5\r\n$2\r\nok\r\n$5\r\nadmin\r\n$2\r\nxx\r\n:9\r\n:9\r\n",
        b"*1000000000\r\n$1\r\nx\r\n",
        b"$99999999999\r\nhalf of it",
        b"-ERR \x01 nobody knows this\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        &endless,
    ];
    for bytes in nonsense {
        let shown: String = String::from_utf8_lossy(bytes).chars().take(80).collect();
        // A request while there is a connection, and others while there is none.
        line.set(LinkState::Sends(bytes.into()));
        for _ in 0..2 {
            let unknown = gates[0].client().with_token(&format!("tg_{}", rand_name()));
            let response = unknown.get("/v1/support").await;
            let has_hint = response.headers().contains_key("retry-after");
            assert_eq!(
                (verdict(response).await, has_hint),
                ((503, 1011), true),
                "{shown}"
            );
        }
        assert!(!logs_in(&gates[0]).await, "{shown}");
        eventually(&shown, async || {
            let ready = reqwest::get(gates[0].operator_url("/readyz")).await;
            let ready = ready.unwrap().text().await.unwrap();
            assert!(ready.len() < 1000, "{shown}");
            ready.contains("store")
        })
        .await;
        line.set(LinkState::Good);
        all_have(&gates, "tollgate_store_up 1").await;
    }
    works_again(&gates).await;
    let (good, bad) = load.end().await;
    assert!(good > 20 && bad == 0, "{bad} of {good} failed");
    assert!(has(&gates[0], "tollgate_task_panics 0"));
    assert_eq!(webapp.login_count(), 1);
}

fn rand_name() -> String {
    format!("{:032x}", rand::random::<u128>())
}
