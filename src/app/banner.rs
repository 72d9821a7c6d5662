//! The banner of a start: addresses, the first admin, and example commands.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

use tracing::info;

use super::BoundAddresses;
use crate::config::{self, Config, FirstPassword, LogFormat, Route, Target, UsersCall};
use crate::identity::{FirstAdminStatus, GeneratedAdmin};
use crate::secret::SecretSource;

/// Prints where the program listens: as text, or as log lines with the JSON format. A generated
/// password is shown here only.
pub(super) fn print(config: &Config, addresses: &BoundAddresses, admin: Option<&FirstAdminStatus>) {
    if config.log.format == LogFormat::Json {
        for address in &addresses.listeners {
            info!(%address, "listening");
        }
        info!(address = %addresses.operator, "operator's listener");
    }
    let text = match (config.log.format, admin) {
        (LogFormat::Json, Some(FirstAdminStatus::Generated(admin))) => shown_once(admin),
        (LogFormat::Json, _) => return,
        (LogFormat::Text, _) => page(config, addresses, admin),
    };
    say(&text);
}

/// Prints a generated password when the start fails before the banner.
pub(super) fn print_generated_password(admin: Option<&FirstAdminStatus>) {
    if let Some(FirstAdminStatus::Generated(admin)) = admin {
        say(&shown_once(admin));
    }
}

fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    // A closed standard output has no reader.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

fn shown_once(admin: &GeneratedAdmin) -> String {
    let password = admin.password.expose();
    format!(
        "  admin     {}  password {password}  (made up now, shown only here)\n",
        admin.username
    )
}

/// The line about the first admin.
fn first_admin(admin: &FirstAdminStatus) -> String {
    match admin {
        FirstAdminStatus::Generated(admin) => shown_once(admin),
        FirstAdminStatus::Configured { username } => {
            format!("  admin     {username}  (password of the config file)\n")
        }
        FirstAdminStatus::Kept { username } => {
            format!(
                "  admin     {username}  (password as set before; lost? [users] first_admin sets a new one)\n"
            )
        }
    }
}

fn page(config: &Config, addresses: &BoundAddresses, admin: Option<&FirstAdminStatus>) -> String {
    let mut text = format!("\ntollgate {}\n\n", env!("CARGO_PKG_VERSION"));
    for (listener, address) in config.listeners.iter().zip(&addresses.listeners) {
        let scheme = if listener.tls.is_some() {
            "https"
        } else {
            "http"
        };
        let _ = writeln!(text, "  gate      {scheme}://{}", for_people(*address));
    }
    let emulators: Vec<_> = config
        .emulator
        .iter()
        .flat_map(config::Emulator::each)
        .collect();
    for upstream in &config.upstreams {
        let mut behind = upstream.base.to_string();
        if config.upstreams.len() > 1 {
            behind = format!("{}, {behind}", upstream.name);
        }
        let emulator = emulators.iter().find(|emulator| {
            config.upstreams.len() == 1 || emulator.address.port() == upstream.base.port
        });
        let _ = match emulator {
            Some(emulator) => writeln!(
                text,
                "  behind    {behind}, the emulator (its switches: http://{})",
                emulator.control
            ),
            None => writeln!(text, "  behind    {behind}"),
        };
    }
    let _ = writeln!(
        text,
        "  operator  http://{}/metrics  /readyz  /healthz",
        addresses.operator
    );
    if let Some(admin) = admin {
        text.push_str(&first_admin(admin));
    }
    if let (Some(emulator), Some(address)) = (&config.emulator, addresses.listeners.first()) {
        let ca = emulator.folder.join("ca.pem");
        let gate = format!("https://{}", for_people(*address));
        let login = login(admin, config.users.first_admin.as_ref());
        if let Some(paths) = example_paths(config) {
            text.push_str(&try_it(&ca.display().to_string(), &gate, &login, paths));
        }
    }
    text.push('\n');
    text
}

/// The credential of the example commands.
struct PastedLogin {
    /// The value of `curl -u`.
    user: String,
    /// What to know before using it.
    remark: &'static str,
}

/// In single quotes: a shell would interpret characters of the password.
fn login(admin: Option<&FirstAdminStatus>, settings: Option<&config::FirstAdmin>) -> PastedLogin {
    let pasted = |user: &str, remark| PastedLogin {
        user: user.to_owned(),
        remark,
    };
    match (admin, settings.map(|settings| &settings.password)) {
        (Some(FirstAdminStatus::Generated(admin)), _) => pasted(
            &format!("'{}:{}'", admin.username, admin.password.expose()),
            "",
        ),
        (
            Some(FirstAdminStatus::Configured { username }),
            Some(FirstPassword::Plain(SecretSource::File(path))),
        ) => pasted(&format!("\"{username}:$(cat '{}')\"", path.display()), ""),
        (Some(FirstAdminStatus::Configured { username }), _) => pasted(
            &format!("'{username}'"),
            " (curl asks for the password of the config file)",
        ),
        (Some(FirstAdminStatus::Kept { username }), _) => pasted(
            &format!("'{username}'"),
            " (curl asks for the password; it was shown at the first start)",
        ),
        (None, _) => pasted(
            "'USER'",
            " (USER is one of the upstream's, curl asks for the password)",
        ),
    }
}

/// Paths of the example requests.
struct ExamplePaths {
    login: String,
    secured: String,
    /// A host that their routes take; None: any.
    host: Option<String>,
}

/// None: no route leads to a login, or no path is known that takes a token.
fn example_paths(config: &Config) -> Option<ExamplePaths> {
    let upstream = config.users_upstream();
    let is_login = |route: &&Arc<Route>| {
        route.target == Target::UsersNode(UsersCall::Login) && route.upstream == upstream.name
    };
    let login = config.routes.iter().find(is_login)?;
    let prefix = login.strip_prefix.as_ref();
    let prefix = prefix.map_or_else(String::new, ToString::to_string);
    Some(ExamplePaths {
        login: login.path.to_string(),
        secured: format!("{prefix}{}", upstream.probe.as_ref()?),
        host: login.hosts.first().map(|host| host.replacen('*', "any", 1)),
    })
}

/// Two lines to paste: a login, a secured call.
fn try_it(ca: &str, gate: &str, login: &PastedLogin, paths: ExamplePaths) -> String {
    let PastedLogin { user, remark } = login;
    let ExamplePaths {
        login,
        secured,
        host,
    } = paths;
    let host = host.map_or_else(String::new, |host| format!("-H 'Host: {host}' "));
    format!(
        "\nTry it{remark}:\n  TOKEN=$(curl -s --cacert {ca} {host}-u {user} -X POST {gate}{login} | sed 's/.*\"token\":\"\\([^\"]*\\)\".*/\\1/')\n  curl --cacert {ca} {host}-H \"Authorization: Bearer $TOKEN\" {gate}{secured}\n"
    )
}

#[cfg(feature = "emulator")]
pub(super) fn emulator(settings: &crate::config::Emulator, running: &crate::emulator::Emulator) {
    say(&running.summary(&settings.folder, &for_people(running.address())));
}

/// Loopback and "any" read better, and match the development certificate, as `localhost`.
fn for_people(address: SocketAddr) -> String {
    if address.ip().is_loopback() || address.ip().is_unspecified() {
        format!("localhost:{}", address.port())
    } else {
        address.to_string()
    }
}
