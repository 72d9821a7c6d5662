//! The first run: the shipped configuration, development certificates, lines to paste.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use crate::harness::program::{Program, binary, shipped_ports};

/// The shipped configuration in a new folder, on free ports.
fn fresh(folder: &Path) -> std::path::PathBuf {
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/config.toml");
    let text = std::fs::read_to_string(shipped).unwrap();
    // The operator's port is a default and is in a comment.
    let mut text = text.replace("# address = \"", "address = \"");
    for (port, free) in shipped_ports() {
        assert!(
            text.contains(port),
            "the shipped file has changed its ports: {port}"
        );
        text = text.replace(port, &free);
    }
    let file = folder.join("config.toml");
    std::fs::write(&file, text).unwrap();
    file
}

fn shell(folder: &Path, line: &str) -> String {
    let output = Command::new("sh")
        .args(["-c", line])
        .current_dir(folder)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}\n{error}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_first_run_makes_certificates_and_prints_lines_that_work_when_pasted() {
    let folder = tempfile::tempdir().unwrap();
    let file = fresh(folder.path());
    let mut program = Program::serve(&file);
    program.wait_for("metrics");
    let lines = program.lines();
    let pasted: Vec<&String> = lines
        .iter()
        .filter(|line| {
            line.trim_start().starts_with("curl ") || line.trim_start().starts_with("TOKEN=")
        })
        .collect();
    assert!(pasted.len() >= 2, "{}", lines.join("\n"));
    let script: Vec<&str> = pasted.iter().map(|line| line.trim()).collect();
    let output = shell(folder.path(), &script.join("\n"));
    assert!(
        output.contains("gateway_status"),
        "{output}\n{}",
        program.lines().join("\n")
    );

    for name in ["ca.key", "server.key", "webapp.key", "webapp-password"] {
        let mode = std::fs::metadata(folder.path().join("certs").join(name))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    program.signal("INT");
    assert_eq!(program.wait().code(), Some(0));

    let certificate = std::fs::read(folder.path().join("certs/server.pem")).unwrap();
    let mut again = Program::serve(&file);
    again.wait_for("metrics");
    assert_eq!(
        std::fs::read(folder.path().join("certs/server.pem")).unwrap(),
        certificate,
        "the certificates are created once"
    );
    again.wait_for("ready to accept");
    let output_text = again.lines().join("\n");
    assert!(
        output_text
            .contains("Try it (curl asks for the password; it was shown at the first start):"),
        "{output_text}"
    );
    assert!(
        !output_text.contains("checking the store before it is used"),
        "{output_text}"
    );
    let second = Command::new(binary())
        .args(["serve", "--config"])
        .arg(&file)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "the port is busy: {error}");
    assert!(error.contains("in use"), "{error}");
    again.signal("TERM");
    assert_eq!(again.wait().code(), Some(0));
}

#[test]
fn check_prints_all_problems_at_once_or_the_effective_routes() {
    let folder = tempfile::tempdir().unwrap();
    let file = fresh(folder.path());
    let check = |file: &Path| {
        let output = Command::new(binary())
            .args(["check", "--config"])
            .arg(file)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        (output.status.code(), text)
    };
    let (code, text) = check(&file);
    assert_eq!(code, Some(0), "{text}");
    for expected in ["messages.send", "/v1/messages", "webapp-password"] {
        assert!(text.contains(expected), "{expected} is not in\n{text}");
    }
    let shipped = std::fs::read_to_string(&file).unwrap();
    let broken = shipped.replace(
        "\n# workers = ",
        "\nprofil = \"whatsapp\"\nworkers = \"many\" # ",
    ) + "\n[[limit]]\nname = \"x\"\nkey = \"clint\"\nrate = \"fast\"\n";
    std::fs::write(&file, broken).unwrap();
    let (code, text) = check(&file);
    assert_eq!(code, Some(1), "{text}");
    for expected in ["profil", "did you mean", "workers", "limit[0]", "problems"] {
        assert!(text.contains(expected), "{expected} is not in\n{text}");
    }
}

