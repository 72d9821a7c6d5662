//! A whole gate in front of a whole emulator, with real sockets and real TLS, from a
//! configuration file as an operator would write it.

pub(crate) mod client;
pub(crate) mod faulty_link;
pub(crate) mod faulty_upstream;
pub(crate) mod hung_disk;
pub(crate) mod login_upstream;
pub(crate) mod program;
pub(crate) mod raw;
pub(crate) mod received;
pub(crate) mod redis;
pub(crate) mod scripted;
pub(crate) mod upstream;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tollgate::app::{self, BoundAddresses, ExitOutcome, ShutdownHandle};
use tollgate::config;
use tollgate::emulator::{Emulator, Settings, certificates};
use tollgate::lifecycle::TaskScope;
use tollgate::metrics::Metrics;

pub(crate) use client::Client;

pub(crate) const ADMIN: &str = "admin";
pub(crate) const ADMIN_PASSWORD: &str = "Gate-Passw0rd!";
pub(crate) const WEBAPP_PASSWORD: &str = "Webapp-Passw0rd!";

/// An emulator on a free port, as most tests need it: no limits, TLS.
pub(crate) async fn emulator() -> Emulator {
    emulator_with(Settings::for_tests()).await
}

pub(crate) async fn emulator_with(settings: Settings) -> Emulator {
    let scope = TaskScope::new(tokio::runtime::Handle::current());
    Emulator::start(settings, &scope).await.unwrap()
}

/// The parts of a configuration that tests vary.
#[derive(Clone, Debug, Default)]
pub(crate) struct Setup {
    pub(crate) listener: String,
    pub(crate) upstream: String,
    pub(crate) users: String,
    pub(crate) rest: String,
}

impl Setup {
    pub(crate) fn upstream(mut self, lines: &str) -> Self {
        self.upstream.push_str(lines);
        self.upstream.push('\n');
        self
    }

    pub(crate) fn users(mut self, lines: &str) -> Self {
        self.users.push_str(lines);
        self.users.push('\n');
        self
    }

    pub(crate) fn listener(mut self, lines: &str) -> Self {
        self.listener.push_str(lines);
        self.listener.push('\n');
        self
    }

    /// Whole sections.
    pub(crate) fn rest(mut self, lines: &str) -> Self {
        self.rest.push_str(lines);
        self.rest.push('\n');
        self
    }
}

/// A running gate. Dropping it drains it.
pub(crate) struct Gateway {
    pub(crate) addresses: BoundAddresses,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) steering: ShutdownHandle,
    pub(crate) folder: TempDir,
    running: Option<tokio::task::JoinHandle<ExitOutcome>>,
}

impl Gateway {
    pub(crate) async fn with(webapp: &Emulator, setup: Setup) -> Self {
        Self::changed(webapp, &setup, |text| text).await
    }

    /// The same, with some of the common lines replaced.
    pub(crate) async fn changed(
        webapp: &Emulator,
        setup: &Setup,
        change: impl FnOnce(String) -> String,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = written(folder.path(), webapp, setup, change);
        Self::from_file(folder, file).await
    }

    /// A gate in front of a plain HTTP server at `url`.
    pub(crate) async fn before(url: &str, setup: Setup) -> Self {
        let folder = tempfile::tempdir().unwrap();
        certificates::make(&folder.path().join("certs")).unwrap();
        for (name, text) in [
            ("webapp-password", WEBAPP_PASSWORD),
            ("gate-password", ADMIN_PASSWORD),
        ] {
            secret(&folder.path().join(name), text);
        }
        let file = folder.path().join("config.toml");
        let trust = "ca = \"webapp-ca.pem\"\nserver_name = \"localhost\"";
        let plain = text(&setup, url).replace(trust, "");
        std::fs::write(&file, plain).unwrap();
        Self::from_file(folder, file).await
    }

    /// A gate with this configuration, with certificates and secrets beside it.
    pub(crate) async fn of_text(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        certificates::make(&folder.path().join("certs")).unwrap();
        secret(&folder.path().join("webapp-password"), WEBAPP_PASSWORD);
        let file = folder.path().join("config.toml");
        std::fs::write(&file, text).unwrap();
        Self::from_file(folder, file).await
    }

    /// The same with more secrets beside the configuration.
    pub(crate) async fn with_secrets(
        webapp: &Emulator,
        setup: Setup,
        secrets: &[(&str, &str)],
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        prepare(folder.path(), webapp);
        for (name, text) in secrets {
            secret(&folder.path().join(name), text);
        }
        let file = folder.path().join("config.toml");
        std::fs::write(
            &file,
            text(&setup, &format!("https://{}", webapp.address())),
        )
        .unwrap();
        Self::from_file(folder, file).await
    }

