//! The guard over HTTP/1 framing, and hyper behind it.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    tollgate::listener::framing_fuzz::http1(bytes);
});
