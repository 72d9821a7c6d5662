//! The request line (RFC 9112 3), checked so that hyper accepts whatever passes.

use http::Uri;

use super::bytes::{Utf8Rest, is_path, is_query, is_token, run};
use super::fault::FramingFault;

const VERSION: &[u8] = b"HTTP/1.";

/// The position in a request line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinePart {
    Method,
    TargetBegin,
    Path,
    Query,
    QueryChar(Utf8Rest),
    /// After `*`.
    TargetEnd,
    /// Neither a path nor `*`: copied, and checked as a whole.
    OtherTarget,
    Version(usize),
    /// After the last digit of the version.
    Cr,
}

/// The part received so far of a target that is not a path, which is rare.
#[derive(Debug, Default)]
pub(super) struct OtherTarget(Vec<u8>);

impl OtherTarget {
    fn add(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn take_is_valid(&mut self) -> bool {
        Uri::try_from(std::mem::take(&mut self.0)).is_ok()
    }
}

/// The result of reading some bytes.
pub(super) struct LineStep {
    pub(super) part: LinePart,
    pub(super) taken: usize,
}

impl LinePart {
    /// Reads `bytes`, which are not empty. An error has the index of its byte.
    pub(super) fn read(self, bytes: &[u8], other: &mut OtherTarget) -> Result<LineStep, LineFault> {
        let next = |part, taken| Ok(LineStep { part, taken });
        match self {
            Self::Method => {
                let length = run(bytes, is_token);
                match &bytes[length..] {
                    [b' ', b'/', ..] => next(Self::Path, length + 2),
                    [b' ', ..] => next(Self::TargetBegin, length + 1),
                    [_, ..] => Err(LineFault(length, FramingFault::Method)),
                    [] => next(self, length),
                }
            }
            Self::TargetBegin => match bytes[0] {
                b'/' => next(Self::Path, 1),
                b'*' => next(Self::TargetEnd, 1),
                _ => next(Self::OtherTarget, 0),
            },
            Self::Path => {
                let length = run(bytes, is_path);
                match bytes.get(length) {
                    Some(b'?') => next(Self::Query, length + 1),
                    Some(b' ') => next(Self::Version(0), length + 1),
                    Some(_) => Err(LineFault(length, FramingFault::Target)),
                    None => next(self, length),
                }
            }
            Self::Query => {
                let length = run(bytes, is_query);
                match bytes.get(length) {
                    Some(b' ') => next(Self::Version(0), length + 1),
                    Some(&byte) => match Utf8Rest::after(byte) {
                        Some(rest) => next(Self::QueryChar(rest), length + 1),
                        None => Err(LineFault(length, FramingFault::Target)),
                    },
                    None => next(self, length),
                }
            }
            Self::QueryChar(rest) => match rest.next(bytes[0]) {
                Some(Some(rest)) => next(Self::QueryChar(rest), 1),
                Some(None) => next(Self::Query, 1),
                None => Err(LineFault(0, FramingFault::Target)),
            },
            Self::TargetEnd if bytes[0] == b' ' => next(Self::Version(0), 1),
            Self::TargetEnd => Err(LineFault(0, FramingFault::Target)),
            Self::OtherTarget => {
                let length = run(bytes, |byte| matches!(byte, b'!'..=b'~') && byte != b'#');
                other.add(&bytes[..length]);
                match bytes.get(length) {
                    Some(b' ') if other.take_is_valid() => next(Self::Version(0), length + 1),
                    Some(_) => Err(LineFault(length, FramingFault::Target)),
                    None => next(self, length),
                }
            }
            Self::Version(matched) => match VERSION.get(matched) {
                Some(wanted) if *wanted == bytes[0] => next(Self::Version(matched + 1), 1),
                None if matches!(bytes[0], b'0' | b'1') => next(Self::Cr, 1),
                _ => Err(LineFault(0, FramingFault::Version)),
            },
            Self::Cr => Err(LineFault(0, FramingFault::Version)),
        }
    }
}

/// A fault with the index of its byte.
pub(super) struct LineFault(pub(super) usize, pub(super) FramingFault);
