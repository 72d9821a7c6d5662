//! The body of a client's login, and dates in the Webapp's format.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = tollgate::profiles::login_body(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Some(seconds) = tollgate::profiles::parse_expiry(text) {
        let again = tollgate::profiles::format_expiry(seconds);
        assert_eq!(
            tollgate::profiles::parse_expiry(&again),
            Some(seconds),
            "{text:?}"
        );
    }
});
