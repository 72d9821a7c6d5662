//! The configuration file: problems, never a panic; a good one can be printed.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    match tollgate::config::parse(text, std::path::Path::new("/nonexistent")) {
        Ok(loaded) => assert!(!format!("{:?}", loaded.config).is_empty()),
        Err(problems) => assert!(!problems.to_string().is_empty()),
    }
});
