//! A real redis-server, from Debian, on its own port.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub(crate) struct RedisServer {
    pub(crate) port: u16,
    host: String,
    program: &'static str,
    args: Vec<String>,
    folder: TempDir,
    child: Option<Child>,
}

/// A free port.
pub(crate) fn free_port() -> u16 {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap().port()
}

impl RedisServer {
    /// Keeps everything in memory and nothing on disk.
    pub(crate) fn start() -> Self {
        Self::with(&[])
    }

    pub(crate) fn with(args: &[&str]) -> Self {
        let mut all = vec!["--save", "", "--appendonly", "no", "--bind", "127.0.0.1"];
        all.extend(args);
        Self::program("redis-server", None, &all)
    }

    /// `first`: a configuration file's text, for a Sentinel.
    pub(crate) fn program(program: &'static str, first: Option<&str>, args: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut all = Vec::new();
        if let Some(text) = first {
            let file = folder.path().join("server.conf");
            std::fs::write(&file, text).unwrap();
            all.push(file.display().to_string());
        }
        all.extend(args.iter().map(|arg| (*arg).to_owned()));
        let mut server = Self {
            port: free_port(),
            host: "127.0.0.1".to_owned(),
            program,
            args: all,
            folder,
            child: None,
        };
        server.start_again();
        server
    }

    /// In its own network namespace, reached at `host`.
    pub(crate) fn in_network(name: &str, host: &str) -> Self {
        let args = [
            "netns",
            "exec",
            name,
            "redis-server",
            "--save",
            "",
            "--protected-mode",
            "no",
        ];
        let mut server = Self {
            port: free_port(),
            host: host.to_owned(),
            program: "ip",
            args: args.map(str::to_owned).to_vec(),
            folder: tempfile::tempdir().unwrap(),
            child: None,
        };
        server.start_again();
        server
    }

    /// Starts the server on the same port, with the data on its disk: none, unless it was configured
    /// to save data.
    pub(crate) fn start_again(&mut self) {
        let log = std::fs::File::create(self.folder.path().join("log")).unwrap();
        let child = Command::new(self.program)
            .args(&self.args)
            .args(["--port", &self.port.to_string()])
            .args(["--dir", &self.folder.path().display().to_string()])
            .stdout(Stdio::from(log.try_clone().unwrap()))
            .stderr(Stdio::from(log))
            .spawn()
            .expect("redis-server is installed: tests/run.sh does it");
        self.child = Some(child);
        let deadline = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect((self.host.as_str(), self.port)).is_err() {
            assert!(Instant::now() < deadline, "redis-server did not start");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}:{}", self.host, self.port)
    }

    fn signal(&self, name: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        let sent = Command::new("kill").args([name, &pid]).status().unwrap();
        assert!(sent.success());
    }

    /// Ends the server with SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Suspends the server (SIGSTOP); connections stay open.
    pub(crate) fn freeze(&self) {
        self.signal("-STOP");
    }

    pub(crate) fn thaw(&self) {
        self.signal("-CONT");
    }

    pub(crate) fn try_query<T: redis::FromRedisValue>(
        &self,
        words: &[&str],
    ) -> redis::RedisResult<T> {
        let client = redis::Client::open(self.url())?;
        let mut connection = client.get_connection_with_timeout(Duration::from_secs(10))?;
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query(&mut connection)
    }

    pub(crate) fn query<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        self.try_query(words).unwrap()
    }

    /// The number of calls of each command, from INFO.
    pub(crate) fn calls(&self, command: &str) -> u64 {
        let stats: String = self.query(&["INFO", "commandstats"]);
        let start = format!("cmdstat_{command}:calls=");
        stats
            .lines()
            .find_map(|line| line.strip_prefix(&start)?.split(',').next()?.parse().ok())
            .unwrap_or(0)
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}
