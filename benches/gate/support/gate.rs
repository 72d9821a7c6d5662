//! The real binary with a configuration of its own and the default costs: keyed
//! limits that are never reached, metrics, an access line for each request.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tollgate::emulator::certificates;

pub(crate) const ADMIN: &str = "admin";
pub(crate) const PASSWORD: &str = "Gate-Passw0rd!";
const START: Duration = Duration::from_secs(300);
const STOP: Duration = Duration::from_secs(120);

/// What benches vary.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// Lines of `[upstream.main]`, url among them.
    pub(crate) upstream: String,
    /// Lines of `[[listener]]`.
    pub(crate) listener: String,
    /// Further sections.
    pub(crate) more: String,
    /// Beside the configuration.
    pub(crate) files: Vec<(&'static str, String)>,
    pub(crate) tls: bool,
    pub(crate) workers: usize,
    /// A command in front of the program, such as valgrind.
    pub(crate) wrapper: Vec<String>,
    pub(crate) binary: PathBuf,
    /// A store file to start with; it is copied.
    pub(crate) store: Option<PathBuf>,
}

impl Default for Setup {
    /// The binary of this build, one worker, no TLS; no upstream yet.
    fn default() -> Self {
        Self {
            upstream: String::new(),
            listener: String::new(),
            more: String::new(),
            files: Vec::new(),
            tls: false,
            workers: 1,
            wrapper: Vec::new(),
            binary: PathBuf::from(env!("CARGO_BIN_EXE_tollgate")),
            store: None,
        }
    }
}

/// A running gate, killed when dropped.
pub(crate) struct Gate {
    child: Child,
    folder: TempDir,
    pub(crate) port: u16,
    operator: u16,
}

impl Gate {
    pub(crate) fn start(setup: &Setup) -> Self {
        let folder = tempfile::tempdir().unwrap();
        certificates::make(&folder.path().join("certs")).unwrap();
        for (name, secret) in [
            ("webapp-password", "Webapp-Passw0rd!"),
            ("password", PASSWORD),
        ] {
            let file = folder.path().join(name);
            std::fs::write(&file, secret).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        }
        for (name, text) in &setup.files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        if let Some(store) = &setup.store {
            std::fs::create_dir(folder.path().join("data")).unwrap();
            std::fs::copy(store, folder.path().join("data/tollgate.redb")).unwrap();
        }
        let config = folder.path().join("config.toml");
        std::fs::write(&config, text(setup)).unwrap();
        let mut words = setup.wrapper.iter().map(String::as_str);
        let mut command = match words.next() {
            None => Command::new(&setup.binary),
            Some(wrapper) => {
                let mut command = Command::new(wrapper);
                command.args(words).arg(&setup.binary);
                command
            }
        };
        let log = folder.path().join("log");
        let child = command
            .args(["serve", "--config"])
            .arg(&config)
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(&log).unwrap())
            .stderr(std::fs::File::create(folder.path().join("errors")).unwrap())
            .spawn()
            .unwrap();
        let mut gate = Self {
            child,
            folder,
            port: 0,
            operator: 0,
        };
        gate.port = gate.wait_for_port(&log, "\"listening\"");
        gate.operator = gate.wait_for_port(&log, "\"operator's listener\"");
        gate
    }

    /// The port in the log line that contains `what`.
    fn wait_for_port(&mut self, log: &Path, what: &str) -> u16 {
        let begin = Instant::now();
        loop {
            let text = std::fs::read_to_string(log).unwrap();
            let line = text.lines().find(|line| line.contains(what));
            if let Some((_, rest)) =
                line.and_then(|line| line.split_once("\"address\":\"127.0.0.1:"))
            {
                let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
                return digits.parse().unwrap();
            }
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none() && begin.elapsed() < START,
                "the gate did not start: {ended:?}\n{text}\n{}",
                std::fs::read_to_string(self.folder.path().join("errors")).unwrap()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The sum of a metric over its labels.
    pub(crate) fn counted(&self, name: &str) -> u64 {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.operator)).unwrap();
        let request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(request).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.contains(name), "no metric {name}");
        text.lines()
            .filter(|line| line.starts_with(name))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum::<f64>() as u64
    }

    /// Replaces `old` in the configuration, and makes the gate read it again.
    pub(crate) fn reload_after_change(&self, old: &str, new: &str) {
        let file = self.folder().join("config.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains(old), "{old}");
        std::fs::write(&file, text.replace(old, new)).unwrap();
        self.signal(Signal::HUP);
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    /// Drains the gate and waits for its end.
    pub(crate) fn stop(&mut self) {
        self.signal(Signal::TERM);
        let begin = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(begin.elapsed() < STOP, "the gate does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}

fn text(setup: &Setup) -> String {
    let tls = if setup.tls {
        r#"tls = { certificates = [{ certificate = "certs/server.pem", key = "certs/server.key" }] }"#
    } else {
        ""
    };
    format!(
        r#"
workers = {workers}

[[listener]]
address = "127.0.0.1:0"
{tls}
{listener}

[operator]
address = "127.0.0.1:0"

[upstream.main]
{upstream}
login = {{ username = "admin", password = {{ file = "webapp-password" }} }}
concurrency = 1000

[users]
first_admin = {{ username = "{ADMIN}", password = {{ file = "password" }}, must_change = false }}

[limits]
max_in_flight = 100000

[[limit]]
name = "messages"
rate = "1000000/s"
burst = 1000000

[[limit]]
name = "nodes"
rate = "1000000/s"
burst = 1000000

[[limit]]
name = "by-client"
key = "client"
rate = "1000000/s burst 1000000"

[drain]
wait = "0s"
deadline = "20s"

{more}
"#,
        workers = setup.workers,
        upstream = setup.upstream,
        listener = setup.listener,
        more = setup.more,
    )
}
