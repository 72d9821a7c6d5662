//! Strict framing for HTTP/1, below hyper's parser.
//!
//! hyper tolerates some deviations that decide where one request ends and the next begins, and hides
//! them: it drops a `Content-Length` beside a `Transfer-Encoding`, merges equal lengths, accepts a
//! bare LF as a line end and skips any number of empty lines. The guard follows the incoming bytes
//! and finds the first one that breaks the rules. What it accepts, hyper frames in the same way and
//! never refuses, so that each refusal is the gateway's own. Its state is small: no bytes are held
//! back, and only a target that is not a path is copied. Start at `Http1FramingGuard::check`;
//! `plain` is its fast path.

mod bytes;
mod chunk_extension;
mod fault;
mod parse_position;
mod plain;
mod request_line;
mod sections;

use bytes::{control, is_token, run};
use chunk_extension::ExtensionStep;
pub(in crate::listener) use fault::{FramingFault, FramingRefusal};
use parse_position::{DigitState, LineSection, ParsePosition};
pub(in crate::listener) use parse_position::{FramingViolation, HeadLimits};
use request_line::{LineFault, LinePart, OtherTarget};

const LENGTH: &[u8] = b"content-length";
const CODING: &[u8] = b"transfer-encoding";
/// Value of `matched` for a field name that is neither of the two.
const OTHER: usize = usize::MAX;
/// The longest target and the longest field name that hyper accepts.
const MAX_TARGET: usize = 65_534;
const MAX_NAME: usize = 65_535;
/// The largest content length. Larger ones overflow in some servers (RFC 9112 6.3).
const MAX_CONTENT: u64 = i64::MAX as u64;

/// Follows one direction of one HTTP/1 connection.
#[derive(Debug)]
pub(in crate::listener) struct Http1FramingGuard {
    limits: HeadLimits,
    at: ParsePosition,
    section: LineSection,
    length: Option<u64>,
    chunked: bool,
    is_http10: bool,
    /// An empty line before the request line has been seen.
    empty_line: bool,
    /// Size and number of fields of the head that is being read.
    bytes: usize,
    fields: usize,
    name: usize,
    target: OtherTarget,
    heads: u64,
}

impl Http1FramingGuard {
    pub(in crate::listener) fn new(limits: HeadLimits) -> Self {
        Self {
            limits,
            at: ParsePosition::LineStart,
            section: LineSection::Request,
            length: None,
            chunked: false,
            is_http10: false,
            empty_line: false,
            bytes: 0,
            fields: 0,
            name: 0,
            target: OtherTarget::default(),
            heads: 0,
        }
    }

    /// Number of complete head sections so far.
    pub(in crate::listener) fn heads(&self) -> u64 {
        self.heads
    }

    /// Whether a head section has begun and not ended. An empty line alone does not begin one.
    pub(in crate::listener) fn is_in_head(&self) -> bool {
        match self.section {
            LineSection::Request => self.at != ParsePosition::LineStart,
            LineSection::Fields => !matches!(self.at, ParsePosition::Body(_)),
            LineSection::Trailers | LineSection::ChunkSize => false,
        }
    }

    /// Whether every request that has begun has also ended.
    pub(in crate::listener) fn is_between_requests(&self) -> bool {
        self.section == LineSection::Request
            && self.at == ParsePosition::LineStart
            && !self.empty_line
    }

    /// Whether the next bytes are framing of the content of a request, not of a head.
    pub(in crate::listener) fn is_in_content(&self) -> bool {
        matches!(self.section, LineSection::Trailers | LineSection::ChunkSize)
    }

    /// Checks `bytes`, which follow directly after those of the last call.
    pub(in crate::listener) fn check(&mut self, bytes: &[u8]) -> Result<(), FramingViolation> {
        let mut at = 0;
        while at < bytes.len() {
            if self.is_at_head_line() {
                let taken = self.plain_lines(&bytes[at..]);
                if taken > 0 {
                    at += taken;
                    continue;
                }
            }
            let left = &bytes[at..];
            let before = self.bytes;
            let taken = match self.at {
                ParsePosition::Body(length) | ParsePosition::Chunk(length) => {
                    self.skip(length, left.len())
                }
                ParsePosition::LineStart if left[0] != b'\r' => self.line(left),
                ParsePosition::Name { wanted, matched } => self.name(wanted, matched, left),
                ParsePosition::Value => self.value(left),
                ParsePosition::Line(part) => self.request_line(part, left),
                _ => self.step(left[0]).map_err(|fault| LineFault(0, fault)),
            };
            // The last byte within the limit must end the head, because hyper refuses a head that
            // is not complete there.
            let room = self.limits.bytes.saturating_sub(before + 1);
            match taken {
                Ok(taken) if taken > room && self.is_in_head() => {
                    return Err(self.too_large(at + room));
                }
                Ok(taken) => at += taken,
                Err(LineFault(after, _)) if after > room && self.is_in_head() => {
                    return Err(self.too_large(at + room));
                }
                Err(LineFault(after, fault)) => {
                    let at = at + after;
                    return Err(FramingViolation { at, fault });
                }
            }
        }
        Ok(())
    }

