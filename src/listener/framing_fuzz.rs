//! Entry points for `fuzz/` and a property test: the checks of bytes before hyper.

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

/// The framing guard refuses the same byte wherever the reads split the bytes, and hyper finds no
/// request in what the guard accepts that the guard did not see.
pub fn http1(bytes: &[u8]) {
    let mut whole = Http1FramingGuard::new(LIMITS);
    let refused = whole.check(bytes).err().map(|violation| violation.at);
    let mut cut = Http1FramingGuard::new(LIMITS);
    let first = (0..bytes.len()).find(|&at| cut.check(&bytes[at..=at]).is_err());
    assert_eq!(refused, first, "the result depends on the reads");
    let passed = &bytes[..refused.unwrap_or(bytes.len())];
    let mut guard = Http1FramingGuard::new(LIMITS);
    guard.check(passed).expect("it passed already");
    let (seen, responses) = seen_by_hyper(passed);
    assert!(
        seen <= guard.heads(),
        "hyper sees {seen}, the guard {}",
        guard.heads()
    );
    for refusal in [" 400 ", " 414 ", " 431 "] {
        assert!(
            !responses.contains(refusal),
            "hyper refuses it: {responses}"
        );
    }
}

/// How many requests hyper finds in `bytes`, and everything that it responds.
fn seen_by_hyper(bytes: &[u8]) -> (u64, String) {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.expect("a runtime without drivers").block_on(async {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        client.write_all(bytes).await.expect("there is room");
        client.shutdown().await.expect("it is open");
        let seen = std::cell::Cell::new(0);
        let service = hyper::service::service_fn(|request: Request<Incoming>| {
            seen.set(seen.get() + 1);
            async {
                // The body is read so that hyper parses what follows it.
                let _ = request.into_body().collect().await;
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::new())))
            }
        });
        let server = hyper::server::conn::http1::Builder::new()
            .max_headers(LIMITS.fields)
            .max_header_size(LIMITS.bytes)
            .max_buf_size(LIMITS.bytes)
            .serve_connection(TokioIo::new(server), service);
        let _ = server.await;
        let mut responses = String::new();
        // Ends when the server closes its side.
        let _ = client.read_to_string(&mut responses).await;
        (seen.get(), responses)
    })
}

/// The flood guard counts the same frames wherever the reads split the bytes.
pub fn http2(bytes: &[u8]) {
    let is_flood = Http2FloodGuard::new(Default::default())
        .check(bytes)
        .is_err();
    let mut cut = Http2FloodGuard::new(Default::default());
    let is_flood_cut = bytes.iter().any(|byte| cut.check(&[*byte]).is_err());
    // Time earns budget back, so the slower check may tolerate more.
    assert!(is_flood || !is_flood_cut);
}
