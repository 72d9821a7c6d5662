//! Chunk extensions, strictly by RFC 9112 7.1.1. Servers differ in what else they accept, and then in
//! where the chunk begins for them.

use super::bytes::{is_text, is_token};

/// The position in a chunk's size line after the size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChunkExtension {
    /// After the size or a quoted value, where a CR may follow.
    End,
    /// White space before `;`.
    Gap,
    BeforeName,
    Name,
    AfterName,
    BeforeValue,
    Value,
    Quoted,
    Escaped,
}

/// The result of one byte.
pub(super) enum ExtensionStep {
    Stay(ChunkExtension),
    /// The byte was the CR.
    LineEnds,
}

impl ChunkExtension {
    /// The result of `byte`; None if it is not allowed here.
    pub(super) fn next(self, byte: u8) -> Option<ExtensionStep> {
        Some(ExtensionStep::Stay(match (self, byte) {
            (Self::End | Self::Name | Self::Value, b'\r') => return Some(ExtensionStep::LineEnds),
            (Self::End | Self::Gap | Self::Name | Self::AfterName | Self::Value, b';') => {
                Self::BeforeName
            }
            (Self::End | Self::Gap | Self::Value, b' ' | b'\t') => Self::Gap,
            (Self::Name | Self::AfterName, b' ' | b'\t') => Self::AfterName,
            (Self::Name | Self::AfterName, b'=') => Self::BeforeValue,
            (Self::BeforeName | Self::BeforeValue, b' ' | b'\t') => self,
            (Self::BeforeName | Self::Name, byte) if is_token(byte) => Self::Name,
            (Self::BeforeValue, b'"') => Self::Quoted,
            (Self::BeforeValue | Self::Value, byte) if is_token(byte) => Self::Value,
            (Self::Quoted, b'"') => Self::End,
            (Self::Quoted, b'\\') => Self::Escaped,
            (Self::Quoted | Self::Escaped, byte) if is_text(byte) => Self::Quoted,
            _ => return None,
        }))
    }
}
