//! Names for one request: our own request id, and the W3C trace it belongs to.

use std::fmt::Write as _;

use http::{HeaderMap, HeaderValue};
use rand::RngExt as _;

/// A W3C `traceparent` (Trace Context, section 3.2), kept or started here.
#[derive(Clone, Debug)]
pub(super) struct Trace {
    trace_id: String,
    flags: String,
    kept: bool,
}

impl Trace {
    /// The client's trace if its header is well formed, otherwise a new one.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut values = headers.get_all("traceparent").iter();
        let (Some(value), None) = (values.next(), values.next()) else {
            return Self::start();
        };
        value
            .to_str()
            .ok()
            .and_then(Self::parse)
            .unwrap_or_else(Self::start)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let (version, trace, parent, flags) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let hex = |text: &str, length: usize| {
            text.len() == length
                && text
                    .bytes()
                    .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        let zero = |text: &str| text.bytes().all(|b| b == b'0');
        let good = hex(version, 2)
            && version != "ff"
            && (version != "00" || parts.next().is_none())
            && hex(trace, 32)
            && !zero(trace)
            && hex(parent, 16)
            && !zero(parent)
            && hex(flags, 2);
        good.then(|| Self {
            trace_id: trace.to_owned(),
            flags: flags.to_owned(),
            kept: true,
        })
    }

    fn start() -> Self {
        Self {
            trace_id: random_hex::<16>(),
            flags: "00".to_owned(),
            kept: false,
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.trace_id
    }

    /// Puts this hop's own `traceparent` on a request. `tracestate` belongs to the
    /// trace it came with, so it goes when the trace was started here.
    pub(super) fn put(&self, headers: &mut HeaderMap) {
        let text = format!("00-{}-{}-{}", self.trace_id, random_hex::<8>(), self.flags);
        if let Ok(value) = HeaderValue::from_str(&text) {
            headers.insert("traceparent", value);
        }
        if !self.kept {
            headers.remove("tracestate");
        }
    }
}

/// 32 hex digits.
pub(super) fn request_id() -> String {
    random_hex::<16>()
}

fn random_hex<const N: usize>() -> String {
    let bytes: [u8; N] = rand::rng().random();
    let mut text = String::with_capacity(N * 2);
    for byte in bytes {
        let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_trace_is_kept_and_a_bad_one_replaced() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", HeaderValue::from_static(good));
        let trace = Trace::of(&headers);
        assert_eq!(trace.id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        trace.put(&mut headers);
        let sent = headers["traceparent"].to_str().unwrap();
        assert!(sent.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-") && sent.ends_with("-01"));
        assert_ne!(sent, good, "the parent is this hop now");

        for bad in [
            "",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "ff-4bf9-00-01",
        ] {
            headers.insert("traceparent", HeaderValue::from_str(bad).unwrap());
            assert_ne!(Trace::of(&headers).id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        }
    }
}
