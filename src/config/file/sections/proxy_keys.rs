//! `proxy` and `proxy_login` of `[upstream.NAME]`.

use super::upstream_address_keys::host_of;
use crate::config::file::config_table::{ConfigTable, ConfigValue};
use crate::config::file::named_files::secret;
use crate::config::file::value_readers::{text, username};
use crate::config::{BaseAddress, ProxyConfig, ProxyLogin};

/// The HTTP proxy between the gate and `base`.
pub(super) fn proxy(table: &ConfigTable<'_>, base: Option<&BaseAddress>) -> Option<ProxyConfig> {
    let login = login(table);
    if table.has("proxy_login") && !table.has("proxy") {
        let suggestion = "add proxy = \"http://proxy.internal:3128\"";
        table.complain("proxy_login", "has no proxy beside it", suggestion);
    }
    let proxy = table.read("proxy", address)?;
    if base.is_some_and(|base| base.socket.is_some()) {
        let reason = "has no effect: a Unix socket is on this host";
        table.warn("proxy", reason, "");
        return None;
    }
    Some(ProxyConfig { login, ..proxy })
}

/// The text is never repeated: it may hold a password.
fn address(value: &ConfigValue<'_>) -> Option<ProxyConfig> {
    let bad = |reason: &str| {
        value.complain(reason, "such as \"http://proxy.internal:3128\"");
        None
    };
    let Ok(uri) = text(value)?.parse::<http::Uri>() else {
        return bad("is no address");
    };
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") => return bad("must begin with http://: TLS to the proxy is not supported"),
        _ => return bad("must begin with http://: only HTTP proxies are supported"),
    }
    let Some(authority) = uri.authority().filter(|found| !found.host().is_empty()) else {
        return bad("has no host");
    };
    if authority.as_str().contains('@') {
        return bad("must not hold a user name or password: they belong in proxy_login");
    }
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return bad("must end after host and port");
    }
    let Some(port) = authority.port_u16().filter(|port| *port != 0) else {
        return bad("has no valid port");
    };
    Some(ProxyConfig {
        host: host_of(authority),
        port,
        login: None,
    })
}

fn login(table: &ConfigTable<'_>) -> Option<ProxyLogin> {
    let who = table.section("proxy_login")?;
    let name = who.required("username", username, "\"gateway\"");
    let place = "{ file = \"/run/secrets/proxy-password\" }";
    let password = who.required("password", secret, place);
    Some(ProxyLogin {
        username: name?,
        password: password?,
    })
}
