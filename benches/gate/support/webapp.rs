//! An upstream that costs next to nothing: one thread per connection, fixed responses.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

const BIG: usize = 64 * 1024;

/// Starts the upstream on a free port; it ends with the process. Each response except the
/// login's comes after `pause`.
pub(crate) fn start(pause: Duration) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            std::thread::spawn(move || serve(stream, pause));
        }
    });
    address
}

fn serve(mut stream: TcpStream, pause: Duration) {
    stream.set_nodelay(true).unwrap();
    let mut kept = Vec::new();
    let mut piece = vec![0; 128 * 1024];
    loop {
        while let Some(end) = head_end(&kept) {
            let head = String::from_utf8_lossy(&kept[..end]).into_owned();
            let whole = end + content_length(&head);
            if kept.len() < whole {
                break;
            }
            kept.drain(..whole);
            let answer = match head.split(' ').nth(1) {
                Some("/v1/users/login") => login(),
                Some(path) if path.starts_with("/v1/media/") => after(pause, &"a".repeat(BIG)),
                _ => after(pause, &"x".repeat(300)),
            };
            if stream.write_all(&answer).is_err() {
                return;
            }
        }
        match stream.read(&mut piece) {
            Ok(count @ 1..) => kept.extend_from_slice(&piece[..count]),
            _ => return,
        }
    }
}

fn head_end(bytes: &[u8]) -> Option<usize> {
    let at = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    Some(at + 4)
}

fn content_length(head: &str) -> usize {
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map_or(0, |(_, value)| value.trim().parse().unwrap())
}

fn after(pause: Duration, body: &str) -> Vec<u8> {
    std::thread::sleep(pause);
    answer(body)
}

fn login() -> Vec<u8> {
    let ends = jiff::Timestamp::now() + Duration::from_secs(604_800);
    let ends = ends.strftime("%Y-%m-%d %H:%M:%S+00:00");
    answer(&format!(
        r#"{{"users":[{{"token":"the-webapps-own-token-0123456789","expires_after":"{ends}"}}],"meta":{{"version":"v2.53.3","api_status":"stable"}}}}"#
    ))
}

fn answer(body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "HTTP/1.1 200 OK\r\nServer: webapp\r\nContent-Type: application/json\r\nCache-Control: no-store\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}
