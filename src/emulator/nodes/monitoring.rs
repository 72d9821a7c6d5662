//! Health, stats, metrics, support (protocol sheet, section 5.4).

use std::fmt::Write as _;

use http::StatusCode;
use serde_json::{Map, Value, json};

use super::super::counts::RequestCounts;
use super::super::faults::{Gateway, Health};
use super::super::node_call::NodeCall;
use super::super::node_reply::Reply;
use super::super::node_routes::Node;
use super::super::reply_body::Body;
use super::super::webapp_state::WebappState;

pub(in super::super) fn monitoring(webapp: &WebappState, call: &NodeCall) -> Reply {
    let origin = call.route.origin;
    match call.route.node {
        Node::Health => Reply::ok(origin, json!({ "health": health(call) })),
        Node::Support => Reply::ok(origin, json!({ "support": support() })),
        Node::Stats => {
            let kind = call.path.get(2).map_or("app", String::as_str);
            let families = stats(webapp, kind);
            shown(call, &families, |shown| json!({ "stats": { kind: shown } }))
        }
        _ => shown(call, &metrics(webapp), |shown| json!({ "metrics": shown })),
    }
}

fn health(call: &NodeCall) -> Value {
    let status = json!(call.switches.gateway_status);
    match call.switches.health {
        Health::Single => json!({ "gateway_status": status }),
        // By design exactly one Coreapp is connected; the masters never are.
        Health::HighAvailability => {
            let idle = json!(Gateway::Disconnected);
            json!({
                "master-1:1f0a37e4c2b8": { "gateway_status": idle, "role": "primary_master" },
                "master-2:8c55d09be713": { "gateway_status": idle, "role": "secondary_master" },
                "coreapp-1:27d6e1a90f44": { "gateway_status": status, "role": "coreapp" },
                "coreapp-2:e90b4c6613aa": { "gateway_status": idle, "role": "coreapp" },
            })
        }
    }
}

fn support() -> Value {
    json!({
        "app": { "version": "2.53.0", "phone_number": "15550100100" },
        "env": { "WA_DB_ENGINE": "MYSQL", "WA_WEB_SERVERNAME": "webapp" },
    })
}

/// One metric and its rows: labels and value.
struct Family {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    rows: Vec<(Vec<(&'static str, &'static str)>, u64)>,
}

fn plain(name: &'static str, kind: &'static str, help: &'static str, value: u64) -> Family {
    Family {
        name,
        kind,
        help,
        rows: vec![(Vec::new(), value)],
    }
}

fn metrics(webapp: &WebappState) -> Vec<Family> {
    let busy = webapp.counts.in_flight() as u64;
    let uptime = webapp.started.elapsed().as_secs();
    let connections = RequestCounts::read(&webapp.counts.connections);
    let idle = 10u64.saturating_sub(busy);
    let mut all = vec![
        plain("web_uptime", "gauge", "Seconds since start", uptime),
        plain(
            "web_connections",
            "counter",
            "Accepted connections",
            connections,
        ),
        plain("web_pending_connections", "gauge", "Waiting connections", 0),
        plain(
            "web_max_pending_connections",
            "gauge",
            "Most of them so far",
            10,
        ),
        plain("web_queue_len", "gauge", "Length of the listen queue", 128),
        plain("web_idle_processes", "gauge", "Idle processes", idle),
    ];
    all.push(Family {
        name: "web_requests",
        kind: "gauge",
        help: "Requests by state",
        rows: vec![
            (vec![("state", "read")], 0),
            (vec![("state", "handle-request")], busy),
        ],
    });
    let answered = RequestCounts::read(&webapp.counts.requests);
    all.push(plain(
        "web_requests_total",
        "counter",
        "Requests so far",
        answered,
    ));
    all
}

fn stats(webapp: &WebappState, kind: &str) -> Vec<Family> {
    if kind == "db" {
        let tokens = webapp.tokens.count() as u64;
        let users = webapp.directory.count() as u64;
        return vec![
            plain("db_tokens", "gauge", "Stored tokens", tokens),
            plain("db_users", "gauge", "Stored users", users),
        ];
    }
    let uptime = webapp.started.elapsed().as_secs();
    vec![
        plain("app_uptime", "gauge", "Seconds since start", uptime),
        plain("app_pending_messages", "gauge", "Messages not yet sent", 0),
    ]
}

fn shown(call: &NodeCall, families: &[Family], wrap: impl FnOnce(Value) -> Value) -> Reply {
    let origin = call.route.origin;
    if !call.has_query("format", "prometheus") {
        return Reply::ok(origin, wrap(as_json(families)));
    }
    let body = Body::whole(as_prometheus(families));
    Reply::typed(origin, StatusCode::OK, "text/plain; version=0.0.4", body)
}

fn as_json(families: &[Family]) -> Value {
    let mut all = Map::new();
    for family in families {
        let rows = family.rows.iter().map(|(labels, value)| {
            let labels: Map<String, Value> = labels
                .iter()
                .map(|&(name, value)| (name.to_owned(), json!(value)))
                .collect();
            json!({ "labels": labels, "value": value })
        });
        let data: Vec<Value> = rows.collect();
        let shown = json!({ "type": family.kind, "help": family.help, "data": data });
        all.insert(family.name.to_owned(), shown);
    }
    Value::Object(all)
}

fn as_prometheus(families: &[Family]) -> String {
    let mut text = String::new();
    for Family {
        name,
        kind,
        help,
        rows,
    } in families
    {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in rows {
            let labels: Vec<String> = labels
                .iter()
                .map(|(name, value)| format!("{name}=\"{value}\""))
                .collect();
            let _ = match labels.join(",").as_str() {
                "" => writeln!(text, "{name} {value}"),
                labels => writeln!(text, "{name}{{{labels}}} {value}"),
            };
        }
    }
    text
}
