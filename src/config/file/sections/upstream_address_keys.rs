//! The keys of `[upstream.NAME]` that say where its server is and how it is reached.

use std::path::Path;

use http::uri::Authority;

use crate::config::file::config_table::{ConfigTable, ConfigValue};
use crate::config::file::named_files::{key_file, public_file};
use crate::config::file::value_readers::{flag, text, word};
use crate::config::{BaseAddress, CertificateFiles, Http2Mode, ProxyConfig, UpstreamConfig};

/// The longest path of a Unix socket in bytes (`sockaddr_un`, which has room for 108 with a NUL).
const MAX_SOCKET_PATH: usize = 107;

/// The login must not travel in the clear to another host without `allow_plaintext`.
pub(super) fn require_privacy(
    table: &ConfigTable<'_>,
    addresses: Option<&[BaseAddress]>,
    proxy: Option<&ProxyConfig>,
) {
    let may_be_plaintext = table.or("allow_plaintext", flag, false);
    let mut addresses = addresses.into_iter().flatten();
    if may_be_plaintext || !addresses.any(|base| is_readable_on_the_way(base, proxy)) {
        return;
    }
    let reason = match proxy {
        None => "must be https: the login would travel in the clear",
        Some(_) => "must be https: the login would travel in the clear, to and behind the proxy",
    };
    table.complain(address_key(table), reason, "or set allow_plaintext = true");
}

/// Whether others on the network could read the requests. Behind a proxy on another host, loopback is
/// that host's.
fn is_readable_on_the_way(base: &BaseAddress, proxy: Option<&ProxyConfig>) -> bool {
    let is_here = is_loopback(&base.host) && proxy.is_none_or(|proxy| is_loopback(&proxy.host));
    !base.tls && base.socket.is_none() && !is_here
}

/// The text is never repeated: it may hold a password.
pub(super) fn base(value: &ConfigValue<'_>) -> Option<BaseAddress> {
    let suggestion = "such as \"https://service.internal:443\"";
    let bad = |reason: &str| {
        value.complain(reason, suggestion);
        None
    };
    let text = text(value)?;
    if let Some(path) = text.strip_prefix("unix:") {
        return socket(value, path);
    }
    let Ok(uri) = text.parse::<http::Uri>() else {
        return bad("is no address");
    };
    let tls = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return bad("must begin with https://, http:// or unix:"),
    };
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return bad("must end after host and port: paths are kept as the client sends them");
    }
    let Some(authority) = uri
        .authority()
        .filter(|authority| !authority.host().is_empty())
    else {
        return bad("has no host");
    };
    if authority.as_str().contains('@') {
        return bad("must not hold a user name or password: they belong in login");
    }
    let has_port = authority.as_str().len() > authority.host().len();
    let port = match (authority.port_u16(), has_port) {
        (Some(0), _) | (None, true) => return bad("has an invalid port"),
        (Some(port), _) => port,
        (None, false) if tls => 443,
        (None, false) => 80,
    };
    Some(BaseAddress {
        tls,
        host: host_of(authority),
        port,
        socket: None,
    })
}

/// In lower case, without the brackets of an IPv6 address.
pub(super) fn host_of(authority: &Authority) -> String {
    let host = authority.host();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.to_ascii_lowercase()
}

/// `/run/service.sock`, also as `///run/service.sock`; a relative path starts at the config file's folder.
fn socket(value: &ConfigValue<'_>, path: &str) -> Option<BaseAddress> {
    let bad = |reason: &str| {
        value.complain(reason, "such as \"unix:/run/service.sock\"");
        None
    };
    let path = match path.strip_prefix("//") {
        Some(path) if !path.starts_with('/') => {
            return bad("names a host before the socket: write one slash");
        }
        Some(path) => path,
        None => path,
    };
    if path.is_empty() || path.ends_with('/') {
        return bad("names no socket");
    }
    if path.starts_with('@') || path.contains('\0') {
        return bad("must name a file: abstract sockets have no permissions");
    }
    let path = value.report.folder.join(Path::new(path));
    if path.as_os_str().len() > MAX_SOCKET_PATH {
        return bad("is longer than the path of a Unix socket can be (107 bytes)");
    }
    Some(BaseAddress::of_socket(path))
}