    fn too_large(&self, at: usize) -> FramingViolation {
        let fault = match self.section {
            LineSection::Request => FramingFault::TargetTooLong,
            _ => FramingFault::HeadTooLarge,
        };
        FramingViolation { at, fault }
    }

    fn skip(&mut self, left: u64, have: usize) -> Result<usize, LineFault> {
        let taken = usize::try_from(left).unwrap_or(usize::MAX).min(have);
        let left = left - taken as u64;
        match (self.at, left) {
            (ParsePosition::Body(_), 0) => self.next_head(),
            (ParsePosition::Body(_), _) => self.at = ParsePosition::Body(left),
            (_, 0) => self.at = ParsePosition::ChunkCr,
            (_, _) => self.at = ParsePosition::Chunk(left),
        }
        Ok(taken)
    }

    fn request_line(&mut self, part: LinePart, bytes: &[u8]) -> Result<usize, LineFault> {
        if part == LinePart::Cr && bytes[0] == b'\r' {
            self.bytes += 1;
            self.at = ParsePosition::LineLf;
            return Ok(1);
        }
        if part == LinePart::Version(0) && bytes.starts_with(b"HTTP/1.1\r\n") {
            self.bytes += 10;
            self.end_line().map_err(|fault| LineFault(9, fault))?;
            return Ok(10);
        }
        let step = part.read(bytes, &mut self.target)?;
        if step.part == LinePart::Cr {
            self.is_http10 = bytes[0] == b'0';
        }
        self.at = ParsePosition::Line(step.part);
        self.bytes += step.taken;
        Ok(step.taken)
    }

    fn name(
        &mut self,
        wanted: &'static [u8],
        mut matched: usize,
        bytes: &[u8],
    ) -> Result<usize, LineFault> {
        let length = run(bytes, is_token);
        if matched != OTHER && length > 0 {
            let rest = wanted[matched..].get(..length);
            let is_same = rest.is_some_and(|rest| rest.eq_ignore_ascii_case(&bytes[..length]));
            matched = if is_same { matched + length } else { OTHER };
        }
        self.name += length;
        self.bytes += length + 1;
        if let Some(excess @ 1..) = self.name.checked_sub(MAX_NAME) {
            return Err(LineFault(length - excess, FramingFault::HeadTooLarge));
        }
        match bytes.get(length) {
            Some(b':') if matched == wanted.len() => {
                self.at = self
                    .framing_field(wanted)
                    .map_err(|f| LineFault(length, f))?;
                Ok(length + 1)
            }
            Some(b':') => {
                let begin = length + 1;
                self.at = ParsePosition::Value;
                match self.value(&bytes[begin..]) {
                    Ok(taken) => Ok(begin + taken),
                    Err(LineFault(at, fault)) => Err(LineFault(begin + at, fault)),
                }
            }
            Some(_) => Err(LineFault(length, FramingFault::FieldName)),
            None => {
                self.bytes -= 1;
                self.at = ParsePosition::Name { wanted, matched };
                Ok(length)
            }
        }
    }

    /// Checks a value up to its CR, and the LF if it has been received.
    fn value(&mut self, bytes: &[u8]) -> Result<usize, LineFault> {
        let end = memchr::memchr(b'\r', bytes);
        let value = &bytes[..end.unwrap_or(bytes.len())];
        if let Some(at) = control(value) {
            let fault = if value[at] == b'\n' {
                FramingFault::LineEnd
            } else {
                FramingFault::Control
            };
            return Err(LineFault(at, fault));
        }
        let Some(end) = end else {
            self.bytes += bytes.len();
            return Ok(bytes.len());
        };
        self.bytes += end + 1;
        if bytes.get(end + 1) == Some(&b'\n') {
            self.bytes += 1;
            self.at = ParsePosition::LineStart;
            return Ok(end + 2);
        }
        self.at = ParsePosition::LineLf;
        Ok(end + 1)
    }

