//! Another proxy (nginx, if installed) reads the forwarded messages in the same way.

use std::process::{Child, Command, Stdio};

use super::matrix::{Version, cases, goes_up, send_http1};
use super::recorder::Recorder;
use crate::harness::eventually;

/// Killed when dropped.
struct Nginx(Child);

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(folder: &std::path::Path, port: u16, upstream: &str) -> Option<Nginx> {
    let text = format!(
        "daemon off; master_process off; pid nginx.pid; error_log error.log; events {{}}\n\
         http {{ access_log off; client_body_temp_path body; proxy_temp_path proxy;\n\
         fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;\n\
         server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass {upstream};\n\
         proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }} }}\n"
    );
    let file = folder.join("nginx.conf");
    std::fs::write(&file, text).unwrap();
    let mut command = Command::new("nginx");
    command.arg("-p").arg(folder).arg("-c").arg(file);
    command.args(["-e", "error.log"]).stderr(Stdio::null());
    command.spawn().ok().map(Nginx)
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_reads_forwarded_messages_as_the_gate_does() {
    let upstream = Recorder::start().await;
    let folder = tempfile::tempdir().unwrap();
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    drop(socket);
    let Some(_nginx) = start(folder.path(), address.port(), &upstream.url()) else {
        println!("skipped: nginx is not installed");
        return;
    };
    eventually("nginx listens", async || {
        tokio::net::TcpStream::connect(address).await.is_ok()
    })
    .await;
    let (mut compared, mut laxer) = (0, 0);
    for case in cases() {
        if case.version == Version::Http2 {
            continue;
        }
        send_http1(address, case).await;
        let mut seen = upstream.take();
        seen.retain(|message| message.line == "POST /open/x");
        match goes_up(case) {
            Some((content, _)) => {
                compared += 1;
                assert_eq!(seen.len(), 1, "{case:?}");
                assert_eq!(seen[0].content, content.as_bytes(), "{case:?}");
            }
            None => laxer += usize::from(!seen.is_empty()),
        }
    }
    println!("{compared} alike; {laxer} that the gate refuses go up through nginx");
    assert!(compared >= 5);
}
