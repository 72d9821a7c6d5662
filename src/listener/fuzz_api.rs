//! Doors for `fuzz/`, and for a property test: what looks at bytes before hyper does.

use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::http1::framing_guard::{HeadLimits, Http1FramingGuard};
use super::http2::flood_guard::Http2FloodGuard;

const LIMITS: HeadLimits = HeadLimits {
    bytes: 64 * 1024,
    fields: 64,
};

/// The guard refuses the same byte however the bytes are cut, and hyper sees no
/// request in what it lets pass that the guard did not see.
pub fn wire(bytes: &[u8]) {
    let mut whole = Http1FramingGuard::new(LIMITS);
    let refused = whole.check(bytes).err().map(|violation| violation.at);
    let mut cut = Http1FramingGuard::new(LIMITS);
    let first = (0..bytes.len()).find(|&at| cut.check(&bytes[at..=at]).is_err());
    assert_eq!(refused, first, "the cuts decide");
    let passed = &bytes[..refused.unwrap_or(bytes.len())];
    let mut guard = Http1FramingGuard::new(LIMITS);
    guard.check(passed).expect("it passed already");
    let (seen, said) = seen_by_hyper(passed);
    assert!(
        seen <= guard.heads(),
        "hyper sees {seen}, the guard {}",
        guard.heads()
    );
    for refusal in [" 400 ", " 414 ", " 431 "] {
        assert!(!said.contains(refusal), "hyper refuses it: {said}");
    }
}

/// How many requests hyper finds in `bytes`, and all that it answers.
fn seen_by_hyper(bytes: &[u8]) -> (u64, String) {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.expect("a runtime without drivers").block_on(async {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        client.write_all(bytes).await.expect("there is room");
        client.shutdown().await.expect("it is open");
        let seen = std::cell::Cell::new(0);
        let answer = hyper::service::service_fn(|request: Request<Incoming>| {
            seen.set(seen.get() + 1);
            async {
                // The body is read, or hyper would not look for what follows it.
                let _ = request.into_body().collect().await;
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::new())))
            }
        });
        let server = hyper::server::conn::http1::Builder::new()
            .max_headers(LIMITS.fields)
            .max_header_size(LIMITS.bytes)
            .max_buf_size(LIMITS.bytes)
            .serve_connection(TokioIo::new(server), answer);
        let _ = server.await;
        let mut said = String::new();
        // It ends with the server's side.
        let _ = client.read_to_string(&mut said).await;
        (seen.get(), said)
    })
}

/// The budget is spent alike however the bytes are cut.
pub fn frames(bytes: &[u8]) {
    let is_flood = Http2FloodGuard::new(Default::default())
        .check(bytes)
        .is_err();
    let mut cut = Http2FloodGuard::new(Default::default());
    let is_flood_cut = bytes.iter().any(|byte| cut.check(&[*byte]).is_err());
    // Time earns budget back: a slower look may find less.
    assert!(is_flood || !is_flood_cut);
}
