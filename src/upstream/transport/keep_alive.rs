//! The `Keep-Alive` field of a response (`timeout=5, max=100`): how long the upstream keeps the
//! connection.

use std::time::Duration;

use http::{HeaderMap, HeaderName};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
/// A request must arrive before the upstream closes: this margin, or a tenth of the announced time, is
/// left unused.
const MARGIN: Duration = Duration::from_millis(500);
/// Longer announced times count as this.
const LONGEST: u32 = 86_400;

/// What a response head announces about its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KeepAlive {
    /// From the response head until the connection is no longer used.
    pub(super) usable_for: Option<Duration>,
    /// The upstream takes no further request on it.
    pub(in crate::upstream) is_last: bool,
}

impl KeepAlive {
    /// None: nothing is announced, the usual case.
    pub(in crate::upstream) fn of(headers: &HeaderMap) -> Option<Self> {
        // The field is rare: only its absence must be quick.
        headers.get(&KEEP_ALIVE)?;
        Some(Self::read(headers))
    }

    #[cold]
    fn read(headers: &HeaderMap) -> Self {
        let mut announced = Self {
            usable_for: None,
            is_last: false,
        };
        for value in headers.get_all(&KEEP_ALIVE) {
            let text = String::from_utf8_lossy(value.as_bytes());
            let text = text.replace(" =", "=").replace("= ", "=");
            for parameter in text.split([',', ';', ' ']) {
                announced.take(parameter);
            }
        }
        announced
    }

    /// The strictest value counts; a value that cannot be parsed is ignored.
    fn take(&mut self, parameter: &str) {
        let Some((name, value)) = parameter.split_once('=') else {
            return;
        };
        let value = value.trim().trim_matches('"').trim();
        if name.trim().eq_ignore_ascii_case("timeout") {
            if let Some(timeout) = seconds(value) {
                let usable = timeout.saturating_sub(MARGIN.max(timeout / 10));
                self.usable_for = Some(self.usable_for.map_or(usable, |other| other.min(usable)));
            }
        } else if name.trim().eq_ignore_ascii_case("max") {
            self.is_last |= value.parse() == Ok(0_u64);
        }
    }
}

/// Whole seconds, however large; what follows the digits (`.5`, `s`) is ignored.
fn seconds(text: &str) -> Option<Duration> {
    let text = text.trim_start_matches('+');
    let digits = text.find(|other: char| !other.is_ascii_digit());
    let text = &text[..digits.unwrap_or(text.len())];
    let seconds = || text.parse::<u32>().unwrap_or(u32::MAX).min(LONGEST);
    (!text.is_empty()).then(|| Duration::from_secs(seconds().into()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(values: &[&str]) -> Option<KeepAlive> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(KEEP_ALIVE, value.parse().unwrap());
        }
        KeepAlive::of(&headers)
    }

    #[test]
    fn keep_alive_is_parsed_in_every_spelling() {
        for (announced, usable, is_last) in [
            (&["timeout=2"][..], Some(1500), false),
            (&["timeout=5, max=100"], Some(4500), false),
            (&["Timeout=5,MAX=1"], Some(4500), false),
            (&["max=0, timeout = \"5\""], Some(4500), true),
            (&["timeout=60"], Some(54_000), false),
            (&["timeout=1"], Some(500), false),
            (&["timeout=0"], Some(0), false),
            (&["timeout=5", "timeout=3"], Some(2500), false),
            (&["timeout=5; max=7"], Some(4500), false),
            (&["timeout=2 max=10"], Some(1500), false),
            (&["timeout=2s"], Some(1500), false),
            (&["timeout=2.9"], Some(1500), false),
            (&["timeout=+2"], Some(1500), false),
            (&["timeout=99999999999999"], Some(77_760_000), false),
            (&["max=3"], None, false),
            (&["timeout=soon"], None, false),
            (&["timeout=-1"], None, false),
            (&["timeout="], None, false),
            (&["timeout"], None, false),
            (&[""], None, false),
        ] {
            let usable_for = usable.map(Duration::from_millis);
            let expected = KeepAlive {
                usable_for,
                is_last,
            };
            assert_eq!(of(announced), Some(expected), "{announced:?}");
        }
        assert_eq!(of(&[]), None);
    }

    proptest! {
        /// Any bytes allowed in a header: a day at most, and no effect on another line.
        #[test]
        fn an_invalid_keep_alive_has_no_effect(
            odd in prop::collection::vec(prop_oneof![Just(b'\t'), 0x20..0x7f_u8, 0x80..=0xff_u8], 0..60),
        ) {
            let mut headers = HeaderMap::new();
            headers.append(KEEP_ALIVE, http::HeaderValue::from_bytes(&odd).unwrap());
            let alone = KeepAlive::of(&headers).unwrap();
            let longest = Duration::from_secs(LONGEST.into());
            prop_assert!(alone.usable_for.is_none_or(|time| time < longest));
            headers.append(KEEP_ALIVE, http::HeaderValue::from_static("timeout=2"));
            let both = KeepAlive::of(&headers).unwrap();
            prop_assert!(both.usable_for.unwrap() <= Duration::from_millis(1500));
            prop_assert_eq!(both.is_last, alone.is_last);
        }
    }
}
