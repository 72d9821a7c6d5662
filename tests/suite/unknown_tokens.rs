//! Unknown tokens (`unknown_tokens = "ask"`). The probe's result counts
//! only if the upstream refuses made-up tokens, and a token's own claims are no identity.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

use crate::harness::client::verdict;
use crate::harness::upstream::{Call, Reply, Upstream};
use crate::harness::{Gateway, NO_LIMITS, Setup, emulator, eventually};

const REFUSED: &[u8] = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n";
const FORBIDDEN: &[u8] = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n";

/// A token that any client could have made up.
fn unsigned(claims: &str) -> String {
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    format!("{}.{}.", part(r#"{"alg":"none"}"#), part(claims))
}

fn bearer(call: &Call) -> String {
    let lines = call.head.lines();
    let value = lines.filter_map(|line| line.strip_prefix("authorization: Bearer "));
    value.collect()
}

async fn gateway_that_asks(upstream: &Upstream, users: &str, probe: &str) -> Gateway {
    let setup = Setup::default()
        .users("directory = \"webapp\"\nunknown_tokens = \"ask\"")
        .users(users)
        .upstream(probe)
        .rest(NO_LIMITS);
    Gateway::before(&format!("http://{}", upstream.address), setup).await
}

async fn status(gateway: &Gateway, token: &str) -> u16 {
    let client = gateway.client().with_token(token);
    client.get("/v1/support").await.status().as_u16()
}

async fn page(gateway: &Gateway, path: &str) -> String {
    let response = reqwest::get(gateway.operator_url(path)).await.unwrap();
    response.text().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_that_accepts_made_up_tokens_is_not_used_until_it_refuses_them() {
    // One probe accepts everything, one accepts everything in the form of a JWT.
    let open: fn(&str) -> bool = |_| true;
    let formal: fn(&str) -> bool = |token| token.split('.').count() == 3;
    for accepts in [open, formal] {
        let is_mended = Arc::new(AtomicBool::new(false));
        let mended = Arc::clone(&is_mended);
        let good = unsigned(r#"{"user":"admin"}"#);
        let given = good.clone();
        let upstream = Upstream::start(move |call| {
            let token = bearer(call);
            let passes = match mended.load(Ordering::Relaxed) {
                true => token == given,
                false => accepts(&token),
            };
            match call.line() == "GET /v1/health" && !passes {
                true => Reply::Stay(REFUSED.to_vec()),
                false => Reply::ok("fine"),
            }
        })
        .await;
        let gateway = gateway_that_asks(&upstream, "", "").await;
        eventually("the probe is found to accept made-up tokens", async || {
            page(&gateway, "/readyz")
                .await
                .contains("accepts made-up tokens")
        })
        .await;
        let probes = upstream.count("GET /v1/health");
        for token in [good.as_str(), "made-up", "a.b.c"] {
            let client = gateway.client().with_token(token);
            assert_eq!(verdict(client.get("/v1/support").await).await, (401, 1005));
        }
        assert!(
            upstream.count("GET /v1/health") <= probes + 2,
            "no probe for the clients' tokens"
        );
        assert_eq!(upstream.count("GET /v1/support"), 0);
        let metrics = page(&gateway, "/metrics").await;
        assert!(
            metrics.contains("tollgate_token_probe_trusted{upstream=\"main\"} 0"),
            "{metrics}"
        );

        is_mended.store(true, Ordering::Relaxed);
        eventually("the corrected probe is used", async || {
            status(&gateway, &good).await == 200
        })
        .await;
        assert_eq!(status(&gateway, "a.b.c").await, 401);
        assert!(!page(&gateway, "/readyz").await.contains("probe"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_unknown_token_is_refused_or_accepted_until_the_probe_was_tested() {
    let is_broken = Arc::new(AtomicBool::new(true));
    let broken = Arc::clone(&is_broken);
    let upstream = Upstream::start(move |call| {
        let is_probe = call.line() == "GET /own/whoami?brief=1";
        match (is_probe, broken.load(Ordering::Relaxed)) {
            (true, true) => Reply::Stay(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n".to_vec()),
            (true, false) if bearer(call) != "good" => Reply::Stay(FORBIDDEN.to_vec()),
            _ => Reply::ok("fine"),
        }
    })
    .await;
    let gateway = gateway_that_asks(&upstream, "", "probe = \"/own/whoami?brief=1\"").await;
    for token in ["good", "bad"] {
        let client = gateway.client().with_token(token);
        assert_eq!(verdict(client.get("/v1/support").await).await, (503, 1011));
    }
    assert!(
        page(&gateway, "/readyz")
            .await
            .contains("unknown tokens get 503")
    );
    is_broken.store(false, Ordering::Relaxed);
    eventually("the valid token is accepted", async || {
        status(&gateway, "good").await == 200
    })
    .await;
    assert_eq!(
        status(&gateway, "bad").await,
        401,
        "403 is a refusal as well"
    );
    assert_eq!(upstream.count("GET /v1/health"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probed_token_is_a_client_of_its_own_whatever_its_claims() {
    let names: Arc<Mutex<BTreeMap<String, String>>> = Arc::default();
    let seen = Arc::clone(&names);
    let upstream = Upstream::start(move |call| {
        let token = bearer(call);
        let is_given_out = token.ends_with('.') || token == "scripted-token";
        if !is_given_out {
            return Reply::Stay(REFUSED.to_vec());
        }
        let mut lines = call.head.lines();
        let name = lines.find_map(|line| line.strip_prefix("x-tollgate-client: "));
        if call.line() == "GET /v1/support" {
            let name = name.unwrap_or_default().to_owned();
            seen.lock().unwrap().insert(token, name);
        }
        Reply::ok("fine")
    })
    .await;
    let gateway = gateway_that_asks(&upstream, "max_tokens_per_user = 5", "").await;
    let tokens: Vec<String> = (0..8)
        .map(|number| {
            unsigned(&format!(
                r#"{{"user":"admin","n":{number},"exp":4102444800}}"#
            ))
        })
        .collect();
    for token in &tokens {
        assert_eq!(status(&gateway, token).await, 200);
    }
    let names = names.lock().unwrap().clone();
    let different: std::collections::BTreeSet<_> = names.values().collect();
    assert_eq!(different.len(), 8, "{names:?}");
    assert!(
        names.values().all(|name| name.starts_with("token:")),
        "{names:?}"
    );

    // The token does not count against admin's cap, and a logout ends this token only.
    let admin = gateway.client().logged_in("admin", "whatever").await;
    assert_eq!(admin.get("/v1/support").await.status(), 200);
    let revoked = gateway.client().with_token(&tokens[0]);
    let response = revoked.post("/v1/users/logout", &json!({})).await;
    assert_eq!(response.status(), 200);
    eventually("seven probed tokens and admin's", async || {
        gateway.metrics.tokens.get() == 8
    })
    .await;
    assert_eq!(admin.get("/v1/support").await.status(), 200);
    assert_eq!(status(&gateway, &tokens[1]).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exp_claim_can_only_shorten_how_long_a_probed_token_is_accepted() {
    let upstream = Upstream::start(|call| match bearer(call).ends_with('.') {
        true => Reply::ok("fine"),
        false => Reply::Stay(REFUSED.to_vec()),
    })
    .await;
    let gateway = gateway_that_asks(&upstream, "", "").await;
    let short_lived = unsigned(&format!(
        r#"{{"exp":{}}}"#,
        tollgate::clock::unix_seconds() + 2
    ));
    let endless = unsigned(r#"{"exp":4102444800}"#);
    for token in [&short_lived, &endless] {
        assert_eq!(status(&gateway, token).await, 200);
    }
    assert_eq!(gateway.metrics.tokens.get(), 2);
    eventually("the expiry of the exp claim", async || {
        gateway.metrics.tokens.get() == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn random_tokens_from_one_address_leave_probes_for_others() {
    let webapp = emulator().await;
    let rest =
        "[limits]\nunknown_tokens = \"1/m burst 20\"\nunknown_tokens_by_peer = \"1/m burst 5\"\n";
    let setup = Setup::default()
        .users("directory = \"webapp\"\nunknown_tokens = \"ask\"")
        .rest(rest);
    let gateway = Gateway::with(&webapp, setup).await;
    let mut seen = Vec::new();
    for number in 0..40 {
        seen.push(status(&gateway, &format!("made-up-{number}")).await);
    }
    assert_eq!(seen.iter().filter(|status| **status == 401).count(), 5);
    assert_eq!(seen.iter().filter(|status| **status == 429).count(), 35);
    let address = std::net::IpAddr::from([127, 0, 0, 2]);
    let builder = reqwest::Client::builder().local_address(address);
    let other = crate::harness::Client::built(&gateway, builder);
    for _ in 0..30 {
        let token = webapp.mint_token("admin").unwrap();
        let client = other.clone().with_token(token.expose());
        assert_eq!(
            client.get("/v1/support").await.status(),
            200,
            "valid tokens do not count"
        );
    }
}
