//! Fast path for a head as most clients send it: received in one piece, and without fields that frame
//! content. It takes whole lines only and refuses nothing; `Http1FramingGuard::check` reads the rest
//! step by step.

use super::bytes::{is_path, is_query, is_token, run, text_run};
use super::parse_position::{LineSection, ParsePosition};
use super::{Http1FramingGuard, MAX_NAME, MAX_TARGET};

const LINE_END: &[u8] = b"\r\n";

impl Http1FramingGuard {
    /// Takes the whole lines at the beginning of `bytes`: a request line, field lines, the empty line
    /// of a message without content. Returns their length.
    pub(super) fn plain_lines(&mut self, bytes: &[u8]) -> usize {
        // As in `check`: the last byte within the limit must end the head.
        let room = self.limits.bytes.saturating_sub(self.bytes + 1);
        let bytes = &bytes[..bytes.len().min(room)];
        let mut taken = 0;
        if self.section == LineSection::Request {
            let Some(length) = request_line(bytes) else {
                return 0;
            };
            self.section = LineSection::Fields;
            taken = length;
        }
        while self.fields < self.limits.fields
            && let Some(length) = field_line(&bytes[taken..])
        {
            self.fields += 1;
            taken += length;
        }
        self.bytes += taken;
        if bytes[taken..].starts_with(LINE_END) {
            self.end_head();
            taken += LINE_END.len();
        }
        taken
    }

    /// Whether the next byte may begin a line of a head.
    pub(super) fn is_at_head_line(&self) -> bool {
        self.at == ParsePosition::LineStart
            && matches!(self.section, LineSection::Request | LineSection::Fields)
    }
}

/// Length of an HTTP/1.1 request line whose target is a path.
fn request_line(bytes: &[u8]) -> Option<usize> {
    const VERSION: &[u8] = b" HTTP/1.1\r\n";
    let method = run(bytes, is_token);
    let target = method + 1;
    if method == 0 || !bytes.get(method..)?.starts_with(b" /") {
        return None;
    }
    let mut end = target + run(&bytes[target..], is_path);
    if bytes.get(end) == Some(&b'?') {
        end += 1;
        end += run(&bytes[end..], is_query);
    }
    let length = end + VERSION.len();
    let is_whole = bytes.get(end..)?.starts_with(VERSION);
    (is_whole && length <= MAX_TARGET).then_some(length)
}

/// Length of a field line that does not frame content.
fn field_line(bytes: &[u8]) -> Option<usize> {
    // `Content-Length` and `Transfer-Encoding` begin so.
    if matches!(bytes.first()? | 0x20, b'c' | b't') {
        return None;
    }
    let name = run(bytes, is_token);
    if name == 0 || name > MAX_NAME || bytes.get(name) != Some(&b':') {
        return None;
    }
    let value = name + 1;
    let end = value + text_run(&bytes[value..]);
    let is_whole = bytes[end..].starts_with(LINE_END);
    is_whole.then_some(end + LINE_END.len())
}
