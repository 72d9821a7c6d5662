//! Identifiers of a request: the gateway's request id, and the W3C trace that the request belongs to.

use http::{HeaderMap, HeaderName};
use rand::Rng as _;

pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// `N` hex digits.
#[derive(Clone, Copy, Debug)]
pub(in crate::pipeline) struct HexDigits<const N: usize>([u8; N]);

impl<const N: usize> HexDigits<N> {
    /// Random digits. They are identifiers, not secrets.
    pub(in crate::pipeline) fn random() -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; N];
        rand::rng().fill_bytes(&mut text[..N / 2]);
        for index in (0..N / 2).rev() {
            let byte = text[index];
            text[2 * index + 1] = DIGITS[usize::from(byte & 15)];
            text[2 * index] = DIGITS[usize::from(byte >> 4)];
        }
        Self(text)
    }

    fn parse(text: &str) -> Option<Self> {
        let bytes: [u8; N] = text.as_bytes().try_into().ok()?;
        let is_digit = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
        bytes.iter().all(is_digit).then_some(Self(bytes))
    }

    fn is_zero(&self) -> bool {
        self.0.iter().all(|digit| *digit == b'0')
    }

    pub(in crate::pipeline) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// A W3C `traceparent` (Trace Context, section 3.2), continued or started here.
#[derive(Clone, Debug)]
pub(in crate::pipeline) struct TraceParent {
    trace_id: HexDigits<32>,
    flags: HexDigits<2>,
    kept: bool,
}

impl TraceParent {
    /// The client's trace if its header is well formed, otherwise a new one.
    pub(in crate::pipeline) fn of(headers: &HeaderMap) -> Self {
        let mut values = headers.get_all(TRACEPARENT).iter();
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
        HexDigits::<2>::parse(version)?;
        let (trace_id, parent) = (HexDigits::parse(trace)?, HexDigits::<16>::parse(parent)?);
        let is_valid = version != "ff"
            && (version != "00" || parts.next().is_none())
            && !trace_id.is_zero()
            && !parent.is_zero();
        is_valid.then_some(Self {
            trace_id,
            flags: HexDigits::parse(flags)?,
            kept: true,
        })
    }

    fn start() -> Self {
        Self {
            trace_id: HexDigits::random(),
            flags: HexDigits(*b"00"),
            kept: false,
        }
    }

    pub(in crate::pipeline) fn id(&self) -> &str {
        self.trace_id.as_str()
    }

    /// Whether the client's trace is continued.
    pub(super) fn is_kept(&self) -> bool {
        self.kept
    }

    /// Appends this hop's own `traceparent`.
    pub(super) fn put_parent(&self, text: &mut Vec<u8>) {
        text.extend_from_slice(b"00-");
        text.extend_from_slice(&self.trace_id.0);
        text.push(b'-');
        text.extend_from_slice(&HexDigits::<16>::random().0);
        text.push(b'-');
        text.extend_from_slice(&self.flags.0);
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_valid_trace_is_continued_and_an_invalid_one_replaced() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", HeaderValue::from_static(good));
        let trace = TraceParent::of(&headers);
        assert_eq!(trace.id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        let mut sent = Vec::new();
        trace.put_parent(&mut sent);
        let sent = String::from_utf8(sent).unwrap();
        assert!(sent.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-") && sent.ends_with("-01"));
        assert_ne!(sent, good, "the parent is this hop now");

        for bad in [
            "",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "ff-4bf9-00-01",
        ] {
            headers.insert("traceparent", HeaderValue::from_str(bad).unwrap());
            assert_ne!(
                TraceParent::of(&headers).id(),
                "4bf92f3577b34da6a3ce929d0e0e4736"
            );
        }
    }
}
