//! The budget for HTTP/2 frames.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    tollgate::listener::framing_fuzz::http2(bytes);
});