pub(super) fn is_loopback(host: &str) -> bool {
    let address: Option<std::net::IpAddr> = host.parse().ok();
    host == "localhost" || address.is_some_and(|address| address.is_loopback())
}

/// The value of a `Host` field: a name or address, with a port where it has one.
pub(super) fn host_field(value: &ConfigValue<'_>) -> Option<String> {
    let host = text(value)?;
    let parsed: Option<Authority> = host.parse().ok();
    let is_good = parsed.is_some_and(|authority| {
        let has_port = host.len() > authority.host().len();
        let port_fits = !has_port || authority.port_u16().is_some();
        !authority.host().is_empty() && !host.contains('@') && port_fits
    });
    if !is_good {
        let suggestion = "such as \"service.internal\" or \"service.internal:8443\"";
        value.complain("must be what Host can have: a name and a port", suggestion);
        return None;
    }
    Some(host)
}

pub(super) fn server_name(value: &ConfigValue<'_>) -> Option<String> {
    let name = text(value)?;
    if rustls::pki_types::ServerName::try_from(name.as_str()).is_err() {
        value.complain(
            "is not a name that a certificate can have",
            "such as \"service\"",
        );
        return None;
    }
    Some(name)
}

/// `client_certificate` and `client_key`, which may be one file.
pub(super) fn client_certificate(table: &ConfigTable<'_>) -> Option<CertificateFiles> {
    let certificate = table.read("client_certificate", public_file);
    let key = table.read("client_key", key_file);
    match (table.has("client_certificate"), table.has("client_key")) {
        (true, false) => {
            let suggestion = "add client_key = \"gate.key\"";
            table.complain("client_certificate", "has no key beside it", suggestion);
        }
        (false, true) => {
            let suggestion = "add client_certificate = \"gate.pem\"";
            table.complain("client_key", "has no certificate beside it", suggestion);
        }
        _ => {}
    }
    Some(CertificateFiles {
        certificate: certificate?,
        key: key?,
    })
}

/// The key that names the address.
fn address_key(table: &ConfigTable<'_>) -> &'static str {
    match table.has("endpoints") {
        true => "endpoints",
        false => "url",
    }
}

/// Keys that only matter with TLS.
pub(super) fn warn_without_tls(table: &ConfigTable<'_>, base: &BaseAddress) {
    let of_tls = ["ca", "pins", "server_name", "client_certificate"];
    if base.tls || !of_tls.into_iter().any(|key| table.has(key)) {
        return;
    }
    let reason = match base.socket {
        None => "is http: ca, pins, server_name and client_certificate have no effect",
        Some(_) => "is a Unix socket: ca, pins, server_name and client_certificate have no effect",
    };
    table.warn(address_key(table), reason, "");
}

/// `http2`: which version of HTTP is spoken with the upstream.
pub(super) fn http2(table: &ConfigTable<'_>) -> Http2Mode {
    const WORDS: &[(&str, Http2Mode)] = &[
        ("never", Http2Mode::Never),
        ("auto", Http2Mode::Auto),
        ("always", Http2Mode::Always),
    ];
    table.or("http2", word(WORDS), Http2Mode::Never)
}

/// Without TLS a server cannot choose.
pub(super) fn warn_of_auto(table: &ConfigTable<'_>, upstream: &UpstreamConfig) {
    if upstream.http2 == Http2Mode::Auto && !upstream.base.tls {
        let reason = "has no effect without TLS: HTTP/1.1 is spoken";
        table.warn(
            "http2",
            reason,
            "set \"always\" if the server speaks HTTP/2",
        );
    }
}
