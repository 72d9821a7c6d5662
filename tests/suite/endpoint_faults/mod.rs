//! Faults of the endpoints of one upstream (rows U of the field): which requests are sent again, which
//! endpoints are left out, and what the operator sees. Real sockets on both sides.

mod endpoint_server;
mod left_out;
mod operator;
mod repeats;
mod under_load;

use std::time::{Duration, Instant};

use endpoint_server::EndpointServer;
use reqwest::Method;

use crate::harness::login_upstream::KEY;
use crate::harness::{Client, Gateway, WEBAPP_PASSWORD, secret, sha256};

const OPERATOR_TOKEN: &str = "operator-token-of-the-test";

/// A gate whose only upstream has these endpoints, and lines of its section.
async fn gate(servers: &[&EndpointServer], lines: &str) -> Gateway {
    gate_at(&addresses(servers), lines).await
}

fn addresses(servers: &[&EndpointServer]) -> Vec<String> {
    let addresses = servers.iter().map(|server| server.address.to_string());
    addresses.collect()
}

async fn gate_at(addresses: &[String], lines: &str) -> Gateway {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    tollgate::emulator::certificates::make(&folder.path().join("certs")).unwrap();
    secret(&folder.path().join("operator-token"), OPERATOR_TOKEN);
    secret(&folder.path().join("webapp-password"), WEBAPP_PASSWORD);
    std::fs::write(&file, text(addresses, lines)).unwrap();
    Gateway::from_file(folder, file).await
}

/// The whole configuration.
fn text(addresses: &[String], lines: &str) -> String {
    let endpoints: Vec<String> = addresses
        .iter()
        .map(|at| format!("\"http://{at}\""))
        .collect();
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
[upstream.main]
login = {{ username = "gate", password = {{ file = "webapp-password" }} }}
endpoints = [{}]
connect_timeout = "1s"
{lines}
[[api_key]]
name = "caller"
sha256 = "{}"
paths = "/*"
[[route]]
name = "all"
path = "/*"
access = "api_key"
timeout = "20s"
"#,
        endpoints.join(", "),
        sha256(KEY)
    )
}

/// A response as the client got it.
#[derive(Debug)]
struct Answer {
    status: u16,
    text: String,
    retry_after: Option<String>,
}

async fn send(client: &Client, method: Method, path: &str, body: Vec<u8>) -> Answer {
    let request = client.request(method, path).body(body);
    let request = request.header("authorization", format!("Apikey {KEY}"));
    let response = request.send().await.unwrap();
    let retry_after = response.headers().get("retry-after");
    let retry_after = retry_after.map(|value| value.to_str().unwrap().to_owned());
    Answer {
        status: response.status().as_u16(),
        retry_after,
        text: response.text().await.unwrap(),
    }
}

async fn get(client: &Client, path: &str) -> Answer {
    send(client, Method::GET, path, Vec::new()).await
}

/// The statuses of `count` requests, one after the other.
async fn statuses(client: &Client, count: usize) -> Vec<u16> {
    let mut statuses = Vec::new();
    for _ in 0..count {
        statuses.push(get(client, "/x").await.status);
    }
    statuses
}

/// Requests of `clients` at once until `time` has passed; their statuses.
async fn load(gateway: &Gateway, clients: usize, time: Duration) -> Vec<u16> {
    let end = Instant::now() + time;
    let run = |client: Client| async move {
        let mut statuses = Vec::new();
        while Instant::now() < end {
            statuses.push(get(&client, "/x").await.status);
        }
        statuses
    };
    let runs: Vec<_> = (0..clients)
        .map(|_| tokio::spawn(run(gateway.client())))
        .collect();
    let mut all = Vec::new();
    for run in runs {
        all.extend(run.await.unwrap());
    }
    all
}

async fn readiness(gateway: &Gateway) -> (u16, String) {
    let response = reqwest::get(gateway.operator_url("/readyz")).await.unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}

/// The value of the endpoint's series of this family; 0 without one.
fn metric(gateway: &Gateway, family: &str, server: &EndpointServer, more: &str) -> u64 {
    let text = gateway.metrics.text();
    let endpoint = format!("endpoint=\"http://{}\"", server.address);
    let mut lines = text.lines().filter(|line| line.starts_with(family));
    let line = lines.find(|line| line.contains(&endpoint) && line.contains(more));
    let value = line.and_then(|line| line.rsplit(' ').next());
    value.map_or(0, |value| value.parse().unwrap())
}
