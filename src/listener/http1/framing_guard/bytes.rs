//! Which bytes may stand where (RFC 9110 5.6.2, RFC 9112 3.2 and 7.1.1).

/// Of a token.
const TOKEN: u8 = 1;
/// Of a path, and of a query; as the `http` crate reads them, without `#`.
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

/// Of a field value, a quoted text or what is escaped in one; `"` and `\` are the caller's.
pub(super) fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// The first byte that may not stand in a field value.
pub(super) fn control(value: &[u8]) -> Option<usize> {
    // Without a branch in it, so that it is a few instructions for a whole line.
    let is_bad = |byte: &u8| ((*byte < b' ') & (*byte != b'\t')) | (*byte == 0x7f);
    let any = value.iter().fold(false, |any, byte| any | is_bad(byte));
    if any {
        value.iter().position(is_bad)
    } else {
        None
    }
}

/// How many bytes at the beginning of `bytes` may stand in a field value.
pub(super) fn text_run(bytes: &[u8]) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x80 * ONES;
    let mut at = 0;
    // Eight bytes at a time, as long as none of them is a control character; a tab is one here.
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
        // The lowest one found is exact; a borrow may make up others above it.
        at += found.trailing_zeros() as usize / 8;
        if !is_text(bytes[at]) {
            return at;
        }
        at += 1;
    }
    at + run(&bytes[at..], is_text)
}

/// How many bytes at the beginning of `bytes` are of a kind.
pub(super) fn run(bytes: &[u8], is_one: impl Fn(u8) -> bool) -> usize {
    let end = bytes.iter().position(|byte| !is_one(*byte));
    end.unwrap_or(bytes.len())
}

/// The rest of a character of UTF-8 (RFC 3629 4): how many bytes follow, and the range of
/// the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Utf8Rest {
    left: u8,
    low: u8,
    high: u8,
}

impl Utf8Rest {
    /// After a first byte from 0x80 up.
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

    /// After one byte more; None in `Some`: the character is whole.
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
        fn a_run_of_text_ends_where_the_first_control_character_stands(
            bytes in prop::collection::vec(
                prop_oneof![8 => 0x20..0x7f_u8, 1 => any::<u8>(), 1 => Just(b'\t')],
                0..80,
            ),
        ) {
            prop_assert_eq!(text_run(&bytes), run(&bytes, is_text));
        }
    }
}
