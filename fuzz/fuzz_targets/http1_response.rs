//! An upstream's response over HTTP/1.1, in two pieces.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    tollgate::upstream::response_fuzz::response(bytes);
});
