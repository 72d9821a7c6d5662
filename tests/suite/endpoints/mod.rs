//! Several endpoints of one upstream, with raw servers behind a whole gate: which requests are sent again,
//! which endpoint is left out and when it returns, drain, reload, and what the operator sees of it.

mod ejection;
mod health_checks;
mod links;
mod load;
mod logins;
mod logins_per_endpoint;
mod operator;
mod repeats;
mod server;

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use crate::harness::login_upstream::{KEY, KeyClient};
use crate::harness::{Gateway, eventually, secret, sha256};
use server::Server;
use tollgate::metrics::ReloadResult;

const OPERATOR_TOKEN: &str = "operators-token-of-the-endpoints";
/// No endpoint is ejected.
const NO_EJECTION: &str = "ejection = \"none\"";
/// Ejected for so long that no test sees the end.
const LONG_EJECTION: &str = "ejection = { failures = 5, first = \"60s\" }";

/// A configuration with these endpoints; `lines` are more keys of the upstream.
fn config(endpoints: &[String], lines: &str) -> String {
    let endpoints: Vec<String> = endpoints.iter().map(|url| format!("{url:?}")).collect();
    format!(
        r#"
profile = "none"
workers = 2
[[listener]]
address = "127.0.0.1:0"
tls = {{ certificates = [{{ certificate = "certs/server.pem", key = "certs/server.key" }}] }}
[operator]
address = "127.0.0.1:0"
token = {{ file = "operator-token" }}
[store]
path = "memory"
[drain]
wait = "0s"
[limits]
max_in_flight = 100000
[[route]]
name = "all"
path = "/*"
access = "api_key"
[[api_key]]
name = "caller"
sha256 = "{digest}"
paths = "/*"
[[api_key]]
name = "other"
sha256 = "{other}"
paths = "/*"
[upstream.main]
endpoints = [{endpoints}]
login = {{ username = "admin", password = {{ file = "webapp-password" }} }}
{lines}
"#,
        digest = sha256(KEY),
        other = sha256(OTHER_KEY),
        endpoints = endpoints.join(", "),
    )
}

/// The key of another client.
const OTHER_KEY: &str = "endpoint-case-key-2";

fn urls(servers: &[&Server]) -> Vec<String> {
    servers.iter().map(|server| server.url()).collect()
}

/// A gate in front of several endpoints, and a client with its API key.
struct EndpointGate {
    gateway: Gateway,
    client: KeyClient,
}

impl EndpointGate {
    /// Waits until the gate has its token, so that no request of a test is a login's.
    async fn start(servers: &[&Server], lines: &str) -> Self {
        Self::of(&config(&urls(servers), lines)).await
    }

    async fn of(text: &str) -> Self {
        let gate = Self::not_waiting(text).await;
        gate.logged_in().await;
        gate
    }

    /// The same with this file beside the configuration.
    async fn with_file(text: &str, name: &str, content: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        secret(&folder.path().join(name), content);
        Self::in_folder(folder, text).await
    }

    async fn not_waiting(text: &str) -> Self {
        Self::in_folder(tempfile::tempdir().unwrap(), text).await
    }

    async fn in_folder(folder: tempfile::TempDir, text: &str) -> Self {
        tollgate::emulator::certificates::make(&folder.path().join("certs")).unwrap();
        let file = folder.path().join("config.toml");
        secret(&folder.path().join("webapp-password"), "a-password");
        secret(&folder.path().join("operator-token"), OPERATOR_TOKEN);
        std::fs::write(&file, text).unwrap();
        let gateway = Gateway::from_file(folder, file).await;
        Self::before(gateway)
    }

    fn before(gateway: Gateway) -> Self {
        let client = KeyClient(gateway.client());
        Self { gateway, client }
    }

    async fn logged_in(&self) {
        eventually("the gate's login", async || {
            let readiness = self.readiness().await;
            readiness.starts_with("200") || !readiness.contains("login")
        })
        .await;
    }

    async fn restart(self) -> Self {
        Self::before(self.gateway.restart().await)
    }

    async fn get(&self, path: &str) -> u16 {
        self.client.get(path).await
    }

    /// Status and body.
    async fn send(&self, method: reqwest::Method, path: &str, body: Vec<u8>) -> (u16, String) {
        let response = self.client.response(method, path, body).await;
        (response.status().as_u16(), response.text().await.unwrap())
    }

