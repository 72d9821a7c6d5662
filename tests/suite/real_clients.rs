//! Real clients: curl over both protocols, and Python's standard library.

use std::path::Path;
use std::process::Command;

use crate::harness::{ADMIN, ADMIN_PASSWORD, Gateway, NO_LIMITS, Setup, emulator};

fn curl(ca: &Path, arguments: &[&str]) -> String {
    let output = Command::new("curl")
        .args(["-sS", "--max-time", "20", "--cacert"])
        .arg(ca)
        .args(arguments)
        .output()
        .expect("curl: tests/run.sh installs it");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_logs_in_and_calls_over_both_protocols() {
    let webapp = emulator().await;
    let gateway = Gateway::with(&webapp, Setup::default().rest(NO_LIMITS)).await;
    let ca = gateway.folder.path().join("certs/ca.pem");
    for protocol in ["--http1.1", "--http2"] {
        let user = format!("{ADMIN}:{ADMIN_PASSWORD}");
        let login = curl(
            &ca,
            &[
                protocol,
                "-X",
                "POST",
                "-u",
                &user,
                &gateway.url("/v1/users/login"),
            ],
        );
        let login: serde_json::Value = serde_json::from_str(&login).unwrap();
        let bearer = format!(
            "Authorization: Bearer {}",
            login["users"][0]["token"].as_str().unwrap()
        );
        let shape = ["-w", " %{http_code} %{http_version}", "-H", bearer.as_str()];
        let health = curl(
            &ca,
            &[&[protocol], &shape[..], &[&gateway.url("/v1/health")]].concat(),
        );
        let version = if protocol == "--http2" { "2" } else { "1.1" };
        assert!(health.ends_with(&format!(" 200 {version}")), "{health}");
        let text = r#"{"to":"1","type":"text","text":{"body":"hi"}}"#;
        let json = ["-H", "Content-Type: application/json", "-d", text];
        let sent = curl(
            &ca,
            &[
                &[protocol],
                &shape[..],
                &json[..],
                &[&gateway.url("/v1/messages/")],
            ]
            .concat(),
        );
        assert!(
            sent.contains("\"messages\"") && sent.ends_with(&format!(" 201 {version}")),
            "{sent}"
        );
    }
}

const PYTHON: &str = r#"
import base64, datetime, json, ssl, sys, urllib.request, urllib.error
base, ca, user, password = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)

def call(method, path, headers, body=None):
    request = urllib.request.Request(base + path, data=body, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, context=context, timeout=20) as answer:
            return answer.status, json.loads(answer.read() or b"{}")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"{}")

basic = base64.b64encode(f"{user}:{password}".encode()).decode()
status, login = call("POST", "/v1/users/login", {"Authorization": "Basic " + basic}, b"")
assert status == 200, (status, login)
# As an existing client reads the date: offset cut off, naive.
ends = datetime.datetime.strptime(login["users"][0]["expires_after"].split("+")[0], "%Y-%m-%d %H:%M:%S")
left = ends - datetime.datetime.utcnow()
assert datetime.timedelta(days=6, hours=23) < left <= datetime.timedelta(days=7), left
bearer = {"Authorization": "Bearer " + login["users"][0]["token"], "Content-Type": "application/json"}
status, sent = call("POST", "/v1/messages", bearer, json.dumps({"to": "1", "type": "text", "text": {"body": "hi"}}).encode())
assert status == 201 and sent["messages"][0]["id"], (status, sent)
status, out = call("POST", "/v1/users/logout", bearer, b"")
assert status == 200 and list(out) == ["meta"], (status, out)
status, refused = call("GET", "/v1/health", bearer)
assert status == 401 and refused["errors"][0]["code"] == 1005, (status, refused)
print("good")
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_python_client_can_log_in_send_and_log_out() {
    let webapp = emulator().await;
    let gateway = Gateway::with(&webapp, Setup::default().rest(NO_LIMITS)).await;
    let output = Command::new("python3")
        .args(["-W", "ignore", "-c", PYTHON, &gateway.url("")])
        .arg(gateway.folder.path().join("certs/ca.pem"))
        .args([ADMIN, ADMIN_PASSWORD])
        .output()
        .expect("python3: tests/run.sh installs it");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        "good",
        "{error}"
    );
}
