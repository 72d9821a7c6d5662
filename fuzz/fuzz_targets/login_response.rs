//! The upstream's response to the gate's login.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    tollgate::upstream::login_fuzz::login_response(bytes);
});
