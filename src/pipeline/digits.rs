//! Numbers and addresses as text. Each request writes several of them, and `fmt` takes about ten
//! times as many instructions for the short ones.

use std::io::Write as _;
use std::net::IpAddr;

/// Appends an address in its usual spelling.
pub(super) fn put_address(text: &mut Vec<u8>, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => {
            for (index, octet) in ip.octets().into_iter().enumerate() {
                if index > 0 {
                    text.push(b'.');
                }
                put_number(text, octet.into());
            }
        }
        // Writing to memory cannot fail.
        IpAddr::V6(ip) => drop(write!(text, "{ip}")),
    }
}

/// Appends a number in decimal.
pub(super) fn put_number(text: &mut Vec<u8>, number: u64) {
    let digit = |number: u64| b'0' + u8::try_from(number % 10).unwrap_or(0);
    // Most numbers are short: octets, statuses, permits left in a bucket.
    if number < 1000 {
        if number >= 100 {
            text.push(digit(number / 100));
        }
        if number >= 10 {
            text.push(digit(number / 10));
        }
        text.push(digit(number));
        return;
    }
    let mut buffer = [0; 20];
    let mut start = buffer.len();
    let mut rest = number;
    while rest > 0 {
        start -= 1;
        buffer[start] = digit(rest);
        rest /= 10;
    }
    text.extend_from_slice(&buffer[start..]);
}
