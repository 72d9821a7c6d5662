//! An upstream that cannot be had costs its own routes only (row U7): a healthy one beside one that
//! hangs in its login, one with a wrong password and one whose name does not exist, under load, over
//! reloads that add, change, rename and remove upstreams.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tollgate::metrics::ReloadResult;

use super::{LOGIN, config};
use crate::harness::login_upstream::{KEY, LoginReply, LoginUpstream};
use crate::harness::{Client, Gateway, eventually};

/// Far below every timeout of the upstreams that cannot be had, far above a busy machine's pauses.
const LONGEST: Duration = Duration::from_secs(2);

/// Sections `[upstream.NAME]`, each with a route `/ROUTE/*`.
#[derive(Clone, Default)]
struct Fleet(BTreeMap<String, String>);

impl Fleet {
    fn with(mut self, name: &str, route: &str, url: &str, lines: &str) -> Self {
        let section = format!(
            "[upstream.{name}]\nurl = \"{url}\"\n{LOGIN}\nlogin_timeout = \"1s\"\n\
             allow_plaintext = true\n{lines}\n\
             [[route]]\nname = \"{route}\"\nupstream = \"{name}\"\npath = \"/{route}/*\"\n\
             strip_prefix = \"/{route}\"\naccess = \"api_key\"\ntimeout = \"3s\"\n"
        );
        self.0.insert(name.to_owned(), section);
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.0.remove(name).unwrap();
        self
    }

    fn text(&self) -> String {
        config(&Vec::from_iter(self.0.values().cloned()).join("\n"))
    }
}

/// A client with the API key, over HTTP/2.
#[derive(Clone)]
struct Caller(Client);

impl Caller {
    async fn get(&self, path: &str) -> u16 {
        let request = self.0.request(reqwest::Method::GET, path);
        let request = request.header("authorization", format!("Apikey {KEY}"));
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        // Streams whose responses are not read count as errors of the client's own.
        response.bytes().await.unwrap();
        status
    }
}

/// A server that takes connections and never responds.
async fn silent() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((tcp, _)) = listener.accept().await {
            kept.push(tcp);
        }
    });
    address
}

/// Requests to `/good/x` until it is stopped.
struct Load {
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<usize>>,
}

impl Load {
    fn start(client: &Caller) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let run = |stop: Arc<AtomicBool>, client: Caller| async move {
            let mut sent = 0;
            while !stop.load(Ordering::Relaxed) {
                let start = Instant::now();
                assert_eq!(client.get("/good/x").await, 200, "request {sent}");
                let took = start.elapsed();
                assert!(took < LONGEST, "request {sent} took {took:?}");
                sent += 1;
            }
            sent
        };
        let tasks = (0..4).map(|_| tokio::spawn(run(Arc::clone(&stop), client.clone())));
        Self {
            tasks: tasks.collect(),
            stop,
        }
    }

    async fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let mut sent = 0;
        for task in self.tasks {
            sent += task.await.expect("no request failed or waited");
        }
        sent
    }
}

struct FleetGate {
    gateway: Gateway,
    reloads: u64,
}

impl FleetGate {
    async fn reload(&mut self, fleet: &Fleet) {
        std::fs::write(self.gateway.config_file(), fleet.text()).unwrap();
        self.reloads += 1;
        let reloads = &self.gateway.metrics.reloads;
        eventually("the reload", async || {
            reloads.value(ReloadResult::Applied) == self.reloads
        })
        .await;
    }

    async fn readiness(&self) -> (u16, String) {
        let response = reqwest::get(self.gateway.operator_url("/readyz"))
            .await
            .unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_upstream_costs_its_own_routes_only_over_reloads() {
    let good = LoginUpstream::start(|_| 200).await;
    let other = LoginUpstream::start(|_| 200).await;
    let wrong = LoginUpstream::start(|_| 200).await;
    wrong.set_logins(|_| LoginReply::Status(401));
    let hanging = format!("http://{}", silent().await);
    let lost = "http://nowhere.invalid:80";
    let first = Fleet::default()
        .with("good", "good", &good.url(), "")
        .with("hang", "hang", &hanging, "required = false")
        .with("wrong", "wrong", &wrong.url(), "required = false");
    let gateway = Gateway::of_text(&first.text()).await;
    let client = Caller(gateway.client());
    let mut gate = FleetGate {
        gateway,
        reloads: 0,
    };
    eventually("the first login", async || {
        client.get("/good/x").await == 200
    })
    .await;
    let load = Load::start(&client);

    // The others get today's refusals.
    assert_eq!(client.get("/wrong/x").await, 503, "refused login");
    eventually("the hanging login to have failed once", async || {
        client.get("/hang/x").await == 503
    })
    .await;
    let (status, text) = gate.readiness().await;
    assert_eq!(status, 200, "{text}");
    assert!(
        text.contains("upstream hang: login: no response in time"),
        "{text}"
    );
    assert!(
        text.contains("upstream wrong: login: wrong password"),
        "{text}"
    );
    assert!(!text.contains("good"), "{text}");

    let added = first.clone().with("late", "late", &other.url(), "").with(
        "lost",
        "lost",
        lost,
        "required = false",
    );
    gate.reload(&added).await;
    eventually("the added one", async || client.get("/late/x").await == 200).await;
    assert_eq!(
        client.get("/lost/x").await,
        503,
        "a name that does not exist"
    );

    // A required one that is down makes the gate unready, and says which.
    let changed = added
        .without("lost")
        .with("hang", "hang", &hanging, "concurrency = 7");
    gate.reload(&changed).await;
    let (status, text) = gate.readiness().await;
    assert_eq!(status, 503);
    assert!(text.starts_with("upstream hang: login"), "{text}");

    let renamed = changed
        .without("good")
        .with("fine", "good", &good.url(), "")
        .without("wrong")
        .with("wrong2", "wrong", &wrong.url(), "required = false");
    gate.reload(&renamed).await;
    assert_eq!(client.get("/late/x").await, 200);

    let moved = renamed
        .without("hang")
        .without("late")
        .with("fine", "good", &other.url(), "");
    let before = other.requests_to("/x").len();
    gate.reload(&moved).await;
    eventually("the move", async || {
        other.requests_to("/x").len() > before + 10
    })
    .await;
    assert_eq!(client.get("/late/x").await, 404, "removed");
    let (status, text) = gate.readiness().await;
    assert_eq!(status, 200, "{text}");

    let sent = load.end().await;
    assert!(sent > 100, "{sent}");
    assert!(wrong.logins() <= 2, "{} logins", wrong.logins());
}
