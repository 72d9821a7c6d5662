//! From one section of a message to the next: request line, fields, chunks, trailers.

use super::fault::Fault;
use super::state::{At, Digits, Section};
use super::{LONGEST_TARGET, Wire};

impl Wire {
    pub(super) fn end_line(&mut self) -> Result<(), Fault> {
        self.at = match self.section {
            Section::Request if self.bytes > LONGEST_TARGET => return Err(Fault::TargetTooLong),
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
        Ok(())
    }

    /// After the empty line.
    pub(super) fn end_section(&mut self) -> Result<(), Fault> {
        match self.section {
            Section::Request => self.at = At::LineStart,
            Section::Fields => self.end_head(),
            Section::Trailers => self.next_head(),
            Section::ChunkSize => return Err(Fault::Chunk),
        }
        Ok(())
    }

    pub(super) fn end_head(&mut self) {
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

    pub(super) fn next_head(&mut self) {
        *self = Self {
            heads: self.heads,
            ..Self::new(self.limits)
        };
    }
}
