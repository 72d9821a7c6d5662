//! Transitions between the sections of a message: request line, fields, chunks, trailers.

use super::chunk_extension::{ChunkExtension, ExtensionStep};
use super::fault::FramingFault;
use super::parse_position::{DigitState, LineSection, ParsePosition};
use super::{Http1FramingGuard, MAX_TARGET};

impl Http1FramingGuard {
    pub(super) fn end_line(&mut self) -> Result<(), FramingFault> {
        self.at = match self.section {
            LineSection::Request if self.bytes > MAX_TARGET => {
                return Err(FramingFault::TargetTooLong);
            }
            LineSection::Request => {
                self.section = LineSection::Fields;
                ParsePosition::LineStart
            }
            LineSection::Fields | LineSection::Trailers => ParsePosition::LineStart,
            LineSection::ChunkSize => match self.length.take() {
                Some(size) if size > 0 => ParsePosition::Chunk(size),
                _ => {
                    self.section = LineSection::Trailers;
                    ParsePosition::LineStart
                }
            },
        };
        Ok(())
    }

    /// After the empty line.
    pub(super) fn end_section(&mut self) -> Result<(), FramingFault> {
        match self.section {
            LineSection::Request => self.at = ParsePosition::LineStart,
            LineSection::Fields => self.end_head(),
            LineSection::Trailers => self.next_head(),
            LineSection::ChunkSize => return Err(FramingFault::Chunk),
        }
        Ok(())
    }

    pub(super) fn end_head(&mut self) {
        self.heads += 1;
        let length = self.length.take();
        if self.chunked {
            self.section = LineSection::ChunkSize;
            self.at = ParsePosition::ChunkSize(DigitState::None, 0);
        } else if let Some(length @ 1..) = length {
            self.at = ParsePosition::Body(length);
        } else {
            self.next_head();
        }
    }

    pub(super) fn next_head(&mut self) {
        *self = Self {
            heads: self.heads,
            ..Self::new(self.limits)
        };
    }

    /// Takes a byte of a chunk's size line up to its extension.
    pub(super) fn chunk_size(
        &mut self,
        digits: DigitState,
        size: u64,
        byte: u8,
    ) -> Result<ParsePosition, FramingFault> {
        if let Some(digit) = (byte as char).to_digit(16) {
            let size = size.checked_mul(16).ok_or(FramingFault::Chunk)? + u64::from(digit);
            return Ok(ParsePosition::ChunkSize(DigitState::Some, size));
        }
        // Stored in the same field as the length of a body; a message never has both.
        self.length = Some(size);
        let next = ChunkExtension::End.next(byte);
        match next {
            Some(ExtensionStep::LineEnds) if digits == DigitState::Some => {
                Ok(ParsePosition::LineLf)
            }
            Some(ExtensionStep::Stay(next)) if digits == DigitState::Some => {
                Ok(ParsePosition::Extension(next))
            }
            _ => Err(FramingFault::Chunk),
        }
    }
}
