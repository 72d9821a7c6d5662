//! The target of the request line: an accepted one has a single meaning.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    tollgate::pipeline::fuzz_api::request_target(bytes);
});
