//! Our secret must not come down again: where an answer echoes it, it is overwritten
//! and the length kept.

use bytes::Bytes;

use crate::secret::Needle;

/// `piece` with each occurrence of the secret overwritten, its length unchanged.
pub(super) fn scrub(piece: Bytes, needle: &Needle) -> Bytes {
    needle.blotted_out(&piece).map_or(piece, Bytes::from)
}

/// The same for a body that arrives in pieces, wherever they are cut. A piece that
/// ends like the secret begins is held back by that much until the next one comes.
#[derive(Debug)]
pub(super) struct Scrubber {
    needle: Needle,
    /// How much of the body is still searched.
    left: usize,
    /// So many bytes of the secret's beginning are held back.
    held: usize,
}

impl Scrubber {
    /// Searches the first `reach` bytes.
    pub(super) fn new(needle: Needle, reach: usize) -> Self {
        Self {
            needle,
            left: reach,
            held: 0,
        }
    }

    /// What may go down now that `piece` has come; perhaps nothing yet.
    pub(super) fn next(&mut self, piece: Bytes) -> Bytes {
        if self.left == 0 && self.held == 0 {
            return piece;
        }
        self.left = self.left.saturating_sub(piece.len());
        let whole = match self.held {
            0 => piece,
            held => [self.beginning(held), &piece].concat().into(),
        };
        let mut clean = scrub(whole, &self.needle);
        self.held = match self.left {
            0 => 0,
            _ => self.ends_like_secret(&clean),
        };
        clean.truncate(clean.len() - self.held);
        clean
    }

    /// What was held back, when no more comes.
    pub(super) fn rest(&mut self) -> Option<Bytes> {
        match std::mem::take(&mut self.held) {
            0 => None,
            held => Some(Bytes::copy_from_slice(self.beginning(held))),
        }
    }

    pub(super) fn is_holding(&self) -> bool {
        self.held > 0
    }

    fn beginning(&self, length: usize) -> &[u8] {
        &self.needle.expose()[..length]
    }

    /// Length of the longest end of `piece` that the secret begins with.
    fn ends_like_secret(&self, piece: &[u8]) -> usize {
        let secret = self.needle.expose();
        let most = secret.len().saturating_sub(1).min(piece.len());
        let from = piece.len() - most;
        (from..piece.len())
            .find(|&at| secret.starts_with(&piece[at..]))
            .map_or(0, |at| piece.len() - at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::secret::Secret;

    fn needle(text: &str) -> Needle {
        Needle::new(&Secret::new(text))
    }

    const REACH: usize = 1 << 16;

    #[test]
    fn an_echoed_secret_is_overwritten_and_the_length_kept() {
        let body = Bytes::from_static(b"{\"a\":\"s3cret\",\"b\":\"s3crets3cret\"}");
        let clean = scrub(body.clone(), &needle("s3cret"));
        assert_eq!(clean.len(), body.len());
        assert_eq!(&clean[..], b"{\"a\":\"******\",\"b\":\"************\"}");
    }

    fn in_pieces(body: &[u8], cuts: &[usize], reach: usize) -> Vec<u8> {
        let mut scrubber = Scrubber::new(needle("abab-abac"), reach);
        let mut out = Vec::new();
        let mut from = 0;
        for &cut in cuts.iter().chain([&body.len()]) {
            let cut = cut.clamp(from, body.len());
            out.extend_from_slice(&scrubber.next(Bytes::copy_from_slice(&body[from..cut])));
            from = cut;
        }
        out.extend(scrubber.rest().into_iter().flatten());
        assert!(!scrubber.is_holding());
        out
    }

    #[test]
    fn what_is_not_held_goes_down_at_once() {
        let mut scrubber = Scrubber::new(needle("token"), REACH);
        assert_eq!(scrubber.next(Bytes::from_static(b"a to")), "a ");
        assert_eq!(scrubber.next(Bytes::from_static(b"p")), "top");
        assert_eq!(scrubber.next(Bytes::from_static(b"tok")), "");
        assert_eq!(scrubber.rest().unwrap(), "tok");
    }

    #[test]
    fn beyond_its_reach_nothing_is_held() {
        assert_eq!(in_pieces(b"0123abab", &[4], 4), b"0123abab");
    }

    proptest! {
        #[test]
        fn wherever_the_pieces_are_cut_the_outcome_is_that_of_the_whole(
            words in prop::collection::vec("(abab-abac|abab-|a|b|ac|x)", 0..12),
            mut cuts in prop::collection::vec(0..80usize, 0..8),
        ) {
            cuts.sort_unstable();
            let body = words.concat();
            let whole = scrub(Bytes::from(body.clone()), &needle("abab-abac"));
            prop_assert_eq!(in_pieces(body.as_bytes(), &cuts, REACH), whole.to_vec());
        }
    }
}