    /// Starts from an existing file.
    pub(crate) async fn from_file(folder: TempDir, file: PathBuf) -> Self {
        let loaded = config::load(&file).unwrap_or_else(|problems| panic!("{problems}"));
        let steering = ShutdownHandle::default();
        let bound = app::bind(Arc::new(loaded.config), Some(file), &steering.quit);
        let bound = bound.await.unwrap();
        let addresses = bound.addresses();
        let metrics = bound.metrics();
        let run = bound.run(steering.clone());
        let running = tokio::spawn(async move { run.await.unwrap() });
        Self {
            addresses,
            metrics,
            steering,
            folder,
            running: Some(running),
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!(
            "https://localhost:{}{path}",
            self.addresses.listeners[0].port()
        )
    }

    pub(crate) fn operator_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addresses.operator)
    }

    pub(crate) fn config_file(&self) -> PathBuf {
        self.folder.path().join("config.toml")
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self)
    }

    pub(crate) async fn admin(&self) -> Client {
        self.client().logged_in(ADMIN, ADMIN_PASSWORD).await
    }

    /// Drains the gate and returns the outcome.
    pub(crate) async fn stop(mut self) -> ExitOutcome {
        self.drain().await
    }

    async fn drain(&mut self) -> ExitOutcome {
        self.steering.quit.cancel();
        let running = self.running.take().unwrap();
        tokio::time::timeout(Duration::from_secs(60), running)
            .await
            .expect("ends")
            .unwrap()
    }

    /// Stops the gate; returns the folder with its configuration and store.
    pub(crate) async fn into_folder(mut self) -> TempDir {
        self.drain().await;
        std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap())
    }

    /// Stops the gate and starts it again with its current configuration file.
    pub(crate) async fn restart(self) -> Self {
        let file = self.config_file();
        Self::from_file(self.into_folder().await, file).await
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.steering.quit.cancel();
        self.steering.quit_now.cancel();
    }
}

/// Certificates and secrets beside the configuration.
pub(crate) fn prepare(folder: &Path, webapp: &Emulator) {
    certificates::make(&folder.join("certs")).unwrap();
    std::fs::write(folder.join("webapp-ca.pem"), webapp.authority_pem()).unwrap();
    for (name, text) in [
        ("webapp-password", WEBAPP_PASSWORD),
        ("gate-password", ADMIN_PASSWORD),
    ] {
        secret(&folder.join(name), text);
    }
}

/// Writes everything that a gate in front of `webapp` needs; returns its configuration file.
pub(crate) fn written(
    folder: &Path,
    webapp: &Emulator,
    setup: &Setup,
    change: impl FnOnce(String) -> String,
) -> PathBuf {
    prepare(folder, webapp);
    let file = folder.join("config.toml");
    let text = text(setup, &format!("https://{}", webapp.address()));
    std::fs::write(&file, change(text)).unwrap();
    file
}

/// Writes a secret's file that only its owner can read.
pub(crate) fn secret(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// A configuration file for a gate in front of `url`.
pub(crate) fn text(setup: &Setup, url: &str) -> String {
    let given = ["first_admin", "directory = \"webapp\""];
    let admin = if given.iter().any(|key| setup.users.contains(key)) {
        String::new()
    } else {
        format!(
            "first_admin = {{ username = \"{ADMIN}\", password = {{ file = \"gate-password\" }} }}"
        )
    };
    format!(
        r#"
profile = "whatsapp"
workers = 2

[[listener]]
address = "127.0.0.1:0"
tls = {{ certificates = [{{ certificate = "certs/server.pem", key = "certs/server.key" }}] }}
{listener}

[operator]
address = "127.0.0.1:0"

[upstream.main]
url = "{url}"
ca = "webapp-ca.pem"
server_name = "localhost"
login = {{ username = "admin", password = {{ file = "webapp-password" }} }}
{upstream}

[users]
{admin}
{users}

{log}

[drain]
wait = "0s"
deadline = "20s"

{rest}
"#,
        log = if setup.rest.contains("[log]") {
            ""
        } else {
            "[log]\nformat = \"text\""
        },
        listener = setup.listener,
        upstream = setup.upstream,
        users = setup.users,
        rest = setup.rest,
    )
}

/// The hex digest of an API key, as in the configuration.
pub(crate) fn sha256(text: &str) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(text)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Limits that no test reaches by accident.
pub(crate) const NO_LIMITS: &str = r#"
[limits]
logins_by_peer = "100000/s burst 100000"
logins_by_name = "100000/s burst 100000"
max_in_flight = 100000

[[limit]]
name = "messages"
key = "class"
classes = ["messages"]
rate = "100000/s"
burst = 100000

[[limit]]
name = "nodes"
key = "class"
rate = "100000/s"
burst = 100000
"#;

/// Waits until `condition` holds; panics with its description after the deadline.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "timeout: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
