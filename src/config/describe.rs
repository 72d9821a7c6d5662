//! The effective configuration in words, for `check` and the log. Secrets only by their source.

use std::fmt::{self, Write as _};

use super::describe_login::login_lines;
use super::describe_routes::routes;
use super::describe_users::user_lines;
use super::display::{DurationText, listed};
use super::{AddressResolution, StoreConfig, StorePlace, Trust, UnknownTokens, UpstreamConfig};
use super::{Config, Http2Mode, Limit, LimitKey, Listener, LogFormat, ProxyLogin};

impl Config {
    /// The effective configuration and the routes in match order, as understood.
    pub fn describe(&self) -> String {
        let mut page = ConfigReport::default();
        page.row("workers", self.workers);
        for listener in &self.listeners {
            page.row("listener", describe_listener(listener));
        }
        page.row("operator", format!("http://{}", self.operator.address));
        if let Some(token) = &self.operator.token {
            page.row(
                "",
                format!("API keys are made there with the token in {token}"),
            );
        }
        for upstream in &self.upstreams {
            describe_upstream(&mut page, upstream);
        }
        for (nth, line) in user_lines(self).into_iter().enumerate() {
            page.row(if nth == 0 { "users" } else { "" }, line);
        }
        describe_store(&mut page, &self.store);
        self.describe_keys(&mut page);
        self.describe_limits(&mut page);
        self.describe_rest(&mut page);
        page.0.push_str("\nroutes, first match wins: name, methods, path, access, target, class, longest body, time\n");
        page.0
            .push_str(&routes(&self.routes, self.upstreams.len() > 1));
        page.0
    }

    fn describe_keys(&self, page: &mut ConfigReport) {
        for key in &self.api_keys {
            let paths = match key.paths.as_slice() {
                [] => "monitoring nodes".to_owned(),
                paths => listed(paths),
            };
            let mut text = format!("{}: {}, {paths}", key.name, key.role.text());
            if !key.methods.is_empty() {
                let _ = write!(text, ", {}", listed(&key.methods));
            }
            if !key.upstreams.is_empty() {
                let _ = write!(text, ", upstreams {}", listed(&key.upstreams));
            }
            if let Some(limit) = key.limit {
                let _ = write!(text, ", {limit}");
            }
            if let Some(end) = key
                .expires
                .and_then(|end| jiff::Timestamp::from_second(end).ok())
            {
                let _ = write!(text, ", until {end}");
            }
            page.row("api key", text);
        }
    }

    fn describe_limits(&self, page: &mut ConfigReport) {
        let limits = &self.limits;
        for limit in &limits.policies {
            page.row("limit", describe_limit(limit));
        }
        let by = (limits.logins_by_peer, limits.logins_by_name);
        page.row(
            "logins",
            format!("by peer {}, by name and peer {}", by.0, by.1),
        );
        if self.users.unknown_tokens == UnknownTokens::Ask {
            let by = (limits.unknown_tokens_by_peer, limits.unknown_tokens);
            page.row("unknown", format!("by peer {}, in all {}", by.0, by.1));
        }
        let caps = (limits.max_in_flight, limits.max_keys);
        page.row(
            "at most",
            format!("{} requests inside, {} limiter keys", caps.0, caps.1),
        );
    }

    fn describe_rest(&self, page: &mut ConfigReport) {
        let proxies = self.http.trusted_proxies.as_slice();
        if !proxies.is_empty() {
            page.row("proxies", format!("{} trusted", listed(proxies)));
        }
        if self.http.allow_underscores {
            page.row("headers", "field names with _ pass");
        }
        let allowed = self.http.allow_fields.names();
        if !allowed.is_empty() {
            page.row(
                "",
                format!("{} go up as the client sent them", listed(allowed)),
            );
        }
        for route in &self.routes {
            let own = &route.allow_fields;
            if *own != self.http.allow_fields {
                let names = match own.names() {
                    [] => "no override field goes".to_owned(),
                    names => format!("{} go", listed(names)),
                };
                page.row("", format!("{names} up on route {}", route.name));
            }
        }
        page.row(
            "bodies",
            format!("at least {} bytes a second", self.http.min_body_rate),
        );
        let drain = (
            DurationText(self.drain.wait),
            DurationText(self.drain.deadline),
        );
        page.row(
            "drain",
            format!("{} wait, then {} at most", drain.0, drain.1),
        );
        let format = match self.log.format {
            LogFormat::Json => "json",
            LogFormat::Text => "text",
        };
        let access = if self.log.access { "with" } else { "without" };
        page.row(
            "log",
            format!("{format}, {}, {access} access lines", self.log.filter),
        );
        if let Some(emulator) = &self.emulator {
            let (address, control) = (emulator.address, emulator.control);
            let life = DurationText(emulator.token_lifetime);
            let folder = emulator.folder.display();
            let count = match emulator.count {
                1 => String::new(),
                count => format!("{count} of them, ports two apart from "),
            };
            page.row(
                "emulator",
                format!(
                    "{count}https://{address}, control {control}, files in {folder}, tokens live {life}"
                ),
            );
        }
    }
}

#[derive(Default)]
struct ConfigReport(String);

impl ConfigReport {
    fn row(&mut self, name: &str, text: impl fmt::Display) {
        let _ = writeln!(self.0, "{name:<10} {text}");
    }
}

