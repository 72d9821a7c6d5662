//! `Authorization` and `X-API-Key`: at most one credential is found; and parsing of Basic.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    tollgate::pipeline::fuzz_api::credential(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = tollgate::profiles::BasicCredentials::parse(text);
    }
});
