//! Parsers of texts: times, sizes, rates, address blocks, digests. Pure.

use std::time::Duration;

use crate::config::{AddressBlock, Quota};

/// Longer than any useful timeout, short enough to be added to any clock.
const LONGEST: Duration = Duration::from_secs(3650 * 86_400);

/// `1h30m`: numbers with a unit each, in any order.
pub(super) fn parse_span(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        let after = &rest[digits..];
        let unit = after
            .find(|letter: char| letter.is_ascii_digit())
            .unwrap_or(after.len());
        let millis = match after[..unit].trim() {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        total = total.checked_add(Duration::from_millis(number.checked_mul(millis)?))?;
        rest = &after[unit..];
    }
    (total <= LONGEST).then_some(total)
}

pub(super) fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text
        .find(|letter: char| !letter.is_ascii_digit())
        .unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let unit: u64 = match text[digits..].trim() {
        "" | "B" => 1,
        "kB" | "KB" => 1_000,
        "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(unit)
}

/// A rate such as `"50/s burst 150"`.
pub fn parse_quota(text: &str) -> Option<Quota> {
    let (rate, burst) = match text.split_once("burst") {
        Some((rate, burst)) => (rate, Some(burst.trim().parse::<u32>().ok()?)),
        None => (text, None),
    };
    let (requests, unit) = rate.trim().split_once('/')?;
    let requests: u32 = requests.trim().parse().ok()?;
    let seconds = match unit.trim() {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return None,
    };
    let burst = burst.unwrap_or(requests);
    (requests > 0 && burst > 0).then_some(Quota {
        requests,
        per: Duration::from_secs(seconds),
        burst,
    })
}

pub(super) fn parse_hex(text: &str) -> Option<[u8; 32]> {
    let text = text.as_bytes();
    if text.len() != 64 || !text.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut digest = [0; 32];
    for (byte, pair) in digest.iter_mut().zip(text.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(digest)
}

pub(super) fn parse_network(text: &str) -> Option<AddressBlock> {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix.parse::<u8>().ok()?)),
        None => (text, None),
    };
    let address: std::net::IpAddr = address.parse().ok()?;
    let (bits, width) = match address {
        std::net::IpAddr::V4(v4) => (u128::from(v4.to_bits()), 32),
        std::net::IpAddr::V6(v6) => (v6.to_bits(), 128),
    };
    let prefix = prefix.unwrap_or(width);
    if prefix > width {
        return None;
    }
    // A block with host bits set is ambiguous.
    let host_bits = u32::from(width - prefix);
    let host = 1_u128
        .checked_shl(host_bits)
        .map_or(u128::MAX, |bit| bit - 1);
    (bits & host == 0).then_some(AddressBlock { address, prefix })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units_and_an_end() {
        assert_eq!(parse_span("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(parse_span("1h30m"), Some(Duration::from_secs(5_400)));
        assert_eq!(parse_span("7d"), Some(Duration::from_secs(604_800)));
        for bad in [
            "",
            "30",
            "s",
            "-1s",
            "1.5h",
            "30 sec",
            "4000d",
            "1ß",
            "99999999999999999999s",
        ] {
            assert_eq!(parse_span(bad), None, "{bad}");
        }
    }

    #[test]
    fn sizes_distinguish_1000_and_1024() {
        assert_eq!(parse_size("64KiB"), Some(65_536));
        assert_eq!(parse_size("110 MB"), Some(110_000_000));
        assert_eq!(parse_size("0"), Some(0));
        for bad in ["", "KiB", "64k", "-1", "1.5MiB", "99999999999GiB"] {
            assert_eq!(parse_size(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_rate_without_a_burst_bursts_by_its_own_number() {
        let quota = parse_quota("10/m burst 5").unwrap();
        assert_eq!(
            (quota.requests, quota.per.as_secs(), quota.burst),
            (10, 60, 5)
        );
        assert_eq!(parse_quota("50/s").unwrap().burst, 50);
        for bad in [
            "",
            "10",
            "0/s",
            "10/s burst 0",
            "10/w",
            "10/s burst",
            "ten/s",
        ] {
            assert!(parse_quota(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_block_with_host_bits_is_refused() {
        for good in [
            "10.0.0.0/8",
            "10.1.2.3",
            "::1",
            "fd00::/8",
            "0.0.0.0/0",
            "::/0",
        ] {
            assert!(parse_network(good).is_some(), "{good}");
        }
        for bad in ["10.0.0.1/8", "10.0.0.0/33", "fd00::1/64", "ten/8", "::/129"] {
            assert!(parse_network(bad).is_none(), "{bad}");
        }
    }
}
