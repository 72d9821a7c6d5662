//! The request line's target: what passes means one thing only.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    tollgate::pipeline::fuzz_api::request_target(bytes);
});
