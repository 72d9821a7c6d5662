//! The floor: ends TLS and relays the bytes, nothing else. Thread per core, raw epoll
//! (edge-triggered), rustls' unbuffered API, one upstream connection per client connection.
//!   tls-floor --listen A --upstream A --cert F --key F --threads N
mod relay;
mod tls;

use std::net::SocketAddr;

fn arg(name: &str) -> String {
    let mut words = std::env::args().skip_while(|word| word != name);
    words.next();
    words.next().unwrap_or_else(|| panic!("missing {name}"))
}

pub struct Settings {
    listen: SocketAddr,
    upstream: SocketAddr,
}

fn main() {
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let settings: &'static Settings = Box::leak(Box::new(Settings {
        listen: arg("--listen").parse().unwrap(),
        upstream: arg("--upstream").parse().unwrap(),
    }));
    let tls = tls::settings(&arg("--cert"), &arg("--key"));
    let threads: usize = arg("--threads").parse().unwrap();
    let all: Vec<_> = (0..threads)
        .map(|_| {
            let tls = tls.clone();
            std::thread::spawn(move || relay::run(settings, tls))
        })
        .collect();
    for thread in all {
        thread.join().unwrap();
    }
}
