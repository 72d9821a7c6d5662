//! The format of an access log line, as JSON or as text. It has the shape of the other log lines but
//! is written without `tracing`, which costs less. Takes names and numbers only, no text that could
//! hold a secret.

use std::io::Write as _;
use std::net::IpAddr;

use crate::config::LogFormat;
use crate::logging::TimeText;
use crate::pipeline::peer::put_address;

/// A line being written. Fields appear in the order of the calls.
pub(super) struct AccessLine<'a> {
    text: &'a mut Vec<u8>,
    format: LogFormat,
}

impl<'a> AccessLine<'a> {
    pub(super) fn begin(text: &'a mut Vec<u8>, format: LogFormat, stamp: TimeText<'_>) -> Self {
        match format {
            LogFormat::Json => {
                text.extend_from_slice(b"{\"timestamp\":\"");
                stamp.put(text);
                text.extend_from_slice(b"\",\"level\":\"INFO\"");
            }
            LogFormat::Text => {
                stamp.put(text);
                text.extend_from_slice(b"  INFO tollgate::access:");
            }
        }
        Self { text, format }
    }

    pub(super) fn end(self) {
        match self.format {
            LogFormat::Json => self
                .text
                .extend_from_slice(b",\"target\":\"tollgate::access\"}\n"),
            LogFormat::Text => self.text.push(b'\n'),
        }
    }

    /// A value from the gateway's own vocabulary, which needs no escaping.
    pub(super) fn word(&mut self, key: FieldKey, word: &str) {
        self.key(key);
        self.text.push(b'"');
        self.text.extend_from_slice(word.as_bytes());
        self.text.push(b'"');
    }

    /// A value from outside, escaped where necessary.
    pub(super) fn text(&mut self, key: FieldKey, text: &str) {
        self.key(key);
        self.text.push(b'"');
        let bytes = text.as_bytes();
        // Branch-free, so that a whole path takes a few instructions.
        let needs_escape =
            |byte: &u8| (*byte < b' ') | (*byte == b'"') | (*byte == b'\\') | (*byte == 0x7f);
        if bytes
            .iter()
            .fold(false, |any, byte| any | needs_escape(byte))
        {
            self.escaped(bytes, needs_escape);
        } else {
            self.text.extend_from_slice(bytes);
        }
        self.text.push(b'"');
    }

    #[cold]
    fn escaped(&mut self, bytes: &[u8], needs_escape: impl Fn(&u8) -> bool) {
        for byte in bytes {
            match byte {
                b'"' | b'\\' => self.text.extend_from_slice(&[b'\\', *byte]),
                // Writing to memory cannot fail.
                byte if needs_escape(byte) => drop(write!(self.text, "\\u{byte:04x}")),
                byte => self.text.push(*byte),
            }
        }
    }

    pub(super) fn number(&mut self, key: FieldKey, number: u64) {
        self.key(key);
        let mut digits = itoa::Buffer::new();
        self.text
            .extend_from_slice(digits.format(number).as_bytes());
    }

    pub(super) fn flag(&mut self, key: FieldKey, flag: bool) {
        self.key(key);
        let word: &[u8] = if flag { b"true" } else { b"false" };
        self.text.extend_from_slice(word);
    }

    /// A number of thousandths, written as a decimal fraction.
    pub(super) fn thousandths(&mut self, key: FieldKey, number: u64) {
        self.number(key, number / 1000);
        // The first digit, always 1, keeps the zeros before the others.
        let mut digits = itoa::Buffer::new();
        let fraction = &digits.format(1000 + number % 1000).as_bytes()[1..];
        self.text.push(b'.');
        self.text.extend_from_slice(fraction);
    }

    pub(super) fn address(&mut self, key: FieldKey, ip: IpAddr) {
        self.key(key);
        self.text.push(b'"');
        put_address(self.text, ip);
        self.text.push(b'"');
    }

    fn key(&mut self, key: FieldKey) {
        let prefix = match self.format {
            LogFormat::Json => key.json,
            LogFormat::Text => key.text,
        };
        self.text.extend_from_slice(prefix.as_bytes());
    }
}

/// The text before a field's value, in both formats.
#[derive(Clone, Copy)]
pub(super) struct FieldKey {
    pub(super) json: &'static str,
    pub(super) text: &'static str,
}

macro_rules! key {
    ($name:literal) => {
        $crate::pipeline::access_log::line::FieldKey {
            json: concat!(",\"", $name, "\":"),
            text: concat!(" ", $name, "="),
        }
    };
}
pub(super) use key;

#[cfg(test)]
mod tests {
    use super::*;

    fn line(format: LogFormat) -> String {
        let mut text = Vec::new();
        let mut line = AccessLine::begin(&mut text, format, TimeText::default());
        line.word(key!("id"), "ab12");
        line.text(key!("path"), "/a\"b\\c\u{1}\u{7f}é");
        line.number(key!("bytes"), 0);
        for number in [7, 10, 99, 100, 999, 1000, 12_345] {
            line.number(key!("again"), number);
        }
        line.number(key!("most"), u64::MAX);
        line.thousandths(key!("duration_ms"), 12_034);
        line.flag(key!("retried"), true);
        line.address(key!("peer"), "10.0.200.1".parse().unwrap());
        line.address(key!("peer6"), "2001:db8::1".parse().unwrap());
        line.end();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn json_is_valid_for_every_path_a_client_can_send() {
        let text = line(LogFormat::Json);
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["id"], "ab12");
        assert_eq!(json["path"], "/a\"b\\c\u{1}\u{7f}é");
        assert_eq!(json["bytes"], 0);
        assert_eq!(json["most"], u64::MAX);
        assert_eq!(json["duration_ms"], 12.034);
        assert_eq!(json["retried"], true);
        assert_eq!(json["peer"], "10.0.200.1");
        assert_eq!(json["peer6"], "2001:db8::1");
        assert_eq!(json["target"], "tollgate::access");
        assert!(text.ends_with("}\n") && text.lines().count() == 1);
    }

    #[test]
    fn text_is_one_line_for_every_path_a_client_can_send() {
        let text = line(LogFormat::Text);
        assert!(text.contains("INFO tollgate::access: id=\"ab12\" path=\"/a\\\"b\\\\c\\u0001"));
        assert!(text.contains(" bytes=0 again=7 again=10 again=99 again=100 again=999 again=1000 again=12345 most=18446744073709551615 duration_ms=12.034 "));
        assert_eq!(text.lines().count(), 1);
    }
}
