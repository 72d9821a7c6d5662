//! Strict framing for HTTP/1, below hyper's parser.
//!
//! hyper forgives some things that decide where one request ends and the next
//! begins, and hides that it did: it drops a `Content-Length` beside a
//! `Transfer-Encoding`, merges equal lengths, takes a bare LF for a line end and
//! skips any number of empty lines. This follows the bytes on their way up and
//! finds the first one that breaks the rules; what it lets pass, hyper frames alike.
//! All state is a few words: nothing is kept back, nothing is allocated.

use memchr::memchr;

const LENGTH: &[u8] = b"content-length";
const CODING: &[u8] = b"transfer-encoding";
const CHUNKED: &[u8] = b"chunked";

/// Follows one direction of one HTTP/1 connection.
#[derive(Debug)]
pub(super) struct Wire {
    at: At,
    section: Section,
    /// The byte before this one was CR; only looked at in `Rest`.
    cr: bool,
    length: Option<u64>,
    chunked: bool,
    /// An empty line before the request line has been seen.
    empty_line: bool,
    heads: u64,
}

/// Which lines are being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Section {
    Request,
    Fields,
    Trailers,
    ChunkSize,
}

/// Where in the message the next byte is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    LineStart,
    /// In a field name that has matched `LENGTH` or `CODING` so far.
    Name {
        wanted: &'static [u8],
        matched: usize,
    },
    LengthValue(Digits),
    CodingValue {
        matched: usize,
    },
    /// After a value, before its CR.
    Padding,
    /// In a line whose content does not matter, up to its LF.
    Rest,
    /// After the CR of an empty line.
    EmptyLineLf,
    /// After the CR of a line that has been read byte by byte.
    LineLf,
    Body(u64),
    ChunkSize(Digits, u64),
    Chunk(u64),
    ChunkCr,
    ChunkLf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Digits {
    None,
    Some,
}

/// The byte that broke the rules, as an offset into what was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Violation(pub(super) usize);

impl Wire {
    pub(super) fn new() -> Self {
        Self {
            at: At::LineStart,
            section: Section::Request,
            cr: false,
            length: None,
            chunked: false,
            empty_line: false,
            heads: 0,
        }
    }

    /// Head sections that have ended so far.
    pub(super) fn heads(&self) -> u64 {
        self.heads
    }

    /// A head section has begun and not ended. An empty line alone begins none.
    pub(super) fn is_in_head(&self) -> bool {
        match self.section {
            Section::Request => self.at != At::LineStart,
            Section::Fields => !matches!(self.at, At::Body(_)),
            Section::Trailers | Section::ChunkSize => false,
        }
    }

    /// Every request that has begun has also ended.
    pub(super) fn is_between_requests(&self) -> bool {
        self.section == Section::Request && self.at == At::LineStart && !self.empty_line
    }

    /// Follows `bytes`, which come right after those of the last call.
    pub(super) fn check(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        let mut i = 0;
        while i < bytes.len() {
            i += match self.at {
                At::Body(left) | At::Chunk(left) => self.skip(left, bytes.len() - i),
                At::Rest => self.rest(&bytes[i..]).map_err(|at| Violation(i + at))?,
                _ => self.step(bytes[i]).ok_or(Violation(i))?,
            };
        }
        Ok(())
    }

    fn skip(&mut self, left: u64, have: usize) -> usize {
        let taken = usize::try_from(left).unwrap_or(usize::MAX).min(have);
        let left = left - taken as u64;
        match (self.at, left) {
            (At::Body(_), 0) => self.next_head(),
            (At::Body(_), _) => self.at = At::Body(left),
            (_, 0) => self.at = At::ChunkCr,
            (_, _) => self.at = At::Chunk(left),
        }
        taken
    }

    /// To the end of a line whose content does not matter here.
    fn rest(&mut self, bytes: &[u8]) -> Result<usize, usize> {
        let Some(lf) = memchr(b'\n', bytes) else {
            self.cr = bytes.last() == Some(&b'\r');
            return Ok(bytes.len());
        };
        let after_cr = match lf {
            0 => self.cr,
            _ => bytes[lf - 1] == b'\r',
        };
        if !after_cr {
            return Err(lf);
        }
        self.end_line();
        Ok(lf + 1)
    }