    /// Checks one byte.
    fn step(&mut self, byte: u8) -> Result<usize, FramingFault> {
        self.bytes += 1;
        self.at = match (self.at, byte) {
            (ParsePosition::LineStart, _) => self.empty_line_begins()?,
            (
                ParsePosition::LengthValue(DigitState::None)
                | ParsePosition::CodingValue { matched: 0 },
                b' ' | b'\t',
            ) => self.at,
            (ParsePosition::LengthValue(_), b'0'..=b'9') => {
                let length = self.length.unwrap_or(0).checked_mul(10);
                let length = length.and_then(|length| length.checked_add(u64::from(byte - b'0')));
                let length = length.filter(|length| *length <= MAX_CONTENT);
                self.length = Some(length.ok_or(FramingFault::Length)?);
                ParsePosition::LengthValue(DigitState::Some)
            }
            (
                ParsePosition::LengthValue(DigitState::Some) | ParsePosition::Padding,
                b' ' | b'\t',
            ) => ParsePosition::Padding,
            (ParsePosition::LengthValue(DigitState::Some) | ParsePosition::Padding, b'\r') => {
                ParsePosition::LineLf
            }
            (ParsePosition::CodingValue { matched }, byte) => {
                ParsePosition::coding(matched, byte).ok_or(FramingFault::Coding)?
            }
            (ParsePosition::LineLf, b'\n') => {
                self.end_line()?;
                return Ok(1);
            }
            (ParsePosition::EmptyLineLf, b'\n') => {
                self.end_section()?;
                return Ok(1);
            }
            (ParsePosition::ChunkSize(digits, size), byte) => {
                self.chunk_size(digits, size, byte)?
            }
            (ParsePosition::Extension(extension), byte) => match extension.next(byte) {
                Some(ExtensionStep::Stay(next)) => ParsePosition::Extension(next),
                Some(ExtensionStep::LineEnds) => ParsePosition::LineLf,
                None => return Err(FramingFault::ChunkExtension),
            },
            (ParsePosition::ChunkCr, b'\r') => ParsePosition::ChunkLf,
            (ParsePosition::ChunkLf, b'\n') => ParsePosition::ChunkSize(DigitState::None, 0),
            (ParsePosition::ChunkCr | ParsePosition::ChunkLf, _) => {
                return Err(FramingFault::Chunk);
            }
            (ParsePosition::LengthValue(_), _) => return Err(FramingFault::Length),
            (ParsePosition::Padding, _) if self.chunked => return Err(FramingFault::Coding),
            (ParsePosition::Padding, _) => return Err(FramingFault::Length),
            _ => return Err(FramingFault::LineEnd),
        };
        Ok(1)
    }

    fn empty_line_begins(&mut self) -> Result<ParsePosition, FramingFault> {
        // RFC 9112 2.2: some old clients send one empty line before a request line.
        if self.section == LineSection::Request && std::mem::replace(&mut self.empty_line, true) {
            return Err(FramingFault::LineEnd);
        }
        Ok(ParsePosition::EmptyLineLf)
    }

    /// Checks the beginning of a line that is not empty.
    fn line(&mut self, bytes: &[u8]) -> Result<usize, LineFault> {
        self.line_begins(bytes[0])
            .map_err(|fault| LineFault(0, fault))?;
        match self.at {
            ParsePosition::Name { wanted, matched } => self.name(wanted, matched, bytes),
            _ => self.request_line(LinePart::Method, bytes),
        }
    }

    fn line_begins(&mut self, byte: u8) -> Result<(), FramingFault> {
        match byte {
            // RFC 9112 5.2: obsolete folding. A bare LF is not a line end (2.2).
            b' ' | b'\t' => return Err(FramingFault::Folding),
            b'\n' => return Err(FramingFault::LineEnd),
            // A ClientHello is a handshake record (RFC 8446 5.1).
            0x16 if self.section == LineSection::Request => return Err(FramingFault::Tls),
            _ => {}
        }
        self.at = match self.section {
            LineSection::Request if is_token(byte) => ParsePosition::Line(LinePart::Method),
            LineSection::Request => return Err(FramingFault::Method),
            _ if !is_token(byte) => return Err(FramingFault::FieldName),
            _ => {
                self.name = 0;
                self.fields += usize::from(self.section == LineSection::Fields);
                if self.fields > self.limits.fields {
                    return Err(FramingFault::TooManyFields);
                }
                match byte {
                    b'c' | b'C' => ParsePosition::Name {
                        wanted: LENGTH,
                        matched: 0,
                    },
                    b't' | b'T' => ParsePosition::Name {
                        wanted: CODING,
                        matched: 0,
                    },
                    _ => ParsePosition::Name {
                        wanted: b"",
                        matched: OTHER,
                    },
                }
            }
        };
        Ok(())
    }

    /// RFC 9112 6.1 and 6.3: one length or one coding, once, and not in trailers.
    fn framing_field(&mut self, wanted: &[u8]) -> Result<ParsePosition, FramingFault> {
        if self.section == LineSection::Trailers {
            return Err(FramingFault::TrailerFraming);
        }
        if self.length.is_some() || self.chunked {
            return Err(FramingFault::TwoFramings);
        }
        if wanted == LENGTH {
            return Ok(ParsePosition::LengthValue(DigitState::None));
        }
        if self.is_http10 {
            return Err(FramingFault::CodingOfHttp10);
        }
        self.chunked = true;
        Ok(ParsePosition::CodingValue { matched: 0 })
    }
}