fn describe_listener(listener: &Listener) -> String {
    let address = listener.address;
    match &listener.tls {
        None => format!("http://{address}, plain HTTP"),
        Some(tls) => {
            let versions = if tls.only_tls13 { "1.3" } else { "1.2 and 1.3" };
            let files = tls
                .certificates
                .iter()
                .map(|files| files.certificate.display());
            format!(
                "https://{address}, TLS {versions}, {}",
                listed(&Vec::from_iter(files))
            )
        }
    }
}

/// Proxy and certificate of the gate, where there are any.
fn describe_way(page: &mut ConfigReport, upstream: &UpstreamConfig) {
    if let Some(proxy) = &upstream.proxy {
        let login = match &proxy.login {
            None => "without a login".to_owned(),
            Some(ProxyLogin { username, password }) => {
                format!("login \"{username}\", password in {password}")
            }
        };
        page.row("", format!("through proxy {proxy}, {login}"));
    }
    if let Some(own) = &upstream.client_certificate {
        let (certificate, key) = (own.certificate.display(), own.key.display());
        page.row("", format!("shows certificate {certificate}, key {key}"));
    }
}

fn describe_endpoints(page: &mut ConfigReport, upstream: &UpstreamConfig) {
    for address in &upstream.more_endpoints {
        page.row("", format!("and {address}"));
    }
    let policy = &upstream.endpoint_policy;
    if policy.resolution == AddressResolution::All {
        page.row("", "each address of its name is an endpoint".to_owned());
    }
    if let Some(check) = &policy.health_check {
        let interval = DurationText(check.interval);
        let what = match &check.path {
            Some(path) => format!("GET {path}"),
            None => "a connection".to_owned(),
        };
        page.row("", format!("health check: {what} every {interval}"));
    }
}

/// The address of an upstream and how it is spoken to.
fn upstream_line(upstream: &UpstreamConfig) -> String {
    let mut text = format!("{}: {}", upstream.name, upstream.base);
    if upstream.base.tls {
        let _ = match &upstream.trust {
            Trust::PublicAuthorities => write!(text, ", public authorities"),
            Trust::Authorities(path) => write!(text, ", authorities in {}", path.display()),
            Trust::Pins(pins) => write!(text, ", {} pinned key(s)", pins.len()),
        };
    }
    if let Some(name) = &upstream.server_name {
        let _ = write!(text, ", as \"{name}\"");
    }
    if let Some(host) = &upstream.host {
        let _ = write!(text, ", Host {host}");
    }
    if upstream.http2 != Http2Mode::Never {
        let _ = write!(text, ", HTTP/2 {}", upstream.http2.word());
    }
    text
}

fn describe_upstream(page: &mut ConfigReport, upstream: &UpstreamConfig) {
    page.row("upstream", upstream_line(upstream));
    describe_endpoints(page, upstream);
    describe_way(page, upstream);
    let queue = DurationText(upstream.queue_timeout);
    page.row(
        "",
        format!(
            "{} requests at once and {} slow streams, queued {queue} at most",
            upstream.concurrency, upstream.stalled_streams
        ),
    );
    match &upstream.login {
        None => page.row("", "no login of its own"),
        Some(login) => {
            let floor = DurationText(login.renew_floor);
            page.row(
                "",
                format!(
                    "login \"{}\", password in {}, renewed after {:.0} % of a token's life or {floor} before its end",
                    login.username,
                    login.password,
                    login.renew_at * 100.0
                ),
            );
            if login.per_endpoint {
                page.row("", "each endpoint has a login and a token of its own");
            }
            for line in login_lines(&upstream.login_description) {
                page.row("", line);
            }
        }
    }
    if let Some(key) = &upstream.api_key {
        page.row("", format!("API key in {key} for the monitoring nodes"));
    }
    if let Some(path) = &upstream.probe {
        page.row("", format!("tokens are tried at {path}"));
    }
    if !upstream.required {
        page.row("", "not required: the gate is ready without it");
    }
}

fn describe_store(page: &mut ConfigReport, store: &StoreConfig) {
    match &store.place {
        StorePlace::Memory => page.row(
            "store",
            "memory: a restart ends all tokens and logs in again",
        ),
        StorePlace::File(path) => page.row("store", path.display()),
        StorePlace::Shared(shared) => {
            page.row(
                "store",
                format!(
                    "{shared}, shared by all gates with prefix {}",
                    shared.prefix
                ),
            );
            page.row(
                "",
                format!(
                    "without it, what a gate knows stays good for {:?}",
                    shared.stale_for
                ),
            );
            if shared.allow_eviction {
                page.row(
                    "",
                    "it may evict keys: tokens that were ended may come back (allow_eviction)",
                );
            }
        }
    }
    match (&store.place, &store.key, &store.old_key) {
        (StorePlace::Memory, ..) => {}
        (_, None, _) => page.row(
            "",
            "no key: the upstream's token is not kept, each start of each gate is one login",
        ),
        (_, Some(key), None) => {
            page.row("", format!("the upstream's token is sealed, key in {key}"))
        }
        (_, Some(key), Some(old)) => page.row(
            "",
            format!("the upstream's token is sealed, key in {key}, the one before it in {old}"),
        ),
    }
}

fn describe_limit(limit: &Limit) -> String {
    let key = match limit.key {
        LimitKey::Client => "client",
        LimitKey::Peer => "peer",
        LimitKey::Class => "class",
        LimitKey::Upstream => "upstream",
    };
    let classes = match limit.classes.as_slice() {
        [] => "all classes".to_owned(),
        classes => listed(classes),
    };
    let dry = if limit.dry_run { ", counted only" } else { "" };
    format!("{}: {} per {key}, {classes}{dry}", limit.name, limit.quota)
}