    /// One byte. Gives how many were taken (0: look at it again), None: refused.
    fn step(&mut self, byte: u8) -> Option<usize> {
        self.at = match (self.at, byte) {
            (At::LineStart, b'\r') => self.empty_line_begins()?,
            // RFC 9112 5.2: obsolete folding; and a bare LF is no line end (2.2).
            (At::LineStart, b'\n' | b' ' | b'\t') => return None,
            (At::LineStart, byte) => return self.line_begins(byte),
            (At::Name { wanted, matched }, byte) => {
                return self.name(wanted, matched, byte);
            }
            (At::LengthValue(Digits::None) | At::CodingValue { matched: 0 }, b' ' | b'\t') => {
                self.at
            }
            (At::LengthValue(_), b'0'..=b'9') => {
                let length = self.length.unwrap_or(0).checked_mul(10)?;
                self.length = Some(length.checked_add(u64::from(byte - b'0'))?);
                At::LengthValue(Digits::Some)
            }
            (At::LengthValue(Digits::Some) | At::Padding, b' ' | b'\t') => At::Padding,
            (At::LengthValue(Digits::Some) | At::Padding, b'\r') => At::LineLf,
            (At::CodingValue { matched }, byte) => coding(matched, byte)?,
            (At::LineLf, b'\n') => {
                self.end_line();
                return Some(1);
            }
            (At::EmptyLineLf, b'\n') => {
                self.end_section()?;
                return Some(1);
            }
            (At::ChunkSize(digits, size), byte) => self.chunk_size(digits, size, byte)?,
            (At::ChunkCr, b'\r') => At::ChunkLf,
            (At::ChunkLf, b'\n') => At::ChunkSize(Digits::None, 0),
            _ => return None,
        };
        Some(1)
    }

    fn empty_line_begins(&mut self) -> Option<At> {
        // RFC 9112 2.2: one empty line before a request line is an old client's habit.
        if self.section == Section::Request && std::mem::replace(&mut self.empty_line, true) {
            return None;
        }
        Some(At::EmptyLineLf)
    }

    fn line_begins(&mut self, byte: u8) -> Option<usize> {
        self.cr = false;
        let wanted = match byte {
            b'c' | b'C' => LENGTH,
            b't' | b'T' => CODING,
            _ => b"",
        };
        self.at = if self.section == Section::Request || wanted.is_empty() {
            At::Rest
        } else {
            At::Name { wanted, matched: 1 }
        };
        Some(1)
    }

    fn name(&mut self, wanted: &'static [u8], matched: usize, byte: u8) -> Option<usize> {
        match wanted.get(matched) {
            Some(letter) if letter.eq_ignore_ascii_case(&byte) => {
                let matched = matched + 1;
                self.at = At::Name { wanted, matched };
                Some(1)
            }
            None if byte == b':' => {
                self.at = self.framing_field(wanted)?;
                Some(1)
            }
            // Another name. `Content-Length :` ends here too; hyper refuses the space.
            _ => {
                self.at = At::Rest;
                Some(0)
            }
        }
    }

    /// RFC 9112 6.1 and 6.3: one length or one coding, once, and not in trailers.
    fn framing_field(&mut self, wanted: &[u8]) -> Option<At> {
        if self.section == Section::Trailers || self.length.is_some() || self.chunked {
            return None;
        }
        if wanted == LENGTH {
            return Some(At::LengthValue(Digits::None));
        }
        self.chunked = true;
        Some(At::CodingValue { matched: 0 })
    }

    fn chunk_size(&mut self, digits: Digits, size: u64, byte: u8) -> Option<At> {
        if let Some(digit) = (byte as char).to_digit(16) {
            let size = size.checked_mul(16)?.checked_add(u64::from(digit))?;
            return Some(At::ChunkSize(Digits::Some, size));
        }
        if digits == Digits::None {
            return None;
        }
        // The size is kept where the length of a body is: they never meet.
        self.length = Some(size);
        self.cr = false;
        match byte {
            b'\r' => Some(At::LineLf),
            b';' | b' ' | b'\t' => Some(At::Rest),
            _ => None,
        }
    }

    fn end_line(&mut self) {
        self.at = match self.section {
            Section::Request => {
                self.section = Section::Fields;
                At::LineStart
            }
            Section::Fields | Section::Trailers => At::LineStart,
            Section::ChunkSize => match self.length.take() {
                Some(size) if size > 0 => At::Chunk(size),
                _ => {
                    self.section = Section::Trailers;
                    At::LineStart
                }
            },
        };
    }

    /// After the empty line.
    fn end_section(&mut self) -> Option<()> {
        match self.section {
            Section::Request => self.at = At::LineStart,
            Section::Fields => self.end_head(),
            Section::Trailers => self.next_head(),
            Section::ChunkSize => return None,
        }
        Some(())
    }

    fn end_head(&mut self) {
        self.heads += 1;
        let length = self.length.take();
        if self.chunked {
            self.section = Section::ChunkSize;
            self.at = At::ChunkSize(Digits::None, 0);
        } else if let Some(length @ 1..) = length {
            self.at = At::Body(length);
        } else {
            self.next_head();
        }
    }

    fn next_head(&mut self) {
        *self = Self {
            heads: self.heads,
            ..Self::new()
        };
    }
}

/// The value of `Transfer-Encoding`: `chunked` and nothing else.
fn coding(matched: usize, byte: u8) -> Option<At> {
    match CHUNKED.get(matched) {
        Some(letter) if letter.eq_ignore_ascii_case(&byte) => Some(At::CodingValue {
            matched: matched + 1,
        }),
        Some(_) => None,
        None if byte == b'\r' => Some(At::LineLf),
        None if byte == b' ' || byte == b'\t' => Some(At::Padding),
        None => None,
    }
}
