//! The environment of a document's commands: a folder, the programs that they call, and running
//! servers.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::blocks::top;
use crate::harness::program::{Program, binary, shipped_ports};
use crate::harness::redis::RedisServer;
use crate::harness::secret;

/// The ports of the shipped configuration, each with a free port.
pub(super) struct Ports(Vec<(&'static str, String)>);

impl Ports {
    pub(super) fn free() -> Self {
        Self(shipped_ports())
    }

    /// `text` with the free ports in place of the documented ones.
    pub(super) fn put_into(&self, text: &str) -> String {
        let swap =
            |text: String, (documented, actual): &(&str, String)| text.replace(documented, actual);
        self.0.iter().fold(text.to_owned(), swap)
    }
}

/// One folder with everything that the commands need.
pub(super) struct Situation {
    pub(super) folder: TempDir,
    pub(super) ports: Ports,
    gate: Option<Program>,
    _redis: Option<RedisServer>,
}

impl Situation {
    /// A folder like the top of the source tree, with the shipped configuration.
    pub(super) fn shipped() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ports = Ports::free();
        let text = std::fs::read_to_string(top().join("config.toml")).unwrap();
        // Defaults with a port are in comments.
        let text = ports.put_into(&text.replace("# address = \"", "address = \""));
        std::fs::write(folder.path().join("config.toml"), text).unwrap();
        let situation = Self {
            folder,
            ports,
            gate: None,
            _redis: None,
        };
        situation.program(
            "cargo",
            "[ \"$*\" = 'run --release' ] || exit 1\nexec tollgate\n",
        );
        std::os::unix::fs::symlink(binary(), situation.programs().join("tollgate")).unwrap();
        // An error status counts as a failure.
        std::fs::write(situation.folder.path().join(".curlrc"), "fail\n").unwrap();
        situation
    }

    /// The environment named in `sh with=NAME`.
    pub(super) fn named(name: &str) -> Self {
        let mut situation = Self::shipped();
        match name {
            // The demo runs with an operator's token; an API key `bot` was made.
            "gate" => {
                situation.set_operator_token();
                situation.serve("tollgate");
                situation.run("curl -s -H \"Authorization: Bearer $(cat operator-token)\" http://127.0.0.1:9090/keys -d '{\"name\": \"bot\"}'");
            }
            // A gate has run and is stopped; other.jsonl was exported elsewhere.
            "stopped-gate" => {
                situation.serve("tollgate");
                situation.stop();
                situation.run("tollgate store export > other.jsonl");
            }
            // A gate with a store file runs as a service; new.toml names a Redis server.
            "service" => situation.make_service(),
            other => panic!("there is no situation {other:?}"),
        }
        situation
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn programs(&self) -> PathBuf {
        let folder = self.path("bin");
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn program(&self, name: &str, script: &str) {
        let path = self.programs().join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn set_operator_token(&self) {
        secret(&self.path("operator-token"), "an-operator-token");
        let text = std::fs::read_to_string(self.path("config.toml")).unwrap();
        let section = "[operator]\ntoken = { file = \"operator-token\" }";
        std::fs::write(
            self.path("config.toml"),
            text.replacen("[operator]", section, 1),
        )
        .unwrap();
    }

    fn make_service(&mut self) {
        let redis = RedisServer::start();
        let text = std::fs::read_to_string(self.path("config.toml")).unwrap();
        std::fs::write(self.path("old.toml"), &text).unwrap();
        let store = format!("\n[store]\nurl = \"{}\"\n", redis.url());
        let shared = text.replacen("\n[store]\n", &store, 1);
        assert_ne!(text, shared, "the shipped file has no [store] section");
        std::fs::write(self.path("new.toml"), shared).unwrap();
        self._redis = Some(redis);
        let start = "tollgate --config new.toml >service.log 2>&1 & echo $! >pid";
        let stop = "kill $(cat pid); while kill -0 $(cat pid) 2>/dev/null; do sleep 0.1; done";
        let wait = "until curl -s http://127.0.0.1:9090/readyz >/dev/null; do sleep 0.1; done";
        let wait = self.ports.put_into(wait);
        self.program(
            "systemctl",
            &format!("case $1 in stop) {stop};; start) {start}; {wait};; *) exit 1;; esac\n"),
        );
        self.run(&format!(
            "{}; {wait}",
            start.replace("new.toml", "old.toml")
        ));
    }

    fn command(&self, script: &str) -> Command {
        let mut command = Command::new("sh");
        let path = std::env::var("PATH").unwrap();
        command
            .args(["-e", "-c", &self.ports.put_into(script)])
            .current_dir(self.folder.path())
            .env("PATH", format!("{}:{path}", self.programs().display()))
            .env("CURL_HOME", self.folder.path());
        command
    }

    /// Runs commands to their end; returns their output.
    pub(super) fn run(&self, script: &str) -> String {
        let output = self.command(script).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{script}\n{text}\n{error}");
        text.into_owned()
    }

    /// Starts a command that runs until `stop`.
    pub(super) fn serve(&mut self, script: &str) {
        let mut command = self.command(&format!("exec {script}"));
        command.process_group(0);
        let gate = Program::with_ports(command, (0, 0));
        gate.wait_for("/readyz");
        gate.wait_for("ready to accept");
        self.gate = Some(gate);
        let ready = "until curl -s http://127.0.0.1:9090/readyz >/dev/null; do sleep 0.1; done";
        self.run(ready);
    }

    pub(super) fn is_serving(&self) -> bool {
        self.gate.is_some()
    }

    /// The output of the running command so far.
    pub(super) fn served(&self) -> String {
        self.gate.as_ref().unwrap().lines().join("\n")
    }

    pub(super) fn stop(&mut self) {
        let mut gate = self.gate.take().unwrap();
        gate.signal("INT");
        assert_eq!(
            gate.wait().code(),
            Some(0),
            "Ctrl-C drains and exits with 0"
        );
    }
}

impl Drop for Situation {
    /// Stops the service, which has no parent process to stop it.
    fn drop(&mut self) {
        if let Ok(pid) = std::fs::read_to_string(self.path("pid")) {
            let _ = Command::new("kill")
                .args(["-s", "KILL", pid.trim()])
                .status();
        }
    }
}

/// The text with each generated password replaced by the same word.
pub(super) fn without_passwords(text: &str) -> String {
    let is_group =
        |group: &str| group.len() == 6 && group.bytes().all(|c| c.is_ascii_alphanumeric());
    let mut text = text.to_owned();
    let mut at = 0;
    while at + 27 <= text.len() {
        let is_password = text.is_char_boundary(at)
            && text.is_char_boundary(at + 27)
            && text[at..at + 27].split('-').count() == 4
            && text[at..at + 27].split('-').all(is_group);
        if is_password {
            text.replace_range(at..at + 27, "PASSWORD");
        }
        at += 1;
    }
    text
}

/// Whether `printed` has the lines of `documented`, in sequence.
pub(super) fn has_lines(printed: &str, documented: &str) -> bool {
    let printed: Vec<String> = without_passwords(printed)
        .lines()
        .map(str::to_owned)
        .collect();
    let documented: Vec<String> = without_passwords(documented)
        .lines()
        .map(str::to_owned)
        .collect();
    printed
        .windows(documented.len())
        .any(|window| window == documented)
}

/// The programs that a block names by a path of the tree.
pub(super) fn named_programs(text: &str) -> Vec<&Path> {
    let words = text.split_whitespace();
    words
        .filter(|word| word.starts_with("./"))
        .map(Path::new)
        .collect()
}