#[test]
fn new_keys_and_hashes_can_be_pasted_into_the_configuration() {
    let run = |arguments: &[&str], input: &str| {
        use std::io::Write as _;
        let mut child = Command::new(binary())
            .args(arguments)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(input.as_bytes())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    let key = run(&["new-key"], "");
    let text = key
        .split_whitespace()
        .find(|word| word.starts_with("tgk_"))
        .expect("a key");
    assert!(key.contains(&crate::harness::sha256(text)), "{key}");
    assert!(run(&["hash-password"], "Some-Passw0rd!\n").contains("$argon2id$"));
    assert!(run(&["--help"], "").contains("Examples"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_emulator_runs_alone_and_a_gate_reaches_it_by_name_and_by_pin() {
    let folder = tempfile::tempdir().unwrap();
    let file = fresh(folder.path());
    let mut command = Command::new(binary());
    command.args(["emulate", "--config"]).arg(&file);
    let mut webapp = Program::with_ports(command, (0, 0));
    let line = webapp.wait_for("  webapp ");
    let (_, address) = line.split_once("https://").unwrap();
    let address = address.split_whitespace().next().unwrap();
    assert!(address.starts_with("localhost:"), "{address}");

    let certs = folder.path().join("certs");
    let pin = shell(
        folder.path(),
        "openssl x509 -in certs/webapp.pem -noout -pubkey | openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | base64",
    );
    let trusts = [
        format!("ca = \"{}\"", certs.join("webapp-ca.pem").display()),
        format!("pins = [\"sha256//{}\"]", pin.trim()),
    ];
    for trust in trusts {
        let setup = crate::harness::Setup::default().rest(crate::harness::NO_LIMITS);
        let gate = tempfile::tempdir().unwrap();
        tollgate::emulator::certificates::make(&gate.path().join("certs")).unwrap();
        let password = std::fs::read_to_string(certs.join("webapp-password")).unwrap();
        crate::harness::secret(&gate.path().join("webapp-password"), password.trim());
        let admin = crate::harness::ADMIN_PASSWORD;
        crate::harness::secret(&gate.path().join("gate-password"), admin);
        let config = crate::harness::text(&setup, &format!("https://{address}")).replace(
            "ca = \"webapp-ca.pem\"\nserver_name = \"localhost\"",
            &trust,
        );
        assert!(config.contains(&trust));
        let file = gate.path().join("config.toml");
        std::fs::write(&file, config).unwrap();
        let gateway = crate::harness::Gateway::from_file(gate, file).await;
        let client = gateway.admin().await;
        assert_eq!(client.get("/v1/support").await.status(), 200, "{trust}");
    }
    webapp.signal("INT");
    assert_eq!(webapp.wait().code(), Some(0));
}

/// All other sections are for a gate and may be wrong or missing.
#[test]
fn the_emulator_alone_needs_no_gate_in_its_file() {
    for rest in ["", "[upstream]\nurl = 7\n[nonsense]\nx = 1\n"] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("emulator.toml");
        let section = "[emulator]\naddress = \"127.0.0.1:0\"\ncontrol = \"127.0.0.1:0\"\n";
        std::fs::write(&file, format!("{section}{rest}")).unwrap();
        let mut command = Command::new(binary());
        command.args(["emulate", "--config"]).arg(&file);
        let mut webapp = Program::with_ports(command, (0, 0));
        webapp.wait_for("  switches ");
        assert!(folder.path().join("certs/webapp-password").exists());
        webapp.signal("INT");
        assert_eq!(webapp.wait().code(), Some(0));
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("emulator.toml");
    std::fs::write(&file, "[emulator]\nadress = \"127.0.0.1:0\"\n").unwrap();
    let output = Command::new(binary())
        .args(["emulate", "--config"])
        .arg(&file)
        .output();
    let output_text = String::from_utf8(output.unwrap().stderr).unwrap();
    assert!(
        output_text.contains("did you mean address?"),
        "{output_text}"
    );
}

#[test]
fn the_pasted_line_reads_a_configured_password_from_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = fresh(folder.path());
    crate::harness::secret(&folder.path().join("first admin"), "Gate-Passw0rd!");
    let text = std::fs::read_to_string(&file).unwrap();
    let line = "\n[users]\nfirst_admin = { username = \"admin\", password = { file = \"first admin\" } }\n";
    std::fs::write(&file, text.replacen("\n[users]\n", line, 1)).unwrap();
    let mut program = Program::serve(&file);
    program.wait_for("ready to accept");
    let lines = program.lines();
    let is_pasted = |line: &&String| line.contains("curl ") || line.contains("TOKEN=");
    let script: Vec<&str> = lines
        .iter()
        .filter(is_pasted)
        .map(|line| line.trim())
        .collect();
    let output = shell(folder.path(), &script.join("\n"));
    assert!(
        output.contains("gateway_status"),
        "{output}\n{}",
        lines.join("\n")
    );
    assert!(!lines.join("\n").contains("Gate-Passw0rd!"));
    program.signal("INT");
    assert_eq!(program.wait().code(), Some(0));
}
