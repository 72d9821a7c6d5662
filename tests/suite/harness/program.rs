//! The real binary, as an operator starts it.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A running `tollgate serve`. Killed when dropped.
pub(crate) struct Program {
    child: Child,
    output: Arc<Mutex<Vec<String>>>,
    pub(crate) listener: u16,
    pub(crate) operator: u16,
}

impl Program {
    /// Starts the program and waits until it logs its addresses.
    pub(crate) fn serve(file: &Path) -> Self {
        let mut command = Command::new(binary());
        command.args(["serve", "--config"]).arg(file);
        Self::start(command)
    }

    /// The same, with a command of the test.
    pub(crate) fn start(command: Command) -> Self {
        let mut program = Self::with_ports(command, (0, 0));
        program.listener = program.port_after("gate");
        program.operator = program.port_after("operator");
        program
    }

    /// A program whose ports the test has chosen.
    pub(crate) fn with_ports(mut command: Command, (listener, operator): (u16, u16)) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = Arc::new(Mutex::new(Vec::new()));
        follow(child.stdout.take().unwrap(), &output);
        follow(child.stderr.take().unwrap(), &output);
        Self {
            child,
            output,
            listener,
            operator,
        }
    }

    fn port_after(&self, what: &str) -> u16 {
        let line = self.wait_for(&format!("  {what} "));
        let digits: String = line
            .trim_end()
            .rsplit(':')
            .next()
            .unwrap()
            .chars()
            .take_while(char::is_ascii_digit)
            .collect();
        digits
            .parse()
            .unwrap_or_else(|_| panic!("no port in {line:?}"))
    }

    /// The first line of output that contains `text`.
    pub(crate) fn wait_for(&self, text: &str) -> String {
        let begin = Instant::now();
        loop {
            let found = self.lines().into_iter().find(|line| line.contains(text));
            match found {
                Some(line) => return line,
                None if begin.elapsed() > Duration::from_secs(30) => {
                    panic!("timeout: no {text:?} in\n{}", self.lines().join("\n"))
                }
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.output.lock().unwrap().clone()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.listener)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args(["-s", name, &self.pid().to_string()])
            .status();
        assert!(status.unwrap().success());
    }

    /// Stops the process, and waits until each of its threads has stopped: on a busy machine some run
    /// on for a while.
    pub(crate) fn suspend(&self) {
        self.signal("STOP");
        let has_stopped = |thread: std::io::Result<std::fs::DirEntry>| {
            let stat = std::fs::read_to_string(thread.unwrap().path().join("stat")).unwrap();
            let (_, state) = stat.rsplit_once(") ").unwrap();
            state.starts_with('T')
        };
        let threads = format!("/proc/{}/task", self.pid());
        while !std::fs::read_dir(&threads).unwrap().all(has_stopped) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Resident memory in KiB.
    pub(crate) fn resident(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = text
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// CPU time used so far, in hundredths of a second.
    pub(crate) fn cpu_ticks(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        // The command's name may contain spaces; it ends at the last parenthesis.
        let (_, fields) = text.rsplit_once(')').unwrap();
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let number = |at: usize| fields[at].parse::<u64>().unwrap();
        number(11) + number(12)
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        let begin = Instant::now();
        loop {
            match self.child.try_wait().unwrap() {
                Some(status) => return status,
                None if begin.elapsed() > Duration::from_secs(60) => {
                    panic!("the program does not end")
                }
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A free port.
pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// The ports of the shipped configuration, each with a free port. None contains another one's
/// digits, so that they can be replaced one after the other.
pub(crate) fn shipped_ports() -> Vec<(&'static str, String)> {
    const SHIPPED: [&str; 4] = ["8443", "9090", "9443", "9444"];
    let mut all: Vec<(&str, String)> = Vec::new();
    while all.len() < SHIPPED.len() {
        let port = free_port().to_string();
        let is_taken = all.iter().any(|(_, other)| *other == port);
        if !is_taken && !SHIPPED.iter().any(|shipped| port.contains(shipped)) {
            all.push((SHIPPED[all.len()], port));
        }
    }
    all
}

/// A configuration with these ports for listener and operator instead of any free ones.
pub(crate) fn at_ports(text: &str, (listener, operator): (u16, u16)) -> String {
    text.replacen("127.0.0.1:0", &format!("127.0.0.1:{listener}"), 1)
        .replacen("127.0.0.1:0", &format!("127.0.0.1:{operator}"), 1)
}

pub(crate) fn binary() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_tollgate"))
}

fn follow(from: impl std::io::Read + Send + 'static, into: &Arc<Mutex<Vec<String>>>) {
    let into = Arc::clone(into);
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            into.lock().unwrap().push(line);
        }
    });
}
