//! `tollgate health`, and the container files that use it.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::program::{Program, at_ports, binary, free_port};
use crate::harness::{NO_LIMITS, Setup, emulator, eventually, written};

fn health(file: &Path, arguments: &[&str]) -> (i32, String) {
    let mut command = Command::new(binary());
    command
        .arg("health")
        .args(arguments)
        .arg("--config")
        .arg(file);
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let message = String::from_utf8(stdout).unwrap();
    assert!(stderr.is_empty(), "{}", String::from_utf8_lossy(&stderr));
    assert_eq!(message.lines().count(), 1, "{message}");
    (status.code().unwrap(), message)
}

#[tokio::test(flavor = "multi_thread")]
async fn health_prints_the_state_of_the_running_gate_in_one_line() {
    let webapp = emulator().await;
    let folder = tempfile::tempdir().unwrap();
    let ports = (free_port(), free_port());
    // Bound to any address, as in a container.
    let setup = Setup::default().rest(NO_LIMITS);
    let file = written(folder.path(), &webapp, &setup, |text| {
        let text = at_ports(&text, ports);
        let operator = format!("127.0.0.1:{}", ports.1);
        text.replace(&operator, &format!("0.0.0.0:{}", ports.1))
    });
    let (code, message) = health(&file, &[]);
    assert_eq!(code, 1);
    assert!(
        message.starts_with("no gate answers at 0.0.0.0:"),
        "{message}"
    );

    let mut command = Command::new(binary());
    command.args(["serve", "--config"]).arg(&file);
    let mut program = Program::with_ports(command, ports);
    program.wait_for("ready to accept");
    assert_eq!(health(&file, &[]), (0, "ok\n".to_owned()));
    eventually("ready", async || health(&file, &["--ready"]).0 == 0).await;

    // A gate that is not ready is alive; errors in the file after the start do not matter.
    webapp.fail_next_logins(1_000_000, tollgate::emulator::LoginResponse::Status(503));
    webapp.expire_all_tokens();
    program.signal("STOP");
    eventually("the process is stopped", async || {
        let state = std::fs::read_to_string(format!("/proc/{}/status", program.pid()));
        state.unwrap().contains("State:\tT")
    })
    .await;
    let begin = Instant::now();
    let (code, message) = health(&file, &[]);
    assert_eq!(code, 1, "a hanging program is unhealthy");
    assert!(message.contains("no response within 3s"), "{message}");
    assert!(begin.elapsed() < Duration::from_secs(5));
    program.signal("CONT");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{text}\n[nonsense]\n")).unwrap();
    assert_eq!(health(&file, &[]).0, 0);
    program.signal("TERM");
    program.wait();
}

#[tokio::test(flavor = "multi_thread")]
async fn health_ready_prints_the_reason() {
    let webapp = emulator().await;
    webapp.fail_next_logins(1_000_000, tollgate::emulator::LoginResponse::Status(503));
    let folder = tempfile::tempdir().unwrap();
    let ports = (free_port(), free_port());
    let file = written(folder.path(), &webapp, &Setup::default(), |text| {
        at_ports(&text, ports)
    });
    let mut command = Command::new(binary());
    command.args(["serve", "--config"]).arg(&file);
    let program = Program::with_ports(command, ports);
    program.wait_for("ready to accept");
    assert_eq!(health(&file, &[]).0, 0);
    let (code, message) = health(&file, &["--ready"]);
    assert_eq!(code, 1);
    assert!(message.contains("upstream login"), "{message}");
}

#[test]
fn a_server_that_is_no_gate_is_unhealthy() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    let operator = format!(
        "[operator]\naddress = \"{}\"\n",
        listener.local_addr().unwrap()
    );
    std::fs::write(&file, operator).unwrap();
    let other = std::thread::spawn(move || {
        let (mut tcp, _) = listener.accept().unwrap();
        let _ = std::io::Read::read(&mut tcp, &mut [0; 1024]);
        std::io::Write::write_all(&mut tcp, b"220 smtp.example ready\r\n").unwrap();
    });
    // This file is not a complete configuration, so there is no address to check.
    let mut command = Command::new(binary());
    command.args(["health", "--config"]).arg(&file);
    assert_eq!(command.output().unwrap().status.code(), Some(1));
    let whole = "[[listener]]\naddress = \"127.0.0.1:0\"\n[upstream.main]\nurl = \"http://127.0.0.1:1\"\n\
                 login = { username = \"admin\", password = { env = \"PATH\" } }\n";
    let operator = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{operator}{whole}")).unwrap();
    let (code, message) = health(&file, &[]);
    assert_eq!(code, 1);
    assert!(message.contains("is no gate"), "{message}");
    other.join().unwrap();
}

fn deployed(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("deploy")
        .join(name);
    std::fs::read_to_string(path).unwrap()
}

/// compose.yaml as JSON, read by a YAML parser.
fn compose() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/compose.yaml");
    let script = "import json, sys, yaml; print(json.dumps(yaml.safe_load(open(sys.argv[1]))))";
    let output = Command::new("/usr/bin/python3")
        .args(["-c", script])
        .arg(path)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "python3-yaml: tests/run.sh installs it"
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

fn texts(value: &Value) -> Vec<&str> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|text| text.as_str().unwrap())
        .collect()
}

#[test]
fn the_container_has_a_health_check_and_does_not_publish_the_operators_port() {
    let compose = compose();
    let gate = &compose["services"]["tollgate"];
    let watch = &gate["healthcheck"]["test"];
    let image = deployed("Dockerfile");
    let (_, own) = image
        .split_once("HEALTHCHECK ")
        .expect("the image has a health check too");
    let (_, own) = own.split_once("CMD ").unwrap();
    let own: Value = serde_json::from_str(own.lines().next().unwrap()).unwrap();
    assert_eq!(
        texts(watch)[1..],
        texts(&own),
        "image and compose use the same command"
    );
    assert_eq!(texts(watch)[..3], ["CMD", "/tollgate", "health"]);

    let config: toml::Table = deployed("tollgate.toml").parse().unwrap();
    let operator: std::net::SocketAddr = config["operator"]["address"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(operator.ip().is_unspecified(), "other containers reach it");
    assert_eq!(texts(&gate["expose"]), [operator.port().to_string()]);
    assert!(image.contains(&format!("EXPOSE 8443 {}", operator.port())));
    assert_eq!(
        texts(&gate["ports"]),
        ["8443:8443"],
        "clients reach only the gate"
    );
    assert_eq!(compose["networks"]["monitoring"]["internal"], true);
    for network in texts(&gate["networks"]) {
        assert!(
            compose["networks"].get(network).is_some(),
            "{network} is not declared"
        );
    }
    let mounted = texts(&gate["secrets"]);
    for secret in &mounted {
        assert!(
            compose["secrets"].get(secret).is_some(),
            "{secret} is not declared"
        );
    }
    for word in deployed("tollgate.toml").split('"') {
        if let Some(secret) = word.strip_prefix("/run/secrets/") {
            assert!(mounted.contains(&secret), "{secret} is not mounted");
        }
    }
}
