//! The fleet that a first run can show: several emulated Webapps in the gate's own process.

use std::net::TcpListener;
use std::process::Command;

use crate::harness::program::Program;
use crate::harness::secret;

const PASSWORD: &str = "Gate-Passw0rd!";

/// The first of four free ports in a row.
fn four_ports() -> u16 {
    loop {
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = first.local_addr().unwrap().port();
        let is_free = |offset| {
            let port = port.checked_add(offset)?;
            TcpListener::bind(("127.0.0.1", port)).ok()
        };
        let others: Vec<_> = (1..4).map_while(is_free).collect();
        if others.len() == 3 {
            return port;
        }
    }
}

fn config(port: u16) -> String {
    let upstream = |name: &str, port: u16| {
        format!(
            "[upstream.{name}]\nurl = \"https://127.0.0.1:{port}\"\nca = \"certs/webapp-ca.pem\"\n\
             server_name = \"localhost\"\nhosts = [\"{name}.gate.internal\"]\n\
             login = {{ username = \"admin\", password = {{ file = \"certs/webapp-password\" }} }}\n"
        )
    };
    format!(
        r#"
[[listener]]
address = "127.0.0.1:0"
tls = {{ certificates = [{{ certificate = "certs/server.pem", key = "certs/server.key" }}] }}
[operator]
address = "127.0.0.1:0"
{north}
{south}
[users]
first_admin = {{ username = "admin", password = {{ file = "password" }}, must_change = false }}
[store]
path = "memory"
[drain]
wait = "0s"
[log]
format = "text"
[emulator]
count = 2
address = "127.0.0.1:{port}"
control = "127.0.0.1:{control}"
"#,
        north = upstream("north", port),
        south = upstream("south", port + 2),
        control = port + 1,
    )
}

/// The status of a request, by curl.
fn status(words: &[&str], url: &str) -> String {
    let output = Command::new("curl")
        .args(["-sk", "-o", "/dev/null", "-w", "%{http_code}"])
        .args(words)
        .arg(url)
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_first_run_can_show_a_fleet_of_emulated_webapps() {
    let folder = tempfile::tempdir().unwrap();
    secret(&folder.path().join("password"), PASSWORD);
    let file = folder.path().join("config.toml");
    let port = four_ports();
    std::fs::write(&file, config(port)).unwrap();
    let mut program = Program::serve(&file);
    program.wait_for("ready to accept");
    for (name, port) in [("north", port), ("south", port + 2)] {
        let line = program.wait_for(&format!("behind    {name}, https://127.0.0.1:{port}"));
        let switches = format!("http://127.0.0.1:{}", port + 1);
        assert!(line.contains(&switches), "{line}");
    }
    let lines = program.lines();
    let pasted = lines.iter().map(|line| line.trim());
    let pasted: Vec<&str> = pasted
        .filter(|line| line.starts_with("curl ") || line.starts_with("TOKEN="))
        .collect();
    let mut shell = Command::new("sh");
    shell.args(["-c", &pasted.join("\n")]);
    let output = shell.current_dir(folder.path()).output().unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    assert!(output.contains("gateway_status"), "{pasted:#?}\n{output}");

    let login = |host: &str| {
        let user = format!("admin:{PASSWORD}");
        let words = ["-u", &user, "-X", "POST", "-H", &format!("Host: {host}")];
        status(&words, &program.url("/v1/users/login"))
    };
    assert_eq!(login("north.gate.internal"), "200");
    assert_eq!(login("east.gate.internal"), "404");

    // Each has switches of its own.
    let control = format!("http://127.0.0.1:{}/faults", port + 3);
    assert_eq!(status(&["-d", r#"{"respond_503": 1}"#], &control), "200");
    let webapp = |port: u16| {
        let url = format!("https://127.0.0.1:{port}/v1/health");
        status(&[], &url)
    };
    assert_eq!(webapp(port), "401");
    assert_eq!(webapp(port + 2), "503");
    program.signal("INT");
    assert_eq!(program.wait().code(), Some(0));
}