    async fn readiness(&self) -> String {
        let response = reqwest::get(self.gateway.operator_url("/readyz")).await;
        let response = response.unwrap();
        format!(
            "{} {}",
            response.status().as_u16(),
            response.text().await.unwrap()
        )
    }

    async fn reload(&self, text: &str) {
        let reloads = &self.gateway.metrics.reloads;
        let before = reloads.value(ReloadResult::Applied);
        std::fs::write(self.gateway.config_file(), text).unwrap();
        self.gateway.steering.hup.notify_one();
        eventually("the reload", async || {
            reloads.value(ReloadResult::Applied) > before
        })
        .await;
    }

    /// The sum of the series of this metric whose labels contain all of `labels`.
    async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let url = self.gateway.operator_url("/metrics");
        let text = reqwest::get(url).await.unwrap().text().await.unwrap();
        let series = text.lines().filter(|line| {
            line.starts_with(&format!("{name}{{")) && labels.iter().all(|one| line.contains(one))
        });
        let values = series.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap());
        values.sum()
    }

    async fn ejections(&self) -> f64 {
        self.metric("tollgate_endpoint_ejections_total", &[]).await
    }

    async fn in_flight(&self) -> f64 {
        let name = "tollgate_endpoint_requests_in_flight";
        self.metric(name, &[]).await
    }

    async fn drain(&self, server: &Server, is_drained: bool) -> (u16, Value) {
        let change = json!({"upstream": "main", "endpoint": server.url(), "drained": is_drained});
        let request = reqwest::Client::new().post(self.gateway.operator_url("/endpoints"));
        let request = request.bearer_auth(OPERATOR_TOKEN).body(change.to_string());
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    /// Endpoints as the operator sees them.
    async fn listed(&self) -> Vec<Value> {
        let request = reqwest::Client::new().get(self.gateway.operator_url("/endpoints"));
        let response = request.bearer_auth(OPERATOR_TOKEN).send().await.unwrap();
        let listed: Value = response.json().await.unwrap();
        listed["endpoints"].as_array().unwrap().clone()
    }

    /// Sends requests until `condition` holds.
    async fn until(&self, what: &str, mut condition: impl AsyncFnMut(u16) -> bool) {
        eventually(what, async || {
            let status = self.get("/until").await;
            condition(status).await
        })
        .await;
    }

    async fn becomes_quiet(&self) {
        eventually("all counts to be 0", async || self.in_flight().await == 0.0).await;
        for endpoint in self.listed().await {
            assert_eq!(endpoint["in_flight"], 0, "{endpoint}");
        }
    }
}

/// Requests of `clients` tasks in a loop until it is stopped.
struct Load {
    stop: tokio_util::sync::CancellationToken,
    tasks: Vec<tokio::task::JoinHandle<Vec<u16>>>,
}

impl Load {
    fn start(gate: &EndpointGate, clients: usize, method: &reqwest::Method) -> Self {
        let stop = tokio_util::sync::CancellationToken::new();
        let run = |number: usize| {
            let (stop, client, method) = (stop.clone(), gate.client.clone(), method.clone());
            async move {
                let mut statuses = Vec::new();
                while !stop.is_cancelled() {
                    let path = format!("/load-{number}-{}", statuses.len());
                    let body = if method.is_safe() { "" } else { "x" };
                    let sent = client.response(method.clone(), &path, body.into());
                    let response = sent.await;
                    statuses.push(response.status().as_u16());
                    // Streams whose responses are not read count as errors of the client's own.
                    let _ = response.bytes().await;
                    sleep(Duration::from_millis(2)).await;
                }
                statuses
            }
        };
        let tasks = (0..clients).map(|number| tokio::spawn(run(number)));
        Self {
            tasks: tasks.collect(),
            stop,
        }
    }

    /// The statuses of all requests.
    async fn end(self) -> Vec<u16> {
        self.stop.cancel();
        let mut statuses = Vec::new();
        for task in self.tasks {
            statuses.extend(task.await.unwrap());
        }
        statuses
    }
}

fn failed(statuses: &[u16]) -> Vec<u16> {
    let bad = statuses.iter().filter(|status| **status != 200);
    bad.copied().collect()
}
