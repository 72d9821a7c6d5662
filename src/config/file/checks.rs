//! Rules between sections, applied when each section has been checked.

use std::net::SocketAddr;
use std::sync::Arc;

use super::parse_report::ParseReport;
use crate::config::{
    Access, Config, DirectoryKind, Login, Route, Target, UnknownTokens, UpstreamConfig, UsersCall,
};

pub(super) fn check_whole(report: &ParseReport<'_>, config: &Config) {
    addresses(report, config);
    for upstream in &config.upstreams {
        reached(report, config, upstream);
        credentials(report, config, upstream);
        if let Some(login) = &upstream.login {
            renewal(report, config, upstream, login);
            relayed_users(report, config, upstream, login);
        }
    }
    probe(report, config);
    ways_in(report, config);
}

/// Two sockets on one address: the second could not be bound.
fn addresses(report: &ParseReport<'_>, config: &Config) {
    let listeners = config.listeners.iter().enumerate();
    let mut wanted: Vec<(String, SocketAddr)> = listeners
        .map(|(position, listener)| (format!("listener[{position}].address"), listener.address))
        .collect();
    wanted.push(("operator.address".to_owned(), config.operator.address));
    if let Some(emulator) = &config.emulator {
        wanted.push(("emulator.address".to_owned(), emulator.address));
        wanted.push(("emulator.control".to_owned(), emulator.control));
    }
    for (position, (key, address)) in wanted.iter().enumerate() {
        let above = &wanted[..position];
        if let Some((other, _)) = above.iter().find(|(_, other)| collide(*other, *address)) {
            let reason = format!("{address} is taken by {other}");
            report.complain(key, &reason, "choose another port");
        }
    }
}

fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let any = one.ip().is_unspecified() || other.ip().is_unspecified();
    let same_place = one.ip() == other.ip() || any && one.is_ipv4() == other.is_ipv4();
    one.port() != 0 && one.port() == other.port() && same_place
}

/// An upstream beside others that no route leads to.
fn reached(report: &ParseReport<'_>, config: &Config, upstream: &UpstreamConfig) {
    let leads_here = |route: &Arc<Route>| match route.target {
        Target::Upstream => route.upstream == upstream.name,
        Target::UsersNode(_) => relays(config, upstream),
        Target::Closed => false,
    };
    if config.upstreams.len() == 1 || config.routes.iter().any(leads_here) {
        return;
    }
    let suggestion = format!(
        "add a [[route]] with upstream = \"{}\", or hosts or path_prefix for the profile's routes",
        upstream.name
    );
    let place = format!("upstream.{}", upstream.name);
    report.complain(&place, "is reached by no route", &suggestion);
}

/// Whether it has the users, and their tokens and logins go there.
fn relays(config: &Config, upstream: &UpstreamConfig) -> bool {
    config.users.directory == DirectoryKind::Upstream
        && config.users_upstream().name == upstream.name
}

/// A route whose requests carry a credential of the gateway's own, and none is configured.
fn needs_login(route: &Route, upstream: &UpstreamConfig) -> bool {
    route.target == Target::Upstream
        && route.upstream == upstream.name
        && !route.access.contains(&Access::Open)
        && !(route.monitoring && upstream.api_key.is_some())
}

/// Requests without a token of the upstream's own need a login of the gateway.
fn credentials(report: &ParseReport<'_>, config: &Config, upstream: &UpstreamConfig) {
    let place = format!("upstream.{}", upstream.name);
    // A wrong login has been reported already.
    if upstream.login.is_some() || report.has(&format!("{place}.login")) {
        return;
    }
    let is_only = config.upstreams.len() == 1;
    if !is_only && !relays(config, upstream) {
        let mut routes = config.routes.iter();
        let Some(route) = routes.find(|route| needs_login(route, upstream)) else {
            return;
        };
        let reason = format!("has no login, but route \"{}\" needs one", route.name);
        let suggestion =
            "add login = { username, password }, or set access = \"open\" for its routes";
        match upstream.required {
            true => report.complain(&place, &reason, suggestion),
            false => report.warn(&place, &reason, suggestion),
        }
    } else if config.users.directory == DirectoryKind::Gateway {
        let reason = "has no login, but with users.directory = \"gateway\" the gate itself logs in";
        let suggestion = "add login = { username, password }, or set directory = \"webapp\"";
        report.complain(&place, reason, suggestion);
    } else if upstream.api_key.is_none() && !config.api_keys.is_empty() {
        let reason = "has neither login nor api_key: nothing could be sent up for an [[api_key]]";
        report.complain(
            &place,
            reason,
            "add login = { username, password }, or api_key",
        );
    }
}

/// Without a probe the upstream cannot be asked about a token.
fn probe(report: &ParseReport<'_>, config: &Config) {
    let (users, upstream) = (&config.users, config.users_upstream());
    let is_asking = users.unknown_tokens == UnknownTokens::Ask;
    if is_asking && users.directory == DirectoryKind::Upstream && upstream.probe.is_none() {
        let reason = "\"ask\" needs a path that the upstream opens to valid tokens only";
        let key = format!("upstream.{}.probe", upstream.name);
        let suggestion = format!("set {key} to such a path, or unknown_tokens = \"reject\"");
        report.complain("users.unknown_tokens", reason, &suggestion);
    }
}

fn renewal(report: &ParseReport<'_>, config: &Config, upstream: &UpstreamConfig, login: &Login) {
    let emulator = config.emulator.as_ref();
    let life = emulator.map_or(config.profile.token_lifetime, |emulator| {
        emulator.token_lifetime
    });
    let key = |name: &str| format!("upstream.{}.{name}", upstream.name);
    let floor = key("renew_floor");
    if login.renew_floor > life / 2 && report.has(&floor) {
        let reason = "is more than half a token's life: half of it will be used";
        report.warn(&floor, reason, "");
    }
    if login.min_login_interval > life / 2 {
        let reason = "is more than half a token's life: a token could end before the next login";
        report.complain(&key("min_login_interval"), reason, "make it shorter");
    }
    let between = life.mul_f64(login.renew_at).as_secs_f64();
    if f64::from(login.logins_per_hour) * between < 3600.0 {
        let reason = "is too few for tokens with so short a life";
        let suggestion = "raise it, or emulator.token_lifetime";
        report.warn(&key("logins_per_hour"), reason, suggestion);
    }
}

/// A user's login is relayed to one endpoint, and the token is valid there only.
fn relayed_users(
    report: &ParseReport<'_>,
    config: &Config,
    upstream: &UpstreamConfig,
    login: &Login,
) {
    if login.per_endpoint && relays(config, upstream) {
        let key = format!("upstream.{}.login_per_endpoint", upstream.name);
        let reason = "cannot be true for the upstream that has the users: the token of a user's login would be \
                      valid at one endpoint only";
        let suggestion = "set users.directory = \"gateway\", or make each endpoint an upstream";
        report.complain(&key, reason, suggestion);
    }
}

fn ways_in(report: &ParseReport<'_>, config: &Config) {
    let login = Target::UsersNode(UsersCall::Login);
    let mut logins = config
        .routes
        .iter()
        .filter(|route| route.target == login)
        .peekable();
    if logins.peek().is_none() && config.api_keys.is_empty() {
        let reason = "has no route to users.login, and there is no [[api_key]]";
        report.warn("route", reason, "no client can get in");
    }
    for route in logins.filter(|route| !route.access.contains(&Access::Open)) {
        let reason = format!("\"{}\" asks for a credential before the login", route.name);
        report.warn("route", &reason, "set access = \"open\"");
    }
}
