//! The bytes allowed in tokens, targets and field values (RFC 9110 5.6.2, RFC 9112 3.2 and 7.1.1).

/// Class of the bytes of a token.
const TOKEN: u8 = 1;
/// Classes of the bytes of a path and of a query, as the `http` crate accepts them, without `#`.
const PATH: u8 = 2;
const QUERY: u8 = 4;

const CLASSES: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    let mut classes = [0; 256];
    let mut at = 0;
    while at < 128 {
        #[expect(clippy::cast_possible_truncation, reason = "it is below 128")]
        let byte = at as u8;
        classes[at] = class(byte);
        at += 1;
    }
    classes
}

const fn class(byte: u8) -> u8 {
    let mut class = 0;
    if byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_'
        )
        || matches!(byte, b'`' | b'|' | b'~')
    {
        class |= TOKEN;
    }
    let common = matches!(byte, 0x21 | 0x24..=0x3b | 0x3d | 0x40..=0x5f | 0x61..=0x7e);
    if common || byte == b'"' {
        class |= PATH;
    }
    if common || matches!(byte, b'?' | b'`') {
        class |= QUERY;
    }
    class
}

pub(super) fn is_token(byte: u8) -> bool {
    CLASSES[usize::from(byte)] & TOKEN != 0
}

pub(super) fn is_path(byte: u8) -> bool {
    CLASSES[usize::from(byte)] & PATH != 0
}

pub(super) fn is_query(byte: u8) -> bool {
    CLASSES[usize::from(byte)] & QUERY != 0
}

/// Whether a byte is allowed in a field value or a quoted string. The caller handles `"` and `\`.
pub(super) fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// Index of the first byte that is not allowed in a field value.
pub(super) fn control(value: &[u8]) -> Option<usize> {
    // Without branches, so that it takes few instructions for a whole line.
    let is_bad = |byte: &u8| ((*byte < b' ') & (*byte != b'\t')) | (*byte == 0x7f);
    let any = value.iter().fold(false, |any, byte| any | is_bad(byte));
    if any {
        value.iter().position(is_bad)
    } else {
        None
    }
}

/// Number of bytes at the beginning of `bytes` that are allowed in a field value.
pub(super) fn text_run(bytes: &[u8]) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x80 * ONES;
    let mut at = 0;
    // Eight bytes at a time while none of them is a control character, a tab included.
    while let Some(word) = bytes[at..].first_chunk() {
        let word = u64::from_le_bytes(*word);
        let below_space = word.wrapping_sub(0x20 * ONES) & !word;
        let delete = word ^ (0x7f * ONES);
        let is_delete = delete.wrapping_sub(ONES) & !delete;
        let found = (below_space | is_delete) & HIGH;
        if found == 0 {
            at += 8;
            continue;
        }
        // The lowest match is exact; a borrow may cause false ones above it.
        at += found.trailing_zeros() as usize / 8;
        if !is_text(bytes[at]) {
            return at;
        }
        at += 1;
    }
    at + run(&bytes[at..], is_text)
}

/// Number of bytes at the beginning of `bytes` that satisfy `is_one`.
pub(super) fn run(bytes: &[u8], is_one: impl Fn(u8) -> bool) -> usize {
    let end = bytes.iter().position(|byte| !is_one(*byte));
    end.unwrap_or(bytes.len())
}

/// The rest of a UTF-8 character (RFC 3629 4): the number of bytes that follow, and the range of the
/// next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Utf8Rest {
    left: u8,
    low: u8,
    high: u8,
}

impl Utf8Rest {
    /// The rest after a first byte of 0x80 or more; None if it is invalid.
    pub(super) fn after(first: u8) -> Option<Self> {
        let (left, low, high) = match first {
            0xc2..=0xdf => (1, 0x80, 0xbf),
            0xe0 => (2, 0xa0, 0xbf),
            0xed => (2, 0x80, 0x9f),
            0xe1..=0xef => (2, 0x80, 0xbf),
            0xf0 => (3, 0x90, 0xbf),
            0xf1..=0xf3 => (3, 0x80, 0xbf),
            0xf4 => (3, 0x80, 0x8f),
            _ => return None,
        };
        Some(Self { left, low, high })
    }

    /// The rest after one more byte. None: the byte is invalid; `Some(None)`: the character is
    /// complete.
    pub(super) fn next(self, byte: u8) -> Option<Option<Self>> {
        if !(self.low..=self.high).contains(&byte) {
            return None;
        }
        Some((self.left > 1).then_some(Self {
            left: self.left - 1,
            low: 0x80,
            high: 0xbf,
        }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_run_of_text_ends_at_the_first_control_character(
            bytes in prop::collection::vec(
                prop_oneof![8 => 0x20..0x7f_u8, 1 => any::<u8>(), 1 => Just(b'\t')],
                0..80,
            ),
        ) {
            prop_assert_eq!(text_run(&bytes), run(&bytes, is_text));
        }
    }
}
